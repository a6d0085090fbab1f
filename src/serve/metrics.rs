//! Metrics in the text format of Prometheus. Those that load balancers and dashboards look for also
//! have vLLM's names.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::engine::service::ServiceStats;

/// vLLM's buckets, so that its dashboards fit. Seconds.
const FIRST_TOKEN: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
const BETWEEN_TOKENS: [f64; 19] =
    [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
const WHOLE: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];
const TOKENS: [f64; 14] =
    [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, 20_000.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Finished {
    finished_reason: &'static str,
}

/// Labels are routes and codes of this program, never what a client wrote.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: String,
    status: u16,
}

/// All metrics of a server.
pub struct Metrics {
    registry: Registry,
    ready: Gauge,
    waiting: [Gauge; 2],
    waiting_tokens: Gauge,
    running: [Gauge; 2],
    slots: Gauge,
    cache_usage: [Gauge<f64, AtomicU64>; 2],
    restarts: Counter,
    late_programs: Counter,
    prefilled: Counter,
    cached: Counter,
    generated: [Counter; 2],
    decode_steps: Counter,
    rejected: Family<Reason, Counter>,
    finished: Family<Finished, Counter>,
    answered: Family<Answered, Counter>,
    queue: Histogram,
    first_token: [Histogram; 2],
    between_tokens: [Histogram; 2],
    whole: [Histogram; 2],
    prompt_tokens: Histogram,
    generation_tokens: Histogram,
}

impl Metrics {
    /// Returns metrics whose label `model_name` is this.
    pub fn new(model: &str) -> Self {
        let labels = [("model_name".into(), model.to_owned().into())];
        let mut registry = Registry::with_labels(labels.into_iter());
        let histogram = |buckets: &[f64]| Histogram::new(buckets.iter().copied());
        let metrics = Self {
            ready: Gauge::default(),
            waiting: Default::default(),
            waiting_tokens: Gauge::default(),
            running: Default::default(),
            slots: Gauge::default(),
            cache_usage: Default::default(),
            restarts: Counter::default(),
            late_programs: Counter::default(),
            prefilled: Counter::default(),
            cached: Counter::default(),
            generated: Default::default(),
            decode_steps: Counter::default(),
            rejected: Family::default(),
            finished: Family::default(),
            answered: Family::default(),
            queue: histogram(&WHOLE),
            first_token: [histogram(&FIRST_TOKEN), histogram(&FIRST_TOKEN)],
            between_tokens: [histogram(&BETWEEN_TOKENS), histogram(&BETWEEN_TOKENS)],
            whole: [histogram(&WHOLE), histogram(&WHOLE)],
            prompt_tokens: histogram(&TOKENS),
            generation_tokens: histogram(&TOKENS),
            registry: Registry::default(),
        };
        macro_rules! register {
            ($($name:literal, $help:literal, $metric:expr;)*) => {
                $(registry.register($name, $help, $metric.clone());)*
            };
        }
        register! {
            "gemma_ready", "1 when requests are taken", metrics.ready;
            "gemma_requests_waiting", "Requests that wait for a slot", metrics.waiting[0];
            "vllm:num_requests_waiting", "As gemma_requests_waiting", metrics.waiting[1];
            "gemma_prompt_tokens_waiting", "Prompt tokens of requests that wait for a slot", metrics.waiting_tokens;
            "gemma_requests_running", "Answers and scored texts that have a slot", metrics.running[0];
            "vllm:num_requests_running", "As gemma_requests_running", metrics.running[1];
            "gemma_slots", "Answers that can run at the same time", metrics.slots;
            "gemma_kv_cache_usage_ratio", "Share of the KV cache that holds tokens", metrics.cache_usage[0];
            "vllm:kv_cache_usage_perc", "As gemma_kv_cache_usage_ratio", metrics.cache_usage[1];
            "gemma_engine_restarts", "Engines made anew after a failure", metrics.restarts;
            "gemma_late_programs", "Programs compiled or loaded after readiness, each of which held a request up",
                metrics.late_programs;
            "gemma_prefill_tokens", "Tokens of prompts that were computed", metrics.prefilled;
            "gemma_prefix_cached_tokens", "Tokens of prompts that were found in the cache", metrics.cached;
            "gemma_generation_tokens", "Tokens generated", metrics.generated[0];
            "vllm:generation_tokens", "As gemma_generation_tokens", metrics.generated[1];
            "gemma_decode_steps", "Steps of decoding alone", metrics.decode_steps;
            "gemma_requests_rejected", "Requests that were not taken", metrics.rejected;
            "gemma_requests_finished", "Requests that ended", metrics.finished;
            "gemma_http_requests", "HTTP requests answered", metrics.answered;
            "gemma_request_queue_seconds", "Time until a request had its first slot", metrics.queue;
            "gemma_time_to_first_token_seconds", "Time until a request's first token, waiting included",
                metrics.first_token[0];
            "vllm:time_to_first_token_seconds", "As gemma_time_to_first_token_seconds", metrics.first_token[1];
            "gemma_inter_token_latency_seconds", "Time from one token of a request to the next", metrics.between_tokens[0];
            "vllm:inter_token_latency_seconds", "As gemma_inter_token_latency_seconds", metrics.between_tokens[1];
            "gemma_request_seconds", "Time of a whole request", metrics.whole[0];
            "vllm:e2e_request_latency_seconds", "As gemma_request_seconds", metrics.whole[1];
            "gemma_request_prompt_tokens", "Prompt tokens of a request", metrics.prompt_tokens;
            "gemma_request_generation_tokens", "Tokens generated for a request", metrics.generation_tokens;
        }
        Self { registry, ..metrics }
    }

