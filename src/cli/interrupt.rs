//! Ctrl-C. While an answer is being written, the first Ctrl-C ends it cleanly. A second one, or one
//! at any other time, ends the process at once.

use std::{
    io::stdin,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

static WRITING: AtomicBool = AtomicBool::new(false);
static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Installs the handler, for SIGINT, SIGTERM and SIGHUP.
pub fn install() {
    // A signal may arrive while a line is being edited: the terminal's settings are restored.
    let terminal = tcgetattr(stdin()).ok();
    // Fails only if a handler is installed already.
    let _ = ctrlc::set_handler(move || {
        if !WRITING.load(Ordering::SeqCst) || REQUESTED.swap(true, Ordering::SeqCst) {
            if let Some(settings) = &terminal {
                let _ = tcsetattr(stdin(), OptionalActions::Now, settings);
            }
            std::process::exit(130);
        }
    });
}

/// From here on, a first Ctrl-C is a request: see [`is_requested`].
pub fn begin_writing() {
    REQUESTED.store(false, Ordering::SeqCst);
    WRITING.store(true, Ordering::SeqCst);
}

/// From here on, Ctrl-C ends the process at once.
pub fn end_writing() {
    WRITING.store(false, Ordering::SeqCst);
}

/// Returns whether the user has pressed Ctrl-C since [`begin_writing`].
pub fn is_requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}
