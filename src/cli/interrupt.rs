//! Signals. While an answer is being written, the first Ctrl-C ends it cleanly. A second one,
//! or one at any other time, ends the process at once.

use std::{
    io::stdin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
    thread,
};

use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ},
    flag,
    iterator::Signals,
    low_level,
};

static WRITING: AtomicBool = AtomicBool::new(false);
/// The signal that asked for an end, 0 if none did.
static REQUESTED: AtomicI32 = AtomicI32::new(0);

/// Installs the handler, for those of SIGINT, SIGTERM and SIGHUP that the parent process does not
/// have ignored: `nohup` and `trap '' INT` go on working.
pub fn install() {
    let ignored = ignored_signals(&std::fs::read_to_string("/proc/self/status").unwrap_or_default());
    let ends = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|&signal| !is_in(ignored, signal));
    // Fails only if the kernel refuses a handler: then the signals end the process at once.
    let Ok(mut signals) = Signals::new(ends) else { return };
    // A signal may arrive while a line is being edited: the terminal's settings are restored.
    let terminal = tcgetattr(stdin()).ok();
    thread::spawn(move || {
        for signal in signals.forever() {
            if !WRITING.load(Ordering::SeqCst) || REQUESTED.swap(signal, Ordering::SeqCst) != 0 {
                if let Some(settings) = &terminal {
                    let _ = tcsetattr(stdin(), OptionalActions::Now, settings);
                }
                // Without exit handlers: those of a plugin destroy what its threads are using,
                // and the process would crash.
                low_level::exit(128 + signal);
            }
        }
    });
}

/// Makes a write beyond the limit on file sizes (`ulimit -f`) an error, as on a full disk. Without
/// this the kernel ends the process.
pub fn survive_file_size_limit() {
    let _ = flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false))); // the flag itself is not read
}

/// Returns the set of ignored signals, from the text of `/proc/self/status`.
fn ignored_signals(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap_or_default();
    u64::from_str_radix(mask.trim(), 16).unwrap_or(0)
}

fn is_in(set: u64, signal: i32) -> bool {
    set >> (signal - 1) & 1 == 1
}

/// From here on, a first Ctrl-C is a request: see [`is_requested`].
pub fn begin_writing() {
    REQUESTED.store(0, Ordering::SeqCst);
    WRITING.store(true, Ordering::SeqCst);
}

/// From here on, Ctrl-C ends the process at once.
pub fn end_writing() {
    WRITING.store(false, Ordering::SeqCst);
}

/// Returns whether the user has pressed Ctrl-C since [`begin_writing`].
pub fn is_requested() -> bool {
    REQUESTED.load(Ordering::SeqCst) != 0
}

/// Returns the exit code of a request to end: 130 for Ctrl-C, 143 for SIGTERM, as shells count.
pub fn exit_code() -> u8 {
    (128 + REQUESTED.load(Ordering::SeqCst)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_kernels_mask() {
        let status = "Name:\tx\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000004002\n";
        let ignored = ignored_signals(status);
        assert!(is_in(ignored, SIGHUP) && is_in(ignored, 13));
        assert!(!is_in(ignored, SIGINT) && !is_in(ignored, SIGTERM));
        assert_eq!(ignored_signals("no such line"), 0);
    }
}
