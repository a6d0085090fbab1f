//! `serve`: a model behind OpenAI's interface.

use std::{
    fs,
    io::{Write, stdout},
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::PathBuf,
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sha2::{Digest, Sha256};
use signal_hook::low_level;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};

use super::{
    Outcome,
    model_args::{ModelArgs, OpenedModel, PenaltyArgs, SamplingArgs},
    note,
    outcome::notes_as_json,
};
use crate::{
    constraint::{Constraint, Grammars},
    engine::{
        Engine, Request,
        service::{LoadProgress, MakeEngine, Phase, QueueLimits, Service},
    },
    serve::{ApiKey, Guard, Listener, Metrics, Served, Text, Tls, router, unix_time},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Address to listen on
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 takes a free one, which the first line of standard output names
    #[arg(long, value_name = "PORT", default_value = "8080")]
    port: u16,
    /// Listen on this Unix socket instead
    #[arg(long, value_name = "PATH", conflicts_with_all = ["host", "port", "tls_cert"])]
    unix_socket: Option<PathBuf>,
    /// Ask clients for this key (may be repeated)
    #[arg(long, value_name = "KEY", env = "GEMMA_PJRT_API_KEY", hide_env_values = true)]
    api_key: Vec<String>,
    /// Ask clients for a key of this file: KEY or NAME KEY on each line, # begins a comment
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Listen on addresses that others can reach without asking for a key
    #[arg(long)]
    insecure: bool,
    /// Answer /metrics without a key
    #[arg(long)]
    open_metrics: bool,
    /// A name by which clients call this server, in their Host header (may be repeated) [default:
    /// on a loopback address, its own names; else any]
    #[arg(long, value_name = "NAME")]
    allowed_host: Vec<String>,
    /// Let pages of this origin ask, such as https://example.com, or * for all (may be repeated)
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<String>,
    /// Certificate chain for TLS, PEM; it is read again when the file changes
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Names under which clients ask for the model; answers have the first one [default: --model]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    served_model_name: Vec<String>,
    /// Answers that run at the same time on each replica of the model (the mesh's DATA axis)
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u16).range(1..=1024))]
    slots: u16,
    /// Requests that may wait for a slot; more are refused with 503
    #[arg(long, value_name = "N", default_value = "256")]
    max_queue: usize,
    /// Prompt tokens that may wait for a slot [default: 32 contexts]
    #[arg(long, value_name = "TOKENS")]
    max_queue_tokens: Option<usize>,
    /// Connections that may be open at the same time; more wait
    #[arg(long, value_name = "N", default_value = "4096", value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: u32,
    /// The longest time of a request in seconds, waiting included; 0 is without end
    #[arg(long, value_name = "S", default_value = "600")]
    timeout: u64,
    /// On SIGTERM, seconds for requests under way to finish; a second signal ends them at once
    #[arg(long, value_name = "S", default_value = "45")]
    shutdown_timeout: u64,
    /// Format of the log on standard error
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    penalties: PenaltyArgs,
}

pub fn run(args: Args) -> Result<Outcome> {
    if args.log_format == LogFormat::Json {
        notes_as_json();
    }
    let addresses = args.addresses()?;
    let guard = args.guard(&addresses)?;
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(cert), Some(key)) => Some(Tls::open(cert, key).map_err(anyhow::Error::msg)?),
        _ => None,
    };
    let defaults = Request {
        params: args.sampling.params()?,
        penalties: args.penalties.penalties()?,
        ..Request::greedy(vec![], 1)
    };
    let opened = args.model.open()?;
    opened.config.check_mesh(args.model.mesh)?;
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    runtime.block_on(serve(args, addresses, guard, tls, defaults, opened))
}

impl Args {
    /// Returns the addresses of the host; none for a Unix socket.
    fn addresses(&self) -> Result<Vec<SocketAddr>> {
        if self.unix_socket.is_some() {
            return Ok(vec![]);
        }
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let found = (host, self.port).to_socket_addrs().with_context(|| format!("--host {host:?} has no address"))?;
        let found: Vec<SocketAddr> = found.collect();
        if found.is_empty() { bail!("--host {host:?} has no address") } else { Ok(found) }
    }

