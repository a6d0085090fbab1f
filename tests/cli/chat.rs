//! `chat` as a user holds it: at a terminal, with the keys of a terminal, and through pipes.

use std::{fs, process::Stdio, time::Duration};

use rexpect::{
    reader::Options,
    session::{PtySession, spawn_with_options},
};
use serde_json::{Value, json};

use crate::{Home, Ran};

/// A chat on a terminal of its own. Escape codes are left out of what it shows.
fn chat(home: &Home, args: &[&str]) -> PtySession {
    let mut command = home.command(&[&["chat", "--dtype", "f32"], args].concat());
    command.stdin(Stdio::inherit()).env("TERM", "xterm-256color");
    let options = Options::new().timeout_ms(Some(60_000)).strip_ansi_escape_codes(true);
    spawn_with_options(command, options).unwrap()
}

#[track_caller]
fn says(session: &mut PtySession, text: &str) {
    if let Err(error) = session.exp_string(text) {
        panic!("{text:?} was not said: {error}");
    }
}

#[track_caller]
fn ends(session: &mut PtySession, code: i32) {
    session.exp_eof().unwrap();
    let status = format!("{:?}", session.process().wait().unwrap());
    assert!(status.starts_with("Exited(") && status.ends_with(&format!(", {code})")), "{status}");
}

/// Keys as terminals send them.
const LEFT: &str = "\x1b[D";
const UP: &str = "\x1b[A";
const BACKSPACE: &str = "\x7f";

#[test]
fn a_conversation_at_a_terminal() {
    let home = Home::new();
    let mut chat = chat(&home, &[]);
    says(&mut chat, "tiny demo model");
    says(&mut chat, "/help lists commands");
    chat.send_line("My name is Tom.").unwrap();
    says(&mut chat, "Nice to meet you, Tom.");
    says(&mut chat, "0 kept");
    // Only the new turn is prefilled.
    chat.send_line("What is my name?").unwrap();
    says(&mut chat, "Your name is Tom.");
    says(&mut chat, "18 of");
    chat.send_line("/undo").unwrap();
    says(&mut chat, "taken back: What is my name?");
    chat.send_line("/regenerate").unwrap();
    says(&mut chat, "Nice to meet you, Tom.");
    let file = home.path("saved.json");
    chat.send_line(&format!("/save {}", file.display())).unwrap();
    says(&mut chat, "saved 1 turns");
    chat.send_line("/reset").unwrap();
    says(&mut chat, "a new conversation begins");
    chat.send_line(&format!("/load {}", file.display())).unwrap();
    says(&mut chat, "loaded 1 turns");
    chat.send_line("What is my name?").unwrap();
    says(&mut chat, "Your name is Tom.");
    chat.send_line("/stats").unwrap();
    says(&mut chat, "answers     4");
    says(&mut chat, "memory");
    chat.send_line("/help").unwrap();
    says(&mut chat, "continue a saved conversation");
    chat.send_line("/fly").unwrap();
    says(&mut chat, "error: there is no command /fly");
    chat.send_line("/exit").unwrap();
    ends(&mut chat, 0);
}

#[test]
fn lines_are_edited_completed_and_remembered() {
    let home = Home::new();
    let mut first = chat(&home, &[]);
    says(&mut first, "> ");
    // "Paru?" becomes "Peru?" before it is sent.
    first.send(&format!("What is the capital of Paru?{}{BACKSPACE}e", LEFT.repeat(3))).unwrap();
    first.send_line("").unwrap();
    says(&mut first, "The capital of Peru is Lima.");
    says(&mut first, "> ");
    // Up brings it back.
    first.send(UP).unwrap();
    first.send_line("").unwrap();
    says(&mut first, "The capital of Peru is Lima.");
    says(&mut first, "> ");
    // A backslash at the end goes on in the next line.
    first.send_line("What is the capital \\").unwrap();
    first.send_line("of Norway?").unwrap();
    says(&mut first, "The capital of Norway is Oslo.");
    says(&mut first, "> ");
    // Ctrl-A, Ctrl-K clear a line; Tab completes a command.
    first.send("this is not sent").unwrap();
    first.send_control('a').unwrap();
    first.send_control('k').unwrap();
    first.send("/st\t").unwrap();
    first.send_line("").unwrap();
    says(&mut first, "answers     3");
    says(&mut first, "> ");
    first.send_control('d').unwrap();
    ends(&mut first, 0);

    // History outlives the program.
    let mut second = chat(&home, &[]);
    says(&mut second, "> ");
    second.send(UP).unwrap();
    second.send_line("").unwrap();
    says(&mut second, "answers     0");
    second.send_control('d').unwrap();
    ends(&mut second, 0);
}

