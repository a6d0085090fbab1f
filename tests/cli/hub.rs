//! Models by name: Hugging Face's cache, and downloads from a small hub of the tests' own.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use sha1::Digest;

use crate::{Home, Ran};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const NAME: &str = "google/gemma-1.1-2b-it";

/// How the hub misbehaves.
#[derive(Clone, Copy, Default)]
pub struct Manner {
    /// Requests without this token are refused as gated.
    gated: Option<&'static str>,
    /// Answer to everything: a status, and the hub's own code for it.
    refuse: Option<(u16, &'static str)>,
    /// Connections that send large files break off after so many bytes, so many times.
    breaks: (usize, usize),
    /// Whether ranges are ignored.
    no_ranges: bool,
    /// Whether a large file's last byte is wrong.
    corrupt: bool,
    /// So many requests are answered with this status, and a time to wait.
    busy: (usize, u16),
    /// So many requests that resume a download are refused: the signed address has expired.
    expired: usize,
    /// A path of the host, below which the hub lies.
    prefix: &'static str,
    /// Whether it knows no hashes, as a mirror.
    no_hashes: bool,
    /// Bodies are sent in blocks of so many bytes, with a pause after each.
    slow: Option<(usize, Duration)>,
}

impl Manner {
    /// Sends blocks of so many bytes, with a pause after each.
    pub fn slow(block: usize, pause: Duration) -> Self {
        Self { slow: Some((block, pause)), ..Self::default() }
    }
}

/// A request that arrived: its line, its range, and whether it carried a token.
#[derive(Clone, Debug)]
pub struct Seen {
    pub line: String,
    pub range: Option<String>,
    token: bool,
}

/// A hub on localhost: the model's page, its files, and a second server (by another host name) that
/// large files are on.
pub struct TestHub {
    pub url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl TestHub {
    pub fn serve(files: HashMap<String, Vec<u8>>, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let state = Arc::new((files, Mutex::new(manner), seen.clone(), port));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = state.clone();
                std::thread::spawn(move || {
                    let _ = answer(stream, &state.0, &state.1, &state.2, state.3);
                });
            }
        });
        Self { url: format!("http://127.0.0.1:{port}"), seen }
    }

    pub fn requests(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn answer(
    stream: TcpStream,
    files: &HashMap<String, Vec<u8>>,
    manner: &Mutex<Manner>,
    seen: &Mutex<Vec<Seen>>,
    port: u16,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut headers = HashMap::new();
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? <= 2 {
            break;
        }
        let (name, value) = header.trim().split_once(": ").unwrap();
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let token = headers.get("authorization").map(|value| value.trim_start_matches("Bearer ").to_owned());
    let range = headers.get("range").cloned();
    seen.lock().unwrap().push(Seen { line: line.trim().to_owned(), range: range.clone(), token: token.is_some() });
    let mut stream = reader.into_inner();
    let path = line.split(' ').nth(1).unwrap().to_owned();
    let head = line.starts_with("HEAD");
    let now = *manner.lock().unwrap();
    let mut send = |status: &str, extra: &str, body: &[u8], length: usize| {
        let text = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{extra}\r\n");
        stream.write_all(text.as_bytes())?;
        let (block, pause) = now.slow.unwrap_or((usize::MAX, Duration::ZERO));
        for block in body.chunks(block).filter(|_| !head) {
            stream.write_all(block)?;
            std::thread::sleep(pause);
        }
        Ok(())
    };
    if now.busy.0 > 0 {
        manner.lock().unwrap().busy.0 -= 1;
        return send(&format!("{} Later", now.busy.1), "Retry-After: 0\r\n", b"", 0);
    }
    let path = if path.starts_with("/storage/") {
        path
    } else if let Some(path) = path.strip_prefix(now.prefix) {
        path.to_owned()
    } else {
        return send("404 Not Found", "", b"", 0);
    };
    if let Some((status, code)) = now.refuse {
        return send(&format!("{status} No"), &format!("X-Error-Code: {code}\r\n"), b"", 0);
    }
    if now.gated.is_some_and(|expected| path.contains("/resolve/") && token.as_deref() != Some(expected)) {
        return send("401 Unauthorized", "X-Error-Code: GatedRepo\r\n", b"", 0);
    }
    if path == format!("/api/models/{NAME}/revision/main") {
        let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return send("200 OK", "", body.as_bytes(), body.len());
    }
    let name = path.rsplit('/').next().unwrap();
    let Some(bytes) = files.get(name) else {
        return send("404 Not Found", "X-Error-Code: RepoNotFound\r\n", b"", 0);
    };
    let large = name.ends_with(".safetensors");
    if path.starts_with(&format!("/{NAME}/resolve/{COMMIT}/")) {
        if large {
            let etag: String = sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
            let size = bytes.len();
            let place = format!("Location: http://localhost:{port}/storage/{name}\r\n");
            let linked = format!("X-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {size}\r\n");
            let extra = if now.no_hashes { place } else { place + &linked };
            return send("302 Found", &extra, b"", 0);
        }
        let mut git = sha1::Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
        git.update(bytes);
        let etag: String = git.finalize().iter().map(|b| format!("{b:02x}")).collect();
        let etag = if now.no_hashes { "0-1".to_owned() } else { etag };
        return send("200 OK", &format!("ETag: W/\"{etag}\"\r\n"), bytes, bytes.len());
    }
    assert!(path.starts_with("/storage/"), "{path}");
    if now.expired > 0 && range.is_some() {
        manner.lock().unwrap().expired -= 1;
        return send("403 Forbidden", "", b"", 0);
    }
    let mut body = bytes.clone();
    if now.corrupt {
        *body.last_mut().unwrap() ^= 1;
    }
    let start = range.filter(|_| !now.no_ranges).map_or(0, |r| r[6..r.len() - 1].parse().unwrap());
    let rest = &body[start..];
    let status = if start > 0 { "206 Partial Content" } else { "200 OK" };
    let extra = format!("Content-Range: bytes {start}-{}/{}\r\n", body.len() - 1, body.len());
    let extra = if start > 0 { extra } else { String::new() };
    let (after, times) = now.breaks;
    if times > 0 && after < rest.len() {
        manner.lock().unwrap().breaks.1 -= 1;
        return send(status, &extra, &rest[..after], rest.len());
    }
    send(status, &extra, rest, rest.len())
}

/// The files of a tiny model, in one or in two safetensors files.
pub fn model_files(home: &Home, sharded: bool) -> HashMap<String, Vec<u8>> {
    let dir = PathBuf::from(home.tiny_model());
    let mut files: HashMap<String, Vec<u8>> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.insert("README.md".into(), b"not needed".to_vec());
    if sharded {
        let whole = files.remove("model.safetensors").unwrap();
        let whole = safetensors::SafeTensors::deserialize(&whole).unwrap();
        let mut map = serde_json::Map::new();
        for part in 0..2 {
            let file = format!("model-0000{}-of-00002.safetensors", part + 1);
            let tensors: Vec<_> =
                whole.tensors().into_iter().enumerate().filter(|(i, _)| i % 2 == part).map(|(_, t)| t).collect();
            map.extend(tensors.iter().map(|(name, _)| (name.clone(), file.clone().into())));
            files.insert(file, safetensors::serialize(tensors, None).unwrap());
        }
        let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
        files.insert("model.safetensors.index.json".into(), index.into_bytes());
    }
    files
}

fn generate(home: &Home, hub: &str, variables: &[(&str, &str)]) -> Ran {
    let mut command = home.command(&["generate", "x", "-n", "2", "--model", NAME]);
    command.env("HF_ENDPOINT", hub).envs(variables.iter().copied());
    Ran::of(command.output().unwrap())
}

fn repo_dir(home: &Home) -> PathBuf {
    home.path(".cache/huggingface/hub/models--google--gemma-1.1-2b-it")
}

#[test]
fn a_model_is_downloaded_once_into_the_layout_of_hugging_face() {
    let home = Home::new();
    let files = model_files(&home, true);
    let hub = TestHub::serve(files.clone(), Manner { gated: Some("secret"), ..Manner::default() });
    let ran = generate(&home, &hub.url, &[("HF_TOKEN", "secret")]).ok();
    assert!(ran.stderr.contains("downloading model-00002-of-00002.safetensors"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("secret"));

    let snapshot = repo_dir(&home).join("snapshots").join(COMMIT);
    assert_eq!(fs::read_to_string(repo_dir(&home).join("refs/main")).unwrap(), COMMIT);
    for (name, bytes) in &files {
        let path = snapshot.join(name);
        if name == "README.md" {
            assert!(!path.exists(), "only what is needed is fetched");
            continue;
        }
        assert_eq!(fs::read(&path).unwrap(), *bytes, "{name}");
        let target = fs::read_link(&path).unwrap();
        assert!(target.starts_with("../../blobs"), "{target:?}");
    }
    for seen in hub.requests() {
        let storage = seen.line.contains("/storage/");
        assert_eq!(seen.token, !storage, "the token is for the hub only: {seen:?}");
    }

    // It is in the cache now: nothing is asked, with or without network, by name or with its
    // commit.
    let before = hub.requests().len();
    generate(&home, "http://127.0.0.1:9", &[]).ok();
    generate(&home, "http://127.0.0.1:9", &[("HF_HUB_OFFLINE", "1")]).ok();
    generate(&home, "http://127.0.0.1:9", &[("HF_HUB_OFFLINE", "false")]).ok();
    home.run(&["inspect", &format!("{NAME}@{COMMIT}")]).ok();
    assert_eq!(hub.requests().len(), before);
}

#[test]
fn the_cache_is_found_where_hugging_face_puts_it() {
    let home = Home::new();
    let model = home.tiny_model();
    for (variable, below) in [("HF_HOME", "hub"), ("HF_HUB_CACHE", "")] {
        let root = home.path(variable);
        let dir = root.join(below).join("models--google--gemma-1.1-2b-it");
        fs::create_dir_all(dir.join("snapshots")).unwrap();
        fs::create_dir_all(dir.join("refs")).unwrap();
        fs::write(dir.join("refs/main"), COMMIT).unwrap();
        std::os::unix::fs::symlink(&model, dir.join("snapshots").join(COMMIT)).unwrap();
        generate(&home, "http://127.0.0.1:9", &[(variable, root.to_str().unwrap())]).ok();
        generate(&home, "http://127.0.0.1:9", &[(variable, &format!("~/{variable}"))]).ok();
        generate(&home, "http://127.0.0.1:9", &[(variable, "${BELOW}"), ("BELOW", root.to_str().unwrap())]).ok();
    }
}

#[test]
fn a_broken_download_goes_on_where_it_stopped() {
    let home = Home::new();
    let files = model_files(&home, false);
    let size = files["model.safetensors"].len();
    // Three breaks with progress in between: one run gets through.
    let hub = TestHub::serve(files.clone(), Manner { breaks: (100_000, 3), ..Manner::default() });
    generate(&home, &hub.url, &[]).ok();
    let ranges: Vec<String> = hub.requests().into_iter().filter_map(|seen| seen.range).collect();
    assert_eq!(ranges, ["bytes=100000-", "bytes=200000-", "bytes=300000-"]);

    // A connection that brings nothing any more: the run ends, what came stays, and the next run
    // goes on from there.
    let home = Home::new();
    let incomplete = || {
        let blobs = fs::read_dir(repo_dir(&home).join("blobs")).unwrap().flatten();
        blobs.map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "incomplete"))
    };
    let hub = TestHub::serve(files.clone(), Manner { breaks: (0, 4), ..Manner::default() });
    generate(&home, &hub.url, &[]).fails(1, &["broke off after 0 of", "Run the same command again"]);
    fs::write(incomplete().unwrap(), &files["model.safetensors"][..size / 2]).unwrap();
    generate(&home, &hub.url, &[]).ok();
    let last = hub.requests().into_iter().filter_map(|seen| seen.range).next_back();
    assert_eq!(last, Some(format!("bytes={}-", size / 2)));
    assert!(incomplete().is_none());

    // A server that cannot resume is asked for everything.
    let home = Home::new();
    let hub = TestHub::serve(files, Manner { breaks: (100_000, 1), no_ranges: true, ..Manner::default() });
    generate(&home, &hub.url, &[]).ok();
}

