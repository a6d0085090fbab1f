//! Evaluation: every likelihood, flag and figure as lm-evaluation-harness with transformers has them (`tests/golden/eval`, made by
//! scripts/reference/lm_eval_goldens.py).

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use gemma_pjrt::{
    demo,
    eval::{Dataset, Evaluation, Group, Item, Likelihood, Metric, Scorer, Task, groups, items, named, results_json},
    gemma::{Config, Target},
    hlo::{DType, Mesh},
    runtime::{Model, ModelOptions},
    tokenizer::Tokenizer,
};
use serde_json::Value;

use crate::common::{KERNELS, platform, several_devices};

/// Longest context of the goldens.
const MAX_LENGTH: usize = 256;

fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(demo::tokenizer)
}

fn model(target: Target, mesh: Mesh) -> Arc<Model> {
    let options = ModelOptions { target, mesh, compute: DType::F32, kv: DType::F32, bundle: None };
    let config = Config::parse(demo::CONFIG).unwrap().0;
    Arc::new(Model::load(platform(), &demo::checkpoint(), config, options, |_| (), Box::new(|_, _| ())).unwrap())
}

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/eval")
}

/// A run of the harness.
struct Run {
    task: Task,
    num_fewshot: usize,
    items: Vec<Item>,
    documents: usize,
    expected: Value,
}

fn runs() -> Vec<Run> {
    let text = std::fs::read_to_string(dir().join("expected.json")).unwrap();
    let all: Vec<Value> = serde_json::from_str(&text).unwrap();
    let run = |expected: Value| {
        let task = named(&[expected["task"].as_str().unwrap().to_owned()]).unwrap().remove(0);
        let dataset = Dataset::open(&dir().join("data"), &task.dataset, task.config.as_deref()).unwrap();
        let num_fewshot = expected["num_fewshot"].as_u64().unwrap() as usize;
        let (items, documents) = items(&task, &dataset, tokenizer(), num_fewshot, None, MAX_LENGTH, |_| true).unwrap();
        Run { task, num_fewshot, items, documents, expected }
    };
    all.into_iter().map(run).collect()
}

/// One likelihood for each choice of each document.
fn score(scorer: &mut Scorer, items: &[Item]) -> Vec<Vec<Likelihood>> {
    let groups = groups(items);
    let mut found: Vec<Vec<Option<Likelihood>>> = items.iter().map(|item| vec![None; item.pairs.len()]).collect();
    let keep = |group: usize, likelihoods: Vec<Likelihood>| {
        for (likelihood, wanted) in likelihoods.iter().zip(&groups[group].wanted) {
            wanted.iter().for_each(|&(item, pair)| assert!(found[item][pair].replace(*likelihood).is_none()));
        }
        Ok(true)
    };
    scorer.score(&groups, keep).unwrap();
    found.into_iter().map(|pairs| pairs.into_iter().map(Option::unwrap).collect()).collect()
}

#[test]
fn prompts_likelihoods_and_figures_are_those_of_the_harness() {
    let mut scorer = Scorer::new(model(KERNELS, Mesh::SINGLE), 512).unwrap();
    for Run { task, num_fewshot, items, documents, expected } in runs() {
        let name = format!("{}, {num_fewshot} examples", task.name);
        for (item, context) in items.iter().zip(expected["contexts"].as_array().unwrap()) {
            assert_eq!(item.pairs[0].context, context.as_str().unwrap(), "{name}, document {}", item.id);
        }
        let found = score(&mut scorer, &items);
        let responses = expected["responses"].as_array().unwrap();
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
        let of_item =
            |(item, found): (&Item, &Vec<Likelihood>)| task.metrics.iter().map(|m| m.of(item, found)).collect();
        let outcomes = items.iter().zip(&found).map(of_item).collect();
        let evaluation = Evaluation { task: task.clone(), num_fewshot, documents, outcomes };
        let results = results_json(&[evaluation], Value::Null);
        let own = results["results"][&task.name].as_object().unwrap();
        for (figure, expected) in expected["results"].as_object().unwrap() {
            let (own, expected) = (own[figure].as_f64().unwrap(), expected.as_f64().unwrap());
            assert!((own - expected).abs() <= 1e-4, "{name}: {figure} is {own} instead of {expected}");
        }
    }
}

