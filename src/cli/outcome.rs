//! Outcomes of commands, and lines on stderr.

use std::io::Write;

/// The outcome of a command.
pub enum Outcome {
    Done,
    Interrupted,
    /// Part of the work failed. Its errors were reported, and the rest is done.
    Incomplete,
    /// The plan needs more memory than the machine has.
    DoesNotFit,
    /// The doctor found a problem.
    ChecksFailed,
}

/// Returns whether the error is that the reader of standard output is gone.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Writes a line for the user to stderr. A stderr that is closed or full must not end the work, so
/// a line that cannot be written is lost.
pub fn note(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
