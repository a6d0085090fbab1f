//! The committed HLO text of every program, and what the plugin makes of the caches.

use std::{fs, path::Path};

use gemma_pjrt::{
    gemma::{Config, More, Output, Program, ProgramSpec, Target, weights::StoredTypes},
    hlo::{DType, Mesh, proto},
    pjrt::{self, CompileOptions},
    runtime::signature,
    sampling::Sampler,
};
use prost::Message;

use crate::common::{KERNELS, NATIVE, platform, several_devices};

const GREEDY: Output = Output::Token(Sampler::Greedy);

fn spec(target: Target, preset: &str, program: Program, model: usize) -> ProgramSpec {
    let compute = DType::BF16;
    ProgramSpec {
        program,
        target,
        config: Config::preset(preset).unwrap(),
        mesh: Mesh { data: 1, model },
        compute,
        kv: compute,
        stored: StoredTypes::uniform(compute),
        slots: 2,
        cache_len: 1024,
        window: if target.has_windows() { 512 } else { 1024 },
    }
}

/// Every program that has a golden file.
fn goldens() -> Vec<(String, ProgramSpec)> {
    let programs = [
        Program::Prefill { batch: 1, bucket: 128, output: GREEDY },
        Program::Decode { output: GREEDY },
        Program::Decode { output: Output::Token(Sampler::TopK) },
        Program::Decode { output: Output::Token(Sampler::Stochastic) },
        Program::Score { bucket: 128, more: More::Nothing },
    ];
    let mut all = Vec::new();
    // Programs with quantised weights, as each target has them.
    for target in [KERNELS, NATIVE, Target::Tpu] {
        for (stored, model) in [(StoredTypes::int8(DType::BF16), 4), (StoredTypes::int4(DType::BF16), 1)] {
            let mut spec = spec(target, "tiny", Program::Decode { output: GREEDY }, model);
            spec.stored = stored;
            all.push((format!("tiny/{}.hlo.txt", spec.name()), spec));
        }
    }
    // One with matrices that a file does not align.
    let mut spec_of_shifted = spec(KERNELS, "tiny", Program::Decode { output: GREEDY }, 4);
    spec_of_shifted.stored.shifted = true;
    all.push((format!("tiny/{}.hlo.txt", spec_of_shifted.name()), spec_of_shifted));
    // What engines need besides.
    for target in [KERNELS, Target::Tpu] {
        let detailed = spec(target, "tiny", Program::Decode { output: Output::Token(Sampler::Detailed) }, 4);
        let copy = spec(target, "tiny", Program::Copy, 1);
        let many = ProgramSpec { slots: 64, ..spec(target, "tiny", Program::Decode { output: GREEDY }, 1) };
        let part = Program::Prefill { batch: 1, bucket: 128, output: Output::Nothing };
        let rows = ProgramSpec { mesh: Mesh { data: 2, model: 2 }, ..spec(target, "tiny", part, 1) };
        let together = Program::Prefill { batch: 4, bucket: 16, output: GREEDY };
        let mut together = ProgramSpec { slots: 8, kv: DType::S8, ..spec(target, "tiny", together, 1) };
        together.mesh = Mesh { data: 2, model: 2 };
        all.extend([detailed, copy, many, rows, together].map(|spec| (format!("tiny/{}.hlo.txt", spec.name()), spec)));
    }
    // And one with keys and values in eight bits.
    for target in [KERNELS, NATIVE, Target::Tpu] {
        let mut spec = spec(target, "tiny", Program::Decode { output: GREEDY }, 1);
        spec.kv = DType::S8;
        all.push((format!("tiny/{}.hlo.txt", spec.name()), spec));
    }
    for preset in Config::PRESETS {
        for program in programs {
            for model in [1, 4] {
                for target in [KERNELS, NATIVE, Target::Tpu] {
                    let spec = spec(target, preset, program, model);
                    all.push((format!("{preset}/{}.hlo.txt", spec.name()), spec));
                }
            }
        }
    }
    all
}

/// `BLESS=1 cargo test --release --test suite golden_hlo` writes the files.
#[test]
fn programs_are_those_committed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("hlo");
    let mut changed = Vec::new();
    let mut expected = Vec::new();
    for (name, spec) in goldens() {
        let path = root.join(&name);
        let text = spec.build().unwrap().text();
        if std::env::var_os("BLESS").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &text).unwrap();
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        if committed != text {
            let line = committed.lines().zip(text.lines()).position(|(a, b)| a != b).unwrap_or(0);
            changed.push(format!("{name}, from line {}", line + 1));
        }
        expected.push(path);
    }
    assert!(changed.is_empty(), "these programs changed (BLESS=1 accepts that):\n  {}", changed.join("\n  "));
    for preset in Config::PRESETS {
        for entry in fs::read_dir(root.join(preset)).unwrap() {
            let path = entry.unwrap().path();
            assert!(expected.contains(&path), "{} belongs to no program any more", path.display());
        }
    }
}

