//! The engine: the same answers alone and among others, slots that are kept busy, prompts that are
//! computed once.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use gemma_pjrt::{
    engine::{Answer, Engine, Event, FinishReason, Refusal, Request, RequestId, ScoreRequest},
    gemma::Lowering,
    hlo::Mesh,
    runtime::{Model, Session},
    sampling::{Params, Penalties},
    tokenizer::Message,
};

use crate::common::{KERNELS, assert_close, demo_model, demo_tokenizer, several_devices};

/// The demo model on one device.
fn model() -> Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    MODEL.get_or_init(|| demo_model(KERNELS, Mesh::SINGLE)).clone()
}

fn engine(slots: i64, cache_len: i64) -> Engine {
    Engine::new(model(), demo_tokenizer().clone(), slots, cache_len).unwrap()
}

/// First questions that the model was not taught.
fn questions() -> Vec<Vec<u32>> {
    let text = include_str!("../demo/held-out.jsonl");
    let question = |line: &str| {
        let json: serde_json::Value = serde_json::from_str(line).unwrap();
        demo_tokenizer().encode_chat(&[Message::user(json["turns"][0]["user"].as_str().unwrap())]).unwrap()
    };
    text.lines().map(question).collect()
}

fn request(prompt: &[u32], max_tokens: usize) -> Request {
    Request { stop_ids: demo_tokenizer().chat_stop_ids(), ..Request::greedy(prompt.to_vec(), max_tokens) }
}

/// Runs until all is done.
fn finish(engine: &mut Engine) -> BTreeMap<(RequestId, usize), Answer> {
    let mut answers = BTreeMap::new();
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            if let Event::Finished { id, index, answer } = event {
                assert!(answers.insert((id, index), answer).is_none(), "finished twice");
            }
        }
    }
    answers
}

fn run(engine: &mut Engine, requests: &[Request]) -> Vec<Answer> {
    let ids: Vec<RequestId> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
    let mut answers = finish(engine);
    ids.into_iter().map(|id| answers.remove(&(id, 0)).unwrap()).collect()
}

fn ids(answer: &Answer) -> Vec<u32> {
    answer.tokens.iter().map(|token| token.id).collect()
}

/// Greedy, drawn, with penalties, biases and log-probabilities.
fn mixed_requests(count: usize) -> Vec<Request> {
    let vary = |(i, prompt): (usize, &Vec<u32>)| {
        let params = Params {
            temperature: [0.0, 0.8, 1.5][i % 3],
            top_k: [0, 40, 5][i % 3],
            top_p: [1.0, 0.9][i % 2],
            min_p: [0.0, 0.02][i / 2 % 2],
            seed: 1000 + i as u64,
        };
        let penalties =
            if i % 4 == 1 { Penalties { repetition: 1.2, presence: 0.3, frequency: 0.2 } } else { Penalties::NONE };
        let logit_bias = if i % 5 == 2 { vec![(200, 3.0), (300, -100.0)] } else { vec![] };
        let logprobs = (i % 6 == 3).then_some(4);
        Request { params, penalties, logit_bias, logprobs, ..request(prompt, 4 + i % 29) }
    };
    questions().iter().take(count).enumerate().map(vary).collect()
}

#[test]
fn a_request_gives_the_same_tokens_alone_and_among_others() {
    let requests = mixed_requests(96);
    let among = run(&mut engine(64, 256), &requests);
    let alone = run(&mut engine(1, 256), &requests);
    for (i, (a, b)) in among.iter().zip(&alone).enumerate() {
        assert_eq!((ids(a), &a.text, a.finish_reason), (ids(b), &b.text, b.finish_reason), "request {i}");
    }
}

