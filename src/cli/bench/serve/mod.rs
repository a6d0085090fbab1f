//! `bench serve`: how fast a server of OpenAI's API answers under load, whosever it is.
//!
//! A closed loop has users who wait for their answers; an open loop sends at a rate, whatever the
//! server does, as many people do who do not know of each other. Every answer is streamed, and the
//! arrival of each of its tokens is measured at the client.

mod answer;
mod client;
mod load;
mod metrics;
mod plot;
mod prompts;
mod random;
mod report;
mod request;
mod sse;

use std::{
    io::{self, Write},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use serde_json::{Map, Value};

use self::{
    answer::{Answer, ask},
    client::{Failure, Server},
    load::Extent,
    metrics::{Load, Slo, Summary},
    prompts::{FilePrompt, Prompts, WordCosts},
    report::Report,
    request::{Dialect, Endpoint, Prompt, Requests},
};
use crate::{
    cli::{Outcome, interrupt, note},
    whole_file::write_whole,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The server's address, with or without /v1: http://HOST:PORT
    #[arg(long)]
    url: String,
    /// The server's key
    #[arg(long, value_name = "KEY", env = "OPENAI_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// The model's name at the server [default: the first one that it lists]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Whose requests to send
    #[arg(long, default_value = "completions")]
    endpoint: Endpoint,
    /// Closed loop: numbers of users, measured one after another [default: 1]
    #[arg(long, value_name = "N", value_delimiter = ',', conflicts_with = "rate", value_parser = clap::value_parser!(u32).range(1..=65536))]
    users: Vec<u32>,
    /// Open loop: requests in a second on average (Poisson arrivals), measured one after another
    #[arg(long, value_name = "R", value_delimiter = ',', value_parser = positive)]
    rate: Vec<f64>,
    /// Requests of each level [default: 100, or as many as --duration allows]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    requests: Option<u32>,
    /// Seconds in which each level sends requests
    #[arg(long, value_name = "S", value_parser = positive)]
    duration: Option<f64>,
    /// Requests before each level that are not measured [default: one for each user; 1 with --rate]
    #[arg(long, value_name = "N")]
    warmup: Option<u32>,
    /// Tokens of each prompt, the template's and <bos> included
    #[arg(long, value_name = "N", default_value = "256", value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Tokens of each answer
    #[arg(long, value_name = "N", default_value = "128", value_parser = clap::value_parser!(u32).range(1..))]
    output_tokens: u32,
    /// Prompts from a file, in turn: a JSON object a line with prompt, messages or tokens, and
    /// max_tokens where it differs from --output-tokens
    #[arg(long, value_name = "FILE", conflicts_with = "prompt_tokens")]
    prompts: Option<PathBuf>,
    /// Temperature of sampling; 0 takes the likeliest token
    #[arg(long, value_name = "T", default_value = "0")]
    temperature: f64,
    /// Further fields of every request, such as '{"top_k": 50}'
    #[arg(long, value_name = "JSON", value_parser = object)]
    extra_body: Option<Map<String, Value>>,
    /// Pins prompts and arrivals
    #[arg(long, value_name = "N", default_value = "0")]
    seed: u64,
    /// Limits in milliseconds that a good request keeps, of ttft, tpot and e2e: ttft=200,tpot=50
    #[arg(long, value_name = "LIMITS")]
    slo: Option<Slo>,
    /// Seconds after which a request counts as failed
    #[arg(long, value_name = "S", default_value = "600", value_parser = positive)]
    timeout: f64,
    /// Write all figures and every request as JSON; - is standard output, in the place of the table
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
    /// Write a plot of latencies and throughput over the load, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if value > 0.0 && value <= 1e6 => Ok(value),
        _ => Err("not a positive number up to a million".into()),
    }
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("not a JSON object: {error}"))
}

pub fn run(args: &Args) -> Result<Outcome> {
    let server = Server::new(&args.url, args.api_key.as_deref())?;
    let file = args.prompts.as_deref().map(|path| prompts::read(path, args.endpoint)).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    interrupt::install();
    interrupt::begin_writing();
    runtime.context("cannot start threads")?.block_on(measure(args, server, file))
}

