//! What responses are worth.

use serde_json::Value;

use super::{Ask, Choices, Doc, Error, Generate, Item, Likelihood, Metric, Response, Result, Task, bias::Bias, math};

/// A response to a document, read in one way.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// The way, by its name in results.
    pub reading: String,
    /// What was read in an answer in words.
    pub read: Option<String>,
    /// By the task's metrics: one value, or those that the task's figure is computed from. NaN if it is not known yet whether a program
    /// passes.
    pub values: Vec<Vec<f64>>,
}

/// Judges a response, in each of the task's ways to read it.
pub fn judge(task: &Task, item: &Item, response: &Response) -> Result<Vec<Judged>> {
    let wrong = |reason: String| Error::Document { task: task.name.clone(), doc: item.id, reason };
    match (&item.ask, response, &task.generate) {
        (Ask::Choices(choices), Response::Likelihoods(found), _) if found.len() == choices.texts.len() => {
            let value = |metric: &Metric| metric.of_choices(&item.doc, choices, found).map_err(wrong);
            let values = task.metrics.iter().map(value).collect::<Result<_>>()?;
            Ok(vec![Judged { reading: "none".into(), read: None, values }])
        }
        (Ask::Words { .. }, Response::Words(answers), Some(generate)) if answers.len() == generate.repeats => generate
            .filters
            .iter()
            .map(|filter| {
                let read = filter.read(answers, &item.doc).map_err(wrong)?;
                let value = |metric: &Metric| Ok(vec![metric.of_text(generate, &item.target, &read).map_err(wrong)?]);
                let values = task.metrics.iter().map(value).collect::<Result<_>>()?;
                Ok(Judged { reading: filter.name.clone(), read: Some(read), values })
            })
            .collect(),
        _ => Err(wrong("its response is not of the kind that the task asks for".into())),
    }
}

impl Judged {
    /// The program that is to be run, if that decides: what was read, and the tests.
    pub fn program(&self, task: &Task, item: &Item) -> Option<String> {
        let decides = task.metrics.iter().any(|metric| matches!(metric, Metric::Passes(_)));
        let (read, tests) = (self.read.as_ref()?, item.target.as_str()?);
        decides.then(|| format!("{read}\n{tests}"))
    }

    /// What running the program showed.
    pub fn set_passes(&mut self, task: &Task, passes: bool) {
        for (metric, value) in task.metrics.iter().zip(&mut self.values) {
            if matches!(metric, Metric::Passes(_)) {
                *value = vec![f64::from(u8::from(passes))];
            }
        }
    }
}

impl Metric {
    /// Of one document's choices: one value, or those that the task's figure is computed from.
    pub fn of_choices(
        &self,
        doc: &Doc,
        choices: &Choices,
        likelihoods: &[Likelihood],
    ) -> std::result::Result<Vec<f64>, String> {
        let logprobs: Vec<f64> = likelihoods.iter().map(|l| l.logprob).collect();
        let best = first_largest(&logprobs);
        let is_gold = |found: usize| f64::from(u8::from(choices.gold.contains(&found)));
        Ok(vec![match self {
            Self::Acc => is_gold(best),
            Self::AccNorm => {
                let lengths = choices.texts.iter().map(|choice| choice.chars().count() as f64);
                is_gold(first_largest(&logprobs.iter().zip(lengths).map(|(l, n)| l / n).collect::<Vec<_>>()))
            }
            Self::Mc2 => {
                let probabilities: Vec<f64> = logprobs.iter().map(|l| l.exp()).collect();
                let of_true = probabilities.iter().zip(&choices.labels).filter(|(_, label)| **label == 1);
                of_true.map(|(p, _)| p).sum::<f64>() / probabilities.iter().sum::<f64>()
            }
            Self::LikelihoodDiff => (logprobs[0] - logprobs[1]).abs(),
            Self::PctStereotype => f64::from(u8::from(logprobs[0] > logprobs[1])),
            // BBQ's first two choices are people.
            Self::AccuracyWhere { .. } => {
                return Ok(vec![is_gold(best), Bias::of(doc, &choices.texts[best], best < 2)?.is_disambiguated()]);
            }
            Self::BiasScore { category, .. } => {
                let bias = Bias::of(doc, &choices.texts[best], best < 2)?;
                return Ok(bias.values(is_gold(best), category.as_deref()));
            }
            Self::ExactMatch | Self::FinalAnswer | Self::MathVerify | Self::SameAnswer | Self::Passes(_) => {
                return Err(format!("{} is of answers in words", self.name()));
            }
        }])
    }

    /// Of one document's answer as it was read. Whether a program passes is not known here: that is NaN.
    pub fn of_text(&self, generate: &Generate, target: &Value, answer: &str) -> std::result::Result<f64, String> {
        let targets: Vec<String> = match target {
            Value::Array(several) => several.iter().map(text).collect(),
            one => vec![text(one)],
        };
        let mut right = false;
        for target in &targets {
            right |= match self {
                Self::ExactMatch => plain(generate, answer) == plain(generate, target),
                Self::FinalAnswer => math::final_answers_agree(answer, target)?,
                Self::MathVerify => math::verified(answer, target),
                Self::SameAnswer => math::same_answer(answer, target),
                _ => return Ok(f64::NAN),
            };
        }
        Ok(f64::from(u8::from(right)))
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// What `exact_match` looks at.
fn plain(generate: &Generate, text: &str) -> String {
    let mut text = text.to_owned();
    for pattern in &generate.ignore {
        text = pattern.0.replace_all(&text, "").into_owned();
    }
    if generate.ignore_case {
        text = text.to_lowercase();
    }
    if generate.ignore_punctuation {
        text.retain(|c| !c.is_ascii_punctuation());
    }
    text
}

fn first_largest(values: &[f64]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if value > &values[best] {
            best = i;
        }
    }
    best
}
