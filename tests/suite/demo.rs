//! The embedded demo model on questions that it was not taught (`tests/demo/held-out.jsonl`, made
//! by scripts/demo-model), and the same answers as transformers, on any mesh, with what was said
//! before kept in the cache or computed again.

use std::{collections::BTreeMap, sync::Arc};

use gemma_pjrt::{
    checkpoint::{Checkpoint, Quantization, write_quantized},
    demo,
    engine::Conversation,
    gemma::{Config, Lowering},
    hlo::{DType, Mesh},
    runtime::{Model, RunOptions, Session},
    sampling::Params,
    tokenizer::Message,
};
use serde_json::Value;

use crate::common::{KERNELS, demo_tokenizer, platform, several_devices};

struct Item {
    skill: String,
    /// Questions with the answers that are right.
    turns: Vec<(String, String)>,
}

/// Token ids of each turn's answer.
type Answers = Vec<Vec<u32>>;

fn held_out() -> Vec<Item> {
    let text = include_str!("../demo/held-out.jsonl");
    let string = |value: &Value| value.as_str().unwrap().to_owned();
    let item = |line: &str| {
        let json: Value = serde_json::from_str(line).unwrap();
        let turns = json["turns"].as_array().unwrap();
        let turns = turns.iter().map(|turn| (string(&turn["user"]), string(&turn["model"]))).collect();
        Item { skill: string(&json["skill"]), turns }
    };
    text.lines().map(item).collect()
}

