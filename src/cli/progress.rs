//! Progress bars, on stderr, only where it is a terminal.

use indicatif::{ProgressBar, ProgressStyle};

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
