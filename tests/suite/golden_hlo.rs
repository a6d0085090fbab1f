//! The committed HLO of every program: as text for the tiny model, as one line of a table for the
//! 2B and the 7B; and what the plugin makes of the caches.

use std::{collections::BTreeMap, fmt::Write, fs, path::Path};

use gemma_pjrt::{
    compile::signature,
    gemma::{Config, Head, Lowering, ModelSpec, Program, ProgramSpec, StoredTypes},
    hlo::{DType, Mesh, Module, proto},
    pjrt::{self, CompileOptions},
    sampling::Sampler,
};
use prost::Message;
use sha2::{Digest, Sha256};

use crate::common::{KERNELS, NATIVE, platform, several_devices};

const GREEDY: Head = Head::Sample(Sampler::Greedy);
const STEP: Program = Program::Step { tokens: 128, head: GREEDY };
const DECODE: Program = Program::Decode { sampler: Sampler::Greedy };

fn model(lowering: Lowering, preset: &str, mesh: Mesh) -> ModelSpec {
    let (compute, stored) = (DType::BF16, StoredTypes::uniform(DType::BF16));
    ModelSpec { config: Config::preset(preset).unwrap(), mesh, lowering, compute, kv: compute, stored }
}

fn program(model: ModelSpec, program: Program) -> ProgramSpec {
    ProgramSpec { model: model.into(), program, slots: 2, cache_len: 1024, window: 512 }
}

/// The program in which a model decodes.
fn decode(model: ModelSpec) -> ProgramSpec {
    let step = Program::Step { tokens: 2, head: GREEDY };
    let is_own = model.lowering.batches_decode;
    program(model, if is_own { DECODE } else { step })
}

fn tp(model: usize) -> Mesh {
    Mesh { data: 1, model }
}

/// Programs of the tiny model, whose text is committed.
fn texts() -> Vec<ProgramSpec> {
    let tiny = |lowering, mesh| model(lowering, "tiny", mesh);
    let mut all = Vec::new();
    for lowering in [KERNELS, NATIVE, Lowering::TPU] {
        for mesh in [tp(1), tp(4)] {
            for head in
                [GREEDY, Head::Sample(Sampler::TopK), Head::Sample(Sampler::Stochastic), Head::Logprobs { top: false }]
            {
                all.push(program(tiny(lowering, mesh), Program::Step { tokens: 128, head }));
            }
            all.push(decode(tiny(lowering, mesh)));
        }
        // Quantised weights and caches.
        for stored in [StoredTypes::int8(DType::BF16), StoredTypes::int4(DType::BF16)] {
            all.push(decode(ModelSpec { stored, ..tiny(lowering, tp(1)) }));
        }
        for spec in [decode as fn(_) -> _, |model| program(model, STEP)] {
            all.push(spec(ModelSpec { kv: DType::S8, ..tiny(lowering, Mesh { data: 2, model: 2 }) }));
        }
        all.push(program(tiny(lowering, tp(1)), Program::Copy));
        all.push(program(tiny(lowering, tp(4)), Program::Step { tokens: 32, head: Head::Sample(Sampler::Logprobs) }));
    }
    // Tokens that are not allowed.
    let masked = |lowering, mesh, sampler| {
        program(tiny(lowering, mesh), Program::Step { tokens: 32, head: Head::Sample(sampler) })
    };
    all.extend([KERNELS, NATIVE, Lowering::TPU].map(|lowering| masked(lowering, tp(4), Sampler::MaskedGreedy)));
    all.push(masked(Lowering::TPU, tp(1), Sampler::Masked));
    all.push(masked(Lowering::TPU, tp(4), Sampler::MaskedLogprobs));
    all.push(program(tiny(Lowering::TPU, tp(1)), Program::Decode { sampler: Sampler::MaskedGreedy }));
    // Matrices that a file does not align.
    let mut unaligned = tiny(KERNELS, tp(4));
    unaligned.stored.unaligned = true;
    all.push(program(unaligned, STEP));
    // Many slots, and the heads that look inside.
    all.push(ProgramSpec { slots: 64, ..decode(tiny(Lowering::TPU, tp(1))) });
    for head in [Head::None, Head::Logits, Head::Hidden, Head::Logprobs { top: true }] {
        all.push(program(tiny(Lowering::TPU, tp(1)), Program::Step { tokens: 32, head }));
    }
    all
}

