//! `bench serve` against a server that follows a script.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    process::Stdio,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{Home, Ran};

/// A request that the server has read.
struct Received {
    at: Instant,
    path: String,
    headers: BTreeMap<String, String>,
    body: Value,
    /// How many requests for answers of more than one token came before: the client's first ones,
    /// which find out what the server takes, ask for one token.
    index: usize,
}

impl Received {
    fn is_first_question(&self) -> bool {
        self.body["max_tokens"] == 1
    }
}

/// A connection to answer on.
struct Reply<'a>(&'a mut TcpStream);

impl Reply<'_> {
    fn json(&mut self, status: &str, body: &Value) {
        let body = body.to_string();
        let head =
            format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
        let _ = self.0.write_all((head + &body).as_bytes());
    }

    fn error(&mut self, status: &str, message: &str) {
        self.json(status, &json!({"error": {"message": message, "type": "server_error", "param": null, "code": null}}));
    }

    fn begin_stream(&mut self) {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        let _ = self.0.write_all(head.as_bytes());
    }

    fn data(&mut self, data: &str) {
        let event = format!("data: {data}\n\n");
        let _ = self.0.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes());
    }

    fn text(&mut self, text: &str) {
        self.data(&json!({"choices": [{"index": 0, "text": text, "finish_reason": null}]}).to_string());
    }

    fn end(&mut self, prompt_tokens: u64, tokens: u64) {
        self.data(&json!({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}).to_string());
        let usage = json!({"prompt_tokens": prompt_tokens, "completion_tokens": tokens});
        self.data(&json!({"choices": [], "usage": usage}).to_string());
        self.data("[DONE]");
        let _ = self.0.write_all(b"0\r\n\r\n");
    }

    /// An answer of tokens at once.
    fn answer(&mut self, tokens: u64) {
        self.begin_stream();
        (0..tokens).for_each(|_| self.text("a"));
        self.end(8, tokens);
    }

    fn close(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Answers requests on loopback as a handler does, each connection on a thread of its own, and
/// returns the address. `/v1/models` lists one model.
fn server(handler: impl Fn(&Received, &mut Reply) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (handler, answers) = (Arc::new(handler), Arc::new(Mutex::new(0)));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (handler, answers) = (handler.clone(), answers.clone());
            thread::spawn(move || serve(stream.unwrap(), &*handler, &answers));
        }
    });
    url
}

