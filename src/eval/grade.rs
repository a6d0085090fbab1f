//! Grades responses: applies the task's filters and computes its metrics.

use serde_json::Value;

use super::{
    Doc, Error, EvalRequest, GenerationConfig, Item, Metric, MultipleChoice, Response, Result, Task, bias::Bias, math,
};
use crate::engine::Likelihood;

/// A response to a document, after one of the task's filters, with its metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct GradedResponse {
    /// The filter's name in results.
    pub filter: String,
    /// The text that the filter made of a generated answer; `None` for choices.
    pub filtered: Option<String>,
    /// For each of the task's metrics one value, or the values that the task's result is computed
    /// from. NaN until it is known whether a program passes its tests, or how an answer is scored.
    pub values: Vec<Vec<f64>>,
}

/// Grades a response after each of the task's filters.
///
/// # Errors
/// The response is not of the kind that the task asks for, or the document lacks a field that a
/// metric needs.
pub fn grade(task: &Task, item: &Item, response: &Response) -> Result<Vec<GradedResponse>> {
    let wrong = |reason: String| Error::Document { task: task.name.clone(), doc: item.id, reason };
    match (&item.request, response, &task.generate) {
        (EvalRequest::Loglikelihood(choices), Response::Loglikelihoods(found), _)
            if found.len() == choices.texts.len() =>
        {
            let value = |metric: &Metric| metric.of_choices(&item.doc, choices, found).map_err(wrong);
            let values = task.metrics.iter().map(value).collect::<Result<_>>()?;
            Ok(vec![GradedResponse { filter: "none".into(), filtered: None, values }])
        }
        (EvalRequest::GenerateUntil { .. }, Response::Generated(answers), Some(generate))
            if answers.len() == generate.repeats =>
        {
            generate
                .filters
                .iter()
                .map(|filter| {
                    let filtered = filter.apply(answers, &item.doc).map_err(wrong)?;
                    let value =
                        |metric: &Metric| Ok(vec![metric.of_text(generate, &item.target, &filtered).map_err(wrong)?]);
                    let values = task.metrics.iter().map(value).collect::<Result<_>>()?;
                    Ok(GradedResponse { filter: filter.name.clone(), filtered: Some(filtered), values })
                })
                .collect()
        }
        _ => Err(wrong("its response is not of the kind that the task asks for".into())),
    }
}

impl GradedResponse {
    /// Returns the program whose run decides a metric: the filtered answer, and the document's
    /// tests.
    pub fn program(&self, task: &Task, item: &Item) -> Option<String> {
        let decides = task.metrics.iter().any(|metric| matches!(metric, Metric::Passes(_)));
        let (answer, tests) = (self.filtered.as_ref()?, item.target.as_str()?);
        decides.then(|| format!("{answer}\n{tests}"))
    }

    /// Records whether the program passed its tests.
    pub fn set_passes(&mut self, task: &Task, passes: bool) {
        self.set(task, f64::from(u8::from(passes)), |metric| matches!(metric, Metric::Passes(_)));
    }

    /// Returns the text that a program of the user's is to score.
    pub fn text_to_score(&self, task: &Task) -> Option<&str> {
        self.filtered.as_deref().filter(|_| task.metrics.contains(&Metric::Score))
    }

    /// Records the text's score.
    pub fn set_score(&mut self, task: &Task, score: f64) {
        self.set(task, score, |metric| *metric == Metric::Score);
    }

    fn set(&mut self, task: &Task, value: f64, is_it: impl Fn(&Metric) -> bool) {
        for (metric, values) in task.metrics.iter().zip(&mut self.values) {
            if is_it(metric) {
                *values = vec![value];
            }
        }
    }
}

impl Metric {
    /// Returns the metric of a document's choices: one value, or the values that the task's result
    /// is computed from.
    ///
    /// # Errors
    /// The metric is of generated answers, or the document lacks a field.
    pub fn of_choices(
        &self,
        doc: &Doc,
        choices: &MultipleChoice,
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
            Self::ExactMatch
            | Self::FinalAnswer
            | Self::MathVerify
            | Self::SameAnswer
            | Self::Passes(_)
            | Self::Score => {
                return Err(format!("{} is of generated answers", self.name()));
            }
        }])
    }

    /// Returns the metric of a document's filtered answer; NaN where it depends on running the
    /// answer, or another program.
    ///
    /// # Errors
    /// The target has no final answer.
    pub fn of_text(
        &self,
        generate: &GenerationConfig,
        target: &Value,
        answer: &str,
    ) -> std::result::Result<f64, String> {
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

/// Returns the text that `exact_match` compares: without what the task ignores.
fn plain(generate: &GenerationConfig, text: &str) -> String {
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
