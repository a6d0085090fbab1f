//! The PJRT room on a real plugin: moving arrays, running, donating, serializing, FFI, and refusing
//! what would crash.

use std::sync::Arc;

use gemma_pjrt::{
    compile::signature,
    hlo::{DType, Graph, Mesh, Module, Shape},
    pjrt::{
        Api, Arg, Buffer, Client, Code, CompileOptions, Device, ElementType, Error, Executable, HostBytes, HostMemory,
        Program, TensorType, Topology, Value, ffi,
    },
};

use crate::common::{platform, several_devices};

fn client() -> &'static Client {
    &platform().client
}

fn devices(n: usize) -> Vec<Device> {
    platform().devices(n).unwrap()
}

fn f32_type(dims: &[i64]) -> TensorType {
    TensorType::new(ElementType::F32, dims)
}

fn upload(values: &[f32], device: &Device) -> Buffer {
    client().upload_slice(values, &f32_type(&[values.len() as i64]), device).unwrap()
}

fn compile(module: &Module, devices: &[Device]) -> Executable {
    let code = module.encode();
    let options = CompileOptions::replicas(devices.iter().map(|d| d.id().unwrap()));
    client().compile(&Program { code: &code, format: "hlo" }, &options, signature(module)).unwrap()
}

/// x + y, of which the result may take the memory of y.
fn add_in_place(n: i64) -> Module {
    let g = Graph::new("add_in_place");
    let x = g.parameter("x", Shape::new(DType::F32, [n]));
    let y = g.parameter("y", Shape::new(DType::F32, [n]));
    g.alias(y, 0);
    g.finish(&[x + y]).unwrap()
}

#[test]
fn the_plugin_tells_about_itself() {
    let api = client().api();
    assert_eq!(api.version().0, 0);
    assert!(api.num_slots() > 100);
    assert!(api.extensions().contains(&"FFI".to_owned()));
    assert!(api.attributes().unwrap().iter().any(|(name, _)| name == "xla_version"));
    assert_eq!(client().platform_name().unwrap(), "cpu");
    let device = &devices(1)[0];
    assert_eq!(device.id().unwrap(), 0);
    assert!(!device.kind().unwrap().is_empty());
    assert!(!device.describe().unwrap().is_empty());
    assert!(!device.memories().unwrap().is_empty());
    assert!(!device.default_memory().unwrap().kind().unwrap().is_empty());
    let error = device.memory_stats().unwrap_err();
    assert_eq!(error.code(), Some(Code::Unimplemented), "{error}");
}

#[test]
fn arrays_survive_the_round_trip_whole_and_in_part() {
    let values: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    let buffer = upload(&values, &devices(1)[0]);
    buffer.wait().unwrap();
    assert_eq!(buffer.to_vec::<f32>().unwrap(), values);
    let mut part = [0u8; 8];
    buffer.read_part(&mut part, 40).unwrap();
    assert_eq!(bytemuck::cast_slice::<u8, f32>(&part), [10.0, 11.0]);
    assert!(buffer.read_part(&mut part, 3996).is_err());
    assert!(buffer.to_vec::<u16>().is_err());
    let error = client().upload(&[0; 12], &f32_type(&[4]), &devices(1)[0]).err().unwrap().to_string();
    assert!(error.contains("12 bytes") && error.contains("f32[4]"), "{error}");
}

#[test]
fn borrowed_memory_is_used_in_place_and_released() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let values: Vec<f32> = (0..2048).map(|i| i as f32).collect();
    std::fs::write(file.path(), bytemuck::cast_slice(&values)).unwrap();
    let memory = HostMemory::map(file.path()).unwrap();
    let whole = HostBytes::new(memory.clone(), 0..8192);
    let part = whole.slice(4096..8192);
    let address = part.bytes().as_ptr() as usize;
    let buffer = client().borrow(part, &f32_type(&[1024]), &devices(1)[0]).unwrap();
    assert_eq!(buffer.device_address().unwrap(), address);
    assert_eq!(buffer.to_vec::<f32>().unwrap(), values[1024..]);
    drop(whole);
    drop(buffer);
    // The plugin gives the memory back on a thread of its own.
    let released = (0..500).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        Arc::strong_count(&memory) == 1
    });
    assert!(released, "the mapping is still held");

    // Not a multiple of 64: the plugin copies, and the numbers are right all the same.
    let part = HostBytes::new(memory, 4..4 + 4096);
    let address = part.bytes().as_ptr() as usize;
    let buffer = client().borrow(part, &f32_type(&[1024]), &devices(1)[0]).unwrap();
    assert_ne!(buffer.device_address().unwrap(), address);
    assert_eq!(buffer.to_vec::<f32>().unwrap(), values[1..1025]);
}

