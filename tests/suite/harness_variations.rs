//! Evaluation with people's tokenizers, templates and generation configs: contexts, likelihoods and
//! answers as lm-evaluation-harness with transformers has them (`tests/golden/compat/lm_eval.json`,
//! made by scripts/reference/lm_eval_variations.py).

use std::{fs, sync::Arc};

use gemma_pjrt::{
    engine::Engine,
    eval::{ChatFormat, Dataset, EvalRequest, Item, PromptFormat, Response, Task, items, respond, tasks_by_name},
    hlo::Mesh,
    runtime::Model,
    tokenizer::Tokenizer,
};
use serde_json::{Value, json};

use crate::{
    common::{KERNELS, demo_model, golden_dir},
    compat::write,
};

/// Variations that are evaluated in another way than by the harness, and why.
const OTHERWISE: [(&str, &str); 2] = [
    ("generation_config with sampling", "its max_new_tokens of 3 cuts no answer that a task wants to be longer"),
    ("no post-processor", "a text begins with <bos> all the same: Gemma needs it"),
];

fn number(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

/// A task's first documents.
fn first_items(task: &Task, golden: &Value, tokenizer: &Tokenizer, in_chats: bool) -> Result<Vec<Item>, String> {
    let dataset = Dataset::open(&golden_dir("eval").join("data"), &task.dataset, task.config.as_deref()).unwrap();
    let format = PromptFormat {
        tokenizer,
        num_fewshot: Some(1),
        max_length: number(&golden["max_length"]),
        chat: in_chats.then_some(ChatFormat::Multiturn),
    };
    let docs = dataset.split(&task.split).unwrap();
    items(task, &dataset, &docs, format, |id| id < number(&golden["docs"])).map_err(|e| e.to_string())
}

/// Compares the responses to a task's first documents with the harness's.
fn compare(
    model: &Arc<Model>,
    tokenizer: &Arc<Tokenizer>,
    task: &Task,
    items: &[Item],
    expected: &Value,
) -> Result<(), String> {
    let mut engine = Engine::new(model.clone(), tokenizer.clone(), 8, 512).unwrap();
    let mut found = vec![None; items.len()];
    let with_tasks: Vec<_> = items.iter().map(|item| (item, task.generate.as_ref())).collect();
    let stop = &tokenizer.stop_ids().ids;
    respond(&mut engine, &with_tasks, stop, || true, |i, response| found[i] = Some(response)).unwrap();
    if task.generate.is_some() {
        let ids = &expected["stop"][0];
        let ids = if ids.is_array() { ids.clone() } else { json!([ids]) };
        if ids != json!(stop) {
            return Err(format!("answers end at {stop:?} instead of {ids}"));
        }
    }
    let mut scored = expected["scored"].as_array().into_iter().flatten();
    for (i, (item, response)) in items.iter().zip(found).enumerate() {
        match (&item.request, response.unwrap()) {
            (EvalRequest::Loglikelihood(choices), Response::Loglikelihoods(likelihoods)) => {
                for (instance, likelihood) in choices.instances.iter().zip(likelihoods) {
                    let expected = scored.next().unwrap();
                    let tokens = [json!(&instance.context_tokens[..]), json!(instance.continuation_tokens)];
                    if tokens != expected.as_array().unwrap()[..2] {
                        return Err(format!("document {i} is\n  {tokens:?}\n  instead of\n  {expected}"));
                    }
                    let off = (likelihood.logprob - expected[2].as_f64().unwrap()).abs();
                    if off > 1e-3 || expected[3] != likelihood.is_greedy {
                        return Err(format!("document {i} has {likelihood:?} instead of {expected}"));
                    }
                }
            }
            (EvalRequest::GenerateUntil { tokens, .. }, Response::Generated(texts)) => {
                let expected = &expected["written"][i];
                if json!([tokens, texts[0]]) != *expected {
                    return Err(format!(
                        "document {i} is\n  {}\n  instead of\n  {expected}",
                        json!([tokens, texts[0]])
                    ));
                }
            }
            (_, other) => return Err(format!("document {i} has {other:?}")),
        }
    }
    Ok(())
}

#[test]
fn variations_are_evaluated_as_by_the_harness() {
    let text = fs::read_to_string(golden_dir("compat").join("lm_eval.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let variations = golden["variations"].as_array().unwrap();
    let model = demo_model(KERNELS, Mesh::SINGLE);
    let mut differences = vec![];
    for variation in variations {
        let name = variation["name"].as_str().unwrap();
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &variation["changes"]);
        let tokenizer = Arc::new(Tokenizer::from_dir(dir.path()).unwrap());
        for (i, task) in golden["tasks"].as_array().unwrap().iter().enumerate() {
            let mut expected = &variation["expected"][i];
            if let Some(other) = expected["as"].as_str() {
                expected = &variations.iter().find(|variation| variation["name"] == other).unwrap()["expected"][i];
            }
            let in_chats = task[1] == true;
            let mut of_task = tasks_by_name(&[task[0].as_str().unwrap().to_owned()]).unwrap().remove(0);
            if let Some(generate) = &mut of_task.generate {
                generate.max_tokens = number(&golden["max_tokens"]);
            }
            let compared = first_items(&of_task, &golden, &tokenizer, in_chats)
                .and_then(|items| compare(&model, &tokenizer, &of_task, &items, expected));
            let difference = match (compared, expected["error"].as_str()) {
                (Ok(()), None) | (Err(_), Some(_)) => continue,
                (Ok(()), Some(error)) => format!("is evaluated, where the harness says {error}"),
                (Err(difference), None) => difference,
            };
            if !OTHERWISE.iter().any(|(other, _)| *other == name) {
                differences.push(format!("{name}, {task}: {difference}"));
            }
        }
    }
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}