async fn measure(args: &Args, server: Server, file: Option<Vec<FilePrompt>>) -> Result<Outcome> {
    let timeout = Duration::from_secs_f64(args.timeout);
    let (requests, prompts) = tokio::select! {
        prepared = prepare(args, &server, file, timeout) => prepared?,
        () = interrupted() => return Ok(Outcome::Interrupted),
    };
    let (requests, prompts) = (Arc::new(requests), Arc::new(prompts));
    let mut report = Report {
        url: server.base(),
        requests: &requests,
        prompt_tokens: args.prompts.is_none().then_some(args.prompt_tokens),
        output_tokens: args.output_tokens,
        seed: args.seed,
        slo: args.slo,
        levels: Vec::new(),
    };
    // The prompt of index 0 is in the server's cache by now.
    let mut sent = 1;
    for load in loads(args) {
        let send = |first: usize| {
            let (server, requests, prompts, output) =
                (server.clone(), requests.clone(), prompts.clone(), args.output_tokens);
            move |index: usize| {
                // The body is ready before the clock starts.
                let (prompt, tokens) = prompts.get(first + index, output);
                let (server, path, body) = (server.clone(), requests.endpoint.path(), requests.body(&prompt, tokens));
                async move { ask(&server, path, body, timeout).await }
            }
        };
        let users = if let Load::Users(users) = load { users } else { 1 };
        let warmup = args.warmup.unwrap_or(users) as usize;
        let extent = Extent { requests: Some(warmup), duration: None };
        load::run(Load::Users(users), extent, args.seed, send(sent), interrupted()).await;
        sent += warmup;
        note(&format!("measuring {load}"));
        let requests = args.requests.or(args.duration.is_none().then_some(100)).map(|requests| requests as usize);
        let extent = Extent { requests, duration: args.duration.map(Duration::from_secs_f64) };
        let level = load::run(load, extent, args.seed, send(sent), interrupted()).await;
        sent += level.samples.len();
        let summary = Summary::of(&level, args.slo);
        if let Some(failures) = report::failures(&level, &summary) {
            note(&failures);
        }
        report.levels.push((level, summary));
        if interrupt::is_requested() {
            break;
        }
    }
    write(args, &report)?;
    Ok(if interrupt::is_requested() {
        Outcome::Interrupted
    } else if report.levels.iter().all(|(_, summary)| summary.completed == 0) {
        Outcome::Incomplete
    } else {
        Outcome::Done
    })
}

fn loads(args: &Args) -> Vec<Load> {
    match (&args.users[..], &args.rate[..]) {
        ([], []) => vec![Load::Users(1)],
        (users, []) => users.iter().copied().map(Load::Users).collect(),
        (_, rates) => rates.iter().copied().map(Load::Rate).collect(),
    }
}

