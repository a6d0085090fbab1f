//! Long commands, each disturbed at twenty random moments: by signals, by streams that close or are
//! full, by a full disk, by a home that is missing or cannot be written. Nothing that was finished
//! is lost, no partial file passes for a whole one, and the same command ends well afterwards.
//!
//! `MOMENTS_SEED` repeats the moments of a run that failed.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    io::Read,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant, SystemTime},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{
    Home, Ran,
    hub::{COMMIT, Manner, NAME, TestHub, model_files},
    plugins::Index,
    surroundings::{after, full},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disturbance {
    Kill,
    Terminate,
    Interrupt,
    InterruptTwice,
    StdoutCloses,
    StderrCloses,
    StdoutIsFull,
    StderrIsFull,
    HomeIsReadOnly,
    HomeIsNotSet,
    /// No file may become larger than a part of the run's largest.
    DiskIsFull,
}

use Disturbance::*;

/// One for each of the moments. Those that depend on the moment occur twice or more.
const DISTURBANCES: [Disturbance; 20] = [
    Kill,
    Kill,
    Kill,
    Terminate,
    Terminate,
    Interrupt,
    Interrupt,
    InterruptTwice,
    InterruptTwice,
    StdoutCloses,
    StdoutCloses,
    StderrCloses,
    StderrCloses,
    StdoutIsFull,
    StderrIsFull,
    HomeIsReadOnly,
    HomeIsNotSet,
    DiskIsFull,
    DiskIsFull,
    DiskIsFull,
];

/// No command takes longer, even where many others compete for the processor.
const HANGS: Duration = Duration::from_secs(120);

/// A command that writes files below a directory of its own, the place.
trait Job {
    /// The exit code of an undisturbed run.
    const CODE: i32 = 0;
    /// Whether standard output gets the result.
    const PRINTS: bool;
    /// Whether the command can do nothing without a home.
    const NEEDS_HOME: bool;

    fn command(&self, place: &Path) -> Command;

    /// Checks that each file at a final name is whole. Returns the result if it is there.
    fn result(&self, place: &Path) -> Option<Value>;

    /// Checks that an undisturbed run ended well. `kept` is what [`Self::kept`] returned before it.
    fn check(&self, place: &Path, ran: &Ran, had_result: bool, kept: &[String]);

    /// What a disturbed run finished, by the program's promise.
    fn kept(&self, place: &Path) -> Vec<String>;
}

/// Random numbers (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to 1.
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
    }
}

fn seed() -> u64 {
    std::env::var("MOMENTS_SEED").map_or_else(
        |_| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos().into(),
        |text| text.parse().unwrap(),
    )
}

/// Disturbs a job at twenty moments, which are spread evenly over its duration.
fn disturb<J: Job>(job: &J) {
    let seed = seed();
    let mut random = Random(seed);
    let dir = tempfile::tempdir().unwrap();
    let undisturbed = dir.path().join("undisturbed");
    fs::create_dir(&undisturbed).unwrap();
    let started = Instant::now();
    let ran = Ran::of(job.command(&undisturbed).output().unwrap());
    let duration = started.elapsed();
    job.check(&undisturbed, &ran, false, &[]);
    let reference = job.result(&undisturbed);
    let largest = files(&undisturbed).values().map(Vec::len).max().unwrap_or_default();

    let mut disturbances = DISTURBANCES;
    random.shuffle(&mut disturbances);
    for (i, how) in disturbances.into_iter().enumerate() {
        let fraction = (i as f64 + random.fraction()) / disturbances.len() as f64;
        let place = dir.path().join(i.to_string());
        fs::create_dir(&place).unwrap();
        let story = format!("MOMENTS_SEED={seed}: {how:?} after {:.0}% of {duration:?}", fraction * 100.0);
        // The test's harness shows it if the test fails.
        eprintln!("{story}");
        let end = run_disturbed(job, &place, how, duration.mul_f64(fraction), (fraction * largest as f64) as u64);
        end.check::<J>(how);

        let result = job.result(&place);
        assert!(result.is_none() || result == reference, "{story}: {result:?}\n{reference:?}");
        let kept = job.kept(&place);
        let again = Ran::of(job.command(&place).output().unwrap());
        job.check(&place, &again, result.is_some(), &kept);
        assert_eq!(job.result(&place), reference, "{story}, then run again");
    }
}

