//! Evaluation: every likelihood, flag and figure as lm-evaluation-harness with transformers has
//! them (`tests/golden/eval`, made by scripts/reference/lm_eval_goldens.py).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use gemma_pjrt::{
    checkpoint::Checkpoint,
    engine::{Engine, Event, Likelihood, ScoreRequest},
    eval::{
        ChatFormat, Dataset, EvalRequest, Evaluation, Item, Metric, MultipleChoice, PromptFormat, Response, Task, docs,
        grade, items, respond, results_json, run_programs, tasks_by_name,
    },
    gemma::{Config, Lowering},
    hlo::Mesh,
    runtime::Model,
};
use serde_json::Value;

use crate::common::{KERNELS, demo_model, demo_tokenizer, load_f32, several_devices};

/// Longest context of the goldens.
const MAX_LENGTH: usize = 256;

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/eval")
}

/// A run of the harness.
struct Run {
    task: Task,
    num_fewshot: usize,
    items: Vec<Item>,
    expected: Value,
}

/// The most tokens of answers in words in the goldens.
const WORDS_MAX: usize = 32;

/// All documents of a task's small dataset.
fn golden_items(task: &Task, num_fewshot: usize, max_length: usize, chat: Option<ChatFormat>) -> Vec<Item> {
    let dataset = Dataset::open(&dir().join("data"), &task.dataset, task.config.as_deref()).unwrap();
    let format = PromptFormat { tokenizer: demo_tokenizer(), num_fewshot: Some(num_fewshot), max_length, chat };
    items(task, &dataset, &dataset.split(&task.split).unwrap(), format, |_| true).unwrap()
}

fn runs() -> Vec<Run> {
    let text = std::fs::read_to_string(dir().join("expected.json")).unwrap();
    let all: Vec<Value> = serde_json::from_str(&text).unwrap();
    let run = |expected: Value| {
        let mut task = tasks_by_name(&[expected["task"].as_str().unwrap().to_owned()]).unwrap().remove(0);
        if let Some(generate) = &mut task.generate {
            generate.max_tokens = WORDS_MAX;
        }
        let num_fewshot = expected["num_fewshot"].as_u64().unwrap() as usize;
        let chat = match expected["chat"].as_str() {
            None => None,
            Some("multiturn") => Some(ChatFormat::Multiturn),
            Some(_) => Some(ChatFormat::SingleTurn),
        };
        let items = golden_items(&task, num_fewshot, MAX_LENGTH, chat);
        Run { task, num_fewshot, items, expected }
    };
    all.into_iter().map(run).collect()
}

/// The checkpoint with random weights.
fn random_model() -> Arc<Model> {
    let checkpoint = Checkpoint::open(&dir().join("random")).unwrap();
    let config = Config::parse(&std::fs::read_to_string(dir().join("random/config.json")).unwrap()).unwrap().0;
    load_f32(&checkpoint, config, KERNELS, Mesh::SINGLE)
}

fn choices(item: &Item) -> &MultipleChoice {
    match &item.request {
        EvalRequest::Loglikelihood(choices) => choices,
        EvalRequest::GenerateUntil { .. } => panic!("it has no choices"),
    }
}

fn contexts(item: &Item) -> &str {
    match &item.request {
        EvalRequest::Loglikelihood(choices) => &choices.instances[0].context,
        EvalRequest::GenerateUntil { context, .. } => context,
    }
}

/// An engine of four slots of 512 tokens.
fn engine(model: Arc<Model>) -> Engine {
    Engine::new(model, demo_tokenizer().clone(), 4, 512).unwrap()
}

/// One likelihood for each choice of each document.
fn scored(engine: &mut Engine, items: &[Item]) -> Vec<Vec<Likelihood>> {
    let mut found = vec![vec![]; items.len()];
    let keep = |i: usize, response| {
        let Response::Loglikelihoods(likelihoods) = response else { panic!("{response:?}") };
        assert!(std::mem::replace(&mut found[i], likelihoods).is_empty());
    };
    let items: Vec<_> = items.iter().map(|item| (item, None)).collect();
    respond(engine, &items, &[], || true, keep).unwrap();
    found
}