/// A random model of the demo model's vocabulary that talks without end, slowly enough to be
/// stopped.
fn talker(home: &Home) -> String {
    let dir = home.path("talker");
    let mut config: Value = serde_json::from_str(include_str!("../../src/demo/config.json")).unwrap();
    config["num_hidden_layers"] = 12.into();
    config["intermediate_size"] = 4096.into();
    config["hidden_size"] = 512.into();
    let file = home.path("config.json");
    fs::write(&file, config.to_string()).unwrap();
    home.run(&["init", dir.to_str().unwrap(), "--config", file.to_str().unwrap()]).ok();
    dir.to_str().unwrap().to_owned()
}

#[test]
fn ctrl_c_stops_the_answer_and_keeps_the_conversation() {
    let home = Home::new();
    let model = talker(&home);
    let mut chat = chat(&home, &["--model", &model, "--temperature", "1", "-n", "400"]);
    says(&mut chat, "> ");
    // With nothing to stop, it only says how to leave.
    chat.send_control('c').unwrap();
    says(&mut chat, "Ctrl-D or /exit leaves");
    chat.send_line("Hello").unwrap();
    // The first line's end is its echo; text after it is the answer.
    chat.exp_regex("Hello\r\n.").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    chat.send_control('c').unwrap();
    says(&mut chat, "(interrupted)");
    let file = home.path("saved.json");
    chat.send_line(&format!("/save {}", file.display())).unwrap();
    says(&mut chat, "saved 1 turns");
    // And it goes on from there.
    chat.send_line("Again").unwrap();
    chat.exp_regex("Again\r\n.").unwrap();
    chat.send_control('c').unwrap();
    says(&mut chat, "(interrupted)");
    says(&mut chat, "> ");
    chat.send_control('d').unwrap();
    ends(&mut chat, 0);
    let saved: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(saved["messages"][0], json!({"role": "user", "content": "Hello"}));
    assert!(!saved["messages"][1]["content"].as_str().unwrap().is_empty());
}

#[test]
fn a_full_context_offers_to_drop_the_oldest_turns() {
    let home = Home::new();
    let mut chat = chat(&home, &["--context", "100"]);
    chat.send_line("My name is Tom.").unwrap();
    says(&mut chat, "Nice to meet you, Tom.");
    chat.send_line("What is the capital of Egypt?").unwrap();
    says(&mut chat, "The capital of Egypt is Cairo.");
    says(&mut chat, "> ");
    chat.send_line("What is the capital of Italy?").unwrap();
    says(&mut chat, "the context is full");
    says(&mut chat, "[Y/n]");
    chat.send_line("n").unwrap();
    says(&mut chat, "nothing was asked");
    chat.send_line("What is the capital of Italy?").unwrap();
    says(&mut chat, "[Y/n]");
    chat.send_line("").unwrap();
    says(&mut chat, "dropped the");
    says(&mut chat, "Rome");
    says(&mut chat, "> ");
    chat.send_control('d').unwrap();
    ends(&mut chat, 0);
}

