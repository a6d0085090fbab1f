//! The engine behind its handle: limits, fairness, cancellation, deadlines, failures, the end.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use gemma_pjrt::{
    engine::{
        Answer, Engine, Request, ScoreRequest, Stop,
        service::{
            Failure, Happened, LoadProgress, MakeEngine, Phase, QueueLimits, Service, ServiceError, Submission,
            Updates, Work,
        },
    },
    hlo::Mesh,
    runtime::{Error, Model},
    sampling::Params,
    tokenizer::Message,
};

use crate::common::{KERNELS, demo_model, demo_tokenizer};

const CONTEXT: i64 = 256;
const ROOMY: QueueLimits = QueueLimits { requests: 1000, prompt_tokens: 1_000_000 };

fn vocab(model: &Model) -> i64 {
    model.config().vocab_size
}

fn service(slots: i64, limits: QueueLimits) -> Service {
    let model = demo_model(KERNELS, Mesh::SINGLE);
    let vocab = vocab(&model);
    let make: MakeEngine = Box::new(move || Engine::new(model.clone(), demo_tokenizer().clone(), slots, CONTEXT));
    ready(Service::start(move |_| Ok(make), (CONTEXT, vocab), limits))
}

/// Waits until the engine is there.
fn ready(service: Service) -> Service {
    wait_until("the engine is ready", || *service.phase().borrow() == Phase::Ready);
    service
}

#[track_caller]
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < end, "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn prompt(text: &str) -> Vec<u32> {
    demo_tokenizer().encode_chat(&[Message::user(text)]).unwrap()
}

/// An answer that only its length ends.
fn long(text: &str, max_tokens: usize) -> Request {
    Request::greedy(prompt(text), max_tokens)
}

fn submit(service: &Service, work: Request, key: &str) -> Result<Updates, ServiceError> {
    service.submit(Submission { work: Work::Generate(Box::new(work)), key: key.into(), timeout: None })
}

/// Waits for the end of a request.
fn finish(mut updates: Updates) -> Result<BTreeMap<usize, Answer>, Failure> {
    let mut answers = BTreeMap::new();
    while let Some(update) = updates.blocking_next() {
        match update.happened {
            Happened::Finished { index, answer } => drop(answers.insert(index, answer)),
            Happened::Failed(failure) => return Err(failure),
            _ => {}
        }
    }
    Ok(answers)
}

/// Waits for a request's first token.
fn begin(updates: &mut Updates) {
    while !matches!(updates.blocking_next().expect("it goes on").happened, Happened::Tokens { .. }) {}
}

fn wait_until_idle(service: &Service) {
    wait_until("nothing is under way", || {
        let stats = service.stats();
        service.unfinished() == 0 && (stats.waiting.requests, stats.waiting.prompt_tokens, stats.running) == (0, 0, 0)
    });
}

