//! Programs for Cloud TPU v5e, compiled by libtpu on a machine without a TPU. Needs the tpu plugin: ci/run installs it.

use gemma_pjrt::{
    gemma::{Config, Output, Program, ProgramSpec, Target, weights::StoredTypes},
    hlo::{DType, Mesh},
    pjrt::{Api, CompileOptions, Program as Code, Topology, Value},
    plugins::{Kind, locate},
    sampling::Sampler,
};

/// Tells libtpu that this is no Cloud TPU VM, before it is loaded: it would look for the metadata server for minutes.
fn api() -> Api {
    for (name, value) in [("TPU_SKIP_MDS_QUERY", "1"), ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"), ("TPU_LOG_DIR", "disabled")]
    {
        // SAFETY: this binary's only test that loads a plugin does it here, first.
        unsafe { std::env::set_var(name, value) };
    }
    let found = locate(Kind::Tpu, None).expect("run: gemma-pjrt plugins install tpu");
    Api::load(&found.path).unwrap()
}

#[test]
fn decode_and_prefill_compile_for_v5e() {
    let api = api();
    let topology = Topology::new(&api, "v5e:2x2", &vec![]).unwrap();
    assert_eq!(topology.platform_name().unwrap(), "tpu");
    assert_eq!(topology.devices().unwrap().len(), 4);
    let attributes = topology.attributes().unwrap();
    let limit = attributes.iter().find(|(name, _)| name == "device_memory_bytes_limit");
    // 15.748 GiB; two values were seen, 1.5 KiB apart.
    assert!(
        matches!(limit, Some((_, Value::Int(bytes))) if (15.74..15.75).contains(&(*bytes as f64 / 2.0_f64.powi(30))))
    );

    let sampled = Output::Token(Sampler::Stochastic);
    let bf16 = StoredTypes::uniform(DType::BF16);
    let decode = Program::Decode { output: sampled };
    let prefill = Program::Prefill { bucket: 64, output: Output::Token(Sampler::Greedy) };
    for (program, stored, kv) in [
        (decode, bf16.clone(), DType::BF16),
        (prefill, bf16.clone(), DType::BF16),
        (Program::Score { bucket: 64, logits: false }, bf16, DType::BF16),
        (decode, StoredTypes::int8(DType::BF16), DType::S8),
        (prefill, StoredTypes::int4(DType::BF16), DType::S8),
        (decode, StoredTypes::int4(DType::BF16), DType::BF16),
    ] {
        let spec = ProgramSpec {
            program,
            target: Target::Tpu,
            config: Config::preset("tiny").unwrap(),
            mesh: Mesh { data: 1, model: 4 },
            compute: DType::BF16,
            kv,
            stored,
            slots: 2,
            cache_len: 1024,
            window: 512,
        };
        let module = spec.build().unwrap();
        let code = module.encode();
        let executable = topology
            .compile(&Code { code: &code, format: "hlo" }, &CompileOptions::replicas(0..4))
            .unwrap_or_else(|e| panic!("{}: {e}", spec.name()));
        let stats = executable.memory_stats().unwrap();
        assert!(stats.alias > 0 && stats.arguments > stats.alias, "{stats:?}");
        assert!(!executable.serialize().unwrap().is_empty());
    }
    let unknown = Topology::new(&api, "v5e:nonsense", &vec![]).err().unwrap();
    println!("{unknown}");
}