/// The same on every mesh, and by the programs of a TPU.
#[test]
fn meshes_and_targets_score_alike() {
    let _alone = several_devices();
    let runs: Vec<Run> = runs()
        .into_iter()
        .filter(|run| ["mmlu_astronomy", "piqa", "winogrande", "crows_pairs_english"].contains(&run.task.name.as_str()))
        .collect();
    let all: Vec<Item> = runs.iter().flat_map(|run| run.items.iter().step_by(3).cloned()).collect();
    let expected = score(&mut Scorer::new(model(KERNELS, Mesh::SINGLE), 512).unwrap(), &all);
    for (target, mesh) in [
        (KERNELS, Mesh { data: 1, model: 4 }),
        (KERNELS, Mesh { data: 2, model: 2 }),
        (KERNELS, Mesh { data: 4, model: 1 }),
        (Target::Tpu, Mesh { data: 2, model: 1 }),
    ] {
        let found = score(&mut Scorer::new(model(target, mesh), 512).unwrap(), &all);
        for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert!((found.logprob - expected.logprob).abs() < 1e-3, "{mesh}: {found:?} instead of {expected:?}");
            assert_eq!(found.is_greedy, expected.is_greedy, "{mesh}");
        }
    }
}

/// The demo model tells its own answers to questions that it was not taught from answers to others of the same kind, by a task of
/// the user's own.
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
    for pairs in by_skill.values() {
        for (i, (question, answer)) in pairs.iter().enumerate() {
            let mut choices = vec![answer.clone()];
            let others = (1..pairs.len()).map(|j| &pairs[(i + j) % pairs.len()].1);
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
    let task = named(&[file.to_str().unwrap().to_owned()]).unwrap().remove(0);
    let dataset = Dataset::open(dir.path(), &task.dataset, None).unwrap();
    let (items, found) = items(&task, &dataset, tokenizer(), 0, None, 512, |_| true).unwrap();
    assert_eq!((found, documents > 300), (documents, true), "{documents}");
    let likelihoods = score(&mut Scorer::new(model(KERNELS, Mesh::SINGLE), 512).unwrap(), &items);
    let right = items.iter().zip(&likelihoods).map(|(item, found)| Metric::Acc.of(item, found)).sum::<f64>();
    let share = right / documents as f64;
    println!("{share:.3} of {documents}");
    assert!(share > 0.95, "{share}");
}

/// A header of examples is computed once for all documents that have it.
#[test]
fn shared_examples_are_computed_once() {
    let task = named(&["mmlu_astronomy".to_owned()]).unwrap().remove(0);
    let dataset = Dataset::open(&dir().join("data"), &task.dataset, task.config.as_deref()).unwrap();
    const LONGEST: usize = 500;
    let (all, _) = items(&task, &dataset, tokenizer(), 3, None, LONGEST, |_| true).unwrap();
    let short: Vec<Item> =
        all.into_iter().filter(|item| item.pairs[0].context_tokens.len() < LONGEST && item.id != 9).collect();
    assert!(short.len() > 40, "{}", short.len());
    let mut scorer = Scorer::new(model(KERNELS, Mesh::SINGLE), 512).unwrap();
    score(&mut scorer, &short);
    let asked: usize = short.iter().map(|item| item.pairs[0].context_tokens.len()).sum();
    assert_eq!(scorer.computed + scorer.reused, asked as u64, "a step for each document, not for each choice");
    assert!(scorer.reused > scorer.computed, "{} of {asked} were computed", scorer.computed);
}

/// Where one data row is near its cache's end, another one's context is not cut short.
#[test]
fn rows_near_the_end_of_their_cache_do_not_cut_others() {
    let _alone = several_devices();
    let tokens = |from: u32, n: u32| (0..n).map(|i| 3 + (from + i * 37) % 900).collect::<Vec<u32>>();
    let group = |context| Group { context, continuations: vec![vec![5], vec![700]], wanted: vec![vec![], vec![]] };
    let near = tokens(1, 60);
    let next = [&near[..58], &[11]].concat();
    let groups = [tokens(100, 10), tokens(200, 40), near, next].map(group);
    let all = |mesh| {
        let mut found = vec![vec![]; groups.len()];
        let mut scorer = Scorer::new(model(KERNELS, mesh), 64).unwrap();
        let keep = |group: usize, likelihoods: Vec<Likelihood>| {
            found[group] = likelihoods;
            Ok(true)
        };
        scorer.score(&groups, keep).unwrap();
        found
    };
    let (found, expected) = (all(Mesh { data: 2, model: 1 }), all(Mesh::SINGLE));
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert!((found.logprob - expected.logprob).abs() < 1e-3, "{found:?} instead of {expected:?}");
    }
}
