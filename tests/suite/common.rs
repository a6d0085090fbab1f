//! What the tests share: the platform, running a graph, the golden models.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock},
};

use gemma_pjrt::{
    checkpoint::{Checkpoint, Tensor, write_safetensors},
    compile::{element_type, signature},
    demo,
    download::Progress,
    gemma::{Config, Lowering},
    hlo::{DType, Graph, Literal, Mesh, Module, Op, Shape},
    pjrt::{Arg, CompileOptions, Device, Program, TensorType},
    runtime::{Model, Platform, PlatformRequest, RunOptions},
    tokenizer::Tokenizer,
};

/// Virtual devices of the tests' client.
pub const DEVICES: usize = 8;

struct Silent;

impl Progress for Silent {
    fn start(&mut self, _: &str, _: u64) {}
    fn advance(&mut self, _: u64) {}
    fn finish(&mut self) {}
}

/// The CPU platform with [`DEVICES`] devices. `PJRT_PLUGIN` chooses the plugin; the default one is
/// installed if there is none.
pub fn platform() -> &'static Platform {
    static PLATFORM: OnceLock<Platform> = OnceLock::new();
    PLATFORM.get_or_init(|| {
        let kind = Some(gemma_pjrt::plugins::Kind::Cpu);
        let request = PlatformRequest { kind, plugin: None, devices: DEVICES, offline: false, gpu_memory: None };
        Platform::open(&request, &mut Silent).unwrap()
    })
}

pub fn demo_tokenizer() -> &'static Arc<Tokenizer> {
    static TOKENIZER: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    TOKENIZER.get_or_init(|| Arc::new(demo::tokenizer()))
}

/// The demo model in f32.
pub fn demo_model(lowering: Lowering, mesh: Mesh) -> Arc<Model> {
    load_f32(&demo::checkpoint(), Config::parse(demo::CONFIG).unwrap().0, lowering, mesh)
}

/// A model in f32.
pub fn load_f32(checkpoint: &Checkpoint, config: Config, lowering: Lowering, mesh: Mesh) -> Arc<Model> {
    let options = RunOptions { lowering, mesh, compute: DType::F32, kv: DType::F32, bundle: None };
    Arc::new(Model::load(platform(), checkpoint, config, options, Box::new(|_, _| ())).unwrap())
}

/// Held while programs run on several devices: one controller runs one of them at a time, and so do
/// the tests.
pub fn several_devices() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Compiles a module and runs it on `inputs[device][parameter]`; outputs `[device][output]`, as
/// bytes.
pub fn run_on_devices(module: &Module, inputs: &[Vec<Literal>]) -> Vec<Vec<Vec<u8>>> {
    let client = &platform().client;
    let devices = platform().devices(inputs.len()).unwrap();
    let ids: Vec<i32> = devices.iter().map(|d| d.id().unwrap()).collect();
    let code = module.encode();
    let program = Program { code: &code, format: "hlo" };
    let executable = client
        .compile(&program, &CompileOptions::replicas(ids), signature(module))
        .unwrap_or_else(|e| panic!("{e}\n{}", module.text()));
    let upload = |literal: &Literal, device: &Device| {
        let ty = TensorType::new(element_type(literal.shape.dtype), literal.shape.dims.clone());
        client.upload(&literal.bytes, &ty, device).unwrap()
    };
    let buffers: Vec<Vec<_>> = inputs
        .iter()
        .zip(&devices)
        .map(|(list, device)| list.iter().map(|literal| upload(literal, device)).collect())
        .collect();
    let args = buffers.iter().map(|list| list.iter().map(Arg::Keep).collect()).collect();
    let outputs = executable.execute(0, args).unwrap().wait().unwrap();
    outputs.iter().map(|list| list.iter().map(|b| b.to_host().unwrap()).collect()).collect()
}

