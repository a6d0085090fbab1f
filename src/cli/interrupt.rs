//! Ctrl-C. While an answer is being written, the first one ends it cleanly; at any other time, and for the second one, the
//! process ends at once.

use std::{
    io::stdin,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

static WRITING: AtomicBool = AtomicBool::new(false);
static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Installs the handler, for SIGINT, SIGTERM and SIGHUP.
pub fn install() {
    // A signal may come while a line is being edited: the terminal is left as it was.
    let terminal = tcgetattr(stdin()).ok();
    // Fails only if it is installed already.
    let _ = ctrlc::set_handler(move || {
        if !WRITING.load(Ordering::SeqCst) || REQUESTED.swap(true, Ordering::SeqCst) {
            if let Some(settings) = &terminal {
                let _ = tcsetattr(stdin(), OptionalActions::Now, settings);
            }
            std::process::exit(130);
        }
    });
}

/// From here on there is something to end cleanly.
pub fn begin_writing() {
    REQUESTED.store(false, Ordering::SeqCst);
    WRITING.store(true, Ordering::SeqCst);
}

/// There is nothing to end any more.
pub fn end_writing() {
    WRITING.store(false, Ordering::SeqCst);
}

/// Whether the user asked to stop.
pub fn is_requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}
