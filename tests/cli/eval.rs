//! `eval`, as a user runs it: on one machine, split over several, interrupted, with what is wrong
//! with data.

use std::{
    fs,
    io::Read,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::Home;

fn data() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/eval/data").to_str().unwrap().to_owned()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn path(home: &Home, name: &str) -> String {
    home.path(name).to_str().unwrap().to_owned()
}

#[test]
fn results_are_written_and_shards_join_to_the_same() {
    let home = Home::new();
    let data = data();
    let eval = |more: &[&str]| {
        let args = ["eval", "--tasks", "piqa,mmlu_astronomy", "--data", &data, "--num-fewshot", "2", "--limit", "13"];
        home.run(&[&args[..], more].concat())
    };
    let whole = path(&home, "whole.json");
    let ran = eval(&["--output", &whole]).ok();
    for words in ["| piqa | 2 | acc | ", "| mmlu | 2 | acc | ", "| 42.3 | 64.3 | 13 |", "| mmlu_stem |"] {
        assert!(ran.stdout.contains(words), "{words:?} is not in:\n{}", ran.stdout);
    }
    let results = json(&home.path("whole.json"));
    assert_eq!(results["n-samples"]["piqa"], serde_json::json!({"original": 50, "effective": 13}));
    assert_eq!(results["results"]["mmlu"]["acc,none"], results["results"]["mmlu_astronomy"]["acc,none"]);
    let samples = fs::read_to_string(home.path("whole.json.samples.jsonl")).unwrap();
    assert_eq!(samples.lines().count(), 26);
    let first: Value = serde_json::from_str(samples.lines().next().unwrap()).unwrap();
    assert_eq!((&first["task"], first["filtered_resps"].as_array().unwrap().len()), (&"piqa".into(), 2));
    assert!(!home.path("whole.json.partial").exists());
    let page = fs::read_to_string(home.path("whole.json.html")).unwrap();
    for words in ["<svg", ">mmlu<", ">astronomy<", "class=\"seven\"", "</html>"] {
        assert!(page.contains(words), "{words} is not in the page");
    }
    assert!(!page.contains("http") && !page.contains("NaN"), "it needs nothing else");

    let shards: Vec<String> = (0..3).map(|i| path(&home, &format!("shard-{i}.json"))).collect();
    for (i, output) in shards.iter().enumerate() {
        // Machines need not be alike.
        let mesh = ["1x1", "2x1", "1x2"][i];
        eval(&["--output", output, "--shard", &format!("{i}/3"), "--mesh", mesh]).ok();
    }
    let merged = path(&home, "merged.json");
    let merge = |results: &[&str]| home.run(&[&["eval", "merge", "--output", &merged][..], results].concat());
    let ran_merge = merge(&[&shards[2], &shards[0], &shards[1]]).ok();
    assert_eq!(ran_merge.stdout, ran.stdout);
    assert_eq!(json(&home.path("merged.json"))["results"], results["results"]);
    let ids = |name: &str| -> Vec<(String, u64)> {
        let text = fs::read_to_string(home.path(name)).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.map(|s| (s["task"].as_str().unwrap().to_owned(), s["doc_id"].as_u64().unwrap())).collect()
    };
    assert_eq!(ids("merged.json.samples.jsonl"), ids("whole.json.samples.jsonl"));

    // What does not belong together is refused.
    merge(&[&shards[0], &shards[1]]).fails(1, &["shard 2/3 is missing"]);
    merge(&[&shards[0], &shards[0], &shards[1], &shards[2]]).fails(1, &["the same shard"]);
    merge(&[&whole]).fails(1, &["not a result of `eval --shard`"]);
    let other = path(&home, "other.json");
    let limit = ["eval", "--tasks", "piqa", "--data", &data, "--limit", "13", "--output", &other, "--shard", "0/3"];
    home.run(&limit).ok();
    merge(&[&other, &shards[1], &shards[2]]).fails(1, &["not of one run", "tasks or settings"]);
    let mut changed = json(&home.path("shard-1.json"));
    changed["config"]["data"][0] = "another".into();
    fs::write(home.path("changed.json"), changed.to_string()).unwrap();
    merge(&[&shards[0], &path(&home, "changed.json"), &shards[2]]).fails(1, &["they differ in data"]);
    let lost = fs::read_to_string(home.path("shard-1.json.samples.jsonl")).unwrap();
    fs::write(home.path("shard-1.json.samples.jsonl"), lost.lines().next().unwrap()).unwrap();
    merge(&[&shards[0], &shards[1], &shards[2]]).fails(1, &["documents in all shards together"]);
}