fn serve(mut stream: TcpStream, handler: &(impl Fn(&Received, &mut Reply) + ?Sized), answers: &Mutex<usize>) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(mut received) = read(&mut reader) {
        let mut reply = Reply(&mut stream);
        match received.path.as_str() {
            "/v1/models" => reply.json("200 OK", &json!({"object": "list", "data": [{"id": "scripted"}]})),
            "/v1/completions" | "/v1/chat/completions" => {
                if !received.is_first_question() {
                    let mut answers = answers.lock().unwrap();
                    received.index = *answers;
                    *answers += 1;
                }
                handler(&received, &mut reply);
            }
            _ => handler(&received, &mut reply),
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Received> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|&bytes| bytes > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let mut body = vec![0; headers.get("content-length").map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    let body = serde_json::from_slice(&body).unwrap_or_default();
    Some(Received { at: Instant::now(), path, headers, body, index: 0 })
}

/// A server without `/tokenize`; `handler` answers the requests that are measured.
fn plain_server(handler: impl Fn(&Received, &mut Reply) + Send + Sync + 'static) -> String {
    server(move |received, reply| match received.path.as_str() {
        "/tokenize" => reply.error("404 Not Found", "no such path"),
        _ if received.is_first_question() => reply.answer(1),
        _ => handler(received, reply),
    })
}

fn bench(url: &str, args: &[&str]) -> Ran {
    Home::new().run(&[&["bench", "serve", "--url", url], args].concat())
}

/// Runs with `--json -` and without warm-up, and returns the first level.
fn level(url: &str, args: &[&str]) -> Value {
    let report = bench(url, &[args, &["--warmup", "0", "--json", "-"]].concat()).json();
    report["levels"][0].clone()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
fn times_are_those_that_the_server_wrote_at() {
    // What the server did for each request: time to the first token, for each token, to the end.
    let written: Arc<Mutex<Vec<[f64; 3]>>> = Arc::default();
    let log = written.clone();
    let url = plain_server(move |received, reply| {
        reply.begin_stream();
        reply.0.write_all(b"d\r\n: keep-alive\n\r\n").unwrap(); // no token
        thread::sleep(ms(60));
        let first = received.at.elapsed();
        reply.text("a");
        for _ in 0..10 {
            thread::sleep(ms(12));
            reply.text("a");
        }
        let last = received.at.elapsed();
        thread::sleep(ms(30)); // the end is not a token
        reply.end(8, 11);
        let whole = received.at.elapsed();
        let milliseconds = |time: Duration| 1e3 * time.as_secs_f64();
        log.lock().unwrap().push([milliseconds(first), milliseconds(last - first) / 10.0, milliseconds(whole)]);
    });
    let level = level(&url, &["--requests", "15", "--output-tokens", "11"]);
    assert_eq!((&level["completed"], &level["failed"], &level["users"]), (&15.into(), &0.into(), &1.into()));
    assert_eq!(level["output_tokens"], 15 * 11);
    let written = written.lock().unwrap();
    let requests = level["all_requests"].as_array().unwrap();
    assert!(requests.len() == 15 && requests.iter().all(|request| request["output_tokens"] == 11), "{requests:?}");
    // On a busy machine some arrive late, but not all.
    for (i, name, tolerance) in [(0, "ttft_ms", 4.0), (1, "tpot_ms", 1.0), (2, "e2e_ms", 4.0)] {
        let off = |(request, written): (&Value, &[f64; 3])| (number(&request[name]) - written[i]).abs();
        let nearest = requests.iter().zip(&*written).map(off).fold(f64::INFINITY, f64::min);
        assert!(
            nearest < tolerance,
            "{name} is {nearest} ms off, or more: {requests:?}, but the server took {written:?}"
        );
        let p50 = number(&level[name]["p50"]);
        assert!(requests.iter().filter(|request| number(&request[name]) <= p50).count() == 8, "{p50} {requests:?}");
    }
    let mean = written.iter().map(|written| written[1]).sum::<f64>() / 15.0;
    assert!((number(&level["itl_ms"]["mean"]) - mean).abs() < 1.5, "{} {mean}", level["itl_ms"]);
    let seconds = number(&level["seconds"]);
    let least: f64 = written.iter().map(|written| written[2] / 1e3).sum();
    assert!(seconds >= least && seconds < least + 1.0, "{seconds} {least}");
    assert!((number(&level["output_tokens_per_second"]) - 165.0 / seconds).abs() < 1e-6);
}

#[test]
fn a_chunk_of_several_tokens_is_divided() {
    // Five tokens every 50 ms, counted in each chunk.
    let url = plain_server(|received, reply| {
        assert_eq!(received.body["stream_options"], json!({"include_usage": true, "continuous_usage_stats": true}));
        reply.begin_stream();
        for counted in [1, 6, 11] {
            let choice = json!({"index": 0, "text": "abcde", "finish_reason": null});
            let usage = json!({"prompt_tokens": 8, "completion_tokens": counted});
            reply.data(&json!({"choices": [choice], "usage": usage}).to_string());
            thread::sleep(ms(50));
        }
        reply.end(8, 11);
    });
    let level = level(&url, &["--requests", "5", "--output-tokens", "11"]);
    assert_eq!(level["output_tokens"], 5 * 11);
    for name in ["tpot_ms", "itl_ms"] {
        let found = number(&level[name]["p50"]);
        assert!((10.0..12.0).contains(&found), "{name}: {found}");
    }
}

#[test]
fn failures_are_counted_by_kind() {
    let url = plain_server(|received, reply| match received.index {
        0 | 1 => reply.error("503 Service Unavailable", "the queue is full"),
        2 => reply.error("500 Internal Server Error", "the step failed"),
        3 => {
            reply.begin_stream();
            reply.text("a");
            reply.data(&json!({"error": {"message": "a step failed", "code": 500}}).to_string());
            reply.close();
        }
        4 => {
            reply.begin_stream();
            reply.text("a");
            reply.close();
        }
        5 => reply.close(),
        6 => {
            reply.begin_stream();
            reply.data("not json");
            reply.close();
        }
        7 => {
            reply.begin_stream();
            reply.text("a");
            thread::sleep(ms(3000));
        }
        8 => reply.json("400 Bad Request", &json!({"detail": "no"})),
        _ => reply.answer(4),
    });
    let args = ["--requests", "12", "--output-tokens", "4", "--timeout", "1"];
    let level = level(&url, &args);
    let errors = level["errors"].as_array().unwrap();
    let mut counted: Vec<(&str, u64)> =
        errors.iter().map(|e| (e["kind"].as_str().unwrap(), e["count"].as_u64().unwrap())).collect();
    counted.sort();
    let expected = [
        ("closed early", 2),
        ("error in stream", 1),
        ("http 400", 1),
        ("http 500", 1),
        ("http 503", 2),
        ("malformed", 1),
        ("timeout", 1),
    ];
    assert_eq!(counted, expected);
    assert_eq!((&level["completed"], &level["failed"], &level["output_tokens"]), (&3.into(), &9.into(), &12.into()));
    let first = |kind: &str| errors.iter().find(|e| e["kind"] == kind).unwrap()["first"].as_str().unwrap();
    assert!(first("http 503").contains("the queue is full"), "{}", first("http 503"));
    assert_eq!(first("error in stream"), "a step failed");
}

#[test]
fn a_server_that_goes_away_is_an_error_of_connections() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // Each reply ends its connection. The server is gone before it answers the first request.
    thread::spawn(move || {
        let mut listener = Some(listener);
        while let Some((mut stream, _)) = listener.as_ref().map(|listener| listener.accept().unwrap()) {
            let received = read(&mut BufReader::new(stream.try_clone().unwrap())).unwrap();
            let mut write = |text: &str| stream.write_all(text.as_bytes()).unwrap();
            if received.path == "/tokenize" {
                write("HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
                continue;
            }
            listener = listener.filter(|_| received.is_first_question());
            write("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n");
            write(
                "data: {\"choices\": [{\"index\": 0, \"text\": \"a\", \"finish_reason\": \"length\"}]}\n\ndata: [DONE]\n\n",
            );
        }
    });
    let ran = bench(&url, &["--model", "x", "--requests", "3", "--output-tokens", "2", "--warmup", "0", "--json", "-"]);
    let level = &ran.json()["levels"][0];
    assert_eq!(level["completed"], 1, "{level}");
    assert_eq!((&level["errors"][0]["kind"], &level["errors"][0]["count"]), (&"connect".into(), &2.into()), "{level}");
}

#[test]
fn an_open_loop_keeps_its_rate_when_the_server_is_slow() {
    let arrivals: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let log = arrivals.clone();
    let url = plain_server(move |received, reply| {
        log.lock().unwrap().push(received.at);
        thread::sleep(ms(700));
        reply.answer(2);
    });
    let args = ["--rate", "40", "--requests", "80", "--output-tokens", "2", "--seed", "3"];
    let level = level(&url, &args);
    assert_eq!((&level["completed"], &level["rate"], &level["users"]), (&80.into(), &40.0.into(), &Value::Null));
    // A closed loop would take 56 seconds.
    let seconds = number(&level["seconds"]);
    assert!((1.5..6.0).contains(&seconds), "{seconds}");
    assert!(level["peak_concurrency"].as_u64().unwrap() >= 15, "{}", level["peak_concurrency"]);
    // Requests arrived when they were due, and gaps vary as those of a Poisson process do.
    let mut due: Vec<f64> =
        level["all_requests"].as_array().unwrap().iter().map(|r| number(&r["due_seconds"])).collect();
    due.sort_by(f64::total_cmp);
    let mut arrived = arrivals.lock().unwrap().clone();
    arrived.sort();
    let late = |i: usize| (arrived[i] - arrived[0]).as_secs_f64() - (due[i] - due[0]);
    let late = median((0..80).map(|i| late(i).abs()).collect());
    assert!(late < 0.05, "{late}"); // a busy machine is late, too
    let gaps: Vec<f64> = due.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
    assert!((0.018..0.033).contains(&mean) && (0.6..1.5).contains(&(deviation / mean)), "{mean} {deviation}");
}

#[test]
fn a_closed_loop_has_as_many_requests_under_way_as_users() {
    let running: Arc<Mutex<(usize, usize)>> = Arc::default();
    let seen = running.clone();
    let url = plain_server(move |_, reply| {
        let mut now = seen.lock().unwrap();
        now.0 += 1;
        now.1 = now.1.max(now.0);
        drop(now);
        thread::sleep(ms(50));
        seen.lock().unwrap().0 -= 1;
        reply.answer(2);
    });
    let args = ["--users", "1,6", "--requests", "24", "--output-tokens", "2", "--json", "-"];
    let report = bench(&url, &args).json();
    let levels = report["levels"].as_array().unwrap();
    assert_eq!((&levels[0]["users"], &levels[1]["users"]), (&1.into(), &6.into()));
    assert_eq!((&levels[0]["peak_concurrency"], &levels[1]["peak_concurrency"]), (&1.into(), &6.into()));
    assert_eq!(running.lock().unwrap().1, 6);
    assert!(number(&levels[0]["seconds"]) > 3.0 * number(&levels[1]["seconds"]), "{levels:?}");
}

#[test]
fn a_duration_ends_a_level() {
    let url = plain_server(|_, reply| {
        thread::sleep(ms(40));
        reply.answer(2);
    });
    for load in [["--users", "2"], ["--rate", "50"]] {
        let level = level(&url, &[&load[..], &["--duration", "1", "--output-tokens", "2"]].concat());
        assert!((15..80).contains(&level["completed"].as_u64().unwrap()), "{level}");
        assert!((0.9..2.0).contains(&number(&level["seconds"])), "{level}");
        let late = level["all_requests"].as_array().unwrap().iter().find(|r| number(&r["due_seconds"]) > 1.0);
        assert!(late.is_none(), "{late:?}");
    }
}

#[test]
fn goodput_counts_requests_within_the_limits() {
    let url = plain_server(|received, reply| {
        if received.index == 3 {
            return reply.error("500 Internal Server Error", "no");
        }
        // Of four: one is late, one is slow, one fails.
        thread::sleep(ms(if received.index % 4 == 1 { 300 } else { 0 }));
        reply.begin_stream();
        reply.text("a");
        thread::sleep(ms(if received.index % 4 == 2 { 200 } else { 0 }));
        reply.text("a");
        reply.end(8, 2);
    });
    let level = level(&url, &["--requests", "8", "--output-tokens", "2", "--slo", "ttft=150,tpot=100"]);
    let good: Vec<bool> =
        level["all_requests"].as_array().unwrap().iter().map(|r| r["good"].as_bool().unwrap()).collect();
    assert_eq!(good, [true, false, false, false, true, false, false, true]);
    assert_eq!(level["good"], 3);
    assert!((number(&level["goodput_per_second"]) - 3.0 / number(&level["seconds"])).abs() < 1e-9);
}

#[test]
fn prompts_of_ids_have_the_length_that_was_asked_for() {
    let prompts: Arc<Mutex<Vec<Value>>> = Arc::default();
    let log = prompts.clone();
    let url = server(move |received, reply| match received.path.as_str() {
        "/tokenize" => {
            assert_eq!(received.body["model"], "scripted");
            let words = received.body["prompt"].as_str().unwrap().split(' ').count() as u32;
            let ids = 100..100 + words;
            let special = received.body["add_special_tokens"].as_bool().unwrap();
            reply.json("200 OK", &json!({"tokens": special.then_some(2).into_iter().chain(ids).collect::<Vec<u32>>()}));
        }
        _ => {
            if !received.is_first_question() {
                assert_eq!(received.headers["authorization"], "Bearer secret");
                log.lock().unwrap().push(received.body.clone());
            }
            reply.answer(if received.is_first_question() { 1 } else { 3 });
        }
    });
    let args =
        ["--requests", "6", "--users", "2", "--prompt-tokens", "100", "--output-tokens", "3", "--api-key", "secret"];
    let run = |seed: &'static str| {
        prompts.lock().unwrap().clear();
        let rest = ["--seed", seed, "--extra-body", r#"{"top_k": 5, "temperature": 0.5}"#];
        bench(&url, &[&args[..], &rest].concat()).ok();
        let mut bodies = prompts.lock().unwrap().clone();
        assert_eq!(bodies.len(), 2 + 6); // two to warm up
        for body in &bodies {
            assert_eq!(
                (&body["max_tokens"], &body["ignore_eos"], &body["stream"]),
                (&3.into(), &true.into(), &true.into())
            );
            assert_eq!((&body["top_k"], &body["temperature"]), (&5.into(), &0.5.into()));
            let ids = body["prompt"].as_array().unwrap();
            assert!(ids.len() == 100 && ids[0] == 2 && ids[1..].iter().all(|id| id.as_u64() >= Some(100)), "{ids:?}");
        }
        bodies.sort_by_key(|body| body["prompt"].to_string());
        let all = bodies.len();
        bodies.dedup();
        assert_eq!(bodies.len(), all, "no prompt comes twice");
        bodies
    };
    let first = run("1");
    assert_eq!(first, run("1"));
    assert_ne!(first, run("2"));
}

#[test]
fn prompts_of_words_have_the_length_that_the_server_counts() {
    // Three tokens a word, nine for the template.
    let url = server(|received, reply| match received.path.as_str() {
        "/tokenize" => reply.error("404 Not Found", "no such path"),
        _ => {
            let messages = received.body["messages"].as_array().unwrap();
            assert!(messages.len() == 1 && messages[0]["role"] == "user");
            let words = messages[0]["content"].as_str().unwrap().split(' ').count() as u64;
            reply.begin_stream();
            reply.data(r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#);
            reply.data(r#"{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}"#);
            reply.end(9 + 3 * words, 1);
        }
    });
    let args = ["--endpoint", "chat", "--requests", "4", "--prompt-tokens", "120", "--output-tokens", "2"];
    let level = level(&url, &args);
    assert_eq!((&level["completed"], &level["prompt_tokens"]), (&4.into(), &(4 * 120).into()), "{level}");
    let out = bench(&url, &args).ok().stdout;
    assert!(out.contains("Answers ended before 2 tokens."), "{out}");
}

#[test]
fn fields_that_a_server_refuses_are_left_out() {
    let url = server(|received, reply| match received.path.as_str() {
        "/tokenize" => reply.error("404 Not Found", "no such path"),
        _ if received.body.get("ignore_eos").is_some() => {
            reply.error("422 Unprocessable Entity", "unknown: ignore_eos")
        }
        _ if received.body["stream_options"].get("continuous_usage_stats").is_some() => {
            reply.error("400 Bad Request", "unknown: continuous_usage_stats");
        }
        _ => reply.answer(received.body["max_tokens"].as_u64().unwrap()),
    });
    let ran = bench(&url, &["--requests", "3", "--output-tokens", "3", "--json", "-"]);
    assert!(ran.stderr.contains("the server refuses ignore_eos"), "{}", ran.stderr);
    let report = ran.json();
    assert_eq!((&report["ignore_eos"], &report["tokens_counted_in_chunks"]), (&false.into(), &false.into()));
    assert_eq!((&report["levels"][0]["completed"], &report["levels"][0]["output_tokens"]), (&3.into(), &9.into()));
}

#[test]
fn prompts_of_a_file_are_sent_in_turn() {
    let seen: Arc<Mutex<Vec<(Value, Value)>>> = Arc::default();
    let log = seen.clone();
    let url = plain_server(move |received, reply| {
        log.lock().unwrap().push((received.body["prompt"].clone(), received.body["max_tokens"].clone()));
        reply.answer(2);
    });
    let home = Home::new();
    let file = home.path("prompts.jsonl");
    std::fs::write(&file, "{\"prompt\": \"one\"}\n\n{\"tokens\": [2, 7], \"max_tokens\": 9}\n").unwrap();
    let file = file.to_str().unwrap();
    let args = ["bench", "serve", "--url", &url, "--prompts", file, "--requests", "4", "--warmup", "0"];
    home.run(&[&args[..], &["--output-tokens", "5"]].concat()).ok();
    let mut seen = seen.lock().unwrap().clone();
    seen.sort_by_key(|seen| seen.1.as_u64());
    let (text, ids) = ((json!("one"), json!(5)), (json!([2, 7]), json!(9)));
    assert_eq!(*seen, [text.clone(), text, ids.clone(), ids]);

    std::fs::write(file, "{\"prompt\": \"one\"}\n{\"messages\": []}\n").unwrap();
    home.run(&args).fails(1, &["line 2", "--endpoint chat"]);
}

#[test]
fn a_table_a_plot_and_json_are_written() {
    let url = plain_server(|received, reply| match received.index {
        9 => reply.error("503 Service Unavailable", "busy now"), // the first one after two warm-ups
        _ => reply.answer(4),
    });
    let home = Home::new();
    let (json, plot) = (home.path("figures.json"), home.path("plot.svg"));
    let (json, plot) = (json.to_str().unwrap(), plot.to_str().unwrap());
    let url_v1 = format!("{url}/v1/");
    let args = ["bench", "serve", "--url", &url_v1, "--users", "1,2,4", "--requests", "6", "--output-tokens", "4"];
    let ran = home.run(&[&args[..], &["--slo", "ttft=1000", "--json", json, "--plot", plot]].concat()).ok();
    let rows = |begin: &str| ran.stdout.lines().filter(|line| line.starts_with(begin)).count();
    assert_eq!((rows("| users |"), rows("| 1 |"), rows("| 4 |")), (2, 5, 5), "{}", ran.stdout);
    assert!(ran.stdout.contains(&format!("scripted at {url}, completions")), "{}", ran.stdout);
    assert!(ran.stdout.contains("1 x http 503: 503 Service Unavailable: busy now"), "{}", ran.stdout);
    let report: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!((&report["model"], &report["slo_ms"]["ttft"]), (&"scripted".into(), &1000.0.into()));
    let sent: u64 = report["levels"].as_array().unwrap().iter().map(|level| level["requests"].as_u64().unwrap()).sum();
    assert_eq!(sent, 18);
    let svg = std::fs::read_to_string(plot).unwrap();
    assert!(svg.starts_with("<svg ") && svg.matches("<polyline").count() == 10 && svg.matches("<circle").count() == 30);
}

#[test]
fn ctrl_c_reports_what_has_been_measured() {
    let url = plain_server(|received, reply| match received.index {
        0..8 => reply.answer(2),
        _ => {
            reply.begin_stream();
            thread::sleep(ms(20_000));
        }
    });
    let args =
        ["bench", "serve", "--url", &url, "--requests", "50", "--output-tokens", "2", "--warmup", "0", "--json", "-"];
    let mut child = Home::new().command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "measuring 1 user"));
    thread::sleep(ms(1000));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["levels"][0]["completed"], &report["levels"][0]["failed"]), (&8.into(), &0.into()));
}

#[test]
fn a_server_that_does_not_answer_at_all_is_an_error() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    bench(&format!("http://{gone}"), &[]).fails(1, &["/v1/models", "refused", "--model"]);
    bench(&format!("http://{gone}"), &["--model", "x"]).fails(1, &["does not answer a first request", "refused"]);
    bench(&gone.to_string(), &[]).fails(1, &["write it as http://HOST:PORT"]);
    let closed = server(|_, reply| reply.error("401 Unauthorized", "the key is wrong"));
    bench(&closed, &[]).fails(1, &["/v1/completions", "401", "the key is wrong"]);
    let busy = plain_server(|_, reply| reply.error("503 Service Unavailable", "busy"));
    let ran = bench(&busy, &["--requests", "2"]);
    assert!(ran.code == 1 && ran.stdout.contains("2 x http 503"), "{}", ran.stdout);
    bench("http://x", &["--slo", "ttl=3"]).fails(2, &["ttft, tpot and e2e"]);
    bench("http://x", &["--rate", "1", "--users", "2"]).fails(2, &["cannot be used with"]);
    bench("http://x", &["--rate", "0"]).fails(2, &["not a positive number"]);
}