/// How a disturbed run ended.
#[derive(Debug)]
struct End {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

/// Runs a job, disturbs it after this time, and waits for its end. A full disk has room for files
/// of so many bytes.
fn run_disturbed(job: &impl Job, place: &Path, how: Disturbance, moment: Duration, room: u64) -> End {
    let mut command = job.command(place);
    match how {
        HomeIsReadOnly => {
            // Even root makes no directories in a file.
            let file = place.parent().unwrap().join("file");
            fs::write(&file, "").unwrap();
            command.env("HOME", file);
        }
        HomeIsNotSet => {
            command.env_remove("HOME");
        }
        DiskIsFull => command = after(&format!("ulimit -f {}", room / 512), &command),
        _ => {}
    }
    command.stdout(if how == StdoutIsFull { full() } else { Stdio::piped() });
    command.stderr(if how == StderrIsFull { full() } else { Stdio::piped() });
    let mut child = command.spawn().unwrap();
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    // A stream that is to be closed is not read: the pipe takes more than these commands write.
    let closes = (out.take_if(|_| how == StdoutCloses), err.take_if(|_| how == StderrCloses));
    let (out, err) = (reader(out), reader(err));
    let send = |signal: Signal| {
        let _ = kill_process(Pid::from_child(&child), signal);
    };
    thread::sleep(moment);
    match how {
        Kill => send(Signal::KILL),
        Terminate => send(Signal::TERM),
        Interrupt => send(Signal::INT),
        InterruptTwice => {
            send(Signal::INT);
            thread::sleep(moment / 20);
            send(Signal::INT);
        }
        _ => drop(closes),
    }
    let status = wait(&mut child);
    End { status, stdout: out.join().unwrap(), stderr: err.join().unwrap() }
}

fn reader(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = vec![];
        if let Some(mut stream) = stream {
            stream.read_to_end(&mut bytes).unwrap();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn wait(child: &mut Child) -> ExitStatus {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if started.elapsed() > HANGS {
            child.kill().unwrap();
            panic!("it hangs");
        }
        thread::sleep(Duration::from_millis(2));
    }
}

impl End {
    /// Checks that the run ended by the signal, or with the right code, and one line that says why.
    fn check<J: Job>(&self, how: Disturbance) {
        let signal = match how {
            Kill => Some(Signal::KILL),
            Terminate => Some(Signal::TERM),
            Interrupt | InterruptTwice => Some(Signal::INT),
            _ => None,
        };
        if signal.is_some() && self.status.signal() == signal.map(Signal::as_raw) {
            return;
        }
        for word in ["panicked", "a defect of", "RUST_BACKTRACE", "Check failure"] {
            assert!(!self.stderr.contains(word) && !self.stdout.contains(word), "{self:?}");
        }
        // By then it may have been done.
        let codes: &[i32] = match how {
            Terminate => &[J::CODE, 143],
            Interrupt | InterruptTwice => &[J::CODE, 130],
            StdoutIsFull if J::PRINTS => &[1],
            HomeIsReadOnly | HomeIsNotSet if J::NEEDS_HOME => &[1],
            DiskIsFull => &[1],
            _ => &[J::CODE],
        };
        let code = self.status.code();
        assert!(code.is_some_and(|code| codes.contains(&code)), "{self:?}");
        if code == Some(1) && ![StderrCloses, StderrIsFull].contains(&how) {
            let errors = self.stderr.lines().filter(|line| line.starts_with("error: ")).count();
            assert_eq!(errors, 1, "{self:?}");
        }
        let words: &[&str] = match how {
            StdoutIsFull if J::PRINTS && J::CODE == 0 => &["No space left"],
            DiskIsFull => &["cannot write", "File too large"],
            _ => &[],
        };
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in {self:?}");
        }
    }
}

/// The files below a directory, by their paths in it. Links are followed.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn collect(dir: &Path, root: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, root, found);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    collect(dir, dir, &mut found);
    found
}

fn names(dir: &Path) -> BTreeSet<String> {
    files(dir).into_keys().map(|path| path.to_str().unwrap().to_owned()).collect()
}

fn text(path: PathBuf) -> Option<String> {
    path.exists().then(|| fs::read_to_string(path).unwrap())
}

fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))
}

