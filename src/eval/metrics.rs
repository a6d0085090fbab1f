//! What counts: of a document, and of a task.

use serde::Deserialize;

use super::{Item, Likelihood};

/// A figure of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Whether the likeliest choice is right; the first one where several are equally likely.
    Acc,
    /// The same, of log-likelihoods divided by the choices' lengths in characters.
    AccNorm,
    /// The share of probability that true choices have; the harness calls it acc, too.
    Mc2,
    /// By how much the two choices' log-likelihoods differ.
    LikelihoodDiff,
    /// Whether the first choice, the one with the stereotype, is likelier.
    PctStereotype,
}

impl Metric {
    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Acc | Self::Mc2 => "acc",
            Self::AccNorm => "acc_norm",
            Self::LikelihoodDiff => "likelihood_diff",
            Self::PctStereotype => "pct_stereotype",
        }
    }

    pub fn higher_is_better(self) -> bool {
        !matches!(self, Self::LikelihoodDiff | Self::PctStereotype)
    }

    /// Of one document, with a likelihood for each choice.
    pub fn of(self, item: &Item, likelihoods: &[Likelihood]) -> f64 {
        let logprobs: Vec<f64> = likelihoods.iter().map(|l| l.logprob).collect();
        let is_gold = |found: usize| f64::from(u8::from(item.gold == Some(found)));
        match self {
            Self::Acc => is_gold(first_largest(&logprobs)),
            Self::AccNorm => {
                let lengths = item.choices.iter().map(|choice| choice.chars().count() as f64);
                is_gold(first_largest(&logprobs.iter().zip(lengths).map(|(l, n)| l / n).collect::<Vec<_>>()))
            }
            Self::Mc2 => {
                let probabilities: Vec<f64> = logprobs.iter().map(|l| l.exp()).collect();
                let of_true = probabilities.iter().zip(&item.labels).filter(|(_, label)| **label == 1);
                of_true.map(|(p, _)| p).sum::<f64>() / probabilities.iter().sum::<f64>()
            }
            Self::LikelihoodDiff => (logprobs[0] - logprobs[1]).abs(),
            Self::PctStereotype => f64::from(u8::from(logprobs[0] > logprobs[1])),
        }
    }
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

/// Of a task: mean and standard error, which one document alone does not have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    pub mean: f64,
    pub stderr: Option<f64>,
    pub documents: usize,
}

/// Mean, and the sample's standard deviation by the root of its size.
pub fn summarize(values: &[f64]) -> Summary {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
    Summary { mean, stderr: (values.len() > 1).then(|| (variance / n).sqrt()), documents: values.len() }
}

impl Summary {
    /// Of a group of tasks, weighted by their sizes; the standard error is that of pooled variances.
    pub fn pooled(parts: &[Self]) -> Self {
        let documents: usize = parts.iter().map(|part| part.documents).sum();
        let total = documents as f64;
        let mean = parts.iter().map(|part| part.mean * part.documents as f64).sum::<f64>() / total;
        let spread = |part: &Self| {
            let n = part.documents as f64;
            part.stderr.map(|stderr| (n - 1.0) * stderr.powi(2) * n)
        };
        let spreads: Option<Vec<f64>> = parts.iter().map(spread).collect();
        let freedom = total - parts.len() as f64;
        let stderr = spreads.filter(|_| freedom > 0.0).map(|all| (all.iter().sum::<f64>() / freedom / total).sqrt());
        Self { mean, stderr, documents }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_those_of_the_harness() {
        let summary = summarize(&[1.0, 0.0, 1.0, 1.0]);
        assert_eq!((summary.mean, summary.documents), (0.75, 4));
        assert!((summary.stderr.unwrap() - 0.25).abs() < 1e-12);
        assert_eq!(summarize(&[1.0]).stderr, None);
        // lm_eval.api.metrics.pooled_sample_stderr([0.25, 0.1], [4, 10]) is 0.0991031
        let other = Summary { mean: 0.5, stderr: Some(0.1), documents: 10 };
        let pooled = Summary::pooled(&[summary, other]);
        assert!((pooled.mean - 8.0 / 14.0).abs() < 1e-12);
        assert!((pooled.stderr.unwrap() - 0.099_103_12).abs() < 1e-7, "{pooled:?}");
    }
}
