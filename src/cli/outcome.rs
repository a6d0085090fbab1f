//! How commands end, and what they say beside their results.

/// How a command ended.
pub enum Outcome {
    Done,
    Interrupted,
    /// Something could not be done; all else was, and what is missing was told.
    Incomplete,
    /// What was planned has no place on the machine.
    DoesNotFit,
    /// The doctor found something that will not work.
    ChecksFailed,
}

/// Whether the error is that nobody reads standard output any more.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// A line for the user that is neither result nor error.
pub fn note(line: &str) {
    eprintln!("{line}");
}
