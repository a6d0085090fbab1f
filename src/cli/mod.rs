//! The command line: one file per subcommand. Results go to stdout, everything else to stderr.
//!
//! Exit codes: 0 success, 1 an error that stderr explains, 2 a wrong command line, 3 a plan that
//! does not fit, 130 interrupted (143 by SIGTERM).

mod bench;
mod chat;
mod compile;
mod defect;
mod devices;
mod doctor;
#[cfg(feature = "eval")]
mod eval;
pub mod generate;
mod hlo;
mod init;
mod inspect;
mod interrupt;
mod journal;
mod logging;
mod model_args;
mod model_files;
mod outcome;
mod plan;
mod plugins;
mod process;
mod progress;
mod quantize;
mod score;
#[cfg(feature = "serve")]
mod serve;

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Instant,
};

use clap::{Parser, Subcommand};

use self::outcome::{Outcome, is_broken_pipe, note};

/// A JAX-free runtime for Google's Gemma 1.1 on PJRT: Cloud TPU, CUDA and CPU from one binary.
#[derive(Parser)]
#[command(name = "gemma-pjrt", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    /// Show the log messages of plugins
    #[arg(long, global = true)]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Generate text from a prompt
    Generate(Box<generate::Args>),
    /// Chat with a model
    Chat(chat::Args),
    /// Compute the log-likelihood of a text, token by token
    Score(score::Args),
    /// Serve a model over HTTP, as OpenAI's interface
    #[cfg(feature = "serve")]
    Serve(Box<serve::Args>),
    /// Score benchmarks as lm-evaluation-harness does
    #[cfg(feature = "eval")]
    Eval(eval::Args),
    /// Measure speed, and compare it with this machine's limits
    Bench(bench::Args),
    /// Estimate a model's memory and speed on a machine that need not be present
    Plan(plan::Args),
    /// Compile all programs of a model ahead of time, for this or another machine
    Compile(compile::Args),
    /// Print or write the HLO of a program, without loading weights
    Hlo(hlo::Args),
    /// Check this computer for problems, and say how to fix them
    Doctor(doctor::Args),
    /// Show the platform, its plugin and its devices
    Devices(devices::Args),
    /// Show a model's sizes, tensors and tokenizer, and check that it can be run
    Inspect(inspect::Args),
    /// Write a checkpoint with random weights, for tests and benchmarks
    Init(init::Args),
    /// Write a copy of a checkpoint with int8 or int4 weights
    Quantize(quantize::Args),
    /// List, install and verify PJRT plugins
    Plugins(plugins::Args),
}

/// Runs the command line. `started` is when the process began.
pub fn main(started: Instant) -> ExitCode {
    defect::report_panics();
    interrupt::survive_file_size_limit();
    defect::survive(|| match Cli::try_parse() {
        Ok(cli) => run(cli, started),
        Err(refusal) => explain(&refusal),
    })
}

/// Prints the help that was asked for, or what is wrong with the command line.
fn explain(refusal: &clap::Error) -> ExitCode {
    match refusal.print() {
        Err(error) if !refusal.use_stderr() => exit_code(Err(error.into())),
        _ => ExitCode::from(refusal.exit_code().try_into().unwrap_or(2)),
    }
}

fn run(cli: Cli, started: Instant) -> ExitCode {
    logging::install();
    if cli.verbose {
        crate::pjrt::Api::show_plugin_logs();
    }
    let result = match cli.command {
        Command::Generate(args) => generate::run(&args, started),
        Command::Chat(args) => chat::run(&args, started),
        Command::Score(args) => score::run(&args, started),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(*args),
        #[cfg(feature = "eval")]
        Command::Eval(args) => eval::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Compile(args) => compile::run(&args),
        Command::Hlo(args) => hlo::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Devices(args) => devices::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Init(args) => init::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::Plugins(args) => plugins::run(&args),
    };
    // What is still buffered is part of the result.
    exit_code(result.and_then(|outcome| io::stdout().flush().map(|()| outcome).map_err(anyhow::Error::from)))
}

/// Reports the error, if there is one.
fn exit_code(result: anyhow::Result<Outcome>) -> ExitCode {
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::ChecksFailed | Outcome::Incomplete) => ExitCode::FAILURE,
        Ok(Outcome::DoesNotFit) => ExitCode::from(3),
        Ok(Outcome::Interrupted) => ExitCode::from(interrupt::exit_code()),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS, // the reader has enough
        Err(error) => {
            note(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
