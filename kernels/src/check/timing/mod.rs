//! What the ops of a model cost on a device: a table that says where the time of a step goes.
//!
//! Weights are random, of the model's real shapes, filled on the device. Weights and caches are read in turn from as many
//! copies as the device's own cache cannot hold, as a model's layers are; activations stay in it, as they do in a step.

mod adapters;
mod encoder;
mod ops;

use super::CheckDevice;
use crate::device::dense::{Dense, dense};
use crate::device::fill::{Fill, fill};
use crate::device::{Launch, Ptr, Use, Weights};
use crate::error::Result;
use crate::{DType, HeadLayout, fp8};

/// A device that can time.
pub trait TimedDevice: CheckDevice {
    /// Seconds of the launches, one after another, once.
    ///
    /// # Errors
    /// What went wrong in one.
    fn time(&mut self, launches: &[Launch]) -> Result<f64>;

    /// Seconds of a copy from one buffer to another.
    ///
    /// # Errors
    /// [`crate::KernelError::Device`], also for bytes outside of a buffer.
    fn time_copy(&mut self, from: Ptr, to: Ptr, bytes: usize) -> Result<f64>;
}

/// Extents of a mixture of experts, and how large what surrounds it is.
#[derive(Debug, Clone, Copy)]
pub struct Model {
    /// Its name.
    pub name: &'static str,
    /// Width of the residual stream.
    pub h: usize,
    /// Width between an expert's products.
    pub inner: usize,
    /// The fused row of attention.
    pub heads: HeadLayout,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Experts.
    pub experts: usize,
    /// Experts of a token.
    pub ranks: usize,
    /// Bytes that the copies of weights have together, at least where one is smaller.
    pub spread: usize,
    /// Times that an op without weights stands in a list.
    pub repeats: usize,
    /// Bytes of the copy that is the ceiling of bandwidth.
    pub copy: usize,
    /// Rows, columns and depth of the product that is the ceiling of arithmetic.
    pub product: usize,
}

/// Mixtral 8x7B.
pub const MIXTRAL_8X7B: Model = Model {
    name: "Mixtral 8x7B",
    h: 4096,
    inner: 14336,
    heads: HeadLayout { q: 32, kv: 8, dim: 128 },
    vocab: 32000,
    experts: 8,
    ranks: 2,
    spread: 256 << 20,
    repeats: 16,
    copy: 2 << 30,
    product: 8192,
};

/// The same in small, for the emulator: its times mean nothing.
pub const SMALL: Model = Model {
    name: "a small mixture",
    h: 64,
    inner: 96,
    heads: HeadLayout { q: 4, kv: 2, dim: 16 },
    vocab: 100,
    experts: 4,
    ranks: 2,
    spread: 1 << 14,
    repeats: 2,
    copy: 1 << 16,
    product: 128,
};

/// A step of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// One token of each of `sequences`, whose contexts are all as long.
    Decode {
        /// How many.
        sequences: usize,
        /// Tokens in the cache, the new one included.
        context: usize,
    },
    /// One prompt.
    Prefill {
        /// Its tokens.
        tokens: usize,
    },
    /// What adapters add to one token of each of `sequences`, which have them in turn.
    Adapters {
        /// How many.
        sequences: usize,
        /// Adapters.
        adapters: usize,
        /// Their rank, a multiple of 8.
        rank: usize,
    },
    /// The ops of an encoder's pass that a decoder does not have.
    Encode(Encode),
    /// The `k` nearest of `rows` rows of width `d`.
    Search {
        /// Rows.
        rows: usize,
        /// Their width.
        d: usize,
        /// How many are found.
        k: usize,
    },
}

/// Passages that an encoder reads at once, and its extents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encode {
    /// How many.
    pub passages: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// Width of the token states.
    pub h: usize,
    /// Width between the products of an MLP.
    pub inner: usize,
    /// Heads of attention.
    pub heads: usize,
}

/// What a device reaches without a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceilings {
    /// Bytes a second, read and written, of a copy.
    pub bandwidth: f64,
    /// Floating-point operations a second of a large dense product in bf16, by our tiles or by a library: the better.
    pub arithmetic: f64,
}

/// What an op took.
#[derive(Debug, Clone, PartialEq)]
pub struct Timing {
    /// The op.
    pub op: &'static str,
    /// Of which extents.
    pub shape: String,
    /// How long.
    pub seconds: f64,
    /// Bytes that it reads and writes.
    pub bytes: f64,
    /// Floating-point operations.
    pub flops: f64,
}

impl Timing {
    /// The time that the ceilings leave it, as part of what it took.
    #[must_use]
    pub fn share(&self, of: &Ceilings) -> f64 {
        (self.bytes / of.bandwidth).max(self.flops / of.arithmetic) / self.seconds
    }

    /// Whether arithmetic, and not bandwidth, is what bounds it.
    #[must_use]
    pub fn computes(&self, of: &Ceilings) -> bool {
        self.flops / of.arithmetic > self.bytes / of.bandwidth
    }
}

