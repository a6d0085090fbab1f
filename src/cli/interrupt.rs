//! Ctrl-C. While an answer is being written, the first one ends it cleanly; at any other time, and for the second one, the
//! process ends at once.

use std::sync::atomic::{AtomicBool, Ordering};

static WRITING: AtomicBool = AtomicBool::new(false);
static ASKED: AtomicBool = AtomicBool::new(false);

/// Installs the handler, for SIGINT, SIGTERM and SIGHUP.
pub fn install() {
    // Fails only if it is installed already.
    let _ = ctrlc::set_handler(|| {
        if !WRITING.load(Ordering::SeqCst) || ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    });
}

/// From here on there is something to end cleanly.
pub fn begin_writing() {
    WRITING.store(true, Ordering::SeqCst);
}

/// Whether the user asked to stop.
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}
