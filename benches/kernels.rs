//! CPU kernels on the shapes of the 2B, beside what the machine can do at that moment: `cargo bench
//! --bench kernels [FILTER]`.
//!
//! A share of 1 is the time of reading the operands once, or of the arithmetic, whichever is
//! longer, at rates measured just before. Shares of a noisy machine are steadier than its rates.

use std::time::Instant;

use gemma_pjrt::{
    kernel_abi::GROUP,
    kernels::{
        ExecContext, Isa,
        attention::attention,
        kv_cache::{CacheData, KvCacheMut, NewKv},
        linear::linear,
        operands::{Activations, QuantBlocks, WeightData, WeightMatrix},
        output::OutputRows,
        probe,
        segments::{AttentionShape, Segment, Segments},
    },
};

const REPS: usize = 7;

fn main() {
    let filter = std::env::args().nth(1).filter(|arg| !arg.starts_with("--")).unwrap_or_default();
    let context = ExecContext::whole();
    println!("{}, {} threads; medians of {REPS}", context.isa.name(), context.pool.threads());
    println!("| kernel | GB/s | GFLOP/s | share of the limit |\n|---|---:|---:|---:|");
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let context = ExecContext { isa, ..context };
        for kind in [Kind::Bf16, Kind::I8, Kind::I4] {
            for (name, out, width) in [("gate", 16384, 2048), ("down", 2048, 16384)] {
                for rows in [1, 2, 3, 4, 8, 16, 128] {
                    let label = format!("{} {kind:?} {name} {rows}", isa.name());
                    bench(context, &filter, &label, || Linear::new(kind, rows, out, width));
                }
            }
        }
        for (len, end) in [(1, 1024), (1, 4096), (128, 1024), (512, 4096)] {
            let name = format!("{} attention {len} of {end}", isa.name());
            bench(context, &filter, &name, || Attending::new(&[(len, end)]));
        }
        let name = format!("{} attention 8 decode rows of 1024", isa.name());
        bench(context, &filter, &name, || Attending::new(&[(1, 1024); 8]));
        let name = format!("{} attention 128 of 1024 and 8 decode rows", isa.name());
        bench(context, &filter, &name, || Attending::new(&[[(128, 1024)].as_slice(), &[(1, 1024); 8]].concat()));
    }
}

trait Work {
    /// Bytes to read, and floating-point operations.
    fn cost(&self) -> (f64, f64);
    fn memory(&self) -> Vec<&[u8]>;
    fn run(&mut self, context: ExecContext<'_>);
}

fn bench<W: Work>(context: ExecContext<'_>, filter: &str, name: &str, work: impl FnOnce() -> W) {
    if !format!("{name} ").contains(filter) {
        return;
    }
    let mut work = work();
    let (bytes, flops) = work.cost();
    let mut seconds = Vec::new();
    let mut shares = Vec::new();
    for _ in 0..REPS {
        let (bandwidth, peak) = (probe::read_bandwidth(context, &work.memory()), probe::peak_flops(context, true));
        let started = Instant::now();
        work.run(context);
        let took = started.elapsed().as_secs_f64();
        seconds.push(took);
        shares.push((bytes / bandwidth).max(flops / peak) / took);
    }
    let median = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[REPS / 2]
    };
    let (seconds, share) = (median(&mut seconds), median(&mut shares));
    println!("| {name} | {:.1} | {:.1} | {share:.2} |", bytes / seconds / 1e9, flops / seconds / 1e9);
}

/// Numbers of bf16 between 1/2 and 1.
fn numbers(len: usize) -> Vec<u16> {
    (0..len).map(|i| 0x3f00 | (i.wrapping_mul(37) % 128) as u16).collect()
}

/// How weights are stored.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Bf16,
    I8,
    I4,
}

struct Linear {
    kind: Kind,
    rows: usize,
    out: usize,
    width: usize,
    x: Vec<u16>,
    weight: Vec<u16>,
    group_scales: Vec<u16>,
    results: Vec<u16>,
}

