//! Checkpoints with NaN or infinity: requests that meet them fail and say where, others go on.

use std::{fs, path::Path, sync::Arc};

use gemma_pjrt::{
    checkpoint::Checkpoint,
    engine::{Engine, Event, Request, ScoreRequest},
    gemma::Lowering,
    hlo::Mesh,
    runtime::{Model, Session},
    sampling::Params,
};

use crate::common::{KERNELS, NATIVE, demo_tokenizer, golden_config, golden_dir, load_f32, several_devices};

const F16_NAN: u16 = 0x7e00;
const F16_INFINITY: u16 = 0x7c00;

/// The golden model `gqa`, of which one element of a tensor is not a number.
fn model(tensor: &str, element: usize, bits: u16, lowering: Lowering, mesh: Mesh) -> Arc<Model> {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = fs::read(golden_dir("gqa").join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let start = json[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
    let at = 8 + header + start + 2 * element;
    bytes[at..at + 2].copy_from_slice(&bits.to_le_bytes());
    fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    load(dir.path(), lowering, mesh)
}

fn load(dir: &Path, lowering: Lowering, mesh: Mesh) -> Arc<Model> {
    load_f32(&Checkpoint::open(dir).unwrap(), golden_config("gqa"), lowering, mesh)
}

/// The errors and answers of some requests.
fn run(model: &Arc<Model>, requests: Vec<Request>, score: Option<ScoreRequest>) -> (Vec<String>, usize) {
    let mut engine = Engine::new(model.clone(), demo_tokenizer().clone(), 4, 64).unwrap();
    for request in requests {
        engine.submit(request).unwrap();
    }
    if let Some(request) = score {
        engine.submit_score(&request).unwrap();
    }
    let (mut errors, mut done) = (vec![], 0);
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            match event {
                Event::Failed { error, .. } => errors.push(error),
                Event::Finished { .. } | Event::Scored { .. } => done += 1,
                Event::Started { .. } | Event::Tokens { .. } => {}
            }
        }
    }
    (errors, done)
}

fn sampled() -> Vec<Params> {
    let params = |temperature, top_k| Params { temperature, top_k, top_p: 0.9, min_p: 0.0, seed: 1 };
    vec![Params::GREEDY, params(1.0, 40), params(1.0, 0)]
}

#[test]
fn the_first_layer_that_is_not_a_number_is_named() {
    let _alone = several_devices();
    let (norm, last) = ("model.layers.1.input_layernorm.weight", "model.norm.weight");
    for (lowering, devices) in [(KERNELS, 1), (NATIVE, 1), (Lowering::TPU, 1), (KERNELS, 2), (Lowering::TPU, 2)] {
        let mesh = Mesh { data: 1, model: devices };
        for (tensor, bits, named) in [
            (norm, F16_NAN, "layer 1 (model.layers.1.*)"),
            (last, F16_NAN, "the final norm"),
            (last, F16_INFINITY, "the final norm"),
        ] {
            let model = model(tensor, 3, bits, lowering, mesh);
            let requests: Vec<Request> = sampled()
                .into_iter()
                .map(|params| Request { params, ..Request::greedy(vec![2, 5, 6, 7], 8) })
                .collect();
            let score =
                ScoreRequest { context: vec![2, 5].into(), continuations: vec![vec![6], vec![7, 8]], cache_salt: 0 };
            let (errors, done) = run(&model, requests, Some(score));
            assert_eq!((errors.len(), done), (4, 0), "{tensor} on {mesh}: {errors:?}");
            assert!(errors.iter().all(|error| error.contains(named)), "{tensor} on {mesh}: {errors:?}");
            let error = Session::new(model, 1, 64).unwrap().score(&[2, 5, 6], false).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}

/// A bad row of the embedding harms those requests that have its token.
#[test]
fn requests_that_do_not_meet_it_go_on() {
    let hidden = golden_config("gqa").hidden_size as usize;
    let token = 9;
    for lowering in [KERNELS, NATIVE, Lowering::TPU] {
        let model = model("model.embed_tokens.weight", token * hidden + 1, F16_NAN, lowering, Mesh::SINGLE);
        let good = Request::greedy(vec![2, 5, 6, 7], 2);
        let bad = Request::greedy(vec![2, 5, token as u32, 7], 2);
        let (errors, done) = run(&model, vec![good.clone(), bad, good], None);
        assert_eq!((errors.len(), done), (1, 2), "{errors:?}");
        assert!(errors[0].contains("the embedding"), "{errors:?}");
    }
}
