//! Tasks: what is asked, of which data, and what counts. Each is a readable file in `tasks/`.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;

use super::{Error, Metric, Result};

/// A task as its file says. Texts are Jinja templates over a document's fields; expressions are Jinja expressions.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// As in lm-evaluation-harness.
    pub name: String,
    /// The harness's version of the task: a number, or a word.
    pub version: toml::Value,
    /// The dataset's name on the hub.
    pub dataset: String,
    /// Its configuration, where it has several.
    pub config: Option<String>,
    /// The split that is evaluated.
    pub split: String,
    pub shots: Option<Shots>,
    /// How many examples to give, unless asked otherwise.
    #[serde(default)]
    pub num_fewshot: usize,
    /// Text before everything; a template over `config`.
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
    /// Expression: the right choice's number, or itself.
    pub target: String,
    /// Expression: for each choice, whether it is true; for `mc2`.
    pub labels: Option<String>,
    /// Between question and answer.
    #[serde(default = "space")]
    pub delimiter: String,
    /// After each example.
    #[serde(default = "empty_line")]
    pub shot_delimiter: String,
    pub metrics: Vec<Metric>,
    /// What the model card says.
    pub card: Option<Card>,
    /// Groups of configurations, each a task of its own with the name `{name}_{config}`.
    #[serde(default)]
    pub subjects: BTreeMap<String, Vec<String>>,
    /// Of such a task: the names of the whole and of its group.
    #[serde(skip)]
    pub groups: Vec<String>,
}

fn space() -> String {
    " ".into()
}

fn empty_line() -> String {
    "\n\n".into()
}

/// Where examples come from.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shots {
    pub split: String,
    /// The first ones, instead of some drawn at random for each document.
    #[serde(default)]
    pub first_n: bool,
    /// One more is drawn than is needed, and the document itself is left out: what the harness does where a task names neither a
    /// test split nor one for examples.
    #[serde(default)]
    pub one_more: bool,
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

const FILES: [&str; 15] = [
    include_str!("tasks/mmlu.toml"),
    include_str!("tasks/hellaswag.toml"),
    include_str!("tasks/piqa.toml"),
    include_str!("tasks/social_iqa.toml"),
    include_str!("tasks/boolq.toml"),
    include_str!("tasks/winogrande.toml"),
    include_str!("tasks/commonsense_qa.toml"),
    include_str!("tasks/openbookqa.toml"),
    include_str!("tasks/arc_easy.toml"),
    include_str!("tasks/arc_challenge.toml"),
    include_str!("tasks/truthfulqa_mc1.toml"),
    include_str!("tasks/truthfulqa_mc2.toml"),
    include_str!("tasks/winogender_all.toml"),
    include_str!("tasks/crows_pairs_english.toml"),
    include_str!("tasks/toxigen.toml"),
];

impl Task {
    /// All tasks, in the model card's order; those with subjects as one.
    pub fn all() -> Vec<Self> {
        let parse = |text: &&str| toml::from_str(text).unwrap_or_else(|e| panic!("a task file is wrong: {e}"));
        FILES.iter().map(parse).collect()
    }

    /// A task of the user's own.
    fn read(path: &Path) -> Result<Self> {
        let wrong =
            |reason: String| Error::Invalid(format!("the task file {} cannot be used: {reason}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        let task: Self = toml::from_str(&text).map_err(|e| wrong(e.to_string().trim().to_owned()))?;
        if task.choices.is_some() == task.contexts.is_some() || task.contexts.is_some() != task.continuation.is_some() {
            return Err(wrong("it needs either choices, or contexts and a continuation".into()));
        }
        Ok(task)
    }

    /// The tasks of its subjects, or itself.
    fn parts(&self) -> Vec<Self> {
        let of_group = |(group, configs): (&String, &Vec<String>)| {
            let part = |config: &String| Self {
                name: format!("{}_{config}", self.name),
                config: Some(config.clone()),
                groups: vec![self.name.clone(), format!("{}_{group}", self.name)],
                subjects: BTreeMap::new(),
                ..self.clone()
            };
            configs.iter().map(part).collect::<Vec<_>>()
        };
        if self.subjects.is_empty() { vec![self.clone()] } else { self.subjects.iter().flat_map(of_group).collect() }
    }
}

/// The tasks that these names mean: a task's, a group's such as `mmlu_stem`, a subject's such as `mmlu_astronomy`, or a file with a
/// task of the user's own, which ends in `.toml`.
pub fn named(names: &[String]) -> Result<Vec<Task>> {
    let all = Task::all();
    let parts: Vec<Task> = all.iter().flat_map(Task::parts).collect();
    let mut found: Vec<Task> = Vec::new();
    for name in names {
        let meant: Vec<Task> = if name.ends_with(".toml") {
            Task::read(Path::new(name))?.parts()
        } else {
            parts.iter().filter(|task| task.name == *name || task.groups.contains(name)).cloned().collect()
        };
        if meant.is_empty() {
            return Err(unknown(name, &all, &parts));
        }
        for task in meant {
            if !found.iter().any(|known| known.name == task.name) {
                found.push(task);
            }
        }
    }
    Ok(found)
}

fn unknown(name: &str, all: &[Task], parts: &[Task]) -> Error {
    let names = all.iter().chain(parts).map(|task| task.name.as_str());
    let groups = parts.iter().flat_map(|task| task.groups.iter().map(String::as_str));
    let mut near: Vec<(usize, &str)> = names.chain(groups).map(|known| (distance(name, known), known)).collect();
    near.sort_unstable();
    near.dedup();
    let near: Vec<&str> =
        near.iter().filter(|(d, _)| *d <= name.len().max(6) / 2).take(3).map(|(_, known)| *known).collect();
    let all: Vec<&str> = all.iter().map(|task| task.name.as_str()).collect();
    let hint = if near.is_empty() { String::new() } else { format!(" Did you mean {}?", near.join(", ")) };
    Error::Invalid(format!("there is no task {name:?}.{hint} Known are {}", all.join(", ")))
}

/// Insertions, deletions and replacements that turn one into the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut before = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let replaced = before + usize::from(x != y);
            before = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(before + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_tasks_groups_and_subjects() {
        let count = |names: &[&str]| {
            named(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()).map(|tasks| tasks.len())
        };
        assert_eq!(count(&["mmlu"]).unwrap(), 57);
        assert_eq!(count(&["mmlu_stem", "mmlu_astronomy", "piqa", "piqa"]).unwrap(), 20);
        for task in Task::all() {
            assert_eq!(task.contexts.is_some(), task.choices.is_none(), "{}", task.name);
        }
        let error = count(&["helaswag"]).unwrap_err().to_string();
        assert!(error.contains("Did you mean hellaswag"), "{error}");
        assert!(count(&["mmlu_astronomi"]).unwrap_err().to_string().contains("mmlu_astronomy"));
    }
}