    /// A request had its slot after so long.
    pub fn queued(&self, time: Duration) {
        self.queue.observe(time.as_secs_f64());
    }

    /// A request had its first token after so long.
    pub fn first_token(&self, time: Duration) {
        self.first_token.iter().for_each(|histogram| histogram.observe(time.as_secs_f64()));
    }

    /// So many tokens came so long after the last one. A dispatch gives several at once.
    pub fn between_tokens(&self, time: Duration, tokens: usize) {
        for _ in 0..tokens {
            let each = time.as_secs_f64() / tokens as f64;
            self.between_tokens.iter().for_each(|histogram| histogram.observe(each));
        }
    }

    /// A request has ended.
    pub fn finished(&self, reason: &'static str, prompt: usize, generated: usize, time: Duration) {
        self.finished.get_or_create(&Finished { finished_reason: reason }).inc();
        self.whole.iter().for_each(|histogram| histogram.observe(time.as_secs_f64()));
        self.prompt_tokens.observe(prompt as f64);
        self.generation_tokens.observe(generated as f64);
    }

    /// A request was not taken.
    pub fn rejected(&self, reason: &'static str) {
        self.rejected.get_or_create(&Reason { reason }).inc();
    }

    /// An HTTP request of this route was answered.
    pub fn answered(&self, route: &str, status: u16) {
        self.answered.get_or_create(&Answered { route: route.to_owned(), status }).inc();
    }

    /// Returns all metrics as text, with the engine's figures of now.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn text(&self, stats: &ServiceStats, is_ready: bool) -> Result<String, std::fmt::Error> {
        self.update(stats, is_ready);
        let mut text = String::new();
        encode(&mut text, &self.registry).map(|()| text)
    }

    fn update(&self, stats: &ServiceStats, is_ready: bool) {
        let set = |counter: &Counter, value: u64| counter.inner().store(value, Ordering::Relaxed);
        let share = stats.cached_tokens as f64 / stats.cache_capacity.max(1) as f64;
        self.ready.set(is_ready.into());
        for (gauges, value) in [(&self.waiting, stats.waiting.requests), (&self.running, stats.running)] {
            gauges.iter().for_each(|gauge| _ = gauge.set(value as i64));
        }
        self.waiting_tokens.set(stats.waiting.prompt_tokens as i64);
        self.slots.set(stats.slots as i64);
        self.cache_usage.iter().for_each(|gauge| _ = gauge.set(share));
        set(&self.restarts, stats.restarts);
        set(&self.late_programs, stats.late_programs);
        set(&self.prefilled, stats.engine.prefilled);
        set(&self.cached, stats.engine.cached);
        self.generated.iter().for_each(|counter| set(counter, stats.engine.generated));
        set(&self.decode_steps, stats.engine.decode_steps);
    }
}