/// Builds a graph whose parameters are `inputs`, runs it on one device, and returns its outputs as
/// bytes.
pub fn run_graph(inputs: &[Literal], build: impl for<'g> FnOnce(&'g Graph, &[Op<'g>]) -> Vec<Op<'g>>) -> Vec<Vec<u8>> {
    let graph = Graph::new("test");
    let parameters: Vec<Op<'_>> =
        inputs.iter().enumerate().map(|(i, l)| graph.parameter(&format!("x{i}"), l.shape.clone())).collect();
    let outputs = build(&graph, &parameters);
    let module = graph.finish(&outputs).unwrap();
    run_on_devices(&module, &[inputs.to_vec()]).swap_remove(0)
}

/// As [`run_graph`] with one f32 output.
pub fn run_f32(inputs: &[Literal], build: impl for<'g> FnOnce(&'g Graph, &[Op<'g>]) -> Op<'g>) -> Vec<f32> {
    numbers(&run_graph(inputs, |g, p| vec![build(g, p)])[0])
}

/// As [`run_graph`] with one s32 output.
pub fn run_s32(inputs: &[Literal], build: impl for<'g> FnOnce(&'g Graph, &[Op<'g>]) -> Op<'g>) -> Vec<i32> {
    numbers(&run_graph(inputs, |g, p| vec![build(g, p)])[0])
}

pub fn numbers<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    bytemuck::allocation::pod_collect_to_vec(bytes)
}

pub fn u32s(dims: &[i64], values: &[u32]) -> Literal {
    Literal { shape: Shape::new(DType::U32, dims), bytes: bytemuck::cast_slice(values).to_vec() }
}

/// Fails unless every element is within `tolerance` of the largest expected magnitude.
#[track_caller]
pub fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    let (at, worst) = worst(found, expected);
    assert!(
        worst <= tolerance,
        "element {at}: {} instead of {}, off by {worst} of the largest",
        found[at],
        expected[at]
    );
}

/// The element that differs most from what is expected, and by how much of the largest expected
/// magnitude. NaN if one is.
pub fn worst(found: &[f32], expected: &[f32]) -> (usize, f32) {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(1e-30_f32, |m, x| m.max(x.abs()));
    let pairs = found.iter().zip(expected);
    let off = pairs.map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() / scale }).enumerate();
    off.fold((0, 0.0_f32), |worst, e| if e.1 > worst.1 || e.1.is_nan() { e } else { worst })
}

pub fn golden_dir(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(model)
}

pub fn golden_config(model: &str) -> Config {
    Config::parse(&std::fs::read_to_string(golden_dir(model).join("config.json")).unwrap()).unwrap().0
}

pub const KERNELS: Lowering = Lowering::CPU;
pub const NATIVE: Lowering = Lowering::CPU_NATIVE;

/// A golden model on the first devices of the shared client.
pub fn golden_model(model: &str, mesh: Mesh, compute: DType, lowering: Lowering) -> Arc<Model> {
    let checkpoint = Checkpoint::open(&golden_dir(model)).unwrap();
    let options = RunOptions { lowering, mesh, compute, kv: compute, bundle: None };
    Arc::new(Model::load(platform(), &checkpoint, golden_config(model), options, Box::new(|_, _| ())).unwrap())
}

/// Name, type, dims and bytes of each tensor of a file.
pub type Tensors = Vec<(String, DType, Vec<i64>, Vec<u8>)>;

pub fn golden_tensors(model: &str) -> Tensors {
    tensors_of(&Checkpoint::open(&golden_dir(model)).unwrap())
}

pub fn tensors_of(source: &Checkpoint) -> Tensors {
    let copy = |(name, tensor): (&String, &Tensor)| {
        (name.clone(), *tensor.dtype.as_ref().unwrap(), tensor.dims.clone(), tensor.bytes.bytes().to_vec())
    };
    source.tensors().iter().map(copy).collect()
}

pub fn write_tensors(path: &Path, tensors: &Tensors) {
    let list: Vec<_> = tensors.iter().map(|(name, dtype, dims, _)| (name.clone(), *dtype, dims.clone())).collect();
    write_safetensors(path, &list, |i, out| out.write_all(&tensors[i].3)).unwrap();
}

/// What transformers computed, see scripts/reference/goldens.py.
pub struct Golden(Vec<u8>);

impl Golden {
    pub fn read(model: &str) -> Self {
        Self(std::fs::read(golden_dir(model).join("golden.safetensors")).unwrap())
    }

    pub fn f32s(&self, name: &str) -> Vec<f32> {
        numbers(safetensors::SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().data())
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        numbers(safetensors::SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().data())
    }
}