impl Linear {
    fn new(kind: Kind, rows: usize, out: usize, width: usize) -> Self {
        let bytes = match kind {
            Kind::Bf16 => out * width * 2,
            Kind::I8 => out * width,
            Kind::I4 => out * width / 2,
        };
        let group_scales = if let Kind::I4 = kind { vec![0x3c00; out * width / GROUP] } else { Vec::new() };
        let (x, weight, results) = (numbers(rows * width), numbers(bytes / 2), vec![0; rows * out]);
        Self { kind, rows, out, width, x, weight, group_scales, results }
    }
}

impl Work for Linear {
    fn cost(&self) -> (f64, f64) {
        let bytes: usize = self.memory().iter().map(|part| part.len()).sum();
        (bytes as f64, 2.0 * (self.out * self.width * self.rows) as f64)
    }
    fn memory(&self) -> Vec<&[u8]> {
        vec![bytemuck::cast_slice(&self.weight), bytemuck::cast_slice(&self.group_scales)]
    }
    fn run(&mut self, context: ExecContext<'_>) {
        let data = match self.kind {
            Kind::Bf16 => WeightData::Bf16(&self.weight),
            Kind::I8 => WeightData::I8(bytemuck::cast_slice(&self.weight)),
            Kind::I4 => {
                WeightData::I4(QuantBlocks { nibbles: bytemuck::cast_slice(&self.weight), scales: &self.group_scales })
            }
        };
        let weight = WeightMatrix::new(data, self.out, self.width);
        linear(context, Activations::Bf16(&self.x), weight, OutputRows::Bf16(&mut self.results));
    }
}

/// MQA of the 2B: 8 query heads of 256, one key/value head. Each segment has a slot, and all rows
/// are appended to the cache again in every run.
struct Attending {
    segments: Segments,
    queries: Vec<u16>,
    new: Vec<u16>,
    keys: Vec<u16>,
    values: Vec<u16>,
    results: Vec<u16>,
}

impl Attending {
    /// A step of segments of so many tokens, up to these positions.
    fn new(lengths: &[(usize, usize)]) -> Self {
        let rows = lengths.iter().map(|(len, _)| len).sum();
        let cache_len = lengths.iter().map(|&(_, end)| end).max().expect("a segment");
        let slots = lengths.len();
        let shape = AttentionShape { rows, heads: 8, kv_heads: 1, head_dim: 256, slots, cache_len };
        let mut row = 0;
        let segment = |(slot, &(len, end)): (usize, &(usize, usize))| {
            row += len;
            Segment { row: row - len, slot, start: end - len, len }
        };
        let segments = lengths.iter().enumerate().map(segment).collect();
        Self {
            segments: Segments::new(segments, shape).expect("segments one after the other"),
            queries: numbers(rows * 2048),
            new: numbers(rows * 256),
            keys: numbers(slots * cache_len * 256),
            values: numbers(slots * cache_len * 256),
            results: vec![0; rows * 2048],
        }
    }
}

impl Work for Attending {
    fn cost(&self) -> (f64, f64) {
        let (mut read, mut seen) = (0, 0);
        for &Segment { start, len, .. } in self.segments.as_slice() {
            read += start + len;
            seen += (start + 1..=start + len).sum::<usize>();
        }
        // Keys and values of 256 elements of bf16; two products with 8 heads.
        ((read * 256 * 4) as f64, 4.0 * (seen * 2048) as f64)
    }
    fn memory(&self) -> Vec<&[u8]> {
        vec![bytemuck::cast_slice(&self.keys), bytemuck::cast_slice(&self.values)]
    }
    fn run(&mut self, context: ExecContext<'_>) {
        let (keys, values) = (CacheData::Bf16(&mut self.keys), CacheData::Bf16(&mut self.values));
        let mut cache = KvCacheMut { keys, values, scales: None };
        let new = WeightData::Bf16(&self.new);
        cache.append(context, NewKv { keys: new, values: new, scales: None }, &self.segments);
        let (queries, results) = (Activations::Bf16(&self.queries), OutputRows::Bf16(&mut self.results));
        attention(context, queries, cache.view(), &self.segments, results);
    }
}