#[test]
fn arrays_are_filled_by_asynchronous_transfers() {
    let types = [f32_type(&[1000]), TensorType::new(ElementType::S32, [2, 3])];
    let values: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    let bytes = HostBytes::from(bytemuck::cast_slice(&values).to_vec());
    let mut manager = client().transfer_manager(&types, &devices(1)[0]).unwrap();
    for start in (0..4000).step_by(1600) {
        manager.send(0, bytes.slice(start..4000.min(start + 1600))).unwrap();
    }
    manager.send(1, HostBytes::from(bytemuck::cast_slice(&[1, 2, 3, 4, 5, 6]).to_vec())).unwrap();
    assert!(manager.send(1, HostBytes::from(vec![0; 4])).is_err(), "more than the array holds");
    let buffers = manager.finish().unwrap();
    assert_eq!(buffers[0].to_vec::<f32>().unwrap(), values);
    assert_eq!(buffers[1].to_vec::<i32>().unwrap(), [1, 2, 3, 4, 5, 6]);

    let mut manager = client().transfer_manager(&types[..1], &devices(1)[0]).unwrap();
    manager.send(0, bytes.slice(0..400)).unwrap();
    let error = manager.finish().err().unwrap().to_string();
    assert!(error.contains("400 of the 4000"), "{error}");
}

#[test]
fn donated_memory_is_reused_and_kept_memory_is_not() {
    let device = &devices(1)[0];
    let module = add_in_place(1024);
    let executable = compile(&module, std::slice::from_ref(device));
    let x = upload(&[1.0; 1024], device);
    let y = upload(&[2.0; 1024], device);
    let kept = executable.execute(0, vec![vec![Arg::Keep(&x), Arg::Keep(&y)]]).unwrap().wait().unwrap();
    assert_eq!(kept[0][0].to_vec::<f32>().unwrap(), [3.0; 1024]);
    assert_eq!(y.to_vec::<f32>().unwrap(), [2.0; 1024], "kept arguments stay as they are");

    let address = y.device_address().unwrap();
    let donated = executable.execute(0, vec![vec![Arg::Keep(&x), Arg::Donate(y)]]).unwrap().wait().unwrap();
    assert_eq!(donated[0][0].device_address().unwrap(), address);
    assert_eq!(donated[0][0].to_vec::<f32>().unwrap(), [3.0; 1024]);
    let stats = executable.memory_stats().unwrap();
    assert_eq!((stats.arguments, stats.alias), (8192, 4096));
}

#[test]
fn wrong_arguments_never_reach_the_plugin() {
    let device = &devices(1)[0];
    let executable = compile(&add_in_place(4), std::slice::from_ref(device));
    let x = upload(&[1.0; 4], device);
    let short = upload(&[1.0; 3], device);
    let integers = client().upload_slice(&[1, 2, 3, 4], &TensorType::new(ElementType::S32, [4]), device).unwrap();
    let refuse = |args: Vec<Vec<Arg<'_>>>, words: &[&str]| {
        let error = executable.execute(0, args).err().expect("refused").to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    refuse(vec![vec![Arg::Keep(&x)]], &["takes 2 arguments, 1 were given"]);
    refuse(vec![vec![Arg::Keep(&x), Arg::Keep(&short)]], &["argument 1 (y)", "f32[3]", "f32[4]"]);
    refuse(vec![vec![Arg::Keep(&integers), Arg::Keep(&x)]], &["argument 0 (x)", "s32[4]", "f32[4]"]);
    refuse(vec![], &["runs on 1 devices"]);
    refuse(vec![vec![Arg::Keep(&x), Arg::Keep(&x)], vec![Arg::Keep(&x), Arg::Keep(&x)]], &["for 2 were given"]);
    let fine = executable.execute(0, vec![vec![Arg::Keep(&x), Arg::Keep(&x)]]).unwrap().wait().unwrap();
    assert_eq!(fine[0][0].to_vec::<f32>().unwrap(), [2.0; 4]);
}

