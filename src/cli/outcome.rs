//! Outcomes of commands, and lines on stderr.

use std::{
    io::Write,
    sync::atomic::{AtomicBool, Ordering},
};

use serde_json::json;

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
    let line = if AS_JSON.load(Ordering::Relaxed) { json_line(line) } else { line.to_owned() };
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// True if lines are JSON objects.
static AS_JSON: AtomicBool = AtomicBool::new(false);

/// Makes all lines on stderr JSON objects, from now on.
#[cfg(feature = "serve")]
pub fn notes_as_json() {
    AS_JSON.store(true, Ordering::Relaxed);
}

/// Returns whether lines on stderr are JSON objects.
#[cfg(feature = "serve")]
pub fn writes_json() -> bool {
    AS_JSON.load(Ordering::Relaxed)
}

/// Returns a line as an object with a time; one that is an object already stays as it is.
fn json_line(line: &str) -> String {
    if line.starts_with('{') {
        return line.to_owned();
    }
    let time = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    json!({"time": time, "message": line}).to_string()
}
