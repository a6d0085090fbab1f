//! The figures of one level of load.

use std::{collections::BTreeMap, str::FromStr, time::Instant};

use super::{
    answer::Record,
    client::{Failure, FailureKind},
};

/// Mean and percentiles of samples that stand for one or more events each, in the samples' unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Distribution {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

impl Distribution {
    /// Takes pairs of a value and its weight. A percentile p is the smallest value that at least
    /// p % of the weight does not exceed (nearest rank): one that was measured. Returns None if
    /// there are no samples.
    pub fn of(mut samples: Vec<(f64, f64)>) -> Option<Self> {
        samples.sort_by(|a, b| a.0.total_cmp(&b.0));
        let max = samples.last()?.0;
        let total: f64 = samples.iter().map(|sample| sample.1).sum();
        let percentile = |percent: f64| {
            // Weights that are not whole add up to almost the total.
            let rank = total * percent / 100.0 * (1.0 - 1e-12);
            let mut below = 0.0;
            let reached = samples.iter().find(|(_, weight)| {
                below += weight;
                below >= rank
            });
            reached.map_or(max, |sample| sample.0)
        };
        let mean = samples.iter().map(|(value, weight)| value * weight).sum::<f64>() / total;
        Some(Self { mean, p50: percentile(50.0), p90: percentile(90.0), p99: percentile(99.0), max })
    }

    fn of_each(values: impl Iterator<Item = f64>) -> Option<Self> {
        Self::of(values.map(|value| (value, 1.0)).collect())
    }
}

/// Limits in milliseconds that a good request keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Slo {
    pub ttft: Option<f64>,
    pub tpot: Option<f64>,
    pub e2e: Option<f64>,
}

impl FromStr for Slo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut slo = Self::default();
        for part in text.split(',') {
            let (name, limit) = part.split_once('=').ok_or("write limits as ttft=200,tpot=50 in milliseconds")?;
            let limit: f64 = limit.trim().parse().map_err(|_| format!("{limit:?} is not a number of milliseconds"))?;
            if !(limit > 0.0 && limit.is_finite()) {
                return Err(format!("the limit {limit} is not a positive number of milliseconds"));
            }
            let field = match name.trim() {
                "ttft" => &mut slo.ttft,
                "tpot" => &mut slo.tpot,
                "e2e" => &mut slo.e2e,
                other => return Err(format!("{other:?} has no limit; ttft, tpot and e2e have")),
            };
            if field.replace(limit).is_some() {
                return Err(format!("{} has two limits", name.trim()));
            }
        }
        Ok(slo)
    }
}

/// Load that does not change while it is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Load {
    /// Closed loop: users that send their next request when they have their answer.
    Users(u32),
    /// Open loop: requests in a second on average, whatever the server does.
    Rate(f64),
}

impl Load {
    /// Returns the name of the axis, and the value on it.
    pub fn axis(self) -> (&'static str, f64) {
        match self {
            Self::Users(users) => ("users", users.into()),
            Self::Rate(rate) => ("requests/s", rate),
        }
    }
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Users(1) => write!(f, "1 user"),
            Self::Users(users) => write!(f, "{users} users"),
            Self::Rate(rate) => write!(f, "{rate} requests/s"),
        }
    }
}

/// A request of a level, and when it should have been sent.
pub(super) struct Sample {
    pub due: Instant,
    pub record: Record,
}

/// A measured level.
pub(super) struct Level {
    pub load: Load,
    /// The moment from which requests are sent.
    pub started: Instant,
    pub samples: Vec<Sample>,
}

/// The figures of a level; times in milliseconds.
pub(super) struct Summary {
    pub completed: usize,
    pub failed: usize,
    /// The failures of each kind: their number, and the first one.
    pub failures: BTreeMap<FailureKind, (usize, Failure)>,
    /// From the level's start to the end of its last request.
    pub seconds: f64,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub output_tokens: u64,
    /// True if the server counted the tokens of all answers.
    pub is_counted: bool,
    pub ttft: Option<Distribution>,
    pub tpot: Option<Distribution>,
    pub itl: Option<Distribution>,
    pub e2e: Option<Distribution>,
    /// Requests that kept the limits.
    pub good: Option<usize>,
    /// The most requests that were under way at once.
    pub peak_concurrency: usize,
    /// How late requests were sent, by this program's own fault.
    pub lateness: Option<Distribution>,
}

impl Summary {
    pub fn of(level: &Level, slo: Option<Slo>) -> Self {
        let records = || level.samples.iter().map(|sample| &sample.record);
        let answers = || records().filter_map(|record| Some((record, record.result.as_ref().ok()?)));
        let mut failures = BTreeMap::new();
        for failure in records().filter_map(|record| record.result.as_ref().err()) {
            failures.entry(failure.kind).or_insert_with(|| (0, failure.clone())).0 += 1;
        }
        let ended = records().map(|record| record.ended).max().unwrap_or(level.started);
        let ms = |record: &Record| 1e3 * (record.ended - record.sent).as_secs_f64();
        Self {
            completed: answers().count(),
            failed: records().count() - answers().count(),
            failures,
            seconds: (ended - level.started).as_secs_f64(),
            prompt_tokens: answers().filter_map(|(_, answer)| answer.prompt_tokens).sum(),
            cached_tokens: answers().filter_map(|(_, answer)| answer.cached_tokens).sum(),
            output_tokens: answers().map(|(_, answer)| answer.tokens).sum(),
            is_counted: answers().all(|(_, answer)| answer.counted_by_server),
            ttft: Distribution::of_each(
                answers().filter_map(|(_, answer)| Some(1e3 * answer.first_token()?.as_secs_f64())),
            ),
            tpot: Distribution::of_each(answers().filter_map(|(_, answer)| Some(1e3 * answer.time_per_token()?))),
            itl: Distribution::of(
                answers().flat_map(|(_, answer)| answer.gaps().map(|(gap, n)| (1e3 * gap, n))).collect(),
            ),
            e2e: Distribution::of_each(answers().map(|(record, _)| ms(record))),
            good: slo.map(|slo| answers().filter(|(record, _)| is_good(record, slo)).count()),
            peak_concurrency: peak_concurrency(records()),
            lateness: Distribution::of_each(
                level.samples.iter().map(|s| 1e3 * s.record.sent.saturating_duration_since(s.due).as_secs_f64()),
            ),
        }
    }

