//! Runs programs that a model wrote, in processes of their own with limits on time, memory and
//! disk.
//!
//! The limits protect from accidents, not from malice. Programs of strangers belong in a container
//! or a virtual machine.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};

use super::{Error, Result};

/// The limits of `code_eval`, which HumanEval's authors use.
const SECONDS: u64 = 3;
const MEMORY_KIB: u64 = 4 << 20;
const FILE_BLOCKS: u64 = 32 << 10; // of 512 bytes

/// Runs a program, and exits with [`PASSED`] only if it reaches its end. `exit()` in the program
/// does not count.
const RUNNER: &str = "\
import os, sys
leave = os._exit
with open(sys.argv[1]) as file:
    program = file.read()
try:
    exec(program, {})
except BaseException:
    leave(1)
leave(37)
";
const PASSED: i32 = 37;

/// Runs programs, one on each core at a time. Returns whether each reaches its end without an
/// exception. Ends early when `go_on`, which is called between programs, returns false; the others
/// are `None` then.
///
/// # Errors
/// There is no Python, or no place for temporary files.
pub fn run_programs(programs: &[String], go_on: impl Fn() -> bool + Sync) -> Result<Vec<Option<bool>>> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(vec![None; programs.len()]);
    let work = || -> Result<()> {
        while go_on() {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(program) = programs.get(i) else { break };
            let passes = passes(program).map_err(|e| {
                Error::Invalid(format!("cannot run a program: {e}; python3 and a writable temporary folder are needed"))
            })?;
            found.lock().unwrap_or_else(|e| e.into_inner())[i] = Some(passes);
        }
        Ok(())
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(programs.len());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("it does not panic"))
    })?;
    Ok(found.into_inner().unwrap_or_else(|e| e.into_inner()))
}

fn passes(program: &str) -> std::io::Result<bool> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("program.py");
    std::fs::File::create(&path)?.write_all(program.as_bytes())?;
    let limits = format!("ulimit -v {MEMORY_KIB}; ulimit -t {SECONDS}; ulimit -f {FILE_BLOCKS}; exec \"$@\"");
    let mut child = Command::new("sh")
        .args(["-c", &limits, "sh", "python3", "-I", "-c", RUNNER])
        .arg(&path)
        .current_dir(folder.path())
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .env("OMP_NUM_THREADS", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    let status = wait(&mut child, Duration::from_secs(SECONDS));
    // Processes that the program started end with it.
    let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    let status = match status? {
        Some(status) => status,
        None => child.wait()?,
    };
    if status.code() == Some(127) {
        return Err(std::io::Error::new(std::io::ErrorKind::NotFound, "there is no python3"));
    }
    Ok(status.code() == Some(PASSED))
}

/// Waits until the process ends. `None` if it does not end in time.
fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let started = Instant::now();
    while started.elapsed() < limit {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_programs_that_come_to_their_end_pass() {
        let programs = [
            "def add(a, b):\n    return a + b\nassert add(2, 3) == 5",
            "assert 1 == 2",
            "import sys\nsys.exit(0)",
            "while True:\n    pass",
            "import time\ntime.sleep(60)",
            "x = bytearray(8 << 30)",
            "open('f', 'wb').write(bytes(64 << 20))",
            "input()",
            "import os, time\nif os.fork() == 0:\n    time.sleep(60)",
            "this is no Python",
            "print('naïve')",
        ]
        .map(str::to_owned);
        let found = run_programs(&programs, || true).unwrap();
        let passed: Vec<usize> = (0..programs.len()).filter(|&i| found[i] == Some(true)).collect();
        assert_eq!(passed, [0, 8, 10]);
        assert!(found.iter().all(Option::is_some));
        assert!(run_programs(&programs, || false).unwrap().iter().all(Option::is_none));
    }
}