/// The whole lines of a journal, without the first.
fn journal(path: PathBuf) -> Vec<String> {
    let text = text(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().skip(1).map(str::to_owned).collect()
}

/// A command that writes its result to a file.
fn writing(home: &Home, args: &[&str], output: &Path) -> Command {
    home.command(&[args, &["--output", output.to_str().unwrap()]].concat())
}

/// `generate --input`. The cache of programs is filled by the undisturbed run, except where the
/// home is disturbed.
struct Generate {
    home: Home,
    input: String,
}

const LINES: usize = 24;

impl Job for Generate {
    const PRINTS: bool = false;
    const NEEDS_HOME: bool = false;

    fn command(&self, place: &Path) -> Command {
        let args = ["generate", "--input", &self.input, "--slots", "2"];
        writing(&self.home, &args, &place.join("out.jsonl"))
    }

    fn result(&self, place: &Path) -> Option<Value> {
        // Which part of a prompt was cached depends on what ran before it.
        let line = |line: &str| {
            let line = parse(line);
            json!([line["index"], line["id"], line["choices"], line["error"]])
        };
        Some(text(place.join("out.jsonl"))?.lines().map(line).collect())
    }

    fn kept(&self, place: &Path) -> Vec<String> {
        let kept = journal(place.join("out.jsonl.partial"));
        kept.iter().for_each(|line| drop(parse(line)));
        kept
    }

    fn check(&self, place: &Path, ran: &Ran, had_result: bool, kept: &[String]) {
        let Ran { code, stderr, .. } = ran;
        if had_result {
            assert!(*code == 1 && stderr.contains("is there already; remove it"), "{stderr}");
            return;
        }
        assert_eq!(*code, 0, "{stderr}");
        let resumed = format!("{} of {LINES} lines were finished before", kept.len());
        assert_eq!(stderr.contains(&resumed), !kept.is_empty(), "{kept:?}\n{stderr}");
        assert!(!stderr.contains("warning"), "{stderr}");
        assert_eq!(names(place), BTreeSet::from(["out.jsonl".to_owned()]));
    }
}

#[test]
fn generate_input() {
    let home = Home::new();
    let countries = ["France", "Italy", "Spain"];
    let line = |i: usize| json!({"id": i, "prompt": format!("What is the capital of {}?", countries[i % 3])});
    let lines: String = (0..LINES).map(|i| format!("{}\n", line(i))).collect();
    fs::write(home.path("in.jsonl"), lines).unwrap();
    let job = Generate { input: home.path("in.jsonl").to_str().unwrap().into(), home };
    // The cache is filled, so that the undisturbed run is as long as the disturbed ones.
    let first = job.home.path("first");
    fs::create_dir(&first).unwrap();
    Ran::of(job.command(&first).output().unwrap()).ok();
    // Whoever gives an output that is there learns it at once: no plugin is opened.
    let again = Ran::of(job.command(&first).env("PJRT_PLUGIN", "/no/plugin").output().unwrap());
    again.fails(1, &["out.jsonl is there already"]);
    disturb(&job);
}

/// A home whose cache of programs was being filled when the process was ended.
#[test]
fn programs_are_cached_whole_or_not_at_all() {
    let home = Home::new();
    let seed = seed();
    eprintln!("MOMENTS_SEED={seed}");
    let mut random = Random(seed);
    let generate = || home.command(&["generate", "What is the capital of France?"]);
    let started = Instant::now();
    let ran = Ran::of(generate().output().unwrap()).ok();
    let duration = started.elapsed();
    for i in 0..6 {
        let _ = fs::remove_dir_all(home.path(".cache"));
        let mut child = generate().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(duration.mul_f64((f64::from(i) + random.fraction()) / 6.0));
        // A plugin that is compiling must not make the process crash as it ends.
        let signal = if i % 2 == 0 { Signal::INT } else { Signal::KILL };
        kill_process(Pid::from_child(&child), signal).unwrap();
        let status = wait(&mut child);
        let ended = status.signal() == Some(signal.as_raw()) || [Some(0), Some(130)].contains(&status.code());
        assert!(ended, "{status} after {signal:?}");
    }
    let again = Ran::of(generate().output().unwrap()).ok();
    assert!(again.stdout == ran.stdout && !again.stderr.contains("warning"), "{}", again.stderr);
    let left = names(&home.path(".cache"));
    assert!(left.iter().all(|name| name.ends_with(".pjrt")), "{left:?}");
}

/// `eval`, with its results and its journal.
struct Eval {
    home: Home,
}

const DOCUMENTS: usize = 20;

impl Job for Eval {
    const PRINTS: bool = true;
    const NEEDS_HOME: bool = false;

    fn command(&self, place: &Path) -> Command {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/eval/data");
        let limit = DOCUMENTS.to_string();
        let args = ["eval", "--tasks", "piqa", "--limit", &limit, "--slots", "2", "--data", data.to_str().unwrap()];
        writing(&self.home, &args, &place.join("out.json"))
    }

    fn result(&self, place: &Path) -> Option<Value> {
        if let Some(page) = text(place.join("out.json.html")) {
            assert!(page.trim_end().ends_with("</html>"), "{page}");
        }
        let samples: Vec<Value> =
            text(place.join("out.json.samples.jsonl")).unwrap_or_default().lines().map(parse).collect();
        assert!(samples.is_empty() || samples.len() == DOCUMENTS, "{samples:?}");
        let results = parse(&text(place.join("out.json"))?);
        assert_eq!(samples.len(), DOCUMENTS, "the results are written last");
        Some(results["results"].clone())
    }

    fn kept(&self, place: &Path) -> Vec<String> {
        journal(place.join("out.json.partial"))
    }

    fn check(&self, place: &Path, ran: &Ran, _: bool, kept: &[String]) {
        let Ran { code, stdout, stderr } = ran;
        assert!(*code == 0 && stdout.contains("| piqa | 0 | acc |"), "{stdout}\n{stderr}");
        let resumed = format!("{} of {DOCUMENTS} documents were finished before", kept.len());
        assert_eq!(stderr.contains(&resumed), !kept.is_empty(), "{kept:?}\n{stderr}");
        let whole = ["out.json", "out.json.html", "out.json.samples.jsonl"];
        assert_eq!(names(place), BTreeSet::from(whole.map(str::to_owned)));
    }
}

#[test]
fn eval() {
    let job = Eval { home: Home::new() };
    let first = job.home.path("first");
    fs::create_dir(&first).unwrap();
    Ran::of(job.command(&first).output().unwrap()).ok();
    disturb(&job);

    // Results that could not be printed are printed by the same command, without a model.
    let place = job.home.path("place");
    fs::create_dir(&place).unwrap();
    Ran::of(job.command(&place).stdout(full()).output().unwrap()).fails(1, &["No space left"]);
    let kept = job.kept(&place);
    assert_eq!(kept.len(), DOCUMENTS);
    job.check(&place, &Ran::of(job.command(&place).env("PJRT_PLUGIN", "/no/plugin").output().unwrap()), true, &kept);
}

/// `quantize`, into a new directory.
struct Quantize {
    home: Home,
}

impl Job for Quantize {
    const PRINTS: bool = false;
    const NEEDS_HOME: bool = false;

    fn command(&self, place: &Path) -> Command {
        let out = place.join("small");
        self.home.command(&["quantize", "demo", "--weights", "int4", "--out", out.to_str().unwrap()])
    }

    fn result(&self, place: &Path) -> Option<Value> {
        let mut files = files(place);
        files.retain(|name, _| !name.to_str().unwrap().ends_with(".tmp"));
        if let Some(weights) = files.get(Path::new("small/model.safetensors")) {
            safetensors::SafeTensors::deserialize(weights).unwrap();
        }
        let is_complete = files.contains_key(Path::new("small/config.json"));
        let digest = |bytes: &Vec<u8>| format!("{:x}", <sha2::Sha256 as sha2::Digest>::digest(bytes));
        is_complete.then(|| files.iter().map(|(name, bytes)| json!([name, digest(bytes)])).collect())
    }

    fn kept(&self, _: &Path) -> Vec<String> {
        vec![]
    }

    fn check(&self, place: &Path, ran: &Ran, had_result: bool, _: &[String]) {
        let Ran { code, stderr, .. } = ran;
        if had_result {
            assert!(*code == 1 && stderr.contains("holds a model already"), "{stderr}");
            return;
        }
        assert!(*code == 0 && stderr.contains("of weights in int4"), "{stderr}");
        let whole = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
        assert_eq!(names(place), whole.map(|name| format!("small/{name}")).into());
    }
}

#[test]
fn quantize() {
    disturb(&Quantize { home: Home::new() });
}

/// The download of a model, into a home of its own.
struct ModelDownload {
    home: Home,
    /// The number of commands so far. Each has an output of its own.
    runs: Cell<u32>,
    files: HashMap<String, Vec<u8>>,
    hub: TestHub,
}

impl ModelDownload {
    fn repo(place: &Path) -> PathBuf {
        place.join(".cache/huggingface/hub").join(format!("models--{}", NAME.replace('/', "--")))
    }
}

impl Job for ModelDownload {
    const PRINTS: bool = false;
    const NEEDS_HOME: bool = true;

    fn command(&self, place: &Path) -> Command {
        let out = place.join(self.runs.replace(self.runs.get() + 1).to_string());
        let args = ["quantize", NAME, "--weights", "int8", "--out", out.to_str().unwrap()];
        let mut command = self.home.command(&args);
        command.env("HOME", place).env("HF_ENDPOINT", &self.hub.url);
        command
    }

    fn result(&self, place: &Path) -> Option<Value> {
        let snapshot = files(&Self::repo(place).join("snapshots").join(COMMIT));
        for (name, bytes) in &snapshot {
            assert!(self.files[name.to_str().unwrap()] == *bytes, "{} is not whole", name.display());
        }
        let mut inspect = self.home.command(&["inspect", NAME]);
        let ran = Ran::of(inspect.env("HOME", place).output().unwrap());
        if ran.code == 0 {
            assert_eq!(snapshot.len() + 1, self.files.len(), "all but README.md");
            return Some(ran.stdout.into());
        }
        assert!(ran.stderr.contains("not in the Hugging Face cache"), "{}", ran.stderr);
        None
    }

    /// Files that are whole, and the ranges that are missing.
    fn kept(&self, place: &Path) -> Vec<String> {
        let whole = names(&Self::repo(place).join("snapshots").join(COMMIT));
        let blobs = files(&Self::repo(place).join("blobs"));
        let incomplete = blobs.iter().filter(|(name, bytes)| {
            name.extension().is_some_and(|extension| extension == "incomplete") && !bytes.is_empty()
        });
        let ranges = incomplete.map(|(_, bytes)| format!("bytes={}-", bytes.len()));
        // The number of requests before the next run comes first.
        std::iter::once(self.hub.requests().len().to_string()).chain(whole).chain(ranges).collect()
    }

    fn check(&self, place: &Path, ran: &Ran, had_result: bool, kept: &[String]) {
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let cached = names(&place.join(".cache"));
        assert!(cached.iter().all(|name| !name.ends_with(".incomplete") && !name.ends_with(".tmp")), "{cached:?}");
        let Some((before, kept)) = kept.split_first() else { return };
        let requests = &self.hub.requests()[before.parse::<usize>().unwrap()..];
        assert!(!had_result || requests.is_empty(), "{requests:?}");
        for kept in kept {
            if kept.starts_with("bytes=") {
                let resumed = requests.iter().any(|seen| seen.range.as_ref() == Some(kept));
                // All of a file may have arrived before it was renamed.
                let is_whole = self.files.values().any(|bytes| *kept == format!("bytes={}-", bytes.len()));
                assert!(resumed || is_whole, "{kept} is not in {requests:?}");
            } else {
                assert!(requests.iter().all(|seen| !seen.line.contains(&format!("/{kept} "))), "{kept}: {requests:?}");
            }
        }
    }
}

#[test]
fn model_download() {
    let home = Home::new();
    let files = model_files(&home, true);
    let hub = TestHub::serve(files.clone(), Manner::slow(8192, Duration::from_millis(4)));
    disturb(&ModelDownload { home, runs: Cell::new(0), files, hub });
}

/// The installation of a plugin from a wheel that is not the pinned one: nothing of it stays.
struct PluginDownload {
    home: Home,
    index: Index,
}

impl Job for PluginDownload {
    const CODE: i32 = 1;
    const PRINTS: bool = false;
    const NEEDS_HOME: bool = true;

    fn command(&self, place: &Path) -> Command {
        let mut command = self.home.command(&["plugins", "install", "cpu"]);
        command.env_remove("PJRT_PLUGIN").env("HOME", place).env("PIP_INDEX_URL", &self.index.url);
        command
    }

    fn result(&self, place: &Path) -> Option<Value> {
        let list = Ran::of(self.home.command(&["plugins", "list"]).env("HOME", place).output().unwrap()).ok().stdout;
        assert!(list.contains("cpu   available") && !list.contains("installed"), "{list}");
        None
    }

    fn kept(&self, _: &Path) -> Vec<String> {
        vec![]
    }

    fn check(&self, place: &Path, ran: &Ran, _: bool, _: &[String]) {
        assert!(ran.code == 1 && ran.stderr.contains("Nothing was installed"), "{}", ran.stderr);
        assert_eq!(names(place), BTreeSet::from([".cache/gemma-pjrt/plugins/cpu/.lock".to_owned()]));
    }
}

#[test]
fn plugin_download() {
    let index = Index::serve(vec![1; 8 << 20], true);
    disturb(&PluginDownload { home: Home::new(), index });
}