#[test]
fn several_devices_run_one_program() {
    let _alone = several_devices();
    let g = Graph::new("sum_over_devices");
    let x = g.parameter("x", Shape::new(DType::F32, [2]));
    let module = g.finish(&[Mesh { data: 1, model: 4 }.sum(x)]).unwrap();
    let devices = devices(4);
    let executable = compile(&module, &devices);
    let ids = |list: &[Device]| list.iter().map(|d| d.id().unwrap()).collect::<Vec<_>>();
    assert_eq!(ids(executable.devices()), ids(&devices));
    let inputs: Vec<Buffer> = (0..4).map(|d| upload(&[d as f32, 1.0], &devices[d])).collect();
    for launch_id in 0..4 {
        let args = inputs.iter().map(|b| vec![Arg::Keep(b)]).collect();
        for outputs in executable.execute(launch_id, args).unwrap().wait().unwrap() {
            assert_eq!(outputs[0].to_vec::<f32>().unwrap(), [6.0, 4.0]);
        }
    }
    let mixed = vec![vec![Arg::Keep(&inputs[0])], vec![Arg::Keep(&inputs[1])], vec![Arg::Keep(&inputs[2])], vec![]];
    assert!(executable.execute(0, mixed).is_err());
}

#[test]
fn programs_can_be_serialized_and_loaded() {
    let device = &devices(1)[0];
    let module = add_in_place(16);
    let executable = compile(&module, std::slice::from_ref(device));
    let bytes = executable.serialize().unwrap();
    let again = client().deserialize(&bytes, signature(&module)).unwrap();
    let (x, y) = (upload(&[1.0; 16], device), upload(&[5.0; 16], device));
    let address = y.device_address().unwrap();
    let out = again.execute(0, vec![vec![Arg::Keep(&x), Arg::Donate(y)]]).unwrap().wait().unwrap();
    assert_eq!(out[0][0].to_vec::<f32>().unwrap(), [6.0; 16]);
    assert_eq!(out[0][0].device_address().unwrap(), address, "donation survives serialization");
    assert!(client().deserialize(b"not an executable", signature(&module)).is_err());
    let (format, code) = executable.optimized_program().unwrap();
    assert_eq!(format, "hlo_with_config");
    assert!(!code.is_empty());
}

#[test]
fn a_signature_that_is_not_the_programs_is_refused() {
    let module = add_in_place(4);
    let mut wrong = signature(&module);
    wrong.outputs.push(f32_type(&[4]));
    let code = module.encode();
    let program = Program { code: &code, format: "hlo" };
    let error = client().compile(&program, &CompileOptions::default(), wrong).err().unwrap().to_string();
    assert!(error.contains("1 outputs") && error.contains('2'), "{error}");
}

#[test]
fn bad_programs_and_options_are_errors() {
    let garbage = Program { code: b"garbage", format: "hlo" };
    let error = client().compile(&garbage, &CompileOptions::default(), Default::default()).err().unwrap();
    assert!(matches!(error, Error::Plugin { .. }), "{error}");
    let module = add_in_place(4);
    let code = module.encode();
    let program = Program { code: &code, format: "hlo" };
    let mut options = CompileOptions::default();
    options.flags.insert("xla_no_such_flag".into(), Value::Bool(true));
    let error = client().compile(&program, &options, signature(&module)).err().unwrap().to_string();
    assert!(error.contains("xla_no_such_flag"), "{error}");
    let format = Program { code: &code, format: "punchcards" };
    assert!(client().compile(&format, &CompileOptions::default(), signature(&module)).is_err());
}

#[test]
fn compile_for_the_clients_topology_ahead_of_time() {
    let topology: Topology = client().topology().unwrap();
    assert_eq!(topology.platform_name().unwrap(), "cpu");
    assert!(!topology.devices().unwrap().is_empty());
    topology.attributes().unwrap();
    let module = add_in_place(4);
    let code = module.encode();
    let program = Program { code: &code, format: "hlo" };
    match topology.compile(&program, &CompileOptions::replicas([0])) {
        Ok(executable) => assert_eq!(executable.memory_stats().unwrap().alias, 16),
        // Neither CPU plugin tried compiles for a topology; libtpu does (tests/external).
        Err(e) => assert!(matches!(e.code(), Some(Code::Unimplemented | Code::NotFound)), "{e}"),
    }
}

