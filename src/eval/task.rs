//! Tasks: what is asked, of which data, and what counts. Each is a readable file in `tasks/`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Doc, Filter, Metric, Templates, filter::Expression};

/// A task as its file says. Texts are Jinja templates over a document's fields; expressions are Jinja expressions.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// As in lm-evaluation-harness.
    pub name: String,
    /// The harness's version of the task: a number, or a word.
    pub version: toml::Value,
    /// The dataset's name on the hub; a template over `subject`.
    pub dataset: String,
    /// Its configuration, where it has several; a template over `subject`.
    pub config: Option<String>,
    /// The split that is evaluated.
    pub split: String,
    pub shots: Option<Shots>,
    /// How many examples to give, unless asked otherwise.
    #[serde(default)]
    pub num_fewshot: usize,
    /// Text before everything; a template over `subject`.
    #[serde(default)]
    pub description: String,
    /// The question.
    #[serde(default)]
    pub text: String,
    /// Expression: the answers to choose from.
    pub choices: Option<String>,
    /// Expressions, where the choice is in the question and what follows it is scored: the questions, and what follows.
    pub contexts: Option<String>,
    pub continuation: Option<String>,
    /// How to answer in words, where there is nothing to choose from.
    pub generate: Option<Generate>,
    /// Expression: the right choice's number, or itself, or several; where answers are in words, what is right.
    pub target: String,
    /// Expression: for each choice, whether it is true; for `mc2`.
    pub labels: Option<String>,
    /// What templates and expressions know beside a document's fields.
    #[serde(default)]
    pub values: Doc,
    /// Between question and answer.
    #[serde(default = "space")]
    pub delimiter: String,
    /// After each example.
    #[serde(default = "empty_line")]
    pub shot_delimiter: String,
    pub metrics: Vec<Metric>,
    /// What the model card says.
    pub card: Option<Card>,
    /// The group it belongs to, with its subjects if it has some, if that is not its name.
    group: Option<String>,
    /// Each a task of its own with the name `{name}_{subject}`.
    #[serde(default)]
    pub subjects: Subjects,
    /// What differs for a subject.
    #[serde(default)]
    subject: BTreeMap<String, Subject>,
    /// Of a subject's task: its name.
    #[serde(skip)]
    pub of_subject: Option<String>,
    /// The names of the groups that it belongs to, the largest first.
    #[serde(skip)]
    pub groups: Vec<String>,
}

fn space() -> String {
    " ".into()
}

fn empty_line() -> String {
    "\n\n".into()
}

/// Parts of a benchmark, as a list, or in groups: these are named `{name}_{group}`.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Subjects {
    List(Vec<String>),
    Groups(BTreeMap<String, Vec<String>>),
}

impl Default for Subjects {
    fn default() -> Self {
        Self::List(vec![])
    }
}

impl Subjects {
    pub fn len(&self) -> usize {
        self.each().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Subjects with their groups' names.
    fn each(&self) -> Vec<(Option<&str>, &str)> {
        match self {
            Self::List(list) => list.iter().map(|subject| (None, subject.as_str())).collect(),
            Self::Groups(groups) => groups
                .iter()
                .flat_map(|(group, list)| list.iter().map(move |subject| (Some(group.as_str()), subject.as_str())))
                .collect(),
        }
    }
}

/// What differs for a subject.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Subject {
    description: Option<String>,
    samples: Option<Vec<Doc>>,
    #[serde(default)]
    values: Doc,
}

/// Where examples come from.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shots {
    /// A split of the dataset; without it, the task's own samples.
    pub split: Option<String>,
    #[serde(default)]
    pub samples: Vec<Doc>,
    /// The first ones, instead of some drawn at random for each document.
    #[serde(default)]
    pub first_n: bool,
    /// One more is drawn than is needed, and the document itself is left out: what the harness does where a task names neither a
    /// test split nor one for examples.
    #[serde(default)]
    pub one_more: bool,
}