#[test]
fn a_hub_that_is_busy_for_a_moment_is_asked_again() {
    let home = Home::new();
    let files = model_files(&home, false);
    for status in [429, 503] {
        let home = Home::new();
        let hub = TestHub::serve(files.clone(), Manner { busy: (3, status), ..Manner::default() });
        let ran = generate(&home, &hub.url, &[]).ok();
        let said = format!("warning: {}: {status} ", hub.url);
        assert_eq!(ran.stderr.matches(&said).count(), 3, "{}", ran.stderr);
        assert!(ran.stderr.contains("(try 4 of 5)"), "{}", ran.stderr);
    }
    let hub = TestHub::serve(files, Manner { busy: (usize::MAX, 429), ..Manner::default() });
    generate(&home, &hub.url, &[]).fails(1, &["(try 5 of 5)", "answered 429", "Try again later"]);
    assert_eq!(hub.requests().len(), 5);
}

#[test]
fn an_address_that_expires_during_the_download_is_asked_for_again() {
    let home = Home::new();
    let files = model_files(&home, false);
    let hub = TestHub::serve(files.clone(), Manner { breaks: (100_000, 1), expired: 1, ..Manner::default() });
    let ran = generate(&home, &hub.url, &[]).ok();
    assert!(ran.stderr.contains("403 Forbidden for model.safetensors; asked the hub"), "{}", ran.stderr);
    let resolved = hub.requests().into_iter().filter(|seen| seen.line.contains("/resolve/"));
    assert_eq!(resolved.filter(|seen| seen.line.contains("model.safetensors")).count(), 2);

    // A server that refuses every address ends the download.
    let home = Home::new();
    let hub = TestHub::serve(files, Manner { breaks: (100_000, 1), expired: 100, ..Manner::default() });
    generate(&home, &hub.url, &[]).fails(1, &["broke off after 100000 of", "403 Forbidden"]);
}

