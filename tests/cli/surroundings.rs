//! What surrounds a process: streams that are closed or full, signals that its parent ignores,
//! variables of other programs.

use std::{
    ffi::OsStr,
    fs::File,
    io::{BufRead, BufReader, Write},
    os::unix::ffi::OsStrExt,
    process::{Command, Stdio},
};

use crate::{Home, Ran};

/// The command, run by a shell after `setup`.
pub fn after(setup: &str, command: &Command) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &format!("{setup}; exec \"$0\" \"$@\"")]).arg(command.get_program()).args(command.get_args());
    shell.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.stdin(Stdio::null());
    shell
}

pub fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

/// The write end of a pipe that nobody reads.
fn broken() -> Stdio {
    std::io::pipe().unwrap().1.into()
}

#[test]
fn without_stderr_the_work_is_done_and_its_exit_code_kept() {
    let home = Home::new();
    let answers = ["generate", "What is the capital of France?"];
    let cases: [(&[&str], i32); 4] = [
        (&answers, 0),
        (&["generate", "x", "--model", "/no/such/dir"], 1),
        (&["generate", "x", "--mesh", "4"], 2),
        (&[], 2),
    ];
    for (args, code) in cases {
        let with = |stderr: Stdio| home.command(args).stderr(stderr).output().unwrap();
        let closed = after("exec 2>&-", &home.command(args)).output().unwrap();
        for (how, output) in [("full", with(full())), ("broken", with(broken())), ("closed", closed)] {
            let ran = Ran::of(output);
            assert_eq!(ran.code, code, "{how} {args:?}");
            assert_eq!(ran.stdout, if code == 0 { "The capital of France is Paris.\n" } else { "" }, "{how} {args:?}");
        }
    }
}

#[test]
fn results_need_a_stdout_with_space() {
    let home = Home::new();
    for args in [&["generate", "Hello"][..], &["hlo", "--config", "tiny"], &["plugins", "path", "cpu"], &["--help"]] {
        let ran = Ran::of(home.command(args).stdout(full()).stderr(Stdio::piped()).output().unwrap());
        ran.fails(1, &["No space left"]);
        for output in [
            after("exec >&-", &home.command(args)).output().unwrap(),
            home.command(args).stdout(broken()).stderr(Stdio::piped()).output().unwrap(),
        ] {
            Ran::of(output).ok();
        }
    }
}

#[test]
fn variables_that_are_not_utf8_have_no_effect() {
    let home = Home::new();
    let broken = OsStr::from_bytes(b"caf\xe9");
    let mut command = home.command(&["generate", "What is the capital of France?"]);
    for name in ["LESSOPEN", "LANG", "PIP_INDEX_URL", "HF_HUB_OFFLINE", "HTTPS_PROXY", "NO_COLOR", "RUST_BACKTRACE"] {
        command.env(name, broken);
    }
    command.env(OsStr::from_bytes(b"\xff"), "x");
    assert_eq!(Ran::of(command.output().unwrap()).ok().stdout, "The capital of France is Paris.\n");
    Ran::of(home.command(&["doctor"]).env("XLA_FLAGS", broken).env("HF_HOME", broken).output().unwrap());
    // pip's settings are read when a plugin is to be installed.
    let mut command = home.command(&["plugins", "install", "cpu"]);
    command.env("LESSOPEN", broken).env("PIP_CERT", broken).env("PIP_INDEX_URL", "http://127.0.0.1:9/simple");
    Ran::of(command.output().unwrap()).fails(1, &["the Python package index http://127.0.0.1:9/simple cannot be used"]);
}

#[test]
fn signals_that_the_parent_ignores_stay_ignored() {
    let home = Home::new();
    let chat = home.command(&["chat", "--dtype", "f32"]);
    let mut child = after("trap '' HUP INT", &chat)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    let mut ask = |question: &str| {
        input.write_all(question.as_bytes()).unwrap();
        let mut answer = String::new();
        output.read_line(&mut answer).unwrap();
        answer
    };
    let send = |signal: &str| Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert_eq!(ask("My name is Tom.\n"), "Nice to meet you, Tom.\n");
    assert!(send("-HUP").success() && send("-INT").success());
    assert_eq!(ask("What is my name?\n"), "Your name is Tom.\n");
    assert!(send("-TERM").success(), "which is not ignored");
    assert_eq!(child.wait().unwrap().code(), Some(143));
}
