//! What responses are worth.

use super::{Ask, Error, Item, Metric, Response, Result, Task};

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