/// How answers in words are made and read.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    /// What ends an answer, and is not part of it.
    pub until: Vec<String>,
    /// Its most tokens.
    #[serde(default = "max_tokens")]
    pub max_tokens: usize,
    /// The likeliest token each time if 0.
    #[serde(default)]
    pub temperature: f32,
    /// Only so many of the likeliest tokens are drawn from; 0 for all.
    #[serde(default)]
    pub top_k: i32,
    /// How many answers to each document.
    #[serde(default = "one")]
    pub repeats: usize,
    /// Ways to read an answer: each gives figures of its own.
    #[serde(default = "as_it_is")]
    pub filters: Vec<Filter>,
    /// What `exact_match` does not look at, in answers and targets: what these expressions match, ...
    #[serde(default)]
    pub ignore: Vec<Expression>,
    /// ... case ...
    #[serde(default)]
    pub ignore_case: bool,
    /// ... and ASCII's punctuation.
    #[serde(default)]
    pub ignore_punctuation: bool,
}

/// The harness's own limit.
fn max_tokens() -> usize {
    256
}

fn one() -> usize {
    1
}

fn as_it_is() -> Vec<Filter> {
    vec![Filter::default()]
}

/// What the model card says of the pretrained models, in percent.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    pub metric: Metric,
    pub shots: usize,
    #[serde(rename = "2b")]
    pub two_b: f64,
    #[serde(rename = "7b")]
    pub seven_b: f64,
}

impl Task {
    /// A task from its file's text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut task: Self = toml::from_str(text).map_err(|e| e.to_string().trim().to_owned())?;
        let kinds = [task.choices.is_some(), task.contexts.is_some(), task.generate.is_some()];
        if kinds.iter().filter(|kind| **kind).count() != 1 || task.contexts.is_some() != task.continuation.is_some() {
            return Err("it needs one of choices, contexts with a continuation, and generate".into());
        }
        if let Some(metric) = task.metrics.iter().find(|metric| metric.is_of_text() != task.generate.is_some()) {
            let kind = if metric.is_of_text() { "answers in words" } else { "choices" };
            return Err(format!("its metric {} is of {kind}", metric.name()));
        }
        if let Some(generate) = &task.generate {
            if generate.max_tokens == 0 || generate.repeats == 0 || generate.filters.is_empty() {
                return Err("generate needs max_tokens, repeats and filters of at least 1".into());
            }
            generate.filters.iter().try_for_each(|filter| filter.check(generate.repeats))?;
        }
        task.groups.extend(task.group.clone());
        Ok(task)
    }

    /// The tasks of its subjects, or itself.
    pub fn parts(&self) -> Result<Vec<Self>, String> {
        if self.subjects.is_empty() {
            return Ok(vec![self.clone()]);
        }
        self.subjects.each().into_iter().map(|(group, subject)| self.part(group, subject)).collect()
    }

    fn part(&self, group: Option<&str>, subject: &str) -> Result<Self, String> {
        let templates = Templates::default();
        let values = serde_json::json!({"subject": subject});
        let of_subject = |template: &String| templates.render(template, &values);
        let whole = self.group.as_ref().unwrap_or(&self.name);
        let own = self.subject.get(subject).cloned().unwrap_or_default();
        let shots =
            self.shots.clone().map(|shots| Shots { samples: own.samples.unwrap_or(shots.samples.clone()), ..shots });
        Ok(Self {
            name: format!("{}_{subject}", self.name),
            dataset: of_subject(&self.dataset)?,
            config: self.config.as_ref().map(of_subject).transpose()?,
            description: own.description.map_or_else(|| of_subject(&self.description), Ok)?,
            shots,
            values: self.values.clone().into_iter().chain(own.values).collect(),
            groups: std::iter::once(whole.clone()).chain(group.map(|group| format!("{whole}_{group}"))).collect(),
            of_subject: Some(subject.to_owned()),
            subjects: Subjects::default(),
            subject: BTreeMap::new(),
            ..self.clone()
        })
    }

    /// The ways to read an answer, by their names in results.
    pub fn readings(&self) -> Vec<&str> {
        self.generate.as_ref().map_or_else(|| vec!["none"], |g| g.filters.iter().map(|f| f.name.as_str()).collect())
    }
}
