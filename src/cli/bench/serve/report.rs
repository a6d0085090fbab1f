//! The output of `bench serve`: two markdown tables, or JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{
    metrics::{Distribution, Level, Load, Slo, Summary, is_good},
    request::Requests,
};

/// Requests that are sent later than this many milliseconds are worth a word.
const LATE: f64 = 20.0;

pub(super) struct Report<'a> {
    pub url: &'a str,
    pub requests: &'a Requests,
    /// Tokens of prompts and answers that were asked for; None with a file of prompts.
    pub prompt_tokens: Option<u32>,
    pub output_tokens: u32,
    pub seed: u64,
    pub slo: Option<Slo>,
    pub levels: Vec<(Level, Summary)>,
}

impl Report<'_> {
    /// Returns the tables, and below them what went wrong or may mislead.
    pub fn markdown(&self) -> String {
        let axis = self.levels.first().map_or("users", |(level, _)| level.load.axis().0);
        let mut out = format!("{} at {}, {}\n\n", self.requests.model, self.url, self.requests.endpoint.name());
        out +=
            &format!("| {axis} | answers | errors | seconds | req/s | prompt tok/s | output tok/s | tokens in / out |");
        out += if self.slo.is_some() { " goodput req/s |\n" } else { "\n" };
        out += "|---:|---:|---:|---:|---:|---:|---:|---:|";
        out += if self.slo.is_some() { "---:|\n" } else { "\n" };
        for (level, summary) in &self.levels {
            let mean = |tokens: u64| tokens as f64 / summary.completed.max(1) as f64;
            let _ = write!(
                out,
                "| {} | {} | {} | {:.2} | {:.2} | {:.1} | {:.1} | {:.0} / {:.0} |",
                level.load.axis().1,
                summary.completed,
                summary.failed,
                summary.seconds,
                summary.per_second(summary.completed as f64),
                summary.per_second(summary.prompt_tokens as f64),
                summary.per_second(summary.output_tokens as f64),
                mean(summary.prompt_tokens),
                mean(summary.output_tokens),
            );
            if let Some(good) = summary.good {
                let share = 100.0 * good as f64 / level.samples.len().max(1) as f64;
                let _ = write!(out, " {:.2} ({share:.0}%) |", summary.per_second(good as f64));
            }
            out += "\n";
        }
        let _ = write!(out, "\n| {axis} | ms | mean | p50 | p90 | p99 |\n|---:|---|---:|---:|---:|---:|\n");
        for (level, summary) in &self.levels {
            for (name, distribution) in times(summary) {
                let Some(d) = distribution else { continue };
                let load = level.load.axis().1;
                let _ =
                    writeln!(out, "| {load} | {name} | {:.2} | {:.2} | {:.2} | {:.2} |", d.mean, d.p50, d.p90, d.p99);
            }
        }
        out += &self.remarks();
        out
    }

    fn remarks(&self) -> String {
        let mut out = String::new();
        for (level, summary) in &self.levels {
            for (kind, (count, first)) in &summary.failures {
                let _ = write!(out, "\n{}: {count} x {}: {}", level.load, kind.name(), first.message);
            }
        }
        for (level, summary) in &self.levels {
            let late = summary.lateness.map_or(0.0, |late| late.p99);
            if late > LATE {
                let _ = write!(
                    out,
                    "\n{}: requests were sent up to {late:.0} ms late (p99): this computer is too slow.",
                    level.load
                );
            }
        }
        let answered = || self.levels.iter().filter(|(_, summary)| summary.completed > 0);
        if answered().any(|(_, summary)| !summary.is_counted) {
            out += "\nThe server does not count tokens: each chunk counts as one.";
        }
        let short =
            |summary: &Summary| summary.output_tokens < u64::from(self.output_tokens) * summary.completed as u64;
        if self.prompt_tokens.is_some() && answered().any(|(_, summary)| short(summary)) {
            let _ = write!(out, "\nAnswers ended before {} tokens.", self.output_tokens);
        }
        let cached: u64 = self.levels.iter().map(|(_, summary)| summary.cached_tokens).sum();
        let prompts: u64 = self.levels.iter().map(|(_, summary)| summary.prompt_tokens).sum();
        if cached > 0 {
            let share = 100.0 * cached as f64 / prompts.max(1) as f64;
            let _ = write!(out, "\n{share:.1}% of the prompts' tokens came from the server's cache.");
        }
        if out.is_empty() { out } else { format!("{out}\n") }
    }

    /// Returns all figures, and every request.
    pub fn json(&self) -> Value {
        let levels: Vec<Value> = self.levels.iter().map(|(level, summary)| self.level(level, summary)).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "url": self.url,
            "model": self.requests.model,
            "endpoint": self.requests.endpoint.name(),
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "temperature": self.requests.temperature,
            "ignore_eos": self.requests.dialect.ignore_eos,
            "tokens_counted_in_chunks": self.requests.dialect.continuous_usage,
            "seed": self.seed,
            "slo_ms": self.slo.map(|slo| json!({"ttft": slo.ttft, "tpot": slo.tpot, "e2e": slo.e2e})),
            "levels": levels,
        })
    }

    fn level(&self, level: &Level, summary: &Summary) -> Value {
        let errors: Vec<Value> = summary
            .failures
            .iter()
            .map(|(kind, (count, first))| json!({"kind": kind.name(), "count": count, "first": first.message}))
            .collect();
        let good = summary.good;
        let mut out = json!({
            "users": if let Load::Users(users) = level.load { Some(users) } else { None },
            "rate": if let Load::Rate(rate) = level.load { Some(rate) } else { None },
            "requests": level.samples.len(),
            "completed": summary.completed,
            "failed": summary.failed,
            "errors": errors,
            "seconds": summary.seconds,
            "requests_per_second": summary.per_second(summary.completed as f64),
            "prompt_tokens": summary.prompt_tokens,
            "cached_tokens": summary.cached_tokens,
            "output_tokens": summary.output_tokens,
            "prompt_tokens_per_second": summary.per_second(summary.prompt_tokens as f64),
            "output_tokens_per_second": summary.per_second(summary.output_tokens as f64),
            "tokens_counted_by_server": summary.is_counted,
            "good": good,
            "goodput_per_second": good.map(|good| summary.per_second(good as f64)),
            "peak_concurrency": summary.peak_concurrency,
            "sent_late_ms": summary.lateness.map(distribution),
            "all_requests": level.samples.iter().map(|sample| {
                let record = &sample.record;
                let answer = record.result.as_ref().ok();
                json!({
                    "due_seconds": sample.due.saturating_duration_since(level.started).as_secs_f64(),
                    "sent_seconds": record.sent.saturating_duration_since(level.started).as_secs_f64(),
                    "e2e_ms": 1e3 * (record.ended - record.sent).as_secs_f64(),
                    "ttft_ms": answer.and_then(|a| Some(1e3 * a.first_token()?.as_secs_f64())),
                    "tpot_ms": answer.and_then(|a| Some(1e3 * a.time_per_token()?)),
                    "prompt_tokens": answer.and_then(|a| a.prompt_tokens),
                    "output_tokens": answer.map(|a| a.tokens),
                    "good": self.slo.map(|slo| is_good(record, slo)),
                    "error": record.result.as_ref().err().map(|failure| failure.kind.name()),
                })
            }).collect::<Vec<_>>(),
        });
        for (name, values) in times(summary) {
            out[format!("{}_ms", name.to_lowercase())] = values.map_or(Value::Null, distribution);
        }
        out
    }
}

/// Returns the times of a level by their names.
fn times(summary: &Summary) -> [(&'static str, Option<Distribution>); 4] {
    [("TTFT", summary.ttft), ("TPOT", summary.tpot), ("ITL", summary.itl), ("E2E", summary.e2e)]
}

fn distribution(d: Distribution) -> Value {
    json!({"mean": d.mean, "p50": d.p50, "p90": d.p90, "p99": d.p99, "max": d.max})
}

/// Returns a line for the user about a level's failures; None without any.
pub(super) fn failures(level: &Level, summary: &Summary) -> Option<String> {
    let kinds: Vec<String> =
        summary.failures.iter().map(|(kind, (count, _))| format!("{count} x {}", kind.name())).collect();
    (!kinds.is_empty()).then(|| format!("{}: {}", level.load, kinds.join(", ")))
}
