//! Progress bars, on stderr, only where it is a terminal.

use indicatif::{ProgressBar, ProgressStyle};

use crate::plugins::Progress;

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

/// Downloads of plugins: says first what is being done.
#[derive(Default)]
pub struct InstallProgress(Bar);

impl Progress for InstallProgress {
    fn start(&mut self, what: &str, total: u64) {
        self.0.start(&format!("installing the PJRT plugin {what}"), total);
    }

    fn advance(&mut self, bytes: u64) {
        self.0.advance(bytes);
    }

    fn finish(&mut self) {
        self.0.finish();
    }
}
