//! Progress bars, on stderr, only where it is a terminal.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use crate::{download::Progress, runtime::OnProgress};

/// A bar that counts bytes.
#[derive(Default)]
pub struct Bar(Option<ProgressBar>);

impl Bar {
    pub fn bytes(what: &str, total: u64) -> Self {
        let mut bar = Self::default();
        bar.start(what, total);
        bar
    }

    pub fn add(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(bytes);
        }
    }
}

impl Progress for Bar {
    fn start(&mut self, what: &str, total: u64) {
        if !std::io::IsTerminal::is_terminal(&std::io::stderr()) {
            eprintln!("{what}...");
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

/// A bar that counts finished things, and tells tokens per second and the time that is left. Without a terminal, a line now and then.
pub struct Counter {
    bar: ProgressBar,
    what: &'static str,
    is_terminal: bool,
    started: Instant,
    told: Cell<Instant>,
    tokens: Cell<u64>,
}

/// Between lines where there is no terminal.
const NOW_AND_THEN: Duration = Duration::from_secs(30);

impl Counter {
    pub fn new(what: &'static str, total: u64) -> Self {
        let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {msg} {eta} left");
        let bar = if is_terminal { ProgressBar::new(total) } else { ProgressBar::hidden() };
        bar.set_length(total);
        bar.set_style(style.expect("the template is right"));
        bar.set_prefix(what);
        let now = Instant::now();
        Self { bar, what, is_terminal, started: now, told: Cell::new(now), tokens: Cell::new(0) }
    }

    pub fn advance(&self, items: u64, tokens: u64) {
        self.tokens.set(self.tokens.get() + tokens);
        let rate = self.tokens.get() as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        self.bar.set_message(format!("{rate:.1} tok/s"));
        self.bar.inc(items);
        if !self.is_terminal && self.told.get().elapsed() >= NOW_AND_THEN {
            self.told.set(Instant::now());
            let (done, total) = (self.bar.position(), self.bar.length().unwrap_or_default());
            eprintln!("{done} of {total} {}, {rate:.1} tok/s, {} left", self.what, HumanDuration(self.bar.eta()));
        }
    }

    /// Tokens counted, and the time since the beginning.
    pub fn finish(&self) -> (u64, Duration) {
        self.bar.finish_and_clear();
        (self.tokens.get(), self.started.elapsed())
    }
}

/// Of weights on their way to devices.
pub fn loading_progress() -> OnProgress {
    let mut bar: Option<Bar> = None;
    let mut left = None;
    Box::new(move |bytes, total| {
        bar.get_or_insert_with(|| Bar::bytes("loading weights", total)).add(bytes);
        let left = left.get_or_insert(total);
        *left -= bytes;
        if *left == 0
            && let Some(bar) = &mut bar
        {
            bar.finish();
        }
    })
}

/// Downloads: says first what is being done.
pub struct DownloadProgress {
    doing: &'static str,
    bar: Bar,
}

impl DownloadProgress {
    /// `doing` stands before the file's name.
    pub fn new(doing: &'static str) -> Self {
        Self { doing, bar: Bar::default() }
    }

    /// Of plugins.
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