/// Data rows with sequences of their own, and several steps in one dispatch, as on a TPU.
#[test]
fn meshes_and_targets_give_the_same_tokens() {
    let _alone = several_devices();
    let requests = mixed_requests(40);
    let expected = run(&mut engine(4, 256), &requests);
    for (lowering, mesh) in [
        (KERNELS, Mesh { data: 4, model: 1 }),
        (KERNELS, Mesh { data: 2, model: 2 }),
        (Lowering::TPU, Mesh::SINGLE),
        (Lowering::TPU, Mesh { data: 2, model: 4 }),
    ] {
        let mut engine = Engine::new(demo_model(lowering, mesh), demo_tokenizer().clone(), 3, 256).unwrap();
        assert_eq!(engine.slots(), 3 * mesh.data);
        let found = run(&mut engine, &requests);
        for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
            assert_eq!((ids(a), &a.text, a.finish_reason), (ids(b), &b.text, b.finish_reason), "{mesh}, request {i}");
        }
        if lowering == Lowering::TPU {
            let stats = engine.stats();
            assert!(stats.decode_steps > 20, "{stats:?}");
        }
    }
}

#[test]
fn slots_are_busy_until_the_queue_is_empty() {
    let mut engine = engine(8, 256);
    for (i, prompt) in questions().iter().cycle().take(150).enumerate() {
        // Nothing but the length ends these.
        engine.submit(Request::greedy(prompt.clone(), 2 + i * 13 % 40)).unwrap();
    }
    while engine.load().0 > 0 {
        engine.step().unwrap();
    }
    let stats = engine.stats();
    let share = stats.decoded as f64 / stats.decodable as f64;
    assert!(share >= 0.9, "{share}: {stats:?}");
    finish(&mut engine);
}

/// A prompt of many chunks does not keep running answers waiting: each has a token in every step.
#[test]
fn answers_ride_along_with_a_long_prompt() {
    let mut engine = engine(8, 8192);
    let questions = questions();
    let running: Vec<RequestId> =
        questions[..7].iter().map(|p| engine.submit(Request::greedy(p.clone(), 60)).unwrap()).collect();
    let tokens: usize = questions[..7].iter().map(Vec::len).sum();
    while engine.stats().prefilled + engine.stats().cached < tokens as u64 {
        engine.step().unwrap();
    }
    let long: Vec<u32> = questions.iter().flatten().copied().take(4000).collect();
    let late = engine.submit(request(&long, 2)).unwrap();
    let before = engine.stats();
    loop {
        let events = engine.step().unwrap();
        let told = |id: &RequestId| events.iter().any(|e| matches!(e, Event::Tokens { id: found, .. } if found == id));
        assert!(running.iter().all(told), "a running request waited");
        if told(&late) {
            break;
        }
    }
    // Each step has 512 tokens, seven of which are the answers'.
    assert_eq!(engine.stats().mixed_steps - before.mixed_steps, 4000_u64.div_ceil(512 - 7));
    assert_eq!(engine.stats().decode_steps, before.decode_steps);
    finish(&mut engine);
}

/// Short prompts share a step, which gives each what it is given alone, on any mesh and lowering.
#[test]
fn short_prompts_are_prefilled_together() {
    let _alone = several_devices();
    let text: Vec<u32> = questions().iter().flatten().copied().collect();
    let prompts = |n: usize, len: usize| -> Vec<Request> {
        (0..n).map(|i| request(&[&[2], &text[i * 61..][..len + i % 5]].concat(), 6)).collect()
    };
    let check = |lowering, mesh: Mesh, (n, len, steps): (usize, usize, u64)| {
        let requests = prompts(n, len);
        let expected: Vec<_> = run(&mut engine(1, 256), &requests).iter().map(ids).collect();
        let slots = n.div_ceil(mesh.data) as i64;
        let mut engine = Engine::new(demo_model(lowering, mesh), demo_tokenizer().clone(), slots, 256).unwrap();
        let found: Vec<_> = run(&mut engine, &requests).iter().map(ids).collect();
        assert_eq!(found, expected, "{n} prompts of {len} on {mesh}");
        let stats = engine.stats();
        assert_eq!(stats.prefilled, requests.iter().map(|one| one.prompt.len() as u64).sum::<u64>());
        assert_eq!(stats.mixed_steps, steps, "{n} prompts of {len} on {mesh}");
    };
    for case in [(5, 9, 1), (6, 58, 1), (3, 200, 2), (16, 7, 1)] {
        check(KERNELS, Mesh::SINGLE, case);
    }
    check(KERNELS, Mesh { data: 2, model: 2 }, (5, 9, 1));
    check(Lowering::TPU, Mesh::SINGLE, (5, 9, 1));
    check(Lowering::TPU, Mesh { data: 2, model: 2 }, (5, 9, 1));
}