    /// Returns who may ask.
    fn guard(&self, addresses: &[SocketAddr]) -> Result<Guard> {
        let mut keys: Vec<ApiKey> = Vec::new();
        for (i, key) in self.api_key.iter().enumerate() {
            if key.trim().is_empty() {
                bail!("an API key is empty; give it a value, or leave it out");
            }
            keys.push(ApiKey::new(&format!("key-{}", i + 1), key.trim()));
        }
        if let Some(path) = &self.api_key_file {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            keys.extend(ApiKey::parse_file(&text).map_err(|e| anyhow!("{}: {e}", path.display()))?);
        }
        let is_loopback = addresses.iter().all(|address| address.ip().to_canonical().is_loopback());
        if !is_loopback && keys.is_empty() && !self.insecure {
            bail!(
                "--host {} can be reached from other machines, and no key is asked for; give --api-key or \
                 --api-key-file, or --insecure if that is meant",
                self.host
            );
        }
        let own =
            ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned).into_iter().chain(addresses.iter().map(|address| {
                match address.ip() {
                    IpAddr::V4(ip) => ip.to_string(),
                    IpAddr::V6(ip) => format!("[{ip}]"),
                }
            }));
        let hosts = match (addresses.is_empty(), is_loopback, self.allowed_host.is_empty()) {
            (true, _, true) | (false, false, true) => None,
            _ => Some(own.chain(self.allowed_host.iter().cloned()).chain([self.host.clone()]).collect()),
        };
        Ok(Guard { keys, hosts, origins: self.cors_origin.clone(), open_metrics: self.open_metrics })
    }

    async fn listener(&self, addresses: &[SocketAddr], tls: Option<Tls>) -> Result<Listener> {
        if let Some(path) = &self.unix_socket {
            return Listener::unix(path).await.with_context(|| format!("cannot listen on {}", path.display()));
        }
        let address = addresses[0];
        Listener::tcp(address, tls)
            .await
            .with_context(|| format!("cannot listen on {address}; is another server there? Use another --port"))
    }

    /// Returns a digest of what answers depend on.
    fn fingerprint(&self, opened: &OpenedModel) -> Result<String> {
        let identity = self.model.run_identity(opened)?;
        let settings = (env!("CARGO_PKG_VERSION"), identity, self.model.mesh.to_string(), self.model.lowering);
        Ok(format!("fp_{:.12}", format!("{:x}", Sha256::digest(format!("{settings:?}")))))
    }
}

/// Serves until a signal comes or the engine is lost.
async fn serve(
    args: Args,
    addresses: Vec<SocketAddr>,
    guard: Guard,
    tls: Option<Tls>,
    defaults: Request,
    opened: OpenedModel,
) -> Result<Outcome> {
    let started = Instant::now();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // Clients may come while the model is loaded: they are told how far it is.
    let listener = args.listener(&addresses, tls).await?;
    writeln!(stdout(), "listening on {}", listener.address())?;
    stdout().flush()?;
    let args = Arc::new(args);
    let names = match args.served_model_name.is_empty() {
        true => vec![args.model.model.clone()],
        false => args.served_model_name.clone(),
    };
    let context = opened.cache_len(opened.context);
    let limits =
        QueueLimits { requests: args.max_queue, prompt_tokens: args.max_queue_tokens.unwrap_or(32 * context as usize) };
    let fingerprint = args.fingerprint(&opened)?;
    let text: Arc<OnceLock<Text>> = Arc::default();
    let (vocab, of_thread, to_fill) = (opened.config.vocab_size, args.clone(), text.clone());
    let load = move |on_progress: &(dyn Fn(LoadProgress) + Sync)| {
        load(&of_thread, &opened, context, &to_fill, on_progress).map_err(|e| format!("{e:#}"))
    };
    let service = Service::start(load, (context, vocab), limits);
    let served = Arc::new(Served {
        metrics: Metrics::new(&names[0]),
        names,
        defaults,
        timeout: (args.timeout > 0).then(|| Duration::from_secs(args.timeout)),
        text,
        fingerprint,
        started: unix_time(),
        service: service.clone(),
        guard,
        tokenizing: Semaphore::new(thread::available_parallelism().map_or(2, usize::from)),
    });
    let (end, ends) = watch::channel(false);
    let connections = tokio::spawn(listener.serve(router(served), args.max_connections as usize, ends));

    let mut phase = service.phase();
    let report = async {
        if phase.wait_for(|phase| *phase == Phase::Ready).await.is_ok() {
            let (slots, time) = (service.stats().slots, started.elapsed().as_secs_f64());
            note(&format!("ready after {time:.1} s: {slots} slots of {context} tokens"));
        }
        std::future::pending::<()>().await;
    };
    let mut lost = service.phase();
    let reason = tokio::select! {
        () = report => unreachable!("it waits for ever"),
        signal = next_signal(&mut terminate, &mut interrupt) => {
            let seconds = args.shutdown_timeout;
            note(&format!("{signal}: finishing what is under way, for up to {seconds} s; a second signal ends it at once"));
            let finish = finish(&service, connections, end, Duration::from_secs(seconds));
            tokio::select! {
                () = finish => {}
                _ = next_signal(&mut terminate, &mut interrupt) => low_level::exit(143),
            }
            None
        }
        phase = lost.wait_for(|phase| matches!(phase, Phase::Lost(_))) => match &*phase.context("the engine's thread has ended")? {
            Phase::Lost(reason) => Some(reason.clone()),
            _ => None,
        }
    };
    if matches!(*service.phase().borrow(), Phase::Loading(_)) {
        low_level::exit(0); // compiling cannot be interrupted
    }
    service.stop();
    match reason {
        None => Ok(Outcome::Done),
        // Whoever watches the process starts it again.
        Some(reason) => Err(anyhow!(reason)),
    }
}

