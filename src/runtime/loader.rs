//! Loading weights into the memory of accelerators, where layers are stacked: every device gets its
//! own shard only, straight from the mapped files, all devices at once, while programs are
//! compiled.

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

pub(super) use super::placement::PlacedWeights;
use super::placement::{Placement, Shard};
use crate::{
    checkpoint::Tensor,
    compile::Programs,
    device::{During, Error, Result},
    gemma::{Argument, ModelSpec, tensors::TensorSpec, zeros},
    hlo::Shape,
    pjrt::{Arg, Buffer, Device, ElementType, HostBytes, TensorType, Upload},
};

/// Told of bytes that are on their way to devices: how many more, of how many in all.
pub type OnProgress = Box<dyn FnMut(u64, u64) + Send>;

/// Weights on devices, or on their way there.
pub(super) struct PendingWeights {
    thread: Mutex<Option<JoinHandle<Result<PlacedWeights>>>>,
    placed: OnceLock<PlacedWeights>,
    cancelled: Arc<AtomicBool>,
}

impl PendingWeights {
    /// Weights that are there.
    pub fn placed(placed: PlacedWeights) -> Self {
        Self { thread: Mutex::default(), placed: OnceLock::from(placed), cancelled: Arc::default() }
    }

    /// Starts to load them.
    pub fn load(loader: WeightLoader, on_progress: OnProgress) -> Self {
        let cancelled = Arc::new(AtomicBool::new(false));
        let flag = cancelled.clone();
        let thread = thread::spawn(move || loader.run(&flag, on_progress));
        Self { thread: Mutex::new(Some(thread)), placed: OnceLock::new(), cancelled }
    }

    /// Waits for them. An error of loading is told to the first who asks.
    pub fn get(&self) -> Result<&PlacedWeights> {
        let mut thread = self.thread.lock().expect("no panic while held");
        if let Some(thread) = thread.take() {
            let placed = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            let _ = self.placed.set(placed); // the thread is taken once
        }
        self.placed.get().ok_or_else(|| Error::Invalid("the weights could not be loaded before".into()))
    }
}

impl Drop for PendingWeights {
    /// Nothing may run inside a plugin when the process ends.
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.get_mut().ok().and_then(Option::take) {
            let _ = thread.join();
        }
    }
}

/// Loads weights to devices.
pub(super) struct WeightLoader {
    programs: Arc<Programs>,
    model: Arc<ModelSpec>,
    /// Each with its tensors' memory, in the order in which programs take them.
    arguments: Vec<(Argument, Vec<HostBytes>)>,
}

impl WeightLoader {
    pub fn new(programs: Arc<Programs>, model: Arc<ModelSpec>, tensors: &[(TensorSpec, &Tensor)]) -> Result<Self> {
        let memory = |spec: &TensorSpec| {
            let found = tensors.iter().find(|(other, _)| other.name == spec.name);
            found.expect("all tensors were selected").1.bytes.clone()
        };
        let with_memory = |argument: Argument| {
            let memory = argument.tensors.iter().map(memory).collect();
            (argument, memory)
        };
        let arguments = model.arguments().into_iter().map(with_memory).collect();
        let loader = Self { programs, model, arguments };
        loader.programs.require_memory(loader.bytes(), || "copying the weights".into())?;
        Ok(loader)
    }

    /// Bytes of all shards on all local devices.
    fn bytes(&self) -> u64 {
        let tensors = self.arguments.iter().flat_map(|(argument, memory)| argument.tensors.iter().zip(memory));
        let shards = tensors.map(|(spec, memory)| Shard::new(&self.model, spec, memory, 0));
        shards.map(|shard| shard.ty.host_bytes() as u64).sum::<u64>() * self.programs.grid.local().count() as u64
    }