    /// Returns a number of events as events in a second.
    pub fn per_second(&self, events: f64) -> f64 {
        if self.seconds > 0.0 { events / self.seconds } else { 0.0 }
    }
}

/// Returns whether a request kept all limits. One that failed kept none; one without a second
/// token has no TPOT to exceed.
pub(super) fn is_good(record: &Record, slo: Slo) -> bool {
    let Ok(answer) = &record.result else { return false };
    let keeps =
        |value: Option<f64>, limit: Option<f64>| limit.is_none_or(|limit| value.is_none_or(|value| value <= limit));
    keeps(answer.first_token().map(|t| 1e3 * t.as_secs_f64()), slo.ttft)
        && keeps(answer.time_per_token().map(|t| 1e3 * t), slo.tpot)
        && keeps(Some(1e3 * (record.ended - record.sent).as_secs_f64()), slo.e2e)
}

fn peak_concurrency<'a>(records: impl Iterator<Item = &'a Record>) -> usize {
    let mut changes: Vec<(Instant, isize)> = records.flat_map(|r| [(r.sent, 1), (r.ended, -1)]).collect();
    changes.sort(); // of one moment, ends come first
    let running = changes.iter().scan(0_isize, |running, (_, change)| {
        *running += change;
        Some(*running)
    });
    running.max().unwrap_or_default() as usize
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cli::bench::serve::answer::{Answer, TokenChunk};

    #[test]
    fn percentiles_are_measured_values_by_weight() {
        let of_each = |values: &[f64]| Distribution::of_each(values.iter().copied());
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let found = of_each(&hundred).unwrap();
        assert_eq!(found, Distribution { mean: 50.5, p50: 50.0, p90: 90.0, p99: 99.0, max: 100.0 });
        let found = of_each(&[3.0]).unwrap();
        assert_eq!((found.p50, found.p99), (3.0, 3.0));
        // 99 tokens at 1 ms and one at 50 ms: half of the samples, a hundredth of the tokens.
        let found = Distribution::of(vec![(50.0, 1.0), (1.0, 99.0)]).unwrap();
        assert_eq!((found.p50, found.p99, found.max, found.mean), (1.0, 1.0, 50.0, 1.49));
        assert_eq!(Distribution::of(vec![(2.0, 0.1); 30]).unwrap().p99, 2.0);
        assert_eq!(of_each(&[]), None);
    }

    #[test]
    fn limits_are_read_strictly() {
        assert_eq!("ttft=200,tpot=50".parse(), Ok(Slo { ttft: Some(200.0), tpot: Some(50.0), e2e: None }));
        assert_eq!("e2e=1.5".parse(), Ok(Slo { e2e: Some(1.5), ..Slo::default() }));
        for text in ["", "ttft", "ttft=", "ttft=x", "ttft=0", "ttft=inf", "itl=3", "ttft=1,ttft=2"] {
            assert!(text.parse::<Slo>().is_err(), "{text}");
        }
    }

    /// A request that was sent after `sent` ms, with a first token after `ttft` ms more and nine
    /// tokens each `tpot` ms after the one before.
    fn sample(start: Instant, sent: u64, ttft: u64, tpot: u64) -> Sample {
        let at = |ms| Duration::from_millis(ms);
        let chunks: Vec<TokenChunk> = (0..10).map(|i| TokenChunk { at: at(ttft + i * tpot), tokens: 1.0 }).collect();
        let answer =
            Answer { chunks, prompt_tokens: Some(5), cached_tokens: None, tokens: 10, counted_by_server: true };
        let sent = start + at(sent);
        let ended = sent + at(ttft + 9 * tpot);
        Sample { due: sent, record: Record { sent, ended, result: Ok(answer) } }
    }

    #[test]
    fn goodput_counts_what_keeps_all_limits() {
        let started = Instant::now();
        let mut samples = vec![sample(started, 0, 100, 10), sample(started, 0, 300, 10), sample(started, 500, 100, 60)];
        let failure = Failure::new(FailureKind::Status(503), "busy");
        samples.push(Sample { due: started, record: Record { sent: started, ended: started, result: Err(failure) } });
        let level = Level { load: Load::Users(2), started, samples };
        let good = |slo: &str| Summary::of(&level, Some(slo.parse().unwrap())).good;
        assert_eq!(good("ttft=200,tpot=50"), Some(1));
        assert_eq!(good("ttft=200"), Some(2));
        assert_eq!(good("tpot=50"), Some(2));
        assert_eq!(good("e2e=390"), Some(2));
        assert_eq!(good("ttft=1000,tpot=1000"), Some(3));

        let summary = Summary::of(&level, None);
        assert_eq!((summary.completed, summary.failed, summary.good), (3, 1, None));
        assert_eq!(summary.failures[&FailureKind::Status(503)].0, 1);
        assert!((summary.seconds - 1.14).abs() < 1e-9, "{}", summary.seconds);
        assert_eq!((summary.prompt_tokens, summary.output_tokens), (15, 30));
        assert_eq!(summary.peak_concurrency, 2);
    }
}
