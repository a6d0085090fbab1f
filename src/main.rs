//! The `gemma-pjrt` program. Everything is in the library; this maps errors to exit codes.

use std::{process::ExitCode, time::Instant};

fn main() -> ExitCode {
    gemma_pjrt::cli::main(Instant::now())
}
