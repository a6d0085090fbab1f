//! The harness's filters: how the answer to compare is taken from a generated text.

use fancy_regex::Regex;
use serde::Deserialize;

use super::{Doc, Templates, template::strip};

/// A filter of generated answers: its name in results, and its steps.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    pub name: String,
    #[serde(default)]
    steps: Vec<FilterStep>,
}

impl Default for Filter {
    fn default() -> Self {
        Self { name: "none".into(), steps: vec![] }
    }
}

/// A step of a filter, over all answers to a document.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum FilterStep {
    /// Removes white space at both ends.
    Strip,
    /// Keeps the first or last match of the expression, or the first group of the match that is not
    /// empty.
    Regex {
        pattern: Expression,
        #[serde(default)]
        last: bool,
    },
    /// Keeps the first answers.
    First(usize),
    /// Keeps the most frequent answer; the first of equally frequent ones.
    Majority,
    /// Renders a template over the document and `response`.
    Template(String),
}

/// The harness's answer where an expression does not match.
const NO_MATCH: &str = "[invalid]";

impl Filter {
    /// Checks that the filter can be applied to `repeats` answers to a document.
    ///
    /// # Errors
    /// A step takes no answers, or more than there are. The message says which.
    pub fn check(&self, repeats: usize) -> Result<(), String> {
        self.steps.iter().try_for_each(|step| match step {
            FilterStep::First(n) if *n == 0 || *n > repeats => {
                Err(format!("the filter {} takes the first {n} of {repeats} answers", self.name))
            }
            _ => Ok(()),
        })
    }

    /// Returns the answer to compare, from a document's generated answers.
    ///
    /// # Errors
    /// An expression takes too long, a template cannot be rendered, or no answer is left.
    pub fn apply(&self, answers: &[String], doc: &Doc) -> Result<String, String> {
        let mut answers = answers.to_vec();
        for step in &self.steps {
            match step {
                FilterStep::Strip => answers.iter_mut().for_each(|answer| *answer = strip(answer).to_owned()),
                FilterStep::Regex { pattern, last } => {
                    for answer in &mut answers {
                        *answer = found(&pattern.0, answer, *last).map_err(|e| e.to_string())?;
                    }
                }
                FilterStep::First(n) => answers.truncate(*n),
                FilterStep::Majority => {
                    let count = |answer: &String| answers.iter().filter(|other| *other == answer).count();
                    // The last of the largest is the first one, from behind.
                    let most = answers.iter().rev().max_by_key(|answer| count(answer)).cloned();
                    answers = most.into_iter().collect();
                }
                FilterStep::Template(template) => {
                    for answer in &mut answers {
                        let mut values = doc.clone();
                        values.insert("response".into(), answer.as_str().into());
                        *answer = Templates::default().render(template, &values)?;
                    }
                }
            }
        }
        answers.into_iter().next().ok_or_else(|| "there is no answer".to_owned())
    }
}

/// A regular expression as Python has them, with look-behind and look-ahead.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Expression(pub Regex);

impl TryFrom<String> for Expression {
    type Error = String;

    fn try_from(pattern: String) -> Result<Self, String> {
        Regex::new(&pattern).map(Self).map_err(|e| format!("{pattern:?} is no regular expression: {e}"))
    }
}

/// Compiles an expression of our own.
///
/// # Panics
/// If it is not valid.
pub(super) fn expression(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the expression is right")
}

fn found(regex: &Regex, text: &str, last: bool) -> Result<String, fancy_regex::Error> {
    let mut matches = regex.captures_iter(text);
    let chosen = if last { matches.last() } else { matches.next() }.transpose()?;
    let Some(chosen) = chosen else { return Ok(NO_MATCH.into()) };
    let group = |i: usize| chosen.get(i).map_or("", |m| m.as_str());
    let part = match chosen.len() {
        1 => group(0),
        // A single group counts even if it is empty.
        2 => group(1),
        groups => (1..groups).map(group).find(|part| !part.is_empty()).unwrap_or(NO_MATCH),
    };
    Ok(strip(part).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(steps: &str, answers: &[&str]) -> String {
        let filter: Filter = toml::from_str(&format!("name = 'x'\nsteps = [{steps}]")).unwrap();
        filter.check(answers.len()).unwrap();
        filter.apply(&answers.iter().map(|&answer| answer.to_owned()).collect::<Vec<_>>(), &Doc::default()).unwrap()
    }

    #[test]
    fn answers_are_read_as_the_harness_reads_them() {
        let flexible = "{ regex = { pattern = '(-?[$0-9.,]{2,})|(-?[0-9]+)', last = true } }";
        assert_eq!(read(flexible, &["it is 7 of $1,234. or 5"]), "5");
        assert_eq!(read(flexible, &["none"]), "[invalid]");
        assert_eq!(read("{ regex = { pattern = '#### (\\-?[0-9\\.\\,]+)' } }", &["so\n#### 1,2 or #### 3"]), "1,2");
        assert_eq!(
            read("{ regex = { pattern = '(?<=the answer is )(.*)(?=.)' } }", &["So the answer is (A).\nQ"]),
            "(A)"
        );
        assert_eq!(read("'strip'", &[" Paris \n"]), "Paris");
        let vote = ["b", "a", "c", "a", "b"];
        assert_eq!(read("'majority'", &vote), "b");
        assert_eq!(read("{ first = 4 }, 'majority'", &vote), "a");
        assert_eq!(read("{ template = '[{{response}}]' }", &["x"]), "[x]");
    }
}