/// Programs of the models that people run, of which the table has one line each.
fn lines() -> Vec<ProgramSpec> {
    let mut all = Vec::new();
    for preset in ["gemma-1.1-2b", "gemma-1.1-7b"] {
        for lowering in [KERNELS, NATIVE, Lowering::TPU] {
            for mesh in [tp(1), tp(4)] {
                for head in [GREEDY, Head::Sample(Sampler::TopK), Head::Logprobs { top: false }] {
                    all.push(program(model(lowering, preset, mesh), Program::Step { tokens: 512, head }));
                }
                all.push(decode(model(lowering, preset, mesh)));
            }
        }
    }
    all
}

/// A program in one line: its name, instructions by opcode, parameters and their bytes, what
/// devices send each other, and a digest of its text.
fn line(spec: &ProgramSpec, module: &Module) -> String {
    let mut opcodes: BTreeMap<String, usize> = BTreeMap::new();
    for instruction in module.to_proto().computations.into_iter().flat_map(|c| c.instructions) {
        *opcodes.entry(instruction.opcode).or_default() += 1;
    }
    let mut by_count: Vec<(usize, String)> = opcodes.into_iter().map(|(opcode, count)| (count, opcode)).collect();
    by_count.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let total: usize = by_count.iter().map(|(count, _)| count).sum();
    let most: Vec<String> = by_count.iter().take(6).map(|(count, opcode)| format!("{count} {opcode}")).collect();
    let parameters = module.parameters();
    let bytes: i64 = parameters.iter().map(|(_, shape)| shape.bytes()).sum();
    let collectives: i64 = module.collectives().iter().map(|c| c.times).sum();
    let sent: i64 = module.collectives().iter().map(|c| c.times * c.bytes).sum();
    let digest = Sha256::digest(module.text());
    let preset = if spec.model.config.num_hidden_layers == 18 { "2B" } else { "7B" };
    format!(
        "| {preset} {} | {total}: {} | {} of {bytes} | {collectives} of {sent} | {:02x}{:02x}{:02x}{:02x} |",
        spec.name(),
        most.join(", "),
        parameters.len(),
        digest[0],
        digest[1],
        digest[2],
        digest[3]
    )
}

const TABLE_HEAD: &str = "# Programs of the 2B and the 7B\n\nWritten by the test `golden_hlo`; see README.md here. Parameters and \
                          collectives are followed by their bytes on one device.\n\n\
                          | program | instructions | parameters | collectives | digest |\n|---|---|---|---|---|\n";

/// `BLESS=1 cargo test --release --test suite golden_hlo` writes the files.
#[test]
fn programs_are_those_committed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("hlo");
    let mut files: Vec<(String, String)> =
        texts().iter().map(|spec| (format!("tiny/{}.hlo.txt", spec.name()), spec.build().unwrap().text())).collect();
    let mut table = TABLE_HEAD.to_owned();
    for spec in lines() {
        writeln!(table, "{}", line(&spec, &spec.build().unwrap())).unwrap();
    }
    files.push(("programs.md".to_owned(), table));
    let mut changed = Vec::new();
    for (name, text) in &files {
        let path = root.join(name);
        if std::env::var_os("BLESS").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        if committed != *text {
            let line = committed.lines().zip(text.lines()).position(|(a, b)| a != b).unwrap_or(0);
            changed.push(format!("{name}, from line {}", line + 1));
        }
    }
    assert!(changed.is_empty(), "these programs changed (BLESS=1 accepts that):\n  {}", changed.join("\n  "));
    for entry in fs::read_dir(root.join("tiny")).unwrap() {
        let name = format!("tiny/{}", entry.unwrap().file_name().to_string_lossy());
        assert!(files.iter().any(|(known, _)| *known == name), "{name} belongs to no program any more");
    }
}

