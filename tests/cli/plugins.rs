//! Finding and installing plugins, against a small index of the tests' own.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::fs::symlink,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use gemma_pjrt::plugins::{Kind, pinned_for};

use crate::{Home, Ran, plugin};

/// A package index on localhost that serves one listing and one wheel, and counts downloads.
pub struct Index {
    pub url: String,
    downloads: Arc<AtomicUsize>,
}

impl Index {
    pub fn serve(wheel: Vec<u8>, json: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/simple", listener.local_addr().unwrap());
        let downloads = Arc::new(AtomicUsize::new(0));
        let counter = downloads.clone();
        let name = pinned_for(Kind::Cpu, None).unwrap().wheel;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut reader = BufReader::new(stream);
                let mut request = String::new();
                let _ = reader.read_line(&mut request);
                while reader.read_line(&mut String::new()).is_ok_and(|n| n > 2) {}
                let (kind, body) = if request.contains("/files/") {
                    counter.fetch_add(1, Ordering::SeqCst);
                    ("application/octet-stream", wheel.clone())
                } else if !request.contains("/simple/fastatomstruct-xla-cpu/") {
                    ("text/plain", vec![])
                } else if json {
                    let text = format!(r#"{{"files": [{{"filename": "{name}", "url": "/files/{name}"}}]}}"#);
                    ("application/vnd.pypi.simple.v1+json", text.into_bytes())
                } else {
                    ("text/html", format!(r#"<a href="../../files/{name}#sha256=00">{name}</a>"#).into_bytes())
                };
                let mut stream = reader.into_inner();
                let length = body.len();
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
                );
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
            }
        });
        Self { url, downloads }
    }
}

fn install(home: &Home, index: &str, args: &[&str]) -> Ran {
    let mut command = home.command(&[&["plugins", "install", "cpu"], args].concat());
    Ran::of(command.env_remove("PJRT_PLUGIN").env("PIP_INDEX_URL", index).output().unwrap())
}

#[test]
fn a_wheel_with_the_wrong_checksum_is_not_installed() {
    for json in [false, true] {
        let home = Home::new();
        let index = Index::serve(b"not the wheel".to_vec(), json);
        install(&home, &index.url, &[]).fails(1, &["has sha256", "expected 88b1c430", "Nothing was installed"]);
        assert_eq!(index.downloads.load(Ordering::SeqCst), 1);
        let left: Vec<_> = fs::read_dir(home.path(".cache/gemma-pjrt/plugins/cpu")).unwrap().flatten().collect();
        assert!(left.iter().all(|e| e.file_name() == ".lock"), "{left:?}");
    }
}

#[test]
fn an_index_that_cannot_be_reached_or_has_nothing() {
    let home = Home::new();
    install(&home, "http://127.0.0.1:9/simple", &[])
        .fails(1, &["http://127.0.0.1:9/simple", "pip's index-url", "--from-file"]);
    let index = Index::serve(vec![], false);
    let package = ["--package", "lammps-jax-pjrt-cpu"];
    install(&home, &index.url, &package).fails(1, &["does not have lammps_jax_pjrt_cpu"]);
    install(&home, &index.url, &["--package", "no-such"]).fails(1, &["no-such", "fastatomstruct-xla-cpu"]);
    install(&home, "http://me:secret@127.0.0.1:9/simple", &[]).fails(1, &["***@127.0.0.1"]);
}

#[test]
fn offline_says_how_to_install_by_hand() {
    let home = Home::new();
    install(&home, "http://127.0.0.1:9", &["--offline"]).fails(1, &["pip download --no-deps", "--from-file"]);
    let model = home.tiny_model();
    let mut command = home.command(&["generate", "x", "--offline", "--platform", "cpu", "--model", &model]);
    Ran::of(command.env_remove("PJRT_PLUGIN").output().unwrap()).fails(1, &["offline", "--from-file"]);
    let mut command = home.command(&["plugins", "path", "tpu"]);
    let ran = Ran::of(command.env_remove("PJRT_PLUGIN").output().unwrap());
    ran.fails(1, &["no tpu plugin was found", "TPU_LIBRARY_PATH: not set", "plugins install tpu"]);
}

#[test]
fn wheels_that_are_not_pinned_are_refused() {
    let home = Home::new();
    let wheel = home.path("some.whl");
    fs::write(&wheel, "no wheel").unwrap();
    let path = wheel.to_str().unwrap();
    install(&home, "http://127.0.0.1:9", &["--from-file", path])
        .fails(1, &["none of the pinned cpu wheels", "--plugin"]);
    install(&home, "http://127.0.0.1:9", &["--from-file", "/no/such.whl"]).fails(1, &["/no/such.whl"]);
}

