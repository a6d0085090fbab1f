//! The program, driven as a user drives it.

mod bad_input;
mod batch;
mod bench;
mod bench_serve;
mod chat;
mod commands;
mod compat;
mod constraint;
mod eval;
mod hub;
mod moments;
mod plan;
mod plugins;
mod quantize;
mod serve;
mod surroundings;
mod tpu_vm;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
};

use tempfile::TempDir;

/// The CPU plugin that the tests use: `PJRT_PLUGIN`, or the installed one, or it is installed now.
fn plugin() -> &'static Path {
    static PLUGIN: OnceLock<PathBuf> = OnceLock::new();
    PLUGIN.get_or_init(|| {
        let run = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_gemma-pjrt")).args(args).output().unwrap();
        let mut output = run(&["plugins", "path", "cpu"]);
        if !output.status.success() {
            output = run(&["plugins", "install", "cpu"]);
        }
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().into()
    })
}

/// A home of its own for each test: an empty cache, and the plugin by its path.
struct Home {
    dir: TempDir,
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Home {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The program with a clean environment.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gemma-pjrt"));
        command
            .args(args)
            .env_clear()
            .env("HOME", self.dir.path())
            .env("PATH", "/usr/bin:/bin")
            .env("PJRT_PLUGIN", plugin())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().unwrap())
    }

    fn run_with_input(&self, args: &[&str], input: &[u8]) -> Ran {
        let mut child =
            self.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        Ran::of(child.wait_with_output().unwrap())
    }

    /// A tiny model with random weights, as a path for the command line.
    fn tiny_model(&self) -> String {
        let dir = self.path("model").to_str().unwrap().to_owned();
        self.run(&["init", &dir]).ok();
        dir
    }
}

impl Ran {
    fn of(output: Output) -> Self {
        Self {
            // A signal (an abort inside a plugin) has no code.
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[track_caller]
    fn ok(self) -> Self {
        assert_eq!(self.code, 0, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.ok().stdout).unwrap()
    }

    /// An error that a user can act on: this exit code, these words, no panic, nothing of the
    /// plugin's own.
    #[track_caller]
    fn fails(self, code: i32, words: &[&str]) -> Self {
        let Self { stdout, stderr, .. } = &self;
        assert_eq!(self.code, code, "stdout:\n{stdout}\nstderr:\n{stderr}");
        for word in words {
            assert!(stderr.contains(word), "{word:?} is not in:\n{stderr}");
        }
        for word in ["panicked", "RUST_BACKTRACE", "Check failure", "F0000"] {
            assert!(!stderr.contains(word), "{stderr}");
        }
        self
    }
}