struct Scale;

impl ffi::Handler for Scale {
    const TARGET: &'static str = "gemma_pjrt_test_scale";

    fn call(frame: ffi::Frame<'_>) -> Result<(), String> {
        let by = frame.attribute_i64("by")? as f32;
        let (operands, [out]) = frame.arrays()?;
        let [x] = &operands[..] else { return Err("takes one operand".into()) };
        if x.dims().len() != 1 {
            return Err(format!("takes one dimension, not {:?}", x.dims()));
        }
        if by == 13.0 {
            panic!("unlucky");
        }
        let out = out.as_mut_slice::<f32>()?;
        out.iter_mut().zip(x.as_slice::<f32>()?).for_each(|(o, v)| *o = v * by);
        Ok(())
    }
}

#[test]
fn rust_functions_are_called_by_compiled_programs() {
    let device = &devices(1)[0];
    ffi::register::<Scale>(client().api()).unwrap();
    let run = |dims: &[i64], by: i64| {
        let g = Graph::new("custom");
        let x = g.parameter("x", Shape::new(DType::F32, dims));
        let scaled = g.custom_call(Scale::TARGET, &[x], &[x.shape()], &[("by", by)], &[])[0];
        let module = g.finish(&[scaled + 1.0]).unwrap();
        let n = dims.iter().product::<i64>() as usize;
        let x = client().upload_slice(&vec![2.0_f32; n], &f32_type(dims), device).unwrap();
        let executable = compile(&module, std::slice::from_ref(device));
        executable
            .execute(0, vec![vec![Arg::Keep(&x)]])
            .and_then(|e| e.wait())
            .map(|o| o[0][0].to_vec::<f32>().unwrap())
    };
    use ffi::Handler;
    assert_eq!(run(&[3], 5).unwrap(), [11.0; 3]);
    let error = run(&[2, 2], 5).unwrap_err().to_string();
    assert!(error.contains("takes one dimension, not [2, 2]"), "{error}");
    let error = run(&[3], 13).unwrap_err().to_string();
    assert!(error.contains("panicked"), "{error}");
}

#[test]
fn many_threads_share_one_client() {
    let device = &devices(1)[0];
    let executable = compile(&add_in_place(64), std::slice::from_ref(device));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let executable = &executable;
            scope.spawn(move || {
                for i in 0..25 {
                    let (x, y) = (upload(&[thread as f32; 64], device), upload(&[i as f32; 64], device));
                    let out = executable.execute(0, vec![vec![Arg::Keep(&x), Arg::Donate(y)]]).unwrap().wait().unwrap();
                    assert_eq!(out[0][0].to_vec::<f32>().unwrap(), [(thread + i) as f32; 64]);
                }
            });
        }
    });
}

#[test]
fn files_that_are_no_plugins_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let mut other_machine = b"\x7fELF\x02\x01\x01".to_vec();
    other_machine.resize(64, 0);
    other_machine[16] = 3; // a shared object
    other_machine[18] = if cfg!(target_arch = "aarch64") { 62 } else { 183 };
    let mut broken = other_machine.clone();
    broken[18] = if cfg!(target_arch = "aarch64") { 183 } else { 62 };
    for (path, words) in [
        (dir.path().join("missing.so"), "No such file"),
        (write("text.so", b"this is no library, although its name says so"), "no ELF header"),
        (write("short.so", b"\x7fELF"), "too short"),
        (write("other.so", &other_machine), "is built for"),
        (write("broken.so", &broken), "cannot load"),
    ] {
        let error = Api::load(&path).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains(path.to_str().unwrap()), "{error}");
    }
    // A real library, but no plugin: the C library's own maths.
    let libm = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6"];
    if let Some(path) = libm.iter().map(std::path::Path::new).find(|p| p.exists()) {
        let error = Api::load(path).unwrap_err().to_string();
        assert!(error.contains("not a PJRT plugin"), "{error}");
    }
}