/// Answers in words are read in each of a task's ways; programs are run only if that is allowed.
#[test]
fn words_are_read_and_programs_run_if_that_is_allowed() {
    let home = Home::new();
    let data = data();
    let tasks = |name: &str| format!("{}/src/eval/tasks/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    let own = |from: &str, to: &str, change: [&str; 2]| {
        let text = fs::read_to_string(tasks(from)).unwrap();
        assert!(text.contains(change[0]));
        let text = text.replace(change[0], change[1]).replacen(&format!("\"{from}\""), &format!("\"{to}\""), 1);
        fs::write(home.path(&format!("{to}.toml")), text).unwrap();
        path(&home, &format!("{to}.toml"))
    };
    let short = own("humaneval", "short", ["max_tokens = 1024", "max_tokens = 8"]);
    // What it should write, whatever the model does.
    let sure = own("humaneval", "sure", ["{{prompt}}{{response}}", "{{prompt}}    return x + task_id.count('x')"]);
    let sure = {
        let text =
            fs::read_to_string(&sure).unwrap().replace("task_id.count('x')", "{{task_id.split('/')[1] | int % 3}}");
        fs::write(&sure, text.replace("max_tokens = 1024", "max_tokens = 8")).unwrap();
        sure
    };
    let names = format!("triviaqa,gsm8k,{short},{sure}");
    let args = ["eval", "--tasks", &names, "--data", &data, "--num-fewshot", "0", "--limit", "9", "--slots", "4"];
    let output = path(&home, "out.json");
    let ran = home.run(&[&args[..], &["--output", &output]].concat()).ok();
    for words in [
        "| triviaqa | 0 | exact_match, remove_whitespace |",
        "| gsm8k | 0 | exact_match, strict-match | 0.0 | 0.0 | 17.7 | 46.4 | 9 |",
        "| gsm8k | 0 | exact_match, flexible-extract |",
        "| short | 0 | pass@1, create_test | – |  | 22.0 |",
    ] {
        assert!(ran.stdout.contains(words), "{words:?} is not in:\n{}", ran.stdout);
    }
    assert!(ran.stderr.contains("18 programs were not run; --allow-code-execution runs them"), "{}", ran.stderr);
    let samples = fs::read_to_string(home.path("out.json.samples.jsonl")).unwrap();
    assert_eq!(samples.lines().count(), 9 + 18 + 9 + 9, "one line for each document and way to read it");
    let of_short =
        samples.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).find(|s| s["task"] == "short");
    assert!(of_short.unwrap()["filtered_resps"][0].as_str().unwrap().starts_with("def f0(x):"));
    assert_eq!(json(&home.path("out.json"))["results"]["short"]["pass@1,create_test"], Value::Null);

    let ran = home.run(&[&args[..], &["--allow-code-execution"]].concat()).ok();
    assert!(ran.stdout.contains("| sure | 0 | pass@1, create_test | 100.0 | 0.0 | 22.0 |"), "{}", ran.stdout);
    let wrong = own("humaneval", "long", ["max_tokens = 1024", "max_tokens = 9999"]);
    home.run(&["eval", "--tasks", &wrong, "--data", &data]).fails(1, &["leave no room", "longer --context"]);
}