/// Figures of these responses, beside the harness's.
fn check_figures(run: &Run, responses: &[Response]) {
    let name = format!("{}, {} examples, {}", run.task.name, run.num_fewshot, run.expected["by"]);
    let mut evaluation = Evaluation::new(run.task.clone(), run.num_fewshot, run.items.len());
    for (i, (item, response)) in run.items.iter().zip(responses).enumerate() {
        let mut graded = grade(&run.task, item, response).unwrap();
        for graded in &mut graded {
            let Some(filtered) = &graded.filtered else { continue };
            let mut expected = &run.expected["read"][&graded.filter][i];
            if let Some(list) = expected.as_array() {
                expected = &list[0];
            }
            assert_eq!(filtered, expected.as_str().unwrap(), "{name}, {}, document {i}", graded.filter);
            if let Some(program) = graded.program(&run.task, item) {
                graded.set_passes(&run.task, run_programs(&[program], || true).unwrap()[0].unwrap());
            }
            let values: Vec<f64> = graded.values.iter().map(|values| values[0]).collect();
            let expected: Vec<f64> = serde_json::from_value(run.expected["values"][&graded.filter][i].clone()).unwrap();
            assert_eq!(
                values, expected,
                "{name}, {}, document {i}: {:?} for {}",
                graded.filter, graded.filtered, item.target
            );
        }
        evaluation.add(&graded);
    }
    let results = results_json(&[evaluation], Value::Null);
    let own = results["results"][&run.task.name].as_object().unwrap();
    for (figure, expected) in run.expected["results"].as_object().unwrap() {
        let own = &own[figure];
        match expected.as_f64() {
            Some(expected) => {
                let own = own.as_f64().unwrap_or_else(|| panic!("{name}: {figure} is {own} instead of {expected}"));
                assert!((own - expected).abs() <= 1e-4, "{name}: {figure} is {own} instead of {expected}");
            }
            None => assert_eq!(own, expected, "{name}: {figure}"),
        }
    }
}

#[test]
fn prompts_likelihoods_and_figures_are_those_of_the_harness() {
    let mut demo = engine(demo_model(KERNELS, Mesh::SINGLE));
    let mut random = engine(random_model());
    for run in runs() {
        let name = format!("{}, {} examples", run.task.name, run.num_fewshot);
        for (item, context) in run.items.iter().zip(run.expected["contexts"].as_array().unwrap()) {
            assert_eq!(contexts(item), context.as_str().unwrap(), "{name}, document {}", item.id);
        }
        if run.task.generate.is_some() {
            continue;
        }
        let engine = if run.expected["by"] == "random" { &mut random } else { &mut demo };
        let found = scored(engine, &run.items);
        let responses = run.expected["responses"].as_array().unwrap();
        assert_eq!(found.len(), responses.len(), "{name}");
        for (i, (found, expected)) in found.iter().zip(responses).enumerate() {
            assert_eq!(found.len(), expected.as_array().unwrap().len(), "{name}, document {i}");
            for (choice, (found, expected)) in found.iter().zip(expected.as_array().unwrap()).enumerate() {
                let (logprob, is_greedy) = (expected[0].as_f64().unwrap(), expected[1].as_bool().unwrap());
                let close = (found.logprob - logprob).abs() <= 1e-3;
                assert!(close, "{name}, document {i}, choice {choice}: {} instead of {logprob}", found.logprob);
                assert_eq!(found.is_greedy, is_greedy, "{name}, document {i}, choice {choice}");
            }
        }
        check_figures(&run, &found.into_iter().map(Response::Loglikelihoods).collect::<Vec<_>>());
    }
}

/// What the model writes, and what is read in that and in made-up answers.
#[test]
fn answers_in_words_are_written_and_read_as_by_the_harness() {
    let mut engine = Engine::new(demo_model(KERNELS, Mesh::SINGLE), demo_tokenizer().clone(), 8, 256).unwrap();
    let mut written = 0;
    for run in runs() {
        let Some(how) = &run.task.generate else { continue };
        let expected: Vec<Response> = serde_json::from_value(run.expected["responses"].clone()).unwrap();
        if run.expected["by"] == "demo" {
            let items: Vec<_> = run.items.iter().map(|item| (item, Some(how))).collect();
            let mut found = vec![None; items.len()];
            let keep = |i: usize, response| found[i] = Some(response);
            respond(&mut engine, &items, &demo_tokenizer().stop_ids().ids, || true, keep).unwrap();
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert_eq!(found.as_ref().unwrap(), expected, "{}, document {i}", run.task.name);
            }
            written += found.len();
        }
        check_figures(&run, &expected);
    }
    assert!(written >= 500, "{written}");
}

