//! Loading 5 GB of weights as on accelerators: over four virtual devices of the CPU, all of it
//! copied. `cargo test` alone leaves this binary out (test = false in Cargo.toml); ci/run runs it,
//! after ci/large-model has made the checkpoint.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use gemma_pjrt::{
    checkpoint::Checkpoint,
    gemma::{Config, Lowering},
    hlo::{DType, Mesh},
    kernels::{self, probe},
    plugins::Kind,
    runtime::{Model, Platform, PlatformRequest, RunOptions},
};

struct Quiet;

impl gemma_pjrt::download::Progress for Quiet {
    fn start(&mut self, _: &str, _: u64) {}
    fn advance(&mut self, _: u64) {}
    fn finish(&mut self) {}
}

/// Memory of this process that is no mapped file.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn loading_takes_little_memory_beyond_the_devices_own() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-data/random-2b");
    assert!(dir.join("config.json").exists(), "{} is missing: run ci/large-model", dir.display());
    let config = Config::parse(&std::fs::read_to_string(dir.join("config.json")).unwrap()).unwrap().0;
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let mesh = Mesh { data: 1, model: 4 };
    let request = PlatformRequest {
        kind: Some(Kind::Cpu),
        plugin: None,
        devices: mesh.devices(),
        offline: false,
        gpu_memory: None,
    };
    let platform = Platform::open(&request, &mut Quiet).unwrap();

    let before = anonymous();
    let (peak, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let watch = {
        let (peak, done) = (peak.clone(), done.clone());
        thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(anonymous(), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(5));
            }
        })
    };
    let told = Arc::new(AtomicU64::new(0));
    let on_progress = {
        let told = told.clone();
        Box::new(move |bytes, total: u64| {
            assert!(told.fetch_add(bytes, Ordering::Relaxed) + bytes <= total);
        })
    };
    let options = RunOptions { lowering: Lowering::TPU, mesh, compute: DType::BF16, kv: DType::BF16, bundle: None };
    let model = Model::load(&platform, &checkpoint, config, options, on_progress).unwrap();
    let placement = model.placement().unwrap();
    done.store(true, Ordering::Relaxed);
    watch.join().unwrap();

    assert_eq!(told.load(Ordering::Relaxed), placement.copied);
    let beyond = peak.load(Ordering::Relaxed).saturating_sub(before).saturating_sub(placement.copied);
    let rate = placement.copied as f64 / placement.took.as_secs_f64() / 1e9;
    let block = vec![1_u8; 256 << 20];
    let bandwidth = probe::read_bandwidth(kernels::ExecContext::whole(), &[&block]) / 1e9;
    println!(
        "{:.2} GB over 4 devices in {:.1} s: {rate:.2} GB/s, {:.2} of what the processor can read; {:.0} MiB of memory beyond them",
        placement.copied as f64 / 1e9,
        placement.took.as_secs_f64(),
        rate / bandwidth,
        beyond as f64 / f64::from(1 << 20),
    );
    assert!(beyond < 1 << 30, "{beyond} bytes beyond the devices' own");
}
