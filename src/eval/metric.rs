//! Metrics by name, and how the values of documents become the result of a task.

use serde::Deserialize;

use super::bias::Bias;

/// A metric of a task.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Metric {
    /// 1 if the likeliest choice is right. Of equally likely ones, the first counts.
    Acc,
    /// `Acc` by log-likelihoods divided by the choices' lengths in characters.
    AccNorm,
    /// The true choices' share of all choices' probability. The harness calls it acc, too.
    Mc2,
    /// The absolute difference of the two choices' log-likelihoods.
    LikelihoodDiff,
    /// 1 if the first choice, which has the stereotype, is the likelier one.
    PctStereotype,
    /// BBQ's accuracy over the documents whose context tells the answer, or over the others.
    AccuracyWhere { disambiguated: bool },
    /// BBQ's bias score over such documents, of one category of people or of all.
    BiasScore { disambiguated: bool, category: Option<String> },
    /// 1 if a generated answer is one of the task's right answers.
    ExactMatch,
    /// The same for the final answer to a problem of MATH. The harness calls it exact_match, too.
    FinalAnswer,
    /// The same by the rules of Math-Verify, which finds answers in more places and more forms.
    MathVerify,
    /// The same by the rules of AGIEval. The harness calls it acc.
    SameAnswer,
    /// 1 if a program passes its tests. Holds the name that the harness gives the metric in this
    /// task.
    Passes(String),
    /// The number that a program of the user's gives a generated answer, such as its toxicity.
    Score,
}

impl TryFrom<String> for Metric {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let bias = |rest: &str| rest.strip_prefix('_').map(str::to_owned);
        Ok(match name.as_str() {
            "acc" => Self::Acc,
            "acc_norm" => Self::AccNorm,
            "mc2" => Self::Mc2,
            "likelihood_diff" => Self::LikelihoodDiff,
            "pct_stereotype" => Self::PctStereotype,
            "accuracy_amb" => Self::AccuracyWhere { disambiguated: false },
            "accuracy_disamb" => Self::AccuracyWhere { disambiguated: true },
            "exact_match" => Self::ExactMatch,
            "final_answer" => Self::FinalAnswer,
            "math_verify" => Self::MathVerify,
            "same_answer" => Self::SameAnswer,
            "pass@1" | "pass_at_1" => Self::Passes(name),
            "score" => Self::Score,
            other => match (other.strip_prefix("amb_bias_score"), other.strip_prefix("disamb_bias_score")) {
                (Some(rest), _) => Self::BiasScore { disambiguated: false, category: bias(rest) },
                (_, Some(rest)) => Self::BiasScore { disambiguated: true, category: bias(rest) },
                _ => return Err(format!("there is no metric {other:?}")),
            },
        })
    }
}

impl Metric {
    /// Returns the metric's name in results.
    pub fn name(&self) -> String {
        let where_ = |disambiguated: bool| if disambiguated { "disamb" } else { "amb" };
        match self {
            Self::Acc | Self::Mc2 | Self::SameAnswer => "acc".into(),
            Self::AccNorm => "acc_norm".into(),
            Self::LikelihoodDiff => "likelihood_diff".into(),
            Self::PctStereotype => "pct_stereotype".into(),
            Self::AccuracyWhere { disambiguated } => format!("accuracy_{}", where_(*disambiguated)),
            Self::BiasScore { disambiguated, category } => {
                let category = category.as_ref().map_or(String::new(), |category| format!("_{category}"));
                format!("{}_bias_score{category}", where_(*disambiguated))
            }
            Self::ExactMatch | Self::FinalAnswer => "exact_match".into(),
            Self::MathVerify => "math_verify".into(),
            Self::Passes(name) => name.clone(),
            Self::Score => "score".into(),
        }
    }

    /// Returns whether more of it is better.
    pub fn higher_is_better(&self) -> bool {
        !matches!(self, Self::LikelihoodDiff | Self::PctStereotype | Self::BiasScore { .. } | Self::Score)
    }

    /// Returns whether it is a share, of documents or of probability, which tables show in percent.
    pub fn is_share(&self) -> bool {
        !matches!(self, Self::LikelihoodDiff | Self::BiasScore { .. } | Self::Score)
    }

    /// Returns whether it is a metric of generated answers, not of choices.
    pub fn is_of_text(&self) -> bool {
        matches!(
            self,
            Self::ExactMatch | Self::FinalAnswer | Self::MathVerify | Self::SameAnswer | Self::Passes(_) | Self::Score
        )
    }

    /// Returns the task's result, from the values of its documents.
    pub fn summarize(&self, values: &[Vec<f64>]) -> Summary {
        let mean_of = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
        let mean = match self {
            Self::AccuracyWhere { disambiguated } => {
                let there = |v: &&Vec<f64>| v[1] == f64::from(u8::from(*disambiguated));
                mean_of(values.iter().filter(there).map(|v| v[0]).collect())
            }
            Self::BiasScore { disambiguated, .. } => Bias::score(values, *disambiguated),
            _ => return summarize(&values.iter().map(|v| v[0]).collect::<Vec<_>>()),
        };
        Summary { mean, stderr: None, documents: values.len() }
    }
}

/// The result of a task: a mean with its standard error, or another figure that is not a mean of
/// documents.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// NaN where there are no documents to compute it from.
    pub mean: f64,
    /// `None` for a single document, and for figures that are no means.
    pub stderr: Option<f64>,
    pub documents: usize,
}

/// Returns the mean, and as its standard error the sample's standard deviation over the root of its
/// size.
pub fn summarize(values: &[f64]) -> Summary {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let stderr = (variance / n).sqrt();
    Summary { mean, stderr: (values.len() > 1 && stderr.is_finite()).then_some(stderr), documents: values.len() }
}

impl Summary {
    /// Returns the result of a group of tasks, weighted by their sizes. The standard error is that
    /// of pooled variances.
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