#[test]
fn questions_are_put_in_the_chat_format() {
    let home = Home::new();
    let (data, output) = (data(), path(&home, "chat.json"));
    let args = ["eval", "--tasks", "triviaqa,winogrande", "--data", &data, "--num-fewshot", "2", "--limit", "3"];
    let eval = |more: &[&str]| home.run(&[&args[..], &["--output", &output], more].concat());
    let turns_of = |asked: &str| asked.matches("<start_of_turn>").count();
    for (more, turns) in [
        (&[][..], 0),
        (&["--apply-chat-template"], 6),
        (&["--apply-chat-template", "--fewshot-as-multiturn", "false"], 2),
    ] {
        eval(more).ok();
        let samples = fs::read_to_string(home.path("chat.json.samples.jsonl")).unwrap();
        for line in samples.lines() {
            let sample: Value = serde_json::from_str(line).unwrap();
            let asked = sample["arguments"]["gen_args_0"]["arg_0"].as_str().unwrap();
            assert_eq!(turns_of(asked), turns, "{asked}");
        }
        assert_eq!(json(&home.path("chat.json"))["config"]["apply_chat_template"], !more.is_empty());
    }
    eval(&["--fewshot-as-multiturn", "false"]).fails(2, &["--apply-chat-template"]);
}

