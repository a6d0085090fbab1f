//! The output of `bench`: a markdown table like llama-bench's, or JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::{
    cli::{
        model_args::{LoadedModel, ModelArgs, OpenedModel},
        process::{ProcessMemory, size},
    },
    gemma::tensors::num_parameters,
    kernels::ExecContext,
};

/// A machine is called noisy if a probe's range is more than this share of its median.
const NOISY: f64 = 0.15;

/// Tokens of the prompt that is used to time the first token of a process.
pub(super) const FIRST_TOKEN_PROMPT: i64 = 16;

/// The machine's limits, at one moment.
#[derive(Clone, Copy)]
pub(super) struct MachineLimits {
    pub bytes_per_second: f64,
    pub flops_per_second: f64,
}

/// One measured quantity.
pub(super) struct Measurement {
    pub name: String,
    /// Tokens per second.
    pub rates: Vec<f64>,
    /// The least time by the limits measured just before, over the time taken.
    pub shares: Vec<f64>,
}

pub(super) struct Report<'a> {
    pub args: &'a ModelArgs,
    pub opened: &'a OpenedModel,
    pub loaded: &'a LoadedModel,
    pub memory: ProcessMemory,
    pub limits: Vec<MachineLimits>,
    pub measurements: Vec<Measurement>,
    /// Seconds from the start of a process to its first token, and how many of them are prefill.
    pub first_token: Vec<(f64, f64)>,
}

impl Report<'_> {
    /// Returns the table, and the other measurements below it.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        out += "| model | size | params | platform | threads | test | tok/s | range | share of the limit |\n";
        out += "|---|---:|---:|---|---:|---|---:|---:|---:|\n";
        let (size_, params) = (size(self.weight_bytes()), num_parameters(self.loaded.model.config()) as f64);
        let params = if params < 1e9 { format!("{:.2} M", params / 1e6) } else { format!("{:.2} B", params / 1e9) };
        for figure in &self.measurements {
            let [low, middle, high] = spread(&figure.rates);
            let share = if figure.shares.is_empty() { "-".into() } else { format!("{:.2}", spread(&figure.shares)[1]) };
            let _ = writeln!(
                out,
                "| {} {}{} | {size_} | {params} | {} {} | {} | {} | {middle:.2} | {low:.2}-{high:.2} | {share} |",
                self.args.model,
                self.args.dtype.dtype(),
                self.args.weights.map(|w| format!(", {}", w.name())).unwrap_or_default(),
                self.loaded.platform,
                self.args.mesh,
                self.threads(),
                figure.name,
            );
        }
        let of = |f: fn(&(f64, f64)) -> f64| spread(&self.first_token.iter().map(f).collect::<Vec<_>>())[1];
        let compile = self.loaded.model.compile_report();
        let _ = writeln!(
            out,
            "\nFirst token after {:.2} s from the process's start ({FIRST_TOKEN_PROMPT} tokens, programs compiled before); \
             beyond the prefill {:.2} s.\nLoad {:.2} s; {} programs compiled, {} from the cache, {:.2} s.\nPeak memory {}, \
             {} allocated.",
            of(|t| t.0),
            of(|t| t.0 - t.1),
            self.loaded.time.as_secs_f64(),
            compile.compiled,
            compile.cached,
            compile.time.as_secs_f64(),
            size(self.memory.peak),
            size(self.memory.anonymous),
        );
        out += &self.limit("reading the weights, GB/s", |l| l.bytes_per_second / 1e9);
        out += &self.limit("multiplying, GFLOP/s", |l| l.flops_per_second / 1e9);
        out
    }

    /// Returns a line with a limit of the machine; empty if it was not measured.
    fn limit(&self, what: &str, value: fn(&MachineLimits) -> f64) -> String {
        if self.limits.is_empty() {
            return String::new();
        }
        let [low, middle, high] = spread(&self.limits.iter().map(value).collect::<Vec<_>>());
        let noisy = if high - low > NOISY * middle { ": a noisy machine, trust the shares only" } else { "" };
        format!("Limit, {what}: {middle:.1} ({low:.1}-{high:.1}){noisy}.\n")
    }

    /// Returns all measurements.
    pub fn json(&self) -> Value {
        let figure = |f: &Measurement| {
            json!({
                "test": f.name,
                "tokens_per_second": spread(&f.rates)[1],
                "share_of_limit": (!f.shares.is_empty()).then(|| spread(&f.shares)[1]),
                "all_tokens_per_second": f.rates,
                "all_shares_of_limit": f.shares,
            })
        };
        let compile = self.loaded.model.compile_report();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": self.args.model,
            "weight_bytes": self.weight_bytes(),
            "parameters": num_parameters(self.loaded.model.config()),
            "platform": self.loaded.platform,
            "mesh": self.args.mesh.to_string(),
            "weights": self.args.weights.map(|w| w.name()),
            "dtype": self.args.dtype.dtype().to_string(),
            "kernels": self.loaded.kernels.then(|| ExecContext::whole().isa.name()),
            "threads": ExecContext::whole().pool.threads(),
            "tests": self.measurements.iter().map(figure).collect::<Vec<_>>(),
            "first_token_seconds": self.first_token.iter().map(|t| t.0).collect::<Vec<_>>(),
            "first_token_prefill_seconds": self.first_token.iter().map(|t| t.1).collect::<Vec<_>>(),
            "load_seconds": self.loaded.time.as_secs_f64(),
            "compile_seconds": compile.time.as_secs_f64(),
            "programs_compiled": compile.compiled,
            "programs_cached": compile.cached,
            "peak_rss_bytes": self.memory.peak,
            "anonymous_rss_bytes": self.memory.anonymous,
            "read_bytes_per_second": self.limits.iter().map(|l| l.bytes_per_second).collect::<Vec<_>>(),
            "flops_per_second": self.limits.iter().map(|l| l.flops_per_second).collect::<Vec<_>>(),
        })
    }

    fn weight_bytes(&self) -> u64 {
        self.opened.checkpoint().tensors().values().map(|t| t.bytes.bytes().len() as u64).sum()
    }

    fn threads(&self) -> String {
        if self.loaded.kernels { ExecContext::whole().pool.threads().to_string() } else { "-".into() }
    }
}

/// Returns the smallest value, the median and the largest.
fn spread(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
    [sorted[0], median, sorted[sorted.len() - 1]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_two() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), [1.0, 2.0, 3.0]);
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), [1.0, 2.5, 4.0]);
    }
}