/// The same on every mesh, and by the programs of a TPU.
#[test]
fn meshes_and_targets_score_alike() {
    let _alone = several_devices();
    let runs: Vec<Run> = runs()
        .into_iter()
        .filter(|run| ["mmlu_astronomy", "piqa", "winogrande", "crows_pairs_english"].contains(&run.task.name.as_str()))
        .collect();
    let all: Vec<Item> = runs.iter().flat_map(|run| run.items.iter().step_by(6).cloned()).collect();
    let expected = scored(&mut engine(demo_model(KERNELS, Mesh::SINGLE)), &all);
    for (lowering, mesh) in [
        (KERNELS, Mesh { data: 1, model: 4 }),
        (KERNELS, Mesh { data: 2, model: 2 }),
        (KERNELS, Mesh { data: 4, model: 1 }),
        (Lowering::TPU, Mesh { data: 2, model: 1 }),
    ] {
        let found = scored(&mut engine(demo_model(lowering, mesh)), &all);
        for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert!((found.logprob - expected.logprob).abs() < 1e-3, "{mesh}: {found:?} instead of {expected:?}");
            assert_eq!(found.is_greedy, expected.is_greedy, "{mesh}");
        }
    }
}

/// The demo model tells its own answers to questions that it was not taught from answers to others
/// of the same kind, by a task of the user's own.
#[test]
fn the_demo_model_knows_its_own_answers() {
    let mut by_skill: std::collections::BTreeMap<String, Vec<(String, String)>> = Default::default();
    for line in include_str!("../demo/held-out.jsonl").lines() {
        let json: Value = serde_json::from_str(line).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let turn = &json["turns"][0];
        by_skill.entry(text(&json["skill"])).or_default().push((text(&turn["user"]), text(&turn["model"])));
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut lines, mut documents) = (String::new(), 0);
    for instances in by_skill.values() {
        for (i, (question, answer)) in instances.iter().enumerate() {
            let mut choices = vec![answer.clone()];
            let others = (1..instances.len()).map(|j| &instances[(i + j) % instances.len()].1);
            for other in others {
                if choices.len() < 4 && !choices.contains(other) {
                    choices.push(other.clone());
                }
            }
            if choices.len() < 4 {
                continue;
            }
            choices.rotate_left(i % 4);
            let doc = serde_json::json!({"question": question, "choices": choices, "answer": answer});
            lines += &format!("{doc}\n");
            documents += 1;
        }
    }
    std::fs::create_dir_all(dir.path().join("held-out/data")).unwrap();
    std::fs::write(dir.path().join("held-out/data/test.jsonl"), lines).unwrap();
    let file = dir.path().join("task.toml");
    let text = r#"
        name = "held_out"
        version = 1
        dataset = "held-out"
        split = "test"
        text = "<start_of_turn>user\n{{question}}<end_of_turn>\n<start_of_turn>model\n"
        delimiter = ""
        choices = "choices"
        target = "answer"
        metrics = ["acc"]
    "#;
    std::fs::write(&file, text).unwrap();
    let task = tasks_by_name(&[file.to_str().unwrap().to_owned()]).unwrap().remove(0);
    let dataset = Dataset::open(dir.path(), &task.dataset, None).unwrap();
    let format = PromptFormat { tokenizer: demo_tokenizer(), num_fewshot: None, max_length: 512, chat: None };
    let items = items(&task, &dataset, &dataset.split(&task.split).unwrap(), format, |_| true).unwrap();
    assert_eq!((items.len(), documents > 300), (documents, true), "{documents}");
    let likelihoods = scored(&mut engine(demo_model(KERNELS, Mesh::SINGLE)), &items);
    let right = items
        .iter()
        .zip(&likelihoods)
        .map(|(item, found)| Metric::Acc.of_choices(&item.doc, choices(item), found).unwrap()[0])
        .sum::<f64>();
    let share = right / documents as f64;
    println!("{share:.3} of {documents}");
    assert!(share > 0.95, "{share}");
}

