//! Vocabularies that the devices of a mesh do not divide, as fine-tunes with added tokens have
//! them: the same numbers and tokens as on one device, and as transformers' of the whole model.

use std::sync::Arc;

use gemma_pjrt::{
    checkpoint::{Checkpoint, Quantization, write_quantized},
    engine::{Answer, Engine, Event, Request},
    gemma::{Config, Lowering},
    hlo::Mesh,
    runtime::{Model, Session},
    sampling::{Params, Penalties},
};

use crate::common::{
    Golden, KERNELS, NATIVE, Tensors, assert_close, demo_tokenizer, golden_config, golden_tensors, load_f32,
    several_devices, write_tensors,
};

/// A prime number of entries: 2, 4 and 8 devices leave 1, 1 and 5 over.
const VOCAB: usize = 251;
const WHOLE: usize = 256;

/// A golden model without its last tokens.
fn cut(model: &str) -> (Tensors, Config) {
    let mut tensors = golden_tensors(model);
    for (_, _, dims, bytes) in tensors.iter_mut().filter(|(_, _, dims, _)| dims[0] == WHOLE as i64) {
        bytes.truncate(bytes.len() / WHOLE * VOCAB);
        dims[0] = VOCAB as i64;
    }
    (tensors, Config { vocab_size: VOCAB as i64, ..golden_config(model) })
}

/// The tokens of the golden prompt before the first one that is cut off.
fn prompt(model: &str) -> Vec<u32> {
    let ids = Golden::read(model).ids("prompt").into_iter();
    ids.take_while(|&id| (id as usize) < VOCAB).take(40).collect()
}

fn mesh(data: usize, model: usize) -> Mesh {
    Mesh { data, model }
}

/// One request whose tokens are drawn from the largest logits of each device, and one that needs
/// all of them: penalties, biases, and log-probabilities of prompt and answer.
fn requests(prompt: &[u32]) -> Vec<Request> {
    let greedy = Request::greedy(prompt.to_vec(), 12);
    let params = Params { temperature: 1.5, top_k: 40, top_p: 0.95, min_p: 0.0, seed: 1 };
    let penalties = Penalties { repetition: 1.3, presence: 0.5, frequency: 0.5 };
    let logit_bias = vec![(VOCAB as u32 - 1, 4.0), (VOCAB as u32 - 2, 4.0), (3, -100.0)];
    vec![
        Request { params, ..greedy.clone() },
        Request {
            params: Params { top_k: 0, ..params },
            penalties,
            logit_bias,
            logprobs: Some(20),
            echo: true,
            ..greedy
        },
    ]
}

fn answers(model: Arc<Model>, requests: &[Request]) -> Vec<Answer> {
    let mut engine = Engine::new(model, demo_tokenizer().clone(), 2, 64).unwrap();
    let ids: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let mut found = std::collections::BTreeMap::new();
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            if let Event::Finished { id, answer, .. } = event {
                found.insert(id, answer);
            }
        }
    }
    ids.iter().map(|id| found.remove(id).unwrap()).collect()
}

fn assert_same(found: &[Answer], expected: &[Answer], what: &str) {
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let ids = |answer: &Answer| answer.tokens.iter().map(|token| token.id).collect::<Vec<_>>();
        assert_eq!(ids(found), ids(expected), "{what}, request {i}");
        let all = |answer: &Answer| {
            let tokens = answer.prompt.iter().flatten().chain(&answer.tokens);
            let reported = tokens.flat_map(|token| token.logprobs.iter().flat_map(|logprobs| logprobs.top.clone()));
            let (tokens, values): (Vec<u32>, Vec<f32>) = reported.unzip();
            (tokens, values)
        };
        let ((found, values), (tokens, expected)) = (all(found), all(expected));
        assert_eq!(found, tokens, "{what}, request {i}");
        assert_close(&values, &expected, 1e-4);
    }
}

#[test]
fn any_mesh_gives_the_numbers_of_transformers() {
    let _alone = several_devices();
    // Tied and not; one token too many, and five.
    for (name, meshes) in [
        ("mqa", [(KERNELS, mesh(1, 8)), (NATIVE, mesh(1, 2))]),
        ("gqa", [(KERNELS, mesh(2, 4)), (Lowering::TPU, mesh(1, 8))]),
    ] {
        let prompt = prompt(name);
        assert!(prompt.len() > 8, "{prompt:?}");
        let golden = Golden::read(name).f32s("logits");
        let expected: Vec<f32> =
            golden.chunks(WHOLE).take(prompt.len()).flat_map(|row| row[..VOCAB].to_vec()).collect();
        let (tensors, config) = cut(name);
        let dir = tempfile::tempdir().unwrap();
        write_tensors(&dir.path().join("model.safetensors"), &tensors);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let requests = requests(&prompt);
        let alone = answers(load_f32(&checkpoint, config.clone(), KERNELS, Mesh::SINGLE), &requests);
        for (lowering, mesh) in meshes {
            let what = format!("{name} on {mesh} ({})", lowering.name);
            let model = load_f32(&checkpoint, config.clone(), lowering, mesh);
            let mut session = Session::new(model.clone(), 1, 64).unwrap();
            let scored = session.score(&prompt, true).unwrap();
            assert_close(&scored.logits.unwrap(), &expected, 1e-4);
            let plain = session.score(&prompt, false).unwrap();
            assert_eq!(plain.greedy, scored.greedy, "{what}");
            assert_close(&plain.logprobs, &scored.logprobs, 1e-5);
            assert_same(&answers(model, &requests), &alone, &what);
        }
    }
}

#[test]
fn quantised_weights_are_split_in_the_same_way() {
    let _alone = several_devices();
    let prompt = prompt("gqa");
    let (tensors, config) = cut("gqa");
    let dir = tempfile::tempdir().unwrap();
    write_tensors(&dir.path().join("model.safetensors"), &tensors);
    let source = Checkpoint::open(dir.path()).unwrap();
    for how in [Quantization::Int8, Quantization::Int4] {
        let small = tempfile::tempdir().unwrap();
        write_quantized(&source, how, &small.path().join("model.safetensors"), |_| ()).unwrap();
        let checkpoint = Checkpoint::open(small.path()).unwrap();
        let score = |lowering, mesh| {
            let model = load_f32(&checkpoint, config.clone(), lowering, mesh);
            Session::new(model, 1, 64).unwrap().score(&prompt, true).unwrap()
        };
        let expected = score(KERNELS, Mesh::SINGLE);
        for lowering in [KERNELS, NATIVE, Lowering::TPU] {
            let found = score(lowering, mesh(1, 2));
            assert_eq!(found.greedy, expected.greedy, "{how:?} {}", lowering.name);
            assert_close(&found.logits.unwrap(), expected.logits.as_ref().unwrap(), 1e-4);
        }
    }
}
