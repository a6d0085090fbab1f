//! The last line of defence: a panic is a defect of this program. The user reads one line about it
//! instead of a panic message, and the exit code is 1.

use std::{
    panic::{self, AssertUnwindSafe, PanicHookInfo},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

use super::note;
use crate::shield::{is_shielded, panic_message};

/// True if a panic was reported, on any thread.
static REPORTED: AtomicBool = AtomicBool::new(false);

/// Reports the first panic of any thread from now on: later ones follow from it. With
/// `RUST_BACKTRACE` set, Rust's own report comes after the line.
pub fn report_panics() {
    let rusts_own = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if is_shielded() {
            return;
        }
        if !REPORTED.swap(true, Ordering::SeqCst) {
            note(&report(panic));
        }
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| !value.is_empty() && value != "0") {
            rusts_own(panic);
        }
    }));
}

/// Runs the program. The exit code is 1 if it panics, or another thread of it does.
pub fn survive(program: impl FnOnce() -> ExitCode) -> ExitCode {
    let ended = panic::catch_unwind(AssertUnwindSafe(program));
    match ended {
        Ok(code) if !REPORTED.load(Ordering::SeqCst) => code,
        _ => ExitCode::FAILURE,
    }
}

fn report(panic: &PanicHookInfo<'_>) -> String {
    let place =
        panic.location().map_or_else(|| "an unknown place".to_owned(), |at| format!("{}:{}", at.file(), at.line()));
    let message = panic_message(panic.payload());
    format!("error: this is a defect of gemma-pjrt: {message} at {place}; please report it with the command line")
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// One test, since the hook belongs to the whole process.
    #[test]
    fn a_panic_becomes_one_line_and_exit_code_1() {
        static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if panic.location().is_some_and(|at| at.file() == file!()) {
                LINES.lock().unwrap().push(report(panic));
            } else {
                before(panic);
            }
        }));
        let line = line!() + 1;
        let code = survive(|| panic!("index 3 is beyond\n  the {} entries", 2));
        assert_eq!(code, ExitCode::FAILURE);
        let lines = LINES.lock().unwrap().clone();
        let place = format!("{}:{line}", file!());
        let expected = format!(
            "error: this is a defect of gemma-pjrt: index 3 is beyond   the 2 entries at {place}; please report it with \
             the command line"
        );
        assert_eq!(lines, [expected]);

        report_panics();
        assert_eq!(survive(|| ExitCode::from(3)), ExitCode::from(3));
        // The program ends as if nothing had happened, but one of its threads did not.
        let with_thread = || {
            let thread = std::thread::spawn(|| panic!("on a thread"));
            assert!(thread.join().is_err());
            ExitCode::SUCCESS
        };
        assert_eq!(survive(with_thread), ExitCode::FAILURE);
        REPORTED.store(false, Ordering::SeqCst);
        drop(panic::take_hook());
    }
}