/// Many questions with one header: it is computed once, whether they come one by one or at once.
#[test]
fn a_shared_beginning_is_computed_once() {
    let header: Vec<u32> = questions().iter().flatten().copied().take(200).collect();
    let prompts: Vec<Vec<u32>> = (0..12).map(|i| [&header[..], &[300 + i, 301, 302]].concat()).collect();
    let requests: Vec<Request> = prompts.iter().map(|prompt| request(prompt, 8)).collect();
    let expected: Vec<Vec<u32>> =
        requests.iter().map(|r| ids(&run(&mut engine(1, 256), std::slice::from_ref(r))[0])).collect();
    let mut engine = engine(4, 256);
    let found: Vec<Vec<u32>> = run(&mut engine, &requests).iter().map(ids).collect();
    assert_eq!(found, expected);
    let stats = engine.stats();
    assert_eq!(stats.prefilled + stats.cached, 12 * 203);
    assert!(stats.prefilled <= 203 + 11 * 3, "{stats:?}");
    // Several answers to one prompt, too: each computes its last token.
    let mut engine = self::engine(4, 256);
    let params = Params { temperature: 1.5, ..Params::GREEDY };
    engine.submit(Request { n: 4, params, ..request(&header, 12) }).unwrap();
    let answers = finish(&mut engine);
    assert_eq!(answers.len(), 4);
    assert_eq!(engine.stats().prefilled, 200 + 3);
    let different: std::collections::BTreeSet<Vec<u32>> = answers.values().map(ids).collect();
    assert!(different.len() > 1);
}

#[test]
fn log_probabilities_are_those_of_scoring() {
    let prompt = questions()[5].clone();
    let mut engine = engine(3, 256);
    let with = Request { logprobs: Some(5), echo: true, ..request(&prompt, 12) };
    let answer = run(&mut engine, std::slice::from_ref(&with)).remove(0);
    let told = answer.prompt.as_ref().unwrap();
    assert_eq!(told.iter().map(|t| t.id).collect::<Vec<_>>(), prompt[1..]);
    let all: Vec<u32> = prompt.iter().copied().chain(ids(&answer)).collect();
    let mut session = Session::new(model(), 1, 256).unwrap();
    let scored = session.score(&all, true).unwrap();
    let tokens: Vec<_> = told.iter().chain(&answer.tokens).collect();
    let own: Vec<f32> = tokens.iter().map(|t| t.logprobs.as_ref().unwrap().own).collect();
    assert_close(&own, &scored.logprobs, 1e-5);
    let logits = scored.logits.unwrap();
    let vocab = model().config().vocab_size as usize;
    for (token, (row, &greedy)) in tokens.iter().zip(logits.chunks_exact(vocab).zip(&scored.greedy)) {
        let top = &token.logprobs.as_ref().unwrap().top;
        assert_eq!((top.len(), top[0].0), (5, greedy));
        let mut order: Vec<usize> = (0..vocab).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        assert_eq!(top.iter().map(|t| t.0 as usize).collect::<Vec<_>>(), order[..5]);
    }
    // The prompt alone.
    let alone = run(&mut engine, &[Request { max_tokens: 0, ..with }]).remove(0);
    assert_eq!(alone.tokens.len(), 0);
    let own = |answer: &Answer| -> Vec<f32> {
        let tokens = answer.prompt.as_ref().unwrap().iter();
        tokens.map(|token| token.logprobs.as_ref().unwrap().own).collect()
    };
    assert_close(&own(&alone), &own(&answer), 1e-5);
}