/// Measures the ceilings.
///
/// # Errors
/// What went wrong on the device.
pub fn ceilings(device: &mut dyn TimedDevice, model: &Model) -> Result<Ceilings> {
    device.clear();
    let from = device.alloc("from", model.copy, Use::ReadWrite)?;
    let to = device.alloc("to", model.copy, Use::Write)?;
    device.launch(&fill(&Fill {
        out: from,
        dtype: DType::BF16,
        len: model.copy / 2,
        seed: 1,
        scale: 1.0,
    })?)?;
    let copied = device.time_copy(from, to, model.copy)?;
    let n = model.product;
    let mut bench = Bench { device, model: *model };
    bench.device.clear();
    let product = bench.dense([n, n, n], DType::BF16, Format::Plain)?;
    let mut multiplied = bench.device.time(&[product.clone().by_kernel()])?;
    if bench.device.has_library() {
        multiplied = multiplied.min(bench.device.time(&[product])?);
    }
    Ok(Ceilings {
        bandwidth: 2.0 * model.copy as f64 / copied,
        arithmetic: 2.0 * (n as f64).powi(3) / multiplied,
    })
}

/// The ops of a layer of `model`, and of the draw, in the order of a step; those with large weights also with fp8 weights.
/// `done` gets each as it comes.
///
/// # Errors
/// What went wrong on the device.
pub fn time_step(
    device: &mut dyn TimedDevice,
    model: &Model,
    step: Step,
    done: &mut dyn FnMut(Timing),
) -> Result<()> {
    let mut bench = Bench { device, model: *model };
    match step {
        Step::Decode { sequences, context } => bench.decode(sequences, context, done),
        Step::Prefill { tokens } => bench.prefill(tokens, done),
        Step::Adapters { sequences, adapters, rank } => bench.adapters(sequences, adapters, rank, done),
        Step::Encode(of) => bench.encode(of, done),
        Step::Search { rows, d, k } => bench.search([rows, d, k], done),
    }
}

/// How much an op moves and computes, and how much of it comes from weights or a cache.
#[derive(Debug, Clone, Copy, Default)]
struct Work {
    bytes: usize,
    flops: usize,
    streamed: usize,
}

/// How an op's weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Plain,
    Fp8,
}

impl Format {
    /// Both.
    const ALL: [Format; 2] = [Format::Plain, Format::Fp8];

    /// Of the two names the one that is for it.
    fn name(self, [plain, fp8]: [&'static str; 2]) -> &'static str {
        if self == Format::Plain { plain } else { fp8 }
    }

    /// Bytes of weights `[rows, k]`.
    fn bytes(self, rows: usize, k: usize) -> usize {
        if self == Format::Plain { rows * k * 2 } else { rows * (k + 4) }
    }
}

type Done<'a> = &'a mut dyn FnMut(Timing);

struct Bench<'a> {
    device: &'a mut dyn TimedDevice,
    model: Model,
}

impl Bench<'_> {
    /// Times what `build` makes: once, or once a copy where it streams.
    fn time(
        &mut self,
        op: &'static str,
        shape: String,
        work: Work,
        build: &dyn Fn(&mut Bench<'_>) -> Result<Vec<Launch>>,
    ) -> Result<Timing> {
        self.device.clear();
        let mut launches = build(self)?;
        let mut times = self.model.repeats;
        if work.streamed > 0 {
            times = self.model.spread.div_ceil(work.streamed).min(self.model.repeats);
            for _ in 1..times {
                let copy = build(self)?;
                launches.extend(copy);
            }
        } else {
            launches = vec![launches; times].concat();
        }
        let seconds = self.device.time(&launches)? / times as f64;
        Ok(Timing { op, shape, seconds, bytes: work.bytes as f64, flops: work.flops as f64 })
    }

    /// A product of random rows with random weights, `[rows, n, k]`.
    fn dense(&mut self, [rows, n, k]: [usize; 3], out_dtype: DType, format: Format) -> Result<Launch> {
        dense(&Dense {
            x: self.weights("x", rows * k)?,
            w: self.stored("w", format, n, k)?,
            bias: Ptr::NONE,
            out: self.space("out", rows * n * out_dtype.size())?,
            rows: self.indices("rows", &[rows as u32])?,
            dtype: DType::BF16,
            out_dtype,
            max_rows: rows,
            n,
            k,
        })
    }

    /// Random weights `[rows, k]`.
    fn stored(&mut self, name: &str, format: Format, rows: usize, k: usize) -> Result<Weights> {
        Ok(match format {
            Format::Plain => Weights::Plain(self.weights(name, rows * k)?),
            Format::Fp8 => Weights::Fp8 {
                codes: self.random(name, DType::U8, rows * k)?,
                scales: self.random("scales", DType::F32, rows)?,
            },
        })
    }

    /// Random bf16.
    fn weights(&mut self, name: &str, len: usize) -> Result<Ptr> {
        self.random(name, DType::BF16, len)
    }

    fn random(&mut self, name: &str, dtype: DType, len: usize) -> Result<Ptr> {
        let out = self.device.alloc(name, len * dtype.size(), Use::ReadWrite)?;
        // The buffer's address is a seed that no other buffer has.
        let scale = if dtype == DType::U8 { fp8::MAX } else { 0.05 };
        self.device.launch(&fill(&Fill { out, dtype, len, seed: out.0, scale })?)?;
        Ok(out)
    }

    /// What a kernel writes before one reads it.
    fn space(&mut self, name: &str, bytes: usize) -> Result<Ptr> {
        self.device.alloc(name, bytes, Use::Write)
    }

    fn indices(&mut self, name: &str, values: &[u32]) -> Result<Ptr> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let at = self.device.alloc(name, bytes.len(), Use::Read)?;
        self.device.upload(at, 0, &bytes)?;
        Ok(at)
    }
}