#[test]
fn parts_are_the_whole_whatever_ends_it() {
    let service = service(4, ROOMY);
    let questions = ["What is the capital of France?", "Spell cat.", "Sort: 5 3 9.", "Say \u{e9}\u{1f600}."];
    let requests: Vec<Request> = (0..24)
        .map(|i| Request {
            params: Params { temperature: (i % 3) as f32 * 0.7, seed: i as u64, ..Params::GREEDY },
            stop_ids: if i % 2 == 0 { demo_tokenizer().chat_stop_ids() } else { vec![] },
            stop: if i % 4 == 1 { vec!["is".into(), "  ".into(), ".".into()] } else { vec![] },
            min_tokens: if i % 5 == 0 { 6 } else { 0 },
            logprobs: (i % 6 == 2).then_some(2),
            n: 1 + i % 3,
            ..long(questions[i % 4], 12)
        })
        .collect();
    let running: Vec<Updates> =
        requests.iter().map(|request| submit(&service, request.clone(), "k").unwrap()).collect();
    for (request, mut updates) in requests.iter().zip(running) {
        let (mut parts, mut answers) = (BTreeMap::<usize, (String, Vec<u32>)>::new(), BTreeMap::new());
        let mut started = 0;
        while let Some(update) = updates.blocking_next() {
            match update.happened {
                Happened::Started { .. } => started += 1,
                Happened::Tokens { index, tokens, text } => {
                    let part = parts.entry(index).or_default();
                    part.0.push_str(&text);
                    part.1.extend(tokens.iter().map(|token| token.id));
                }
                Happened::Finished { index, answer } => drop(answers.insert(index, answer)),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((started, answers.len()), (request.n, request.n));
        for (index, answer) in answers {
            let (text, ids) = parts.remove(&index).unwrap();
            assert_eq!(text, answer.text);
            assert_eq!(ids, answer.tokens.iter().map(|token| token.id).collect::<Vec<_>>());
            assert!(answer.generated() >= request.min_tokens, "{answer:?}");
            assert!(answer.generated() <= request.max_tokens.max(1));
            match &answer.stopped_by {
                Some(Stop::Token(id)) => assert!(request.stop_ids.contains(id)),
                Some(Stop::Text(stop)) => assert!(request.stop.contains(stop)),
                None => assert_eq!(answer.tokens.len(), request.max_tokens),
            }
        }
    }
    wait_until_idle(&service);
    service.stop();
}

/// Who leaves while waiting, in prefill, or in an answer frees what they had within a step.
#[test]
fn what_nobody_reads_frees_its_slot() {
    let service = service(2, ROOMY);
    let mut running: Vec<Updates> = (0..2).map(|_| submit(&service, long("Count.", 200), "k").unwrap()).collect();
    running.iter_mut().for_each(begin);
    let waiting = submit(&service, long("Wait.", 200), "k").unwrap();
    wait_until("one waits", || service.stats().waiting.requests == 1);
    drop(waiting);
    wait_until("none waits", || service.stats().waiting.requests == 0);
    assert_eq!(service.stats().running, 2);
    drop(running);
    wait_until_idle(&service);
    // Slots are free: an answer begins at once.
    let answers = finish(submit(&service, long("Now?", 4), "k").unwrap()).unwrap();
    assert_eq!(answers[&0].tokens.len(), 4);
    // In the middle of a long prefill of several steps, or right after it.
    let text = "word ".repeat(200);
    for _ in 0..20 {
        drop(submit(&service, long(&text[..800], 8), "k").unwrap());
    }
    wait_until_idle(&service);
    service.stop();
}

#[test]
fn the_queue_is_bounded_by_requests_and_tokens() {
    let limits = QueueLimits { requests: 3, prompt_tokens: 100 };
    let service = service(1, limits);
    let mut running = submit(&service, long("Count.", 200), "k").unwrap();
    begin(&mut running);
    let waiting: Vec<_> = (0..3).map(|_| submit(&service, long("Hi.", 2), "k").unwrap()).collect();
    let Err(ServiceError::QueueFull { waiting: full, limits: told }) = submit(&service, long("Hi.", 2), "k") else {
        panic!("a fourth was taken")
    };
    assert_eq!((full.requests, told), (3, limits));
    drop(waiting);
    wait_until("there is room", || service.stats().waiting.requests == 0);
    let some = submit(&service, long(&"a b c d e f g h ".repeat(7), 2), "k").unwrap();
    let error = submit(&service, long(&"a b c d e f g h ".repeat(7), 2), "k").err().unwrap();
    assert!(matches!(error, ServiceError::QueueFull { .. }) && error.to_string().contains("prompt tokens"), "{error}");
    // One that can never run is refused as itself.
    let error = submit(&service, long(&"a b c d e f g h ".repeat(40), 2), "k").err().unwrap();
    assert!(matches!(error, ServiceError::Refused(_)), "{error}");
    drop((some, running));
    wait_until_idle(&service);
    service.stop();
}

#[test]
fn a_flood_of_one_key_does_not_hold_up_another() {
    let service = service(1, ROOMY);
    let mut first = submit(&service, long("Count.", 100), "flood").unwrap();
    begin(&mut first);
    let flood: Vec<Updates> = (0..30).map(|_| submit(&service, long("Hi.", 20), "flood").unwrap()).collect();
    let other = submit(&service, long("Hello.", 4), "other").unwrap();
    let waiting_before = service.stats().waiting.requests;
    assert!(waiting_before > 25);
    finish(other).unwrap();
    // All but the few that the engine had already.
    assert!(service.stats().waiting.requests >= 27, "{:?}", service.stats());
    drop((first, flood));
    wait_until_idle(&service);
    service.stop();
}

#[test]
fn deadlines_include_waiting() {
    let service = service(1, ROOMY);
    let mut running = submit(&service, long("Count.", 220), "k").unwrap();
    begin(&mut running);
    let timeout = Duration::from_millis(1);
    let late = |tokens| Submission {
        work: Work::Generate(Box::new(long("Hi.", tokens))),
        key: "k".into(),
        timeout: Some(timeout),
    };
    assert_eq!(finish(service.submit(late(2)).unwrap()), Err(Failure::DeadlineExceeded(timeout)));
    drop(running);
    wait_until_idle(&service);
    // And running.
    assert_eq!(finish(service.submit(late(220)).unwrap()), Err(Failure::DeadlineExceeded(timeout)));
    wait_until_idle(&service);
    service.stop();
}

#[test]
fn draining_finishes_what_was_taken() {
    let service = service(2, ROOMY);
    let taken: Vec<Updates> = (0..6).map(|_| submit(&service, long("Hi.", 20), "k").unwrap()).collect();
    service.drain();
    assert_eq!(submit(&service, long("Hi.", 2), "k").err(), Some(ServiceError::ShuttingDown));
    for updates in taken {
        assert_eq!(finish(updates).unwrap()[&0].tokens.len(), 20);
    }
    wait_until_idle(&service);
    service.stop();

    let service = self::service(1, ROOMY);
    let taken: Vec<Updates> = (0..3).map(|_| submit(&service, long("Count.", 200), "k").unwrap()).collect();
    service.stop();
    for updates in taken {
        assert_eq!(finish(updates), Err(Failure::ShuttingDown));
    }
    assert_eq!(service.unfinished(), 0);
}

/// What one key has in the cache, another one does not find: times would tell.
#[test]
fn salts_share_no_cache() {
    let service = service(4, ROOMY);
    let request = |salt| Request { cache_salt: salt, ..long("What is the capital of France, and why is it so?", 3) };
    let cached = |salt| finish(submit(&service, request(salt), "k").unwrap()).unwrap()[&0].cached;
    assert_eq!(cached(1), 0);
    assert!(cached(1) > 10);
    assert_eq!(cached(2), 0);
    let score = |salt| {
        let context: Arc<[u32]> = prompt("What is the capital of Italy, and why?").into();
        let work = Work::Score(ScoreRequest { context, continuations: vec![vec![5, 6]], cache_salt: salt });
        let mut updates = service.submit(Submission { work, key: "k".into(), timeout: None }).unwrap();
        let mut cached = None;
        while let Some(update) = updates.blocking_next() {
            match update.happened {
                Happened::Started { cached: found, .. } => assert!(cached.replace(found).is_none()),
                Happened::Scored(likelihoods) => assert_eq!(likelihoods.len(), 1),
                other => panic!("{other:?}"),
            }
        }
        cached.unwrap()
    };
    assert_eq!(score(3), 0);
    assert!(score(3) > 10);
    assert_eq!(score(4), 0);
    service.stop();
}

/// An engine that cannot be made is the end.
#[test]
fn an_engine_that_cannot_be_made_is_told() {
    for (make, words) in [
        (Box::new(|| Err(Error::Invalid("no memory".into()))) as MakeEngine, "no memory"),
        (Box::new(|| panic!("out of order")), "out of order"),
    ] {
        let service = Service::start(move |_| Ok(make), (CONTEXT, 1000), ROOMY);
        wait_until(
            "it is lost",
            || matches!(&*service.phase().borrow(), Phase::Lost(reason) if reason.contains(words)),
        );
        assert!(matches!(submit(&service, long("Hi.", 2), "k"), Err(ServiceError::Lost(_))));
        service.stop();
    }
}

#[test]
fn loading_is_told_and_may_fail() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let load = move |on_progress: &(dyn Fn(LoadProgress) + Sync)| {
        on_progress(LoadProgress { weights_placed: true, programs: (3, 7) });
        wait.recv().unwrap();
        Err("the weights are damaged".to_owned())
    };
    let service = Service::start(load, (CONTEXT, 1000), ROOMY);
    let is_told = LoadProgress { weights_placed: true, programs: (3, 7) };
    wait_until("progress is told", || *service.phase().borrow() == Phase::Loading(is_told));
    assert_eq!(submit(&service, long("Hi.", 2), "k").err(), Some(ServiceError::Loading));
    go.send(()).unwrap();
    wait_until("it is lost", || *service.phase().borrow() == Phase::Lost("the weights are damaged".into()));
    service.stop();
}

/// The same tokens for the same request: alone, among others, with another number of slots.
#[test]
fn others_change_nothing() {
    let request = |i: usize| Request {
        params: Params { temperature: 1.0, top_k: 40, seed: i as u64, ..Params::GREEDY },
        ..long(["Spell dog.", "Sort: 3 1 2.", "What is 2 + 3?"][i % 3], 16)
    };
    let ids = |answers: BTreeMap<usize, Answer>| answers[&0].tokens.iter().map(|token| token.id).collect::<Vec<_>>();
    let alone: Vec<Vec<u32>> = {
        let service = service(1, ROOMY);
        let all = (0..8).map(|i| ids(finish(submit(&service, request(i), "k").unwrap()).unwrap())).collect();
        service.stop();
        all
    };
    let service = service(8, ROOMY);
    let running: Vec<Updates> = (0..64).map(|i| submit(&service, request(i % 8), "k").unwrap()).collect();
    for (i, updates) in running.into_iter().enumerate() {
        assert_eq!(ids(finish(updates).unwrap()), alone[i % 8], "{i}");
    }
    service.stop();
}