#[test]
fn stop_strings_and_ids_end_answers() {
    let capital = demo_tokenizer().encode_chat(&[Message::user("What is the capital of France?")]).unwrap();
    let mut engine = engine(2, 256);
    let whole = run(&mut engine, &[request(&capital, 40)]).remove(0);
    assert_eq!((whole.text.as_str(), whole.finish_reason), ("The capital of France is Paris.", FinishReason::Stop));
    let cut = run(&mut engine, &[Request { stop: vec!["nothing".into(), " is Pa".into()], ..request(&capital, 40) }]);
    assert_eq!((cut[0].text.as_str(), cut[0].finish_reason), ("The capital of France", FinishReason::Stop));
    // What only looked like a stop string is not lost.
    let held = run(&mut engine, &[Request { stop: vec!["Paris.!".into()], ..request(&capital, 40) }]);
    assert_eq!(held[0].text, whole.text);
    let by_id = Request { stop_ids: vec![whole.tokens[3].id], ..Request::greedy(capital.clone(), 40) };
    let by_id = run(&mut engine, &[by_id]).remove(0);
    assert_eq!((ids(&by_id), by_id.finish_reason), (ids(&whole)[..3].to_vec(), FinishReason::Stop));
    let short = run(&mut engine, &[request(&capital, 2)]).remove(0);
    assert_eq!((short.tokens.len(), short.finish_reason), (2, FinishReason::Length));
    // The slot's end.
    let mut small = self::engine(1, capital.len() as i64 + 3);
    let full = run(&mut small, &[Request::greedy(capital, 40)]).remove(0);
    assert_eq!((full.tokens.len(), full.finish_reason), (4, FinishReason::Length));
}