/// Returns when the user has pressed Ctrl-C.
async fn interrupted() {
    while !interrupt::is_requested() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Returns the name that was given, or the first one that the server lists.
async fn model(args: &Args, server: &Server) -> Result<String> {
    if let Some(model) = &args.model {
        return Ok(model.clone());
    }
    let models = server.get("/v1/models").await.map_err(|failure| {
        anyhow!("{}/v1/models: {}; give the model's name with --model", server.base(), failure.message)
    })?;
    let first = models["data"][0]["id"].as_str().map(str::to_owned);
    first.with_context(|| format!("{}/v1/models lists no model; give its name with --model", server.base()))
}

/// Finds out which fields the server takes, and makes prompts of the length that was asked for.
async fn prepare(
    args: &Args,
    server: &Server,
    file: Option<Vec<FilePrompt>>,
    timeout: Duration,
) -> Result<(Requests, Prompts)> {
    let mut requests = Requests {
        endpoint: args.endpoint,
        model: model(args, server).await?,
        temperature: args.temperature,
        dialect: Dialect::ALL[0],
        extra: args.extra_body.clone().unwrap_or_default(),
    };
    let refused = |failure: Failure| {
        anyhow!("{}{} does not answer a first request: {}", server.base(), args.endpoint.path(), failure.message)
    };
    let prompt = file.as_ref().map_or_else(|| Prompt::Text(prompts::all_words()), |lines| lines[0].prompt.clone());
    requests.dialect = detect(server, &requests, &prompt, timeout).await.map_err(refused)?;
    if !requests.dialect.ignore_eos {
        note("note: the server refuses ignore_eos: answers may end early");
    }
    let prompts = match file {
        Some(lines) => Prompts::File(lines),
        None => random_prompts(args, server, &requests, timeout).await.map_err(refused)?,
    };
    // One that is too long for the model is an error now, not in each request.
    one_token(server, &requests, &prompts.get(0, 1).0, timeout).await.map_err(refused)?;
    Ok((requests, prompts))
}

async fn random_prompts(
    args: &Args,
    server: &Server,
    requests: &Requests,
    timeout: Duration,
) -> Result<Prompts, Failure> {
    let (model, tokens, seed) = (&requests.model, args.prompt_tokens, args.seed);
    if args.endpoint == Endpoint::Completions
        && let Some(ids) = prompts::Ids::of(server, model).await
    {
        // A server that has /tokenize may still not take ids.
        match one_token(server, requests, &Prompt::Ids(ids.some()), timeout).await {
            Ok(_) => return Ok(Prompts::Ids { ids, tokens, seed }),
            Err(failure) if Dialect::is_refusal(&failure) => (),
            Err(failure) => return Err(failure),
        }
    }
    let count = async |text: &str| {
        one_token(server, requests, &Prompt::Text(text.to_owned()), timeout).await.map(|answer| answer.prompt_tokens)
    };
    let costs = match WordCosts::by_tokenizing(server, model, count).await? {
        Some(costs) => costs,
        None => WordCosts::by_usage(count).await?.unwrap_or_else(|| {
            note("note: the server does not count prompts' tokens: a word is taken for a token");
            WordCosts::one_each()
        }),
    };
    Ok(Prompts::Words { costs, tokens, seed })
}

/// Returns the most of the fields that the server takes.
async fn detect(server: &Server, requests: &Requests, prompt: &Prompt, timeout: Duration) -> Result<Dialect, Failure> {
    let mut refusal = None;
    for dialect in Dialect::ALL {
        let requests = Requests { dialect, ..requests.clone() };
        match one_token(server, &requests, prompt, timeout).await {
            Ok(_) => return Ok(dialect),
            // The first one names what is wrong with the request itself.
            Err(failure) if Dialect::is_refusal(&failure) => drop(refusal.get_or_insert(failure)),
            Err(failure) => return Err(failure),
        }
    }
    Err(refusal.expect("there are several dialects"))
}

/// Asks for an answer of one token.
async fn one_token(
    server: &Server,
    requests: &Requests,
    prompt: &Prompt,
    timeout: Duration,
) -> Result<Answer, Failure> {
    ask(server, requests.endpoint.path(), requests.body(prompt, 1), timeout).await.result
}

fn write(args: &Args, report: &Report) -> Result<()> {
    if let Some(path) = &args.plot {
        let title = format!("{} at {}", report.requests.model, report.url);
        let svg = plot::svg(&title, &report.levels);
        write_whole(path, |out| out.write_all(svg.as_bytes()))
            .with_context(|| format!("cannot write the plot {}", path.display()))?;
    }
    let to_stdout = args.json.as_deref().is_some_and(|path| path.as_os_str() == "-");
    if let Some(path) = args.json.as_deref().filter(|_| !to_stdout) {
        write_whole(path, |out| writeln!(out, "{}", report.json()))
            .with_context(|| format!("cannot write the figures {}", path.display()))?;
    }
    let mut out = io::stdout().lock();
    if to_stdout {
        writeln!(out, "{}", report.json())?;
    } else {
        write!(out, "{}", report.markdown())?;
    }
    Ok(())
}