fn transformers_answers() -> Vec<Answers> {
    include_str!("../demo/transformers.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn demo_model(mesh: Mesh, compute: DType) -> Arc<Model> {
    load(&demo::checkpoint(), mesh, compute)
}

/// The programs of a TPU, on the CPU.
#[test]
fn answers_are_the_same_by_a_tpus_programs() {
    let _alone = several_devices();
    let items: Vec<Item> = held_out().into_iter().step_by(8).collect();
    let expected: Vec<Answers> = transformers_answers().into_iter().step_by(8).collect();
    for mesh in [Mesh::SINGLE, Mesh { data: 1, model: 4 }] {
        let options = RunOptions { lowering: Lowering::TPU, mesh, compute: DType::F32, kv: DType::F32, bundle: None };
        let found = answers(&load_with(&demo::checkpoint(), options), &items, true);
        assert!(
            found == expected,
            "{mesh}: {} of {} differ",
            found.iter().zip(&expected).filter(|(a, b)| a != b).count(),
            items.len()
        );
    }
}

fn load(checkpoint: &Checkpoint, mesh: Mesh, compute: DType) -> Arc<Model> {
    load_with(checkpoint, RunOptions { lowering: KERNELS, mesh, compute, kv: compute, bundle: None })
}

fn load_with(checkpoint: &Checkpoint, options: RunOptions) -> Arc<Model> {
    let config = Config::parse(demo::CONFIG).unwrap().0;
    Arc::new(Model::load(platform(), checkpoint, config, options, Box::new(|_, _| ())).unwrap())
}

/// Sequences at a time, where it does not matter.
const MANY: usize = 20;
const CONTEXT: i64 = 512;
const MAX_TOKENS: usize = 96;

/// Greedy answers to all items, many at a time. A turn's prefill begins after what the cache has,
/// or at the beginning.
fn answers(model: &Arc<Model>, items: &[Item], keep_cache: bool) -> Vec<Answers> {
    answers_by::<MANY>(model, items, keep_cache)
}

/// As [`answers`], so many at a time.
fn answers_by<const SLOTS: usize>(model: &Arc<Model>, items: &[Item], keep_cache: bool) -> Vec<Answers> {
    let mut session = Session::new(model.clone(), SLOTS as i64, CONTEXT).unwrap();
    items.chunks(SLOTS).flat_map(|part| answers_in_slots::<SLOTS>(&mut session, part, keep_cache)).collect()
}

fn answers_in_slots<const SLOTS: usize>(session: &mut Session, items: &[Item], keep_cache: bool) -> Vec<Answers> {
    let stop = demo_tokenizer().chat_stop_ids();
    let mut conversations = vec![vec![2_u32]; items.len()];
    let mut cached = [0_usize; SLOTS];
    let mut answers: Vec<Answers> = vec![vec![]; items.len()];
    for turn in 0..items.iter().map(|item| item.turns.len()).max().unwrap() {
        let mut next: [Option<u32>; SLOTS] = [None; SLOTS];
        for (slot, item) in items.iter().enumerate().filter(|(_, item)| turn < item.turns.len()) {
            let end = if turn > 0 { "<end_of_turn>\n" } else { "" };
            let question =
                format!("{end}<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n", item.turns[turn].0);
            conversations[slot].extend(demo_tokenizer().encode_continuation(&question).unwrap());
            let start = if keep_cache { cached[slot] } else { 0 };
            let new = &conversations[slot][start..];
            next[slot] = Some(session.prefill(slot as i64, start as i64, new, &Params::GREEDY).unwrap());
            cached[slot] = conversations[slot].len();
            answers[slot].push(vec![]);
        }
        loop {
            for (slot, token) in next.iter_mut().enumerate() {
                let Some(id) = *token else { continue };
                if stop.contains(&id) || answers[slot][turn].len() == MAX_TOKENS {
                    *token = None;
                } else {
                    answers[slot][turn].push(id);
                    conversations[slot].push(id);
                }
            }
            if next.iter().all(Option::is_none) {
                break;
            }
            // A slot that has finished computes along, behind what it has.
            let tokens: Vec<u32> = next.iter().map(|token| token.unwrap_or(0)).collect();
            let positions: Vec<i64> = cached.iter().map(|&at| at as i64).collect();
            let chosen = session.decode_each(&tokens, &positions, &[Params::GREEDY; SLOTS]).unwrap();
            for (slot, token) in next.iter_mut().enumerate() {
                if let Some(id) = token {
                    *id = chosen[slot];
                    cached[slot] += 1;
                }
            }
        }
    }
    answers
}

/// Share of items whose last answer is exactly right, in all and by skill.
fn scores(items: &[Item], answers: &[Answers]) -> (f64, BTreeMap<String, f64>) {
    let mut by_skill: BTreeMap<String, Vec<bool>> = BTreeMap::new();
    for (item, answers) in items.iter().zip(answers) {
        let text = demo_tokenizer().decode(answers.last().unwrap()).unwrap();
        by_skill.entry(item.skill.clone()).or_default().push(text == item.turns.last().unwrap().1);
    }
    let share = |right: &[bool]| right.iter().filter(|&&r| r).count() as f64 / right.len() as f64;
    let all: Vec<bool> = by_skill.values().flatten().copied().collect();
    (share(&all), by_skill.iter().map(|(skill, right)| (skill.clone(), share(right))).collect())
}

#[track_caller]
fn assert_good(items: &[Item], answers: &[Answers]) {
    let (all, by_skill) = scores(items, answers);
    println!("all {all:.3} {by_skill:.2?}");
    assert!(all >= 0.95, "{all}: {by_skill:?}");
    for (skill, share) in by_skill {
        let least = if skill == "recall" { 0.95 } else { 0.90 };
        assert!(share >= least, "{skill}: {share}");
    }
}

#[test]
fn f32_answers_are_right_and_those_of_transformers() {
    let items = held_out();
    assert!(items.len() >= 500);
    let answers = answers(&demo_model(Mesh::SINGLE, DType::F32), &items, true);
    assert_good(&items, &answers);
    for ((item, found), expected) in items.iter().zip(&answers).zip(transformers_answers()) {
        assert_eq!(*found, expected, "{:?}", item.turns);
    }
}

#[test]
fn bf16_answers_are_right() {
    let items = held_out();
    assert_good(&items, &answers(&demo_model(Mesh::SINGLE, DType::BF16), &items, true));
}

/// Weights in eight bits lose at most half a point of a hundred, in four bits at most three. Few
/// sequences at a time: these are multiplied in integers.
#[test]
fn quantised_answers_are_as_good() {
    let items = held_out();
    let (original, _) = scores(&items, &transformers_answers());
    for (how, loss) in [(Quantization::Int8, 0.005), (Quantization::Int4, 0.03)] {
        let dir = tempfile::tempdir().unwrap();
        write_quantized(&demo::checkpoint(), how, &dir.path().join("model.safetensors"), |_| ()).unwrap();
        let quantised = load(&Checkpoint::open(dir.path()).unwrap(), Mesh::SINGLE, DType::F32);
        let (all, by_skill) = scores(&items, &answers_by::<4>(&quantised, &items, true));
        println!("{how:?}: all {all:.3} {by_skill:.2?}");
        assert!(all >= original - loss, "{how:?}: {all} instead of {original}: {by_skill:.2?}");
    }
}

/// Keys and values in eight bits lose at most half a point.
#[test]
fn answers_from_a_quantised_cache_are_as_good() {
    let items = held_out();
    let (original, _) = scores(&items, &transformers_answers());
    let options =
        RunOptions { lowering: KERNELS, mesh: Mesh::SINGLE, compute: DType::F32, kv: DType::S8, bundle: None };
    let model = load_with(&demo::checkpoint(), options);
    let (all, by_skill) = scores(&items, &answers(&model, &items, true));
    println!("all {all:.3} {by_skill:.2?}");
    assert!(all >= original - 0.005, "{all} instead of {original}: {by_skill:.2?}");
}

#[test]
fn four_devices_give_the_same_answers() {
    let _lock = several_devices();
    let items = held_out();
    assert_eq!(answers(&demo_model(Mesh { data: 1, model: 4 }, DType::F32), &items, true), transformers_answers());
}

/// Only items of several turns have a cache to keep.
#[test]
fn a_rebuilt_cache_gives_the_same_answers() {
    let several: Vec<(Item, Answers)> =
        held_out().into_iter().zip(transformers_answers()).filter(|(item, _)| item.turns.len() > 1).collect();
    let (items, expected): (Vec<Item>, Vec<Answers>) = several.into_iter().unzip();
    assert!(items.len() >= 40);
    assert_eq!(answers(&demo_model(Mesh::SINGLE, DType::F32), &items, false), expected);
}

#[test]
fn a_conversation_prefills_only_what_is_new() {
    let model = demo_model(Mesh::SINGLE, DType::F32);
    let mut kept = Conversation::new(model.clone(), demo_tokenizer().clone(), CONTEXT, None).unwrap();
    let mut rebuilt = Conversation::new(model, demo_tokenizer().clone(), CONTEXT, None).unwrap();
    let recall = held_out().into_iter().zip(transformers_answers()).filter(|(item, _)| item.turns.len() > 1);
    for (item, expected) in recall.take(12) {
        kept.replace(vec![], None).unwrap();
        let mut end = 0;
        for (turn, (question, _)) in item.turns.iter().enumerate() {
            let answered = kept.ask(question, MAX_TOKENS, 1, Params::GREEDY, |_| None).unwrap();
            assert_eq!(answered.tokens, expected[turn], "{question}");
            if turn > 0 {
                assert_eq!(answered.kept, end, "all but the new turn is in the cache");
            }
            end = answered.prompt + answered.tokens.len();
        }
        // The same conversation from its text alone, in a cache that holds another one.
        let mut before = kept.messages().to_vec();
        before.truncate(before.len() - 2);
        rebuilt.replace(before, None).unwrap();
        let question = &item.turns.last().unwrap().0;
        let again = rebuilt.ask(question, MAX_TOKENS, 1, Params::GREEDY, |_| None).unwrap();
        assert_eq!(again.tokens, *expected.last().unwrap());
    }
}

#[test]
fn turns_can_be_taken_back_and_the_oldest_dropped() {
    let model = demo_model(Mesh::SINGLE, DType::F32);
    let mut conversation = Conversation::new(model, demo_tokenizer().clone(), 128, Some("Be kind.".into())).unwrap();
    let ask = |c: &mut Conversation, question: &str| c.ask(question, 32, 8, Params::GREEDY, |_| None);
    let first = ask(&mut conversation, "My name is Anna.").unwrap();
    let second = ask(&mut conversation, "What is 2 + 3?").unwrap();
    assert_eq!(conversation.undo().as_deref(), Some("What is 2 + 3?"));
    let again = ask(&mut conversation, "What is 2 + 3?").unwrap();
    assert_eq!((again.answer, again.prompt), (second.answer, second.prompt));
    assert_eq!(again.kept, again.prompt - 1, "the cache has the question already");

    // Until nothing more fits. The conversation stays as it was, and with its oldest turns dropped
    // it goes on.
    let error = loop {
        match ask(&mut conversation, "What is the capital of Norway?") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("the context is full"), "{error}");
    let before = conversation.messages().len();
    let dropped = conversation.drop_oldest("What is 1 + 1?", 32).unwrap();
    assert!(dropped > 0 && conversation.messages().len() == before - 2 * dropped);
    let after = ask(&mut conversation, "What is 1 + 1?").unwrap();
    assert!(after.prompt + 32 <= 128);
    assert!(conversation.drop_oldest(&"long ".repeat(200), 8).unwrap_err().to_string().contains("the context is full"));
    assert_eq!(conversation.messages().len(), before - 2 * dropped + 2, "nothing was dropped for it");
    assert!(first.kept == 0 && conversation.system() == Some("Be kind."));

    for wrong in [vec![Message::user("a")], vec![Message::assistant("a"), Message::user("b")]] {
        assert!(conversation.replace(wrong, None).unwrap_err().to_string().contains("in turn"));
    }
}
