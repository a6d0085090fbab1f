//! Progress on stderr: bars where it is a terminal, plain lines elsewhere.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use super::note;
use crate::{download::Progress, runtime::OnProgress};

/// A progress bar of bytes.
#[derive(Default)]
pub struct Bar(Option<ProgressBar>);

impl Bar {
    /// Starts a bar of `total` bytes.
    pub fn bytes(what: &str, total: u64) -> Self {
        let mut bar = Self::default();
        bar.start(what, total);
        bar
    }

    /// Advances the bar.
    pub fn add(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(bytes);
        }
    }
}

impl Progress for Bar {
    fn start(&mut self, what: &str, total: u64) {
        if !std::io::IsTerminal::is_terminal(&std::io::stderr()) {
            note(&format!("{what}..."));
            return;
        }
        const TEMPLATE: &str = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let style = ProgressStyle::with_template(TEMPLATE).expect("the template is right");
        self.0 = Some(ProgressBar::new(total).with_style(style).with_message(what.to_owned()));
    }

    fn advance(&mut self, bytes: u64) {
        self.add(bytes);
    }

    fn finish(&mut self) {
        if let Some(bar) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}

/// A progress bar of finished items, with tokens per second and the remaining time. Without a
/// terminal it writes a line every [`REPORT_INTERVAL`].
pub struct Counter {
    bar: ProgressBar,
    what: &'static str,
    is_terminal: bool,
    started: Instant,
    last_report: Cell<Instant>,
    tokens: Cell<u64>,
}

/// Time between lines where there is no terminal.
const REPORT_INTERVAL: Duration = Duration::from_secs(30);

impl Counter {
    /// Starts a counter of `total` items.
    pub fn new(what: &'static str, total: u64) -> Self {
        let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {msg} {eta} left");
        let bar = if is_terminal { ProgressBar::new(total) } else { ProgressBar::hidden() };
        bar.set_length(total);
        bar.set_style(style.expect("the template is right"));
        bar.set_prefix(what);
        let now = Instant::now();
        Self { bar, what, is_terminal, started: now, last_report: Cell::new(now), tokens: Cell::new(0) }
    }

    /// Counts finished items, and tokens.
    pub fn advance(&self, items: u64, tokens: u64) {
        self.tokens.set(self.tokens.get() + tokens);
        let rate = self.tokens.get() as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        self.bar.set_message(format!("{rate:.1} tok/s"));
        self.bar.inc(items);
        if !self.is_terminal && self.last_report.get().elapsed() >= REPORT_INTERVAL {
            self.last_report.set(Instant::now());
            let (done, total) = (self.bar.position(), self.bar.length().unwrap_or_default());
            let remaining = HumanDuration(self.bar.eta());
            note(&format!("{done} of {total} {}, {rate:.1} tok/s, {remaining} left", self.what));
        }
    }

    /// Removes the bar. Returns the tokens counted, and the time since the start.
    pub fn finish(&self) -> (u64, Duration) {
        self.bar.finish_and_clear();
        (self.tokens.get(), self.started.elapsed())
    }
}

/// Returns a progress bar for loading weights.
pub fn loading_progress() -> OnProgress {
    let mut bar: Option<Bar> = None;
    let mut remaining = None;
    Box::new(move |bytes, total| {
        bar.get_or_insert_with(|| Bar::bytes("loading weights", total)).add(bytes);
        let remaining = remaining.get_or_insert(total);
        *remaining -= bytes;
        if *remaining == 0
            && let Some(bar) = &mut bar
        {
            bar.finish();
        }
    })
}

/// A progress bar of downloads, with a description in front of the file's name.
pub struct DownloadProgress {
    doing: &'static str,
    bar: Bar,
}

impl DownloadProgress {
    /// Returns a bar that shows `doing` in front of each file's name.
    pub fn new(doing: &'static str) -> Self {
        Self { doing, bar: Bar::default() }
    }

    /// Returns a bar for installing plugins.
    pub fn of_plugin() -> Self {
        Self::new("installing the PJRT plugin")
    }
}

impl Progress for DownloadProgress {
    fn start(&mut self, what: &str, total: u64) {
        self.bar.start(&format!("{} {what}", self.doing), total);
    }

    fn advance(&mut self, bytes: u64) {
        self.bar.advance(bytes);
    }

    fn finish(&mut self) {
        self.bar.finish();
    }
}