#[test]
fn a_hub_below_a_path_and_a_mirror_without_hashes_are_followed() {
    let home = Home::new();
    let files = model_files(&home, true);
    let manner = Manner { prefix: "/mirrors/hf", no_hashes: true, ..Manner::default() };
    let hub = TestHub::serve(files.clone(), manner);
    let ran = generate(&home, &format!("{}/mirrors/hf/", hub.url), &[]).ok();
    assert!(ran.stderr.contains("/mirrors/hf tells no hash of config.json: its contents are not checked"));
    let snapshot = repo_dir(&home).join("snapshots").join(COMMIT);
    for (name, bytes) in files.iter().filter(|(name, _)| *name != "README.md") {
        assert_eq!(fs::read(snapshot.join(name)).unwrap(), *bytes, "{name}");
    }
}

#[test]
fn a_socks_proxy_is_used_where_there_is_no_other() {
    let home = Home::new();
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = proxy.local_addr().unwrap();
    let first_byte = std::thread::spawn(move || {
        let mut byte = [0];
        std::io::Read::read_exact(&mut proxy.accept().unwrap().0, &mut byte).unwrap();
        byte[0]
    });
    let all = [("ALL_PROXY", format!("socks5h://{address}")), ("HTTPS_PROXY", "http://127.0.0.1:9".into())];
    let all: Vec<(&str, &str)> = all.iter().map(|(name, value)| (*name, value.as_str())).collect();
    generate(&home, "http://hub.invalid", &all).fails(1, &["cannot reach http://hub.invalid"]);
    assert_eq!(first_byte.join().unwrap(), 5, "the version of SOCKS");

    let files = model_files(&home, false);
    let hub = TestHub::serve(files, Manner::default());
    generate(&home, &hub.url, &[("ALL_PROXY", "quic://h"), ("NO_PROXY", "*")]).ok();
    let home = Home::new();
    let direct = [("ALL_PROXY", "socks5://127.0.0.1:9"), ("NO_PROXY", "localhost, 127.0.0.1")];
    generate(&home, &hub.url, &direct).ok();
}

