//! Loading weights into the memory of accelerators, where layers are stacked: every device gets its own part only, straight from
//! the mapped files, all devices at once, while programs are compiled.

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use super::{
    error::{Error, Result, While},
    programs::{Programs, next_launch_id},
    weights::{Part, Placement},
};
use crate::{
    checkpoint::Tensor,
    gemma::{
        Config, Target, put_layer, stacked,
        weights::{Argument, StoredTypes, TensorSpec},
        zeros,
    },
    hlo::{Mesh, Shape},
    pjrt::{Arg, Buffer, Device, ElementType, HostBytes, TensorType, Upload},
};

/// Told of bytes that are on their way to devices: how many more, of how many in all.
pub type OnProgress = Box<dyn FnMut(u64, u64) + Send>;

/// Weights on devices, `[device][argument]`, or on their way there.
pub(super) struct Weights {
    thread: Mutex<Option<JoinHandle<Result<Placed>>>>,
    placed: OnceLock<Placed>,
    cancelled: Arc<AtomicBool>,
}

/// Weights on devices.
pub(super) struct Placed {
    pub buffers: Vec<Vec<Buffer>>,
    pub placement: Placement,
}

impl Weights {
    /// Weights that are there.
    pub fn placed(buffers: Vec<Vec<Buffer>>, placement: Placement) -> Self {
        let placed = OnceLock::from(Placed { buffers, placement });
        Self { thread: Mutex::default(), placed, cancelled: Arc::default() }
    }

    /// Starts to load them.
    pub fn load(job: Job, on_progress: OnProgress) -> Self {
        let cancelled = Arc::new(AtomicBool::new(false));
        let flag = cancelled.clone();
        let thread = thread::spawn(move || job.run(&flag, on_progress));
        Self { thread: Mutex::new(Some(thread)), placed: OnceLock::new(), cancelled }
    }

    /// Waits for them. An error of loading is told to the first who asks.
    pub fn get(&self) -> Result<&Placed> {
        let mut thread = self.thread.lock().expect("no panic while held");
        if let Some(thread) = thread.take() {
            let placed = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            let _ = self.placed.set(placed); // the thread is taken once
        }
        self.placed.get().ok_or_else(|| Error::Invalid("the weights could not be loaded before".into()))
    }
}

impl Drop for Weights {
    /// Nothing may run inside a plugin when the process ends.
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.get_mut().ok().and_then(Option::take) {
            let _ = thread.join();
        }
    }
}

/// What is to be loaded, and where to.
pub(super) struct Job {
    programs: Arc<Programs>,
    target: Target,
    config: Config,
    mesh: Mesh,
    stored: StoredTypes,
    /// Each with its tensors' memory, in the order in which programs take them.
    arguments: Vec<(Argument, Vec<HostBytes>)>,
}

impl Job {
    pub fn new(
        programs: Arc<Programs>,
        target: Target,
        config: Config,
        mesh: Mesh,
        stored: StoredTypes,
        tensors: &[(TensorSpec, &Tensor)],
    ) -> Result<Self> {
        let memory = |spec: &TensorSpec| {
            let found = tensors.iter().find(|(other, _)| other.name == spec.name);
            found.expect("all tensors were selected").1.bytes.clone()
        };
        let with_memory = |argument: Argument| {
            let memory = argument.tensors.iter().map(memory).collect();
            (argument, memory)
        };
        let arguments =
            crate::gemma::weights::arguments(target, &config, &stored).into_iter().map(with_memory).collect();
        let job = Self { programs, target, config, mesh, stored, arguments };
        job.programs.require_memory(job.bytes(), || "copying the weights".into())?;
        Ok(job)
    }

    /// On all devices.
    fn bytes(&self) -> u64 {
        self.parts().map(|part| part.ty.host_bytes() as u64).sum::<u64>() * self.programs.devices.len() as u64
    }