    fn run(self, cancelled: &AtomicBool, mut on_progress: OnProgress) -> Result<PlacedWeights> {
        let started = Instant::now();
        let devices: Vec<&Device> = self.programs.grid.local().map(|(_, device)| device).collect();
        let shapes: Vec<Shape> = self.model.stacked_weights().into_iter().map(|(_, shape)| shape).collect();
        let allocate = self.programs.make("allocate-weights".into(), || zeros("allocate_weights", &shapes))?;
        let put = self.programs.make("put-layer".into(), || self.model.put_layer())?;
        let no_args = devices.iter().map(|_| vec![]).collect();
        let mut arrays = self.programs.execute(&allocate, no_args, || "allocating the weights".to_owned())?;

        let bytes = self.bytes();
        let mut copied = 0;
        let mut advance = |shards: &[Vec<Upload>]| {
            let more = shards.iter().flatten().map(|upload| upload.host_bytes() as u64).sum::<u64>();
            copied += more;
            on_progress(more, bytes);
        };
        for layer in 0..self.model.config.num_hidden_layers as usize {
            if cancelled.load(Ordering::Relaxed) {
                return Err(Error::Invalid("loading was given up".into()));
            }
            let shards = self.upload(|argument| argument.is_stacked.then_some(layer))?;
            advance(&shards);
            let doing = || format!("placing the weights of layer {layer}");
            let number = TensorType::new(ElementType::S32, []);
            let client = &self.programs.client;
            let numbers: Vec<Buffer> = devices
                .iter()
                .map(|device| client.upload_slice(&[layer as i32], &number, device))
                .collect::<crate::pjrt::Result<_>>()
                .during(doing)?;
            let shards: Vec<Vec<Buffer>> = shards
                .into_iter()
                .map(|uploads| uploads.into_iter().map(Upload::wait).collect())
                .collect::<crate::pjrt::Result<_>>()
                .during(doing)?;
            let args = numbers.iter().zip(&shards).zip(arrays).map(|((number, shards), arrays)| {
                let kept = std::iter::once(number).chain(shards).map(Arg::Keep);
                kept.chain(arrays.into_iter().map(Arg::Donate)).collect()
            });
            // The shards are kept until the device has copied them.
            arrays = self.programs.execute(&put, args.collect(), doing)?;
        }
        let whole = self.upload(|argument| (!argument.is_stacked).then_some(0))?;
        advance(&whole);
        let mut buffers = Vec::new();
        for (whole, arrays) in whole.into_iter().zip(arrays) {
            let (mut whole, mut arrays) = (whole.into_iter(), arrays.into_iter());
            let mut next = |(argument, _): &(Argument, _)| {
                if argument.is_stacked {
                    return Ok(arrays.next().expect("as many as there are stacked arguments"));
                }
                whole.next().expect("as many as there are others").wait()
            };
            let list: crate::pjrt::Result<_> = self.arguments.iter().map(&mut next).collect();
            buffers.push(list.during(|| "placing the weights".into())?);
        }
        let placement = Placement { copied, took: started.elapsed(), ..Placement::default() };
        Ok(PlacedWeights { buffers, placement })
    }

    /// Starts the transfers of one tensor of each argument, if `which` names one, on all devices at
    /// once: `[device][argument]`.
    fn upload(&self, which: impl Fn(&Argument) -> Option<usize> + Sync) -> Result<Vec<Vec<Upload>>> {
        let to_device = &|(rank, device): (usize, &Device)| -> Result<Vec<Upload>> {
            let mut uploads = Vec::new();
            for (argument, memory) in &self.arguments {
                let Some(i) = which(argument) else { continue };
                let tp_rank = self.programs.grid.tp_rank(rank);
                let shard = Shard::new(&self.model, &argument.tensors[i], &memory[i], tp_rank);
                let doing = || format!("placing {} on device {rank}", shard.name);
                uploads.push(shard.start_upload(&self.programs.client, device).during(doing)?);
            }
            Ok(uploads)
        };
        thread::scope(|scope| {
            let start = |device| scope.spawn(move || to_device(device));
            let threads: Vec<_> = self.programs.grid.local().map(start).collect();
            threads.into_iter().map(|thread| thread.join().expect("uploading does not panic")).collect()
        })
    }
}
