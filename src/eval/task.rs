//! Tasks: which dataset, how its documents become prompts, which metrics. Each is a TOML file in
//! `tasks/`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Doc, Filter, Metric, Templates, filter::Expression};

/// A task, as its file describes it. Texts are Jinja templates over a document's fields;
/// expressions are Jinja's.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// The name that lm-evaluation-harness gives it.
    pub name: String,
    /// The harness's version of the task: a number, or a word.
    pub version: toml::Value,
    /// The dataset's name on the hub; a template over `subject`.
    pub dataset: String,
    /// The dataset's configuration, where it has several; a template over `subject`.
    pub config: Option<String>,
    /// The split that is evaluated.
    pub split: String,
    /// The split's file below the dataset's folder, where its name does not follow the hub's
    /// layout; a template over `subject`.
    pub file: Option<String>,
    /// A field that holds a list: each of its elements becomes a document of its own, with the
    /// element in the field's place.
    pub explode: Option<String>,
    pub shots: Option<FewShot>,
    /// Few-shot examples in each prompt, unless the command line says otherwise.
    #[serde(default)]
    pub num_fewshot: usize,
    /// Text at the beginning of each prompt; a template over `subject`.
    #[serde(default)]
    pub description: String,
    /// The question, a template.
    #[serde(default)]
    pub text: String,
    /// Expression: the choices.
    pub choices: Option<String>,
    /// Expressions for tasks whose choice is in the question: the questions, and the continuation
    /// that is scored.
    pub contexts: Option<String>,
    pub continuation: Option<String>,
    /// The generation of answers, in tasks without choices.
    pub generate: Option<GenerationConfig>,
    /// Expression: the right choice's index, or its text, or several of them; for generated
    /// answers, the right answer.
    pub target: String,
    /// Expression: for each choice 1 if it is true and 0 if not; for `mc2`.
    pub labels: Option<String>,
    /// Constants for templates and expressions, beside a document's fields.
    #[serde(default)]
    pub values: Doc,
    /// Text between question and answer.
    #[serde(default = "space")]
    pub delimiter: String,
    /// Text after each example.
    #[serde(default = "empty_line")]
    pub shot_delimiter: String,
    pub metrics: Vec<Metric>,
    /// The model card's scores for this task.
    #[serde(default)]
    pub(super) card: Vec<ModelCardScores>,
    /// The group that the task and its subjects belong to; the task's own name if it is left out
    /// and there are subjects.
    group: Option<String>,
    /// Parts of the task, each a task of its own with the name `{name}_{subject}`.
    #[serde(default)]
    pub subjects: Subjects,
    /// The settings of single subjects.
    #[serde(default)]
    subject: BTreeMap<String, Subject>,
    /// The subject's name, in the task of one.
    #[serde(skip)]
    pub of_subject: Option<String>,
    /// The names of the groups that the task belongs to, the largest first.
    #[serde(skip)]
    pub groups: Vec<String>,
}

fn space() -> String {
    " ".into()
}

fn empty_line() -> String {
    "\n\n".into()
}

/// The parts of a benchmark: a list, or lists by group. A group is named `{name}_{group}`.
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
    /// Returns the number of subjects.
    pub fn len(&self) -> usize {
        self.each().len()
    }

    /// Returns whether there are no subjects.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns each subject with its group's name, if it has one.
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

/// Settings of one subject that replace the task's.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Subject {
    description: Option<String>,
    samples: Option<Vec<Doc>>,
    #[serde(default)]
    values: Doc,
}

/// The source of few-shot examples.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FewShot {
    /// The split of the dataset; `None` for the task's own samples.
    pub split: Option<String>,
    #[serde(default)]
    pub samples: Vec<Doc>,
    /// Takes the first examples, instead of drawing some at random for each document.
    #[serde(default)]
    pub first_n: bool,
    /// Draws one example more than is needed, and leaves the document itself out. The harness does
    /// so where a task names neither a test split nor one for examples.
    #[serde(default)]
    pub one_more: bool,
}

/// The generation and filtering of answers. The harness calls the first part `generation_kwargs`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerationConfig {
    /// Strings that end an answer and are not part of it.
    pub until: Vec<String>,
    /// The most tokens of an answer.
    #[serde(default = "max_tokens")]
    pub max_tokens: usize,
    /// 0 for greedy decoding.
    #[serde(default)]
    pub temperature: f32,
    /// Samples from this many of the likeliest tokens; 0 for all.
    #[serde(default)]
    pub top_k: i32,
    /// Answers to each document.
    #[serde(default = "one_repeat")]
    pub repeats: usize,
    /// Filters of answers; each has results of its own.
    #[serde(default = "no_filter")]
    pub filters: Vec<Filter>,
    /// What `exact_match` ignores in answers and targets: matches of these expressions, ...
    #[serde(default)]
    pub ignore: Vec<Expression>,
    /// ... case ...
    #[serde(default)]
    pub ignore_case: bool,
    /// ... and ASCII's punctuation.
    #[serde(default)]
    pub ignore_punctuation: bool,
}

/// The harness's default for `max_gen_toks`.
fn max_tokens() -> usize {
    256
}

fn one_repeat() -> usize {
    1
}

fn no_filter() -> Vec<Filter> {
    vec![Filter::default()]
}

/// The model card's scores of the pretrained models, in percent.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelCardScores {
    /// The group of subjects that they are of, if not of all.
    group: Option<String>,
    pub metric: Metric,
    pub shots: usize,
    #[serde(rename = "2b")]
    pub two_b: f64,
    #[serde(rename = "7b")]
    pub seven_b: f64,
}

impl Task {
    /// Reads a task from the text of its file.
    ///
    /// # Errors
    /// The text is not TOML with the fields of a task, or its settings contradict each other.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut task: Self = toml::from_str(text).map_err(|e| e.to_string().trim().to_owned())?;
        let kinds = [task.choices.is_some(), task.contexts.is_some(), task.generate.is_some()];
        if kinds.iter().filter(|kind| **kind).count() != 1 || task.contexts.is_some() != task.continuation.is_some() {
            return Err("it needs one of choices, contexts with a continuation, and generate".into());
        }
        if let Some(metric) = task.metrics.iter().find(|metric| metric.is_of_text() != task.generate.is_some()) {
            let kind = if metric.is_of_text() { "generated answers" } else { "choices" };
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

    /// Returns the tasks of the subjects, or the task itself if it has none.
    ///
    /// # Errors
    /// A template over `subject` cannot be rendered.
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
            self.shots.clone().map(|shots| FewShot { samples: own.samples.unwrap_or(shots.samples.clone()), ..shots });
        Ok(Self {
            name: format!("{}_{subject}", self.name),
            dataset: of_subject(&self.dataset)?,
            config: self.config.as_ref().map(of_subject).transpose()?,
            file: self.file.as_ref().map(of_subject).transpose()?,
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

    /// Returns the metric that the model card has first, if it has one.
    pub fn card_metric(&self) -> Option<&Metric> {
        self.card.first().map(|card| &card.metric)
    }

    /// Returns the model card's scores for a metric of this task, or of a group that it belongs to.
    pub fn card(&self, name: &str, metric: &Metric) -> Option<&ModelCardScores> {
        let whole = self.groups.first().unwrap_or(&self.name);
        self.card.iter().find(|card| card.metric == *metric && card.group.as_ref().unwrap_or(whole) == name)
    }

    /// Returns the names of the task's filters, as results have them.
    pub fn filter_names(&self) -> Vec<&str> {
        self.generate.as_ref().map_or_else(|| vec!["none"], |g| g.filters.iter().map(|f| f.name.as_str()).collect())
    }
}