/// What is compiled for TPU and CUDA calls nothing of this program.
#[test]
fn only_cpu_programs_call_kernels() {
    for (target, calls) in [(KERNELS, true), (NATIVE, false), (Target::Tpu, false), (Target::Cuda, false)] {
        for stored in [StoredTypes::uniform, StoredTypes::int8, StoredTypes::int4].map(|stored| stored(DType::BF16)) {
            let mut spec = spec(target, "tiny", Program::Prefill { batch: 1, bucket: 64, output: GREEDY }, 2);
            spec.stored = stored;
            let found = spec.build().unwrap().text().contains("custom_call_target=\"gemma_pjrt");
            assert_eq!(found, calls, "{}", spec.name());
        }
    }
}

/// Each layer has two all-reduces; embedding has one, and greedy sampling two scalars'.
#[test]
fn collectives_are_those_of_the_design() {
    for preset in ["gemma-1.1-2b", "gemma-1.1-7b"] {
        let text = spec(KERNELS, preset, Program::Decode { output: GREEDY }, 4).build().unwrap().text();
        let layer_start = text.find("\n%decoder_layer").unwrap();
        let layer_end = layer_start + text[layer_start..].find("\n}\n").unwrap();
        let count = |text: &str| text.matches(" all-reduce(").count();
        assert_eq!(count(&text[layer_start..layer_end]), 2, "{preset}");
        assert_eq!(count(&text), 2 + 1 + 2, "{preset}");
        let single = spec(KERNELS, preset, Program::Decode { output: GREEDY }, 1).build().unwrap().text();
        assert!(!single.contains("all-reduce") && !single.contains("replica-id"));
    }
}

/// The optimized program of the plugin, for a small model with caches of a shape that nothing else has.
fn optimized(
    target: Target,
    program: Program,
    slots: i64,
    model: usize,
    compute: DType,
    kv: DType,
) -> (proto::Module, pjrt::CompiledMemoryStats, i64) {
    let mut spec = spec(target, "tiny", program, model);
    (spec.compute, spec.kv) = (compute, kv);
    (spec.slots, spec.cache_len, spec.window) = (slots, 640, if target.has_windows() { 256 } else { 640 });
    let module = spec.build().unwrap();
    let code = module.encode();
    let options = CompileOptions::replicas(0..model as i32);
    let executable =
        platform().client.compile(&pjrt::Program { code: &code, format: "hlo" }, &options, signature(&module)).unwrap();
    let (_, bytes) = executable.optimized_program().unwrap();
    let module = proto::ModuleWithConfig::decode(&bytes[..]).unwrap().module.unwrap();
    let cache_bytes = spec.cache_arrays().iter().map(|(_, shape)| shape.bytes()).sum();
    (module, executable.memory_stats().unwrap(), cache_bytes)
}

/// The cache is updated where it lies: nothing of its size is copied, converted or allocated.
#[test]
fn caches_are_updated_in_place() {
    let _alone = several_devices();
    let prefill = Program::Prefill { batch: 1, bucket: 64, output: GREEDY };
    let decode = Program::Decode { output: GREEDY };
    let cases = [
        (decode, 1, 1, DType::BF16, DType::BF16),
        (decode, 3, 1, DType::BF16, DType::BF16),
        (decode, 3, 1, DType::BF16, DType::S8),
        (decode, 3, 1, DType::F32, DType::F32),
        (decode, 1, 4, DType::BF16, DType::BF16),
        (prefill, 1, 1, DType::BF16, DType::BF16),
        (prefill, 1, 1, DType::BF16, DType::S8),
        (prefill, 3, 1, DType::F32, DType::F32),
    ];
    for (target, (program, slots, model, compute, kv)) in
        [KERNELS, NATIVE].into_iter().flat_map(|t| cases.map(|c| (t, c)))
    {
        let (module, stats, cache_bytes) = optimized(target, program, slots, model, compute, kv);
        let of_cache_size = |i: &proto::Instruction| {
            let dims = i.shape.as_ref().map(|s| s.dimensions.clone()).unwrap_or_default();
            dims.contains(&640)
        };
        let allowed =
            ["parameter", "dynamic-update-slice", "fusion", "bitcast", "get-tuple-element", "tuple", "opt-barrier"];
        for instruction in module.computations.iter().flat_map(|c| &c.instructions).filter(|i| of_cache_size(i)) {
            assert!(
                allowed.contains(&instruction.opcode.as_str()),
                "{program:?} for {} with {slots} slots in {compute}: {} {} touches a whole cache",
                target.name(),
                instruction.opcode,
                instruction.name
            );
        }
        assert_eq!(stats.alias, cache_bytes, "{program:?} with {slots} slots in {compute} does not reuse all caches");
    }
}