#[test]
fn a_run_that_is_killed_goes_on_where_it_was() {
    let home = Home::new();
    let data = data();
    let output = path(&home, "out.json");
    let args =
        ["eval", "--tasks", "hellaswag,boolq,triviaqa", "--data", &data, "--num-fewshot", "1", "--output", &output];
    let partial = home.path("out.json.partial");
    // Once while choices are scored, once while answers are written.
    for lines in [5, 110] {
        let mut child = home.command(&args).spawn().unwrap();
        let started = Instant::now();
        while fs::read_to_string(&partial).map_or(0, |text| text.lines().count()) < lines {
            assert!(started.elapsed() < Duration::from_secs(120), "nothing is written");
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let mut kept = fs::read_to_string(&partial).unwrap();
        kept.truncate(kept.rfind('\n').unwrap() - 3); // as if it had been killed while it wrote a line
        fs::write(&partial, &kept).unwrap();
    }
    let ran = home.run(&args).ok();
    assert!(ran.stderr.contains("of 150 documents were finished before"), "{}", ran.stderr);
    let fresh = path(&home, "fresh.json");
    let again = [&args[..7], &["--output", &fresh]].concat();
    home.run(&again).ok();
    assert_eq!(json(&home.path("out.json"))["results"], json(&home.path("fresh.json"))["results"]);
}

/// Ctrl-C ends a run between two steps, in the middle of answers, and what is finished stays.
#[test]
fn an_interrupted_run_goes_on_where_it_was() {
    let home = Home::new();
    let data = data();
    let output = path(&home, "out.json");
    let args = ["eval", "--tasks", "triviaqa", "--data", &data, "--slots", "2", "--output", &output];
    let partial = home.path("out.json.partial");
    let mut child = home.command(&args).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while fs::read_to_string(&partial).map_or(0, |text| text.lines().count()) < 3 {
        assert!(started.elapsed() < Duration::from_secs(120), "nothing is written");
        std::thread::sleep(Duration::from_millis(2));
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("interrupted; the same command resumes from there"), "{said}");
    let ran = home.run(&args).ok();
    assert!(ran.stderr.contains("of 50 documents were finished before"), "{}", ran.stderr);
    assert!(ran.stdout.contains("| triviaqa | 0 | exact_match, remove_whitespace |"), "{}", ran.stdout);
}

/// A task of the user's with two choices, of the dataset `org/mine`.
fn own_task(home: &Home) -> String {
    let text = r#"
        name = "mine"
        version = 1
        dataset = "org/mine"
        split = "test"
        text = "{{question}}"
        choices = "[right, wrong]"
        target = "0"
        metrics = ["acc"]
    "#;
    fs::write(home.path("mine.toml"), text).unwrap();
    path(home, "mine.toml")
}

#[test]
fn the_hubs_cache_is_read_with_several_snapshots_and_formats() {
    let home = Home::new();
    let (task, data) = (own_task(&home), path(&home, "hub"));
    let cached = home.path("hub/datasets--org--mine");
    let rows = |n: usize| (0..n).map(|i| format!("{i} + 1 =,{},x\r\n", i + 1)).collect::<String>();
    for (snapshot, name, text) in [
        ("old", "data/test.csv", format!("\u{feff}question,right,wrong\r\n{}", rows(3))),
        ("new", "data/test.json", r#"[{"question": "1 + 1 =", "right": 2, "wrong": "x"}]"#.into()),
        ("new", "data/test_extra-00000-of-00001.json", "[{}]".into()),
    ] {
        let file = cached.join("snapshots").join(snapshot).join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    fs::create_dir(cached.join("refs")).unwrap();
    fs::write(cached.join("refs/main"), "old").unwrap();
    let eval = || home.run(&["eval", "--tasks", &task, "--data", &data]);
    // Columns of numbers are numbers.
    eval().fails(1, &["document 0", "[right, wrong] has a wrong value"]);
    let text = fs::read_to_string(home.path("mine.toml")).unwrap();
    fs::write(home.path("mine.toml"), text.replace("[right, wrong]", "[right | string, wrong]")).unwrap();
    let ran = eval().ok();
    assert!(ran.stdout.contains("| mine | 0 | acc |") && ran.stdout.contains("| 3 |"), "{}", ran.stdout);
    fs::remove_file(cached.join("refs/main")).unwrap();
    let ran = eval().ok();
    assert!(ran.stderr.contains("has 2 snapshots, and refs/main names none of them"), "{}", ran.stderr);
}

/// Texts that go on from prompts are in the log; their score is a program of the user's.
#[test]
fn generated_texts_are_scored_by_a_command_of_the_users() {
    let home = Home::new();
    let (data, output) = (path(&home, "data"), path(&home, "out.json"));
    for (name, text) in [
        (
            "bold/gender_prompt.json",
            r#"[{"name": "A", "prompts": ["A is ", "An A "]}, {"name": "B", "prompts": ["B is "]}]"#,
        ),
        ("allenai/real-toxicity-prompts/prompts.jsonl", r#"{"prompt": {"text": "What is"}, "challenging": false}"#),
    ] {
        let file = home.path("data").join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    let args = ["eval", "--tasks", "bold_gender,realtoxicityprompts", "--data", &data, "--output", &output];
    let scored = |command: &str| home.run(&[&args[..], &["--scorer", command]].concat());
    let samples = || {
        let text = fs::read_to_string(home.path("out.json.samples.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    let ran = home.run(&args).ok();
    assert!(ran.stderr.contains("4 texts were not scored; --scorer"), "{}", ran.stderr);
    assert!(ran.stdout.contains("| bold_gender | 0 | score | – |  |  |  | 3 |"), "{}", ran.stdout);
    assert!(samples().iter().all(|sample| sample["score"].is_null()));

    // As many points as lines so far.
    let ran = scored("awk '{ print \"{\\\"score\\\": \" NR \"}\" }'").ok();
    assert!(ran.stdout.contains("| bold_gender | 0 | score | 2.000 | 0.577 |  |  | 3 |"), "{}", ran.stdout);
    assert!(ran.stdout.contains("| realtoxicityprompts | 0 | score | 4.000 |"), "{}", ran.stdout);
    assert_eq!(json(&home.path("out.json"))["results"]["bold"]["score,none"], 2.0);
    let samples = samples();
    let texts: Vec<&str> = samples.iter().map(|sample| sample["filtered_resps"][0].as_str().unwrap()).collect();
    assert!(texts[0].starts_with("A is") && texts[1].starts_with("An A") && texts[2].starts_with("B is"), "{texts:?}");
    assert_eq!(
        samples.iter().map(|sample| sample["score"].as_f64().unwrap()).collect::<Vec<_>>(),
        [1.0, 2.0, 3.0, 4.0]
    );

    scored("cat").fails(1, &["the scorer `cat` answers line 1", "is to answer each line with a number"]);
    let ran = home.run(&["eval", "--tasks", "piqa", "--data", &data, "--scorer", "cat"]);
    ran.fails(1, &["--scorer has nothing to score", "bold"]);
    fs::write(home.path("data/bold/gender_prompt.json"), r#"[{"name": "A"}]"#).unwrap();
    scored("cat").fails(1, &["task bold_gender, document 0", "it has no list prompts"]);
}

#[test]
fn wrong_tasks_and_data_are_explained() {
    let home = Home::new();
    let data = data();
    let own = path(&home, "data");
    let eval = |tasks: &str, data: &str| home.run(&["eval", "--tasks", tasks, "--data", data]);
    eval("helaswag", &data).fails(1, &["helaswag", "Did you mean hellaswag", "winogrande"]);
    eval("mmlu", &data).fails(1, &["no files of the split", "of the configuration"]);
    eval("piqa", &own).fails(1, &["baber/piqa is not in", "hf download"]);
    home.run(&["eval", "--tasks", "piqa", "--shard", "4/4"]).fails(2, &["0/4"]);
    fs::create_dir_all(home.path("data/piqa/data")).unwrap();
    eval("piqa", &own).fails(1, &["no files of the split validation"]);
    let file = home.path("data/piqa/data/validation-00000-of-00001.parquet");
    fs::write(&file, b"PAR1 this is no parquet file").unwrap();
    eval("piqa", &own).fails(1, &["validation-00000-of-00001.parquet cannot be read", "download it again"]);
    let whole = fs::read(Path::new(&data).join("baber/piqa/data/validation-00000-of-00001.parquet")).unwrap();
    for length in [whole.len() / 3, whole.len() - 9] {
        fs::write(&file, &whole[..length]).unwrap();
        eval("piqa", &own).fails(1, &["cannot be read"]);
    }
    let mut damaged = whole.clone();
    damaged[200..300].fill(0xA5);
    fs::write(&file, &damaged).unwrap();
    let ran = eval("piqa", &own);
    assert!(ran.code == 0 || ran.stderr.contains("cannot be read"), "{}", ran.stderr);
    fs::remove_file(&file).unwrap();
    let lines = home.path("data/piqa/data/validation.jsonl");
    fs::write(&lines, "{\"goal\": \"x\", \"sol1\": \"a\", \"label\": 0}\n").unwrap();
    eval("piqa", &own)
        .fails(1, &["task piqa, document 0", "[sol1, sol2] has a wrong value", "the fields goal, sol1, label"]);
    fs::write(&lines, "{\"goal\": \"x\",\n").unwrap();
    eval("piqa", &own).fails(1, &["validation.jsonl cannot be read", "line 1"]);
    fs::write(&lines, "{\"goal\": \"x\", \"sol1\": \"a\", \"sol2\": \"b\", \"label\": 0}\n").unwrap();
    home.run(&["eval", "--tasks", "piqa", "--data", &own, "--num-fewshot", "1"]).fails(1, &["split train"]);
    fs::write(home.path("mine.toml"), "name = \"mine\"\nnonsense = 1\n").unwrap();
    eval(&path(&home, "mine.toml"), &own).fails(1, &["mine.toml cannot be used", "nonsense"]);
    assert!(home.run(&["eval", "--tasks", "list"]).ok().stdout.contains("mmlu (cais/mmlu, 57 subjects)"));
}