#[test]
fn what_cannot_be_run_is_refused() {
    let mut engine = engine(1, 256);
    let good = request(&[2, 5, 6], 4);
    for (bad, word) in [
        (Request { prompt: vec![], ..good.clone() }, "empty"),
        (Request { prompt: vec![2; 256], ..good.clone() }, "--context"),
        (Request { prompt: vec![2, 70_000], ..good.clone() }, "70000"),
        (Request { max_tokens: 0, ..good.clone() }, "max_tokens"),
        (Request { n: 0, ..good.clone() }, "n must"),
        (Request { logprobs: Some(21), ..good.clone() }, "20"),
        (Request { logit_bias: vec![(5, 101.0)], ..good.clone() }, "logit_bias"),
        (Request { logit_bias: vec![(5, 1.0); 301], ..good.clone() }, "300"),
        (Request { logit_bias: vec![(70_000, 1.0)], ..good.clone() }, "70000"),
        (Request { penalties: Penalties { repetition: 0.0, ..Penalties::NONE }, ..good.clone() }, "repetition"),
        (Request { penalties: Penalties { presence: 3.0, ..Penalties::NONE }, ..good.clone() }, "presence"),
        (Request { params: Params { top_p: 0.0, ..Params::GREEDY }, ..good.clone() }, "top-p"),
    ] {
        let error = engine.submit(bad).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    assert!(engine.is_idle());
    run(&mut engine, &[good]);
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Requests of any length, some given up, some ended by a string, leave nothing behind: a thousand,
/// or as many as `SOAK` says, as ci/run does where this is the only test of its process. Only then
/// the process's memory says something.
#[test]
fn nothing_leaks() {
    let soak: Option<usize> = std::env::var("SOAK").ok().map(|n| n.parse().unwrap());
    let all = soak.unwrap_or(1000);
    let mut engine = engine(16, 256);
    let mut random = 88_172_645_463_325_252_u64;
    let mut next = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    let questions = questions();
    let (mut submitted, mut finished, mut cancelled) = (0, 0, 0);
    let mut alive: Vec<RequestId> = vec![];
    let mut resident = vec![];
    while submitted < all || !engine.is_idle() {
        while submitted < all && engine.load().0 < 20 {
            let prompt = &questions[next(questions.len())];
            let prompt = &prompt[..1 + next(14)];
            let stop = if next(4) == 0 { vec!["e".to_owned(), "1".to_owned()] } else { vec![] };
            alive.push(engine.submit(Request { stop, ..request(prompt, 1 + next(8)) }).unwrap());
            submitted += 1;
        }
        if next(10) == 0 && !alive.is_empty() {
            engine.cancel(alive.swap_remove(next(alive.len())));
            cancelled += 1;
        }
        for event in engine.step().unwrap() {
            if let Event::Finished { id, .. } = event {
                let at = alive.iter().position(|&known| known == id).expect("a cancelled request has no events");
                alive.swap_remove(at);
                finished += 1;
            }
        }
        if submitted >= all / 5 * (resident.len() + 1) {
            resident.push(resident_bytes());
        }
    }
    assert!(alive.is_empty());
    assert_eq!((finished + cancelled, engine.load()), (all, (0, 0)));
    assert!(cancelled > all / 100, "{cancelled}");
    // What leaks with requests grows all the time; a program that is compiled late, once.
    let grown = resident.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).min().unwrap();
    assert!(soak.is_none() || grown < 1 << 20, "{grown} bytes more after each fifth: {resident:?}");
}

/// A server may move it to a thread of its own.
#[test]
fn an_engine_is_send_and_owns_what_it_needs() {
    fn is_send<T: Send + 'static>(_: &T) {}
    let mut engine = engine(2, 256);
    is_send(&engine);
    let prompt = questions()[0].clone();
    let here = run(&mut engine, &[request(&prompt, 8)]).remove(0);
    let there = std::thread::spawn(move || run(&mut engine, &[request(&prompt, 8)]).remove(0)).join().unwrap();
    assert_eq!(ids(&there), ids(&here));
}

/// The queue has a bound, and an engine that shuts down finishes what it has taken.
#[test]
fn full_queues_and_engines_that_shut_down_refuse() {
    let mut engine = engine(1, 256);
    engine.limit_queue(3);
    let prompt = questions()[1].clone();
    let several = Request { n: 3, ..request(&prompt, 4) };
    let first = engine.submit(several.clone()).unwrap();
    assert_eq!(engine.submit(request(&prompt, 4)), Err(Refusal::QueueFull { waiting: 3, most: 3 }));
    engine.step().unwrap();
    let second = engine.submit(request(&prompt, 4)).unwrap();
    engine.shut_down();
    assert_eq!(engine.submit(several), Err(Refusal::ShuttingDown));
    let answers = finish(&mut engine);
    assert_eq!(answers.keys().map(|(id, _)| *id).collect::<Vec<_>>(), [first, first, first, second]);
}

/// Wherever a request is when it is given up, it has no more events, and the others finish as if it
/// had not been there.
#[test]
fn requests_are_cancelled_in_any_phase() {
    let questions = questions();
    let long: Vec<u32> = questions.iter().flatten().copied().take(1500).collect();
    let context: Arc<[u32]> = questions[3].clone().into();
    let expected = ids(&run(&mut engine(2, 2048), &[request(&questions[4], 12)])[0]);
    for steps in 0..8 {
        let mut engine = engine(2, 2048);
        let continuations = vec![vec![5, 6, 7], vec![8, 9]];
        let scored = ScoreRequest { context: context.clone(), continuations, cache_salt: 0 };
        let cancelled = [
            engine.submit(Request { n: 3, ..request(&questions[2], 30) }).unwrap(),
            engine.submit(request(&long, 5)).unwrap(),
            engine.submit(Request { echo: true, logprobs: Some(2), ..request(&questions[5], 5) }).unwrap(),
            engine.submit_score(&scored).unwrap(),
        ];
        for _ in 0..steps {
            engine.step().unwrap();
        }
        let kept = engine.submit(request(&questions[4], 12)).unwrap();
        cancelled.into_iter().for_each(|id| engine.cancel(id));
        let mut found = vec![];
        while !engine.is_idle() {
            for event in engine.step().unwrap() {
                assert!(!matches!(event, Event::Failed { .. }), "{event:?}");
                assert_eq!(event.id(), kept, "after {steps} steps");
                if let Event::Finished { answer, .. } = event {
                    found = ids(&answer);
                }
            }
        }
        assert_eq!(found, expected, "after {steps} steps");
    }
}