#[test]
fn winobias_asks_whom_a_pronoun_means() {
    let root = tempfile::tempdir().unwrap();
    let lines = [
        (
            "pro_stereotyped_type1.txt.test",
            "1 [The developer] argued with the designer because [he] cooked [his] meal.\n2 The CEO liked [the tailor] 's work \
             because [she] was good.\n",
        ),
        (
            "anti_stereotyped_type2.txt.test",
            "The designer told the [the chief] what [her] construction worker needs.\n",
        ),
    ];
    for (name, text) in lines {
        let folder = root.path().join("corefBias/WinoBias/wino/data");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), text).unwrap();
    }
    let asked = |task: &str| {
        let task = tasks_by_name(&[task.to_owned()]).unwrap().remove(0);
        let dataset = Dataset::open(root.path(), &task.dataset, None).unwrap();
        let format = PromptFormat { tokenizer: demo_tokenizer(), num_fewshot: None, max_length: 512, chat: None };
        let items = items(&task, &dataset, &docs(&task, &dataset).unwrap(), format, |_| true).unwrap();
        let asked = |item: &Item| {
            let choices = choices(item);
            (choices.instances[0].context.to_string(), choices.texts.join(", "), choices.gold.clone())
        };
        items.iter().map(asked).collect::<Vec<_>>()
    };
    let question = |text: &str, pronoun: &str| format!("{text} ‘{pronoun}’ refers to the");
    let developer = question("The developer argued with the designer because he cooked his meal.", "He");
    let tailor = question("The CEO liked the tailor's work because she was good.", "She");
    assert_eq!(
        asked("winobias_type1_pro"),
        [(developer, "developer, designer".into(), vec![0]), (tailor, "CEO, tailor".into(), vec![1])]
    );
    let chief = question("The designer told the the chief what her construction worker needs.", "Her");
    assert_eq!(asked("winobias_type2_anti"), [(chief, "designer, chief, construction worker".into(), vec![1])]);
}

/// A header of examples is computed once for all documents that have it.
#[test]
fn shared_examples_are_computed_once() {
    let task = tasks_by_name(&["mmlu_astronomy".to_owned()]).unwrap().remove(0);
    const LONGEST: usize = 500;
    let all = golden_items(&task, 3, LONGEST, None);
    let short: Vec<Item> = all
        .into_iter()
        .filter(|item| choices(item).instances[0].context_tokens.len() < LONGEST && item.id != 9)
        .collect();
    assert!(short.len() > 40, "{}", short.len());
    let mut engine = engine(demo_model(KERNELS, Mesh::SINGLE));
    scored(&mut engine, &short);
    let asked: usize = short.iter().map(|item| choices(item).instances[0].context_tokens.len()).sum();
    let stats = engine.stats();
    assert_eq!(stats.prefilled + stats.cached, asked as u64, "one sequence for each document, not for each choice");
    assert!(stats.cached > stats.prefilled, "{} of {asked} were computed", stats.prefilled);
}

/// Where one slot is near its cache's end, others are not cut short; also continuations of several
/// tokens, on several replicas.
#[test]
fn contexts_near_the_end_of_the_cache_do_not_cut_others() {
    let _alone = several_devices();
    let tokens = |from: u32, n: u32| (0..n).map(|i| 3 + (from + i * 37) % 900).collect::<Vec<u32>>();
    let near = tokens(1, 60);
    let next = [&near[..58], &[11]].concat();
    let requests = [tokens(100, 10), tokens(200, 40), near, next].map(|context| ScoreRequest {
        context: context.into(),
        continuations: vec![vec![5], vec![700, 8, 9], vec![5, 6]],
        cache_salt: 0,
    });
    let all = |mesh| {
        let mut engine = Engine::new(demo_model(KERNELS, mesh), demo_tokenizer().clone(), 2, 64).unwrap();
        let ids: Vec<_> = requests.iter().map(|request| engine.submit_score(request).unwrap()).collect();
        let mut found = vec![vec![]; requests.len()];
        while !engine.is_idle() {
            for event in engine.step().unwrap() {
                let (id, likelihoods) = match event {
                    Event::Scored { id, likelihoods } => (id, likelihoods),
                    Event::Started { .. } => continue,
                    other => panic!("{other:?}"),
                };
                found[ids.iter().position(|&known| known == id).unwrap()] = likelihoods;
            }
        }
        assert!(found.iter().all(|likelihoods| likelihoods.len() == 3));
        found
    };
    let (found, expected) = (all(Mesh { data: 2, model: 1 }), all(Mesh::SINGLE));
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert!((found.logprob - expected.logprob).abs() < 1e-3, "{found:?} instead of {expected:?}");
    }
}