/// Waits for a signal to end. Returns its name.
async fn next_signal(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

/// Takes no more requests, waits until those that were taken are answered, and closes connections.
async fn finish(service: &Service, connections: tokio::task::JoinHandle<()>, end: watch::Sender<bool>, time: Duration) {
    let deadline = Instant::now() + time;
    service.drain();
    while service.unfinished() > 0 && Instant::now() < deadline {
        sleep(Duration::from_millis(10)).await;
    }
    let cut = service.unfinished();
    if cut > 0 {
        note(&format!(
            "{cut} requests are not finished, and end with an error; give more time with --shutdown-timeout"
        ));
        let service = service.clone();
        let _ = tokio::task::spawn_blocking(move || service.stop()).await;
    }
    end.send_replace(true);
    // What is written already has to arrive.
    let _ = timeout(Duration::from_secs(5), connections).await;
}

/// Loads the model and compiles all its programs. Returns how to make an engine.
fn load(
    args: &Args,
    opened: &OpenedModel,
    context: i64,
    text: &OnceLock<Text>,
    on_progress: &(dyn Fn(LoadProgress) + Sync),
) -> Result<MakeEngine> {
    let platform = args.model.platform(opened)?;
    let loaded = args.model.load(opened, &platform)?;
    let tokenizer = opened.tokenizer()?.clone();
    let grammars = Arc::new(Grammars::new(tokenizer.clone()));
    grammars.prepare();
    let _ = text.set(Text { tokenizer: tokenizer.clone(), grammars: grammars.clone() }); // it is set once
    let (model, slots, is_cpu) = (loaded.model, i64::from(args.slots), loaded.is_cpu);
    // Memory that is not there is better said before minutes of compiling.
    drop(Engine::new(model.clone(), tokenizer.clone(), slots, context)?);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let progress =
        |weights_placed| move |done, total| on_progress(LoadProgress { weights_placed, programs: (done, total) });
    model.prepare_all((slots, context), threads, &progress(is_cpu))?;
    model.placement()?;
    let programs = {
        let report = model.compile_report();
        report.compiled + report.cached
    };
    progress(true)(programs, programs);
    // The first request that asks for a form should not wait for what all of them need.
    if let Err(problem) = grammars.compile(&Constraint::JsonObject) {
        note(&format!("warning: {problem}"));
    }
    Ok(Box::new(move || {
        let mut engine = Engine::new(model.clone(), tokenizer.clone(), slots, context)?;
        engine.use_grammars(grammars.clone());
        Ok(engine)
    }))
}

/// Allows as many open files as the system lets this process have: each connection is one.
fn raise_file_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