    fn run(self, cancelled: &AtomicBool, mut on_progress: OnProgress) -> Result<Placed> {
        let started = Instant::now();
        let devices = &self.programs.devices;
        let shapes: Vec<Shape> =
            stacked(self.target, &self.config, self.mesh, &self.stored).into_iter().map(|(_, shape)| shape).collect();
        let allocate = self.programs.make("allocate-weights".into(), || zeros("allocate_weights", &shapes))?;
        let put =
            self.programs.make("put-layer".into(), || put_layer(self.target, &self.config, self.mesh, &self.stored))?;
        let doing = || "allocating the weights".to_owned();
        let mut arrays = allocate
            .execute(next_launch_id(), devices.iter().map(|_| vec![]).collect())
            .during(doing)?
            .wait()
            .during(doing)?;

        let bytes = self.bytes();
        let mut copied = 0;
        let mut advance = |parts: &[Vec<Upload>]| {
            let more = parts.iter().flatten().map(|upload| upload.host_bytes() as u64).sum::<u64>();
            copied += more;
            on_progress(more, bytes);
        };
        for layer in 0..self.config.num_hidden_layers as usize {
            if cancelled.load(Ordering::Relaxed) {
                return Err(Error::Invalid("loading was given up".into()));
            }
            let parts = self.upload(|argument| argument.is_stacked.then_some(layer))?;
            advance(&parts);
            let doing = || format!("placing the weights of layer {layer}");
            let number = TensorType::new(ElementType::S32, []);
            let client = &self.programs.client;
            let numbers: Vec<Buffer> = devices
                .iter()
                .map(|device| client.upload_slice(&[layer as i32], &number, device))
                .collect::<crate::pjrt::Result<_>>()
                .during(doing)?;
            let parts: Vec<Vec<Buffer>> = parts
                .into_iter()
                .map(|uploads| uploads.into_iter().map(Upload::wait).collect())
                .collect::<crate::pjrt::Result<_>>()
                .during(doing)?;
            let args = numbers.iter().zip(&parts).zip(arrays).map(|((number, parts), arrays)| {
                let kept = std::iter::once(number).chain(parts).map(Arg::Keep);
                kept.chain(arrays.into_iter().map(Arg::Donate)).collect()
            });
            // The parts are kept until the device has copied them.
            arrays = put.execute(next_launch_id(), args.collect()).during(doing)?.wait().during(doing)?;
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
        Ok(Placed { buffers, placement })
    }

    /// A device's part of each tensor.
    fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        let tensors = self.arguments.iter().flat_map(|(argument, memory)| argument.tensors.iter().zip(memory));
        tensors.map(|(spec, memory)| self.part(spec, memory, 0))
    }

    fn part<'t>(&self, spec: &'t TensorSpec, memory: &HostBytes, replica: usize) -> Part<'t> {
        let ranges = spec.shard(&self.config, self.mesh, replica % self.mesh.model);
        Part::new(spec, &self.stored, memory, &ranges, self.target)
    }

    /// Starts the transfers of one tensor of each argument, if `which` names one, on all devices at once: `[device][argument]`.
    fn upload(&self, which: impl Fn(&Argument) -> Option<usize> + Sync) -> Result<Vec<Vec<Upload>>> {
        let to_device = &|(replica, device): (usize, &Device)| -> Result<Vec<Upload>> {
            let mut uploads = Vec::new();
            for (argument, memory) in &self.arguments {
                let Some(i) = which(argument) else { continue };
                let part = self.part(&argument.tensors[i], &memory[i], replica);
                let doing = || format!("placing {} on device {replica}", part.name);
                uploads.push(part.start_upload(&self.programs.client, device).during(doing)?);
            }
            Ok(uploads)
        };
        thread::scope(|scope| {
            let start = |device| scope.spawn(move || to_device(device));
            let threads: Vec<_> = self.programs.devices.iter().enumerate().map(start).collect();
            threads.into_iter().map(|thread| thread.join().expect("uploading does not panic")).collect()
        })
    }
}