/// A cache as the installer leaves it.
fn fake_install(home: &Home, library: &[u8]) -> std::path::PathBuf {
    let pinned = pinned_for(Kind::Cpu, None).unwrap();
    let dir = home.path(".cache/gemma-pjrt/plugins/cpu").join(format!("{}-{}", pinned.version, &pinned.sha256[..16]));
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("libpjrt_cpu.so"), library).unwrap();
    // sha256 of "abc"
    let manifest = format!(
        r#"{{"package": "{}", "version": "{}", "wheel_sha256": "{}", "library": "libpjrt_cpu.so",
            "library_sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}}"#,
        pinned.package, pinned.version, pinned.sha256
    );
    fs::write(dir.join("manifest.json"), manifest).unwrap();
    dir.join("libpjrt_cpu.so")
}

#[test]
fn list_verify_and_path_know_what_is_installed() {
    let home = Home::new();
    assert!(
        home.run(&["plugins", "list"])
            .ok()
            .stdout
            .contains("cpu   available  fastatomstruct-xla-cpu 2026.6.23 (default)")
    );
    assert!(home.run(&["plugins", "verify"]).ok().stderr.contains("no plugin is installed"));
    let library = fake_install(&home, b"abc");
    assert!(home.run(&["plugins", "list"]).ok().stdout.contains("cpu   installed  fastatomstruct-xla-cpu"));
    assert!(home.run(&["plugins", "verify"]).ok().stdout.contains("ok cpu fastatomstruct-xla-cpu"));
    // Installed already: the index is not asked.
    let again = install(&home, "http://127.0.0.1:9", &[]).ok();
    assert_eq!(again.stdout.trim(), library.to_str().unwrap());
    fs::write(&library, "abd").unwrap();
    home.run(&["plugins", "verify"]).fails(1, &["has sha256", "expected ba7816bf"]);
}

/// A directory that was being unpacked when the process was killed is no plugin, whatever is in it,
/// and the next installation removes it.
#[test]
fn what_a_killed_installation_left_is_not_used_and_goes() {
    let home = Home::new();
    let library = fake_install(&home, b"abc");
    let plugins = home.path(".cache/gemma-pjrt/plugins/cpu");
    fs::rename(library.parent().unwrap(), plugins.join(".tmpaBcDeF")).unwrap();
    fs::write(plugins.join(".tmpgHiJkL"), "half a wheel").unwrap();
    assert!(home.run(&["plugins", "list"]).ok().stdout.contains("cpu   available  fastatomstruct-xla-cpu"));
    assert!(home.run(&["plugins", "verify"]).ok().stderr.contains("no plugin is installed"));
    install(&home, "http://127.0.0.1:9/simple", &[]).fails(1, &["cannot be used"]);
    let left: Vec<_> = fs::read_dir(plugins).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, [".lock"]);
}

/// The search order: variable, cache, Python environment, loader path.
#[test]
fn places_are_searched_in_the_documented_order() {
    let home = Home::new();
    let path = |command: &mut std::process::Command| Ran::of(command.output().unwrap()).ok().stdout.trim().to_owned();
    let base = || {
        let mut command = home.command(&["plugins", "path", "cpu"]);
        command.env_remove("PJRT_PLUGIN");
        command
    };
    let libraries = home.path("libraries");
    fs::create_dir(&libraries).unwrap();
    symlink(plugin(), libraries.join("libpjrt_cpu.so")).unwrap();
    let by_loader = path(base().env("LD_LIBRARY_PATH", &libraries));
    assert!(Path::new(&by_loader).starts_with(&libraries));

    let venv = home.path("venv");
    let site = venv.join("lib/python3.12/site-packages/fastatomstruct_xla_cpu");
    fs::create_dir_all(&site).unwrap();
    symlink(plugin(), site.join("libpjrt_cpu.so")).unwrap();
    let by_venv = path(base().env("LD_LIBRARY_PATH", &libraries).env("VIRTUAL_ENV", &venv));
    assert!(Path::new(&by_venv).starts_with(&venv));

    let cached = fake_install(&home, b"abc");
    assert_eq!(path(base().env("LD_LIBRARY_PATH", &libraries).env("VIRTUAL_ENV", &venv)), cached.to_str().unwrap());
    assert_eq!(path(base().env("PJRT_PLUGIN", "/given")), "/given");
}