#[test]
fn through_pipes_each_line_is_a_turn() {
    let home = Home::new();
    let talk = |args: &[&str], input: &str| {
        home.run_with_input(&[&["chat", "--dtype", "f32"], args].concat(), input.as_bytes())
    };
    let ran = talk(&[], "My name is Tom.\n\nWhat is my name?\n").ok();
    assert_eq!(ran.stdout, "Nice to meet you, Tom.\nYour name is Tom.\n");
    assert!(!ran.stderr.contains('\x1b') && !ran.stdout.contains('\x1b'), "no colours");
    assert_eq!(ran.stderr.matches("demo model").count(), 1, "said once");
    // A last line without its end is a line.
    assert_eq!(talk(&[], "What is the capital of Egypt?").ok().stdout, "The capital of Egypt is Cairo.\n");

    let ran =
        talk(&["--context", "100"], "My name is Tom.\nWhat is the capital of Egypt?\nWhat is the capital of Italy?\n")
            .ok();
    assert!(ran.stderr.contains("the context is full") && ran.stderr.contains("dropped the"), "{}", ran.stderr);
    assert!(ran.stdout.contains("Rome"));

    let ran = talk(&["--system", "You are brief."], "What is the capital of Egypt?\n/save /dev/stdout/no\n")
        .fails(1, &["cannot save"]);
    assert!(ran.stderr.contains("Gemma has no system role"), "{}", ran.stderr);
}

/// The conversation is longer than the context, so that its oldest turn goes: the last question has
/// one answer all the same.
#[test]
fn regenerate_may_drop_turns_too() {
    let home = Home::new();
    let said = [
        ("My name is Tom.", "Nice to meet you, Tom."),
        ("What is the capital of Egypt?", "The capital of Egypt is Cairo."),
        ("What is the capital of Italy?", "It was forgotten."),
    ];
    let turn =
        |(user, model)| [json!({"role": "user", "content": user}), json!({"role": "assistant", "content": model})];
    let messages: Vec<Value> = said.into_iter().flat_map(turn).collect();
    let (long, after) = (home.path("long.json"), home.path("after.json"));
    fs::write(&long, json!({"model": "demo", "messages": messages}).to_string()).unwrap();
    let input = format!("/load {}\n/regenerate\n/save {}\n", long.display(), after.display());
    let ran = home.run_with_input(&["chat", "--dtype", "f32", "--context", "100"], input.as_bytes()).ok();
    assert!(ran.stderr.contains("dropped the 1 oldest turns"), "{}", ran.stderr);
    let saved: Value = serde_json::from_str(&fs::read_to_string(after).unwrap()).unwrap();
    assert_eq!(saved["messages"].as_array().unwrap()[..3], messages[2..5]);
    assert_eq!(saved["messages"].as_array().unwrap().len(), 4);
    assert_eq!(saved["messages"][3]["content"], ran.stdout.trim());
}

#[test]
fn what_cannot_be_done_is_said_and_the_rest_goes_on() {
    let home = Home::new();
    let good = home.path("good.json");
    fs::write(&good, r#"{"model": "other", "system": "S", "messages": []}"#).unwrap();
    let bad = |name: &str, text: &str| {
        let path = home.path(name);
        fs::write(&path, text).unwrap();
        format!("/load {}\n", path.display())
    };
    let lines = [
        bad("a", "{"),
        bad("b", r#"{"model": "x", "messages": [{"role": "user", "content": "one"}]}"#),
        bad("c", r#"{"model": "x", "messages": [{"role": "system", "content": "one"}]}"#),
        "/load /no/such/file\n".into(),
        "/load\n".into(),
        format!("/load {}\n", good.display()),
        "What is the capital of Egypt?\n".into(),
    ];
    let input = lines.concat();
    let ran = home.run_with_input(&["chat", "--dtype", "f32"], input.as_bytes());
    let words = [
        "not a conversation that /save wrote",
        "in turn",
        "/no/such/file",
        "/load FILE",
        "loaded 0 turns",
        "which other answered",
        "5 of the lines",
    ];
    let Ran { stdout, .. } = ran.fails(1, &words);
    assert_eq!(stdout, "The capital of Egypt is Cairo.\n");

    let long = "word ".repeat(600);
    home.run_with_input(&["chat"], long.as_bytes()).fails(1, &["the context is full"]);
    let input = b"caf\xe9\nWhat is the capital of Egypt?\n\xff\xfe\n";
    let ran =
        home.run_with_input(&["chat", "--dtype", "f32"], input).fails(1, &["line 1 of", "line 3 of", "not UTF-8"]);
    assert_eq!(ran.stdout, "The capital of Egypt is Cairo.\n");
    home.run_with_input(&["chat", "--temperature=-1"], b"").fails(1, &["temperature"]);
}