#[test]
fn a_damaged_download_is_not_used() {
    let home = Home::new();
    let files = model_files(&home, false);
    let hub = TestHub::serve(files.clone(), Manner { corrupt: true, ..Manner::default() });
    generate(&home, &hub.url, &[])
        .fails(1, &["model.safetensors arrived damaged", "sha256", "run the same command again"]);
    let hub = TestHub::serve(files, Manner::default());
    generate(&home, &hub.url, &[]).ok();
}

#[test]
fn every_refusal_has_its_own_error() {
    let home = Home::new();
    let files = model_files(&home, false);
    let hub = |manner| TestHub::serve(files.clone(), manner);
    let gated = hub(Manner { gated: Some("secret"), ..Manner::default() });
    generate(&home, &gated.url, &[]).fails(1, &["is gated", "accept its licence at", "set HF_TOKEN"]);
    generate(&home, &gated.url, &[("HF_TOKEN", "other")]).fails(1, &["is gated", "account that HF_TOKEN belongs to"]);
    // The token that `hf auth login` wrote.
    fs::create_dir_all(home.path(".cache/huggingface")).unwrap();
    fs::write(home.path(".cache/huggingface/token"), "wrong\n").unwrap();
    generate(&home, &gated.url, &[]).fails(1, &["account that HF_TOKEN belongs to"]);
    fs::remove_file(home.path(".cache/huggingface/token")).unwrap();

    let refuse = |status, code| hub(Manner { refuse: Some((status, code)), ..Manner::default() });
    generate(&home, &refuse(404, "RepoNotFound").url, &[])
        .fails(1, &["has no model google/gemma-1.1-2b-it", "private"]);
    generate(&home, &refuse(401, "RepoNotFound").url, &[]).fails(1, &["has no model"]);
    generate(&home, &refuse(404, "RevisionNotFound").url, &[]).fails(1, &["no revision main", "NAME@REVISION"]);
    generate(&home, &refuse(403, "").url, &[("HF_TOKEN", "t")]).fails(1, &["is gated"]);
    generate(&home, &refuse(401, "").url, &[("HF_TOKEN", "t")]).fails(1, &["does not accept the token"]);
    generate(&home, &refuse(503, "").url, &[]).fails(1, &["503", "Try again later"]);

    let offline = "there is no directory google/gemma-1.1-2b-it";
    generate(&home, "http://127.0.0.1:9", &[]).fails(1, &[offline, "cannot reach http://127.0.0.1:9", "--model DIR"]);
    generate(&home, &gated.url, &[("HF_HUB_OFFLINE", "1")])
        .fails(1, &["this run is offline", "not in the Hugging Face cache"]);
    generate(&home, &gated.url, &[("TRANSFORMERS_OFFLINE", "yes")]).fails(1, &["this run is offline"]);
    generate(&home, &gated.url, &[("HF_HUB_OFFLINE", "off")]).fails(1, &["is gated"]);
    home.run(&["generate", "x", "--model", NAME, "--offline"]).fails(1, &["this run is offline"]);
}

#[test]
fn a_repository_that_is_no_model_is_refused() {
    let home = Home::new();
    let files = model_files(&home, true);
    let without = |name: &str| {
        let mut files = files.clone();
        files.remove(name).unwrap();
        TestHub::serve(files, Manner::default())
    };
    generate(&home, &without("tokenizer.json").url, &[]).fails(1, &["cannot be used", "no tokenizer.json"]);
    generate(&home, &without("model.safetensors.index.json").url, &[]).fails(1, &["no safetensors"]);
    let mut hostile = files.clone();
    let index = r#"{"weight_map": {"x": "../../../../escape.safetensors"}}"#;
    hostile.insert("model.safetensors.index.json".into(), index.into());
    generate(&home, &TestHub::serve(hostile, Manner::default()).url, &[]).fails(1, &["names no files of its own"]);
    assert!(!Path::new(&home.path("escape.safetensors")).exists());
}