/// What is compiled for TPU and CUDA calls nothing of this program.
#[test]
fn only_cpu_programs_call_kernels() {
    for (lowering, calls) in [(KERNELS, true), (NATIVE, false), (Lowering::TPU, false), (Lowering::CUDA, false)] {
        for stored in [StoredTypes::uniform, StoredTypes::int8, StoredTypes::int4].map(|stored| stored(DType::BF16)) {
            let spec = program(ModelSpec { stored, ..model(lowering, "tiny", tp(2)) }, STEP);
            let found = spec.build().unwrap().text().contains("custom_call_target=\"gemma_pjrt");
            assert_eq!(found, calls, "{}", spec.name());
        }
    }
}

/// Each layer has two all-reduces; embedding has one, and greedy sampling two scalars'.
#[test]
fn collectives_are_those_of_the_design() {
    for preset in ["gemma-1.1-2b", "gemma-1.1-7b"] {
        let text = program(model(KERNELS, preset, tp(4)), STEP).build().unwrap().text();
        let layer_start = text.find("\n%decoder_layer").unwrap();
        let layer_end = layer_start + text[layer_start..].find("\n}\n").unwrap();
        let count = |text: &str| text.matches(" all-reduce(").count();
        assert_eq!(count(&text[layer_start..layer_end]), 2, "{preset}");
        assert_eq!(count(&text), 2 + 1 + 2, "{preset}");
        let single = program(model(KERNELS, preset, tp(1)), STEP).build().unwrap().text();
        assert!(!single.contains("all-reduce") && !single.contains("replica-id"));
    }
}

/// The optimized program of the plugin, for a small model with caches of a shape that nothing else
/// has.
fn optimized(
    lowering: Lowering,
    (program, slots, tp_size, compute, kv): (Program, i64, usize, DType, DType),
) -> (proto::Module, pjrt::CompiledMemoryStats, i64) {
    let model = ModelSpec { compute, kv, ..model(lowering, "tiny", tp(tp_size)) };
    let spec = ProgramSpec { model: model.into(), program, slots, cache_len: 640, window: 256 };
    let module = spec.build().unwrap();
    let code = module.encode();
    let options = CompileOptions::replicas(0..tp_size as i32);
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
    let step = |tokens| Program::Step { tokens, head: GREEDY };
    let cases = [
        (step(1), 1, 1, DType::BF16, DType::BF16),
        (step(3), 3, 1, DType::BF16, DType::BF16),
        (step(3), 3, 1, DType::BF16, DType::S8),
        (step(3), 3, 1, DType::F32, DType::F32),
        (step(1), 1, 4, DType::BF16, DType::BF16),
        (step(64), 1, 1, DType::BF16, DType::BF16),
        (step(64), 1, 1, DType::BF16, DType::S8),
        (step(256), 3, 1, DType::F32, DType::F32),
        (step(256), 3, 4, DType::BF16, DType::S8),
    ];
    for lowering in [KERNELS, NATIVE] {
        for case in cases {
            let (module, stats, cache_bytes) = optimized(lowering, case);
            let is_of_cache_size = |i: &proto::Instruction| {
                let dims = i.shape.as_ref().map(|s| s.dimensions.clone()).unwrap_or_default();
                dims.contains(&640)
            };
            let allowed =
                ["parameter", "dynamic-update-slice", "fusion", "bitcast", "get-tuple-element", "tuple", "opt-barrier"];
            for instruction in module.computations.iter().flat_map(|c| &c.instructions).filter(|i| is_of_cache_size(i))
            {
                assert!(
                    allowed.contains(&instruction.opcode.as_str()),
                    "{case:?} for {}: {} {} touches a whole cache",
                    lowering.name,
                    instruction.opcode,
                    instruction.name
                );
            }
            assert_eq!(stats.alias, cache_bytes, "{case:?} for {} does not reuse all caches", lowering.name);
        }
    }
}
