//! The section `model`: what a model answers on the device, beside the CPU.
//!
//! Both answer the same prompts of token ids, always with the likeliest token. Where two tokens are nearly as likely, the
//! device's roundings may take the other one, and from there the answers have nothing in common. So at the first place where
//! two answers part, the CPU's log probabilities of the two tokens must be within [`CLOSE`]; what follows is not compared.

use anyhow::Context;
use tarn_kernels::device::fill;
use tarn_kernels::gpu::Priority;
use tarn_kernels::{BLOCK, DType, argmax};

use super::super::device::{self, Place};
use super::super::parts::progress;
use super::report::Report;
use crate::config::Settings;
use crate::model::{
    Decoder, DeviceDecoder, DeviceOptions, DtypeChoice, Exec, ForwardBatch, KvCache, LoadOptions, Logits,
    ModelConfig, ModelSource, SeqSpan,
};

/// How far the log probabilities of the two tokens may be from one another, where answers part: ten times what bf16's
/// roundings make of logits of a spread of 2 or 3.
const CLOSE: f32 = 0.1;
/// Prompts, the first this long, each longer by some tokens than the one before.
const PROMPTS: usize = 8;
const SHORTEST: usize = 5;
const LONGER: usize = 5;
/// Tokens of an answer.
const ANSWER: usize = 32;

/// Where two answers part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Parting {
    pub(super) prompt: usize,
    /// Tokens before it that are the same.
    pub(super) after: usize,
    pub(super) cpu: u32,
    pub(super) device: u32,
    /// How much likelier the CPU finds its own token, as a difference of log probabilities.
    pub(super) gap: f32,
}

/// How far the answers agree.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Agreement {
    /// Tokens until answers part or end, those at which they part included.
    pub(super) compared: usize,
    pub(super) partings: Vec<Parting>,
}

impl Agreement {
    /// Whether answers part only between tokens that are nearly as likely.
    pub(super) fn holds(&self) -> bool {
        self.partings.iter().all(|parting| parting.gap <= CLOSE)
    }
}

/// Compares the model of the settings; whether the answers agree.
pub(super) fn model(place: &Place, settings: &Settings, report: &mut Report) -> anyhow::Result<bool> {
    let named = settings.need_model()?;
    let source = ModelSource::open(&named.location.path)?;
    let ModelConfig::Decoder(config) = source.config() else { anyhow::bail!("it does not generate") };
    println!("\nmodel: {} on the device, beside the CPU", named.location.name);
    let prompts = prompts(config.vocab, PROMPTS);
    let most = Batch::new(&prompts, ANSWER).most_tokens();
    let label = |place: &str| Some(progress(&format!("loading {} to the {place}", named.location.name)));
    let options = DeviceOptions {
        max_num_batched_tokens: most,
        max_num_seqs: PROMPTS,
        adapters: None,
        ..device::options(settings, &source, SHORTEST + PROMPTS * LONGER + ANSWER, label("device"))?
    };
    let own = LoadOptions {
        // The same weights, rounded in the same way.
        dtype: match (settings.dtype, options.dtype) {
            (DtypeChoice::Auto, DType::F16) => DtypeChoice::F16,
            (DtypeChoice::Auto, _) => DtypeChoice::BF16,
            (asked, _) => asked,
        },
        max_num_batched_tokens: most,
        max_num_seqs: PROMPTS,
        dummy_weights: named.dummy_weights,
        exec: Exec::simd(settings.threads),
        progress: label("CPU"),
    };
    let expected = on_cpu(&source, own, &prompts, ANSWER)?;
    let agreement = compare(&expected, &on_device(place, &source, &options, &prompts, ANSWER)?);
    let Agreement { compared, partings } = &agreement;
    println!("{compared} tokens compared, {} of {PROMPTS} answers part", partings.len());
    for Parting { prompt, after, cpu, device, gap } in partings {
        let verdict = if *gap <= CLOSE { "close" } else { "FAIL" };
        println!(
            "{verdict:<5} prompt {prompt} after {after} tokens: {device}, the CPU {cpu}; {gap:.4} between them (at most {CLOSE})"
        );
    }
    report.agreement(&named.location.name, &agreement);
    Ok(agreement.holds())
}

/// Prompts of random ids, each longer than the one before.
pub(super) fn prompts(vocab: usize, count: usize) -> Vec<Vec<u32>> {
    let id = |prompt: usize, at: usize| {
        let even = f64::from(fill::value(at as u64, prompt as u64) + 1.0) / 2.0;
        ((even * vocab as f64) as usize).min(vocab - 1) as u32
    };
    (0..count).map(|prompt| (0..SHORTEST + prompt * LONGER).map(|at| id(prompt, at)).collect()).collect()
}

/// An answer: tokens, and the logits that each was taken from.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) ids: Vec<u32>,
    pub(super) rows: Vec<Vec<f32>>,
}

/// What the CPU answers.
pub(super) fn on_cpu(
    source: &ModelSource,
    options: LoadOptions,
    prompts: &[Vec<u32>],
    tokens: usize,
) -> anyhow::Result<Vec<Answer>> {
    let mut decoder = Decoder::load(source, options)?;
    let batch = Batch::new(prompts, tokens);
    let mut cache = KvCache::new(decoder.kv_spec(), batch.blocks())?;
    batch.answer(tokens, &mut |step, rows| {
        keep(&decoder.forward(step, &mut cache)?, rows);
        Ok(())
    })
}

/// What the device answers.
pub(super) fn on_device(
    place: &Place,
    source: &ModelSource,
    options: &DeviceOptions,
    prompts: &[Vec<u32>],
    tokens: usize,
) -> anyhow::Result<Vec<Answer>> {
    let batch = Batch::new(prompts, tokens);
    let decoder = DeviceDecoder::load(device::open(place, Priority::Foreground)?, source, options)?;
    let mut decoder = decoder.with_blocks(batch.blocks())?;
    batch.answer(tokens, &mut |step, rows| {
        let step = decoder.launch(step, &[], None)?;
        keep(&decoder.logits(step)?, rows);
        Ok(())
    })
}

/// Where answers part, and how likely the CPU found the two tokens.
pub(super) fn compare(expected: &[Answer], found: &[Answer]) -> Agreement {
    let mut agreement = Agreement { compared: 0, partings: Vec::new() };
    for (prompt, (expected, found)) in expected.iter().zip(found).enumerate() {
        let pairs = expected.ids.iter().zip(&found.ids);
        let Some(after) = pairs.clone().position(|(cpu, device)| cpu != device) else {
            agreement.compared += pairs.len();
            continue;
        };
        let (cpu, device) = (expected.ids[after], found.ids[after]);
        // The sum over all tokens is the same in both log probabilities.
        let row = &expected.rows[after];
        let gap = row[cpu as usize] - row[device as usize];
        agreement.compared += after + 1;
        agreement.partings.push(Parting { prompt, after, cpu, device, gap });
    }
    agreement
}

fn keep(logits: &Logits<'_>, rows: &mut Vec<Vec<f32>>) {
    rows.extend((0..logits.rows()).map(|row| logits.row(row).to_vec()));
}

/// A step on either: pushes the logits of its rows.
type Forward<'a> = &'a mut dyn FnMut(&ForwardBatch<'_>, &mut Vec<Vec<f32>>) -> anyhow::Result<()>;

/// Sequences that are answered together, each in blocks of its own.
#[derive(Debug)]
struct Batch {
    sequences: Vec<Vec<u32>>,
    /// Blocks of each.
    width: usize,
}

impl Batch {
    /// With room for `tokens` more of each.
    fn new(prompts: &[Vec<u32>], tokens: usize) -> Batch {
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + tokens;
        Batch { sequences: prompts.to_vec(), width: longest.div_ceil(BLOCK) }
    }

    fn blocks(&self) -> usize {
        self.sequences.len() * self.width
    }

    /// Tokens of the first step, which has all prompts.
    fn most_tokens(&self) -> usize {
        self.sequences.iter().map(Vec::len).sum()
    }

    /// Adds `tokens` tokens to each, the likeliest at every step.
    fn answer(mut self, tokens: usize, forward: Forward<'_>) -> anyhow::Result<Vec<Answer>> {
        let mut answers = vec![Answer { ids: Vec::new(), rows: Vec::new() }; self.sequences.len()];
        let mut cached = vec![0; self.sequences.len()];
        let tables: Vec<u32> = (0..self.blocks() as u32).collect();
        for _ in 0..tokens {
            let step = Step::new(&self.sequences, &cached, self.width);
            let mut rows = Vec::new();
            forward(&step.batch(&tables), &mut rows)?;
            cached = self.sequences.iter().map(Vec::len).collect();
            for ((sequence, answer), row) in self.sequences.iter_mut().zip(&mut answers).zip(rows) {
                let likeliest = argmax(&Exec::Reference, &row).filter(|(_, logit)| logit.is_finite());
                let (id, _) = likeliest.context("logits that are not finite")?;
                sequence.push(id);
                answer.ids.push(id);
                answer.rows.push(row);
            }
        }
        Ok(answers)
    }
}

/// The tokens of all sequences that are not in the cache.
#[derive(Debug, Default)]
struct Step {
    ids: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    spans: Vec<SeqSpan>,
    /// The last of each.
    wanted: Vec<u32>,
}

impl Step {
    /// Sequence `at` has blocks `at * width..`.
    fn new(sequences: &[Vec<u32>], cached: &[usize], width: usize) -> Step {
        let mut step = Step::default();
        for (at, (ids, cached)) in sequences.iter().zip(cached).enumerate() {
            let query_start = step.ids.len() as u32;
            step.ids.extend(&ids[*cached..]);
            step.positions.extend(*cached as u32..ids.len() as u32);
            step.slots.extend((*cached..ids.len()).map(|place| (at * width * BLOCK + place) as u32));
            step.spans.push(SeqSpan {
                query_start,
                query_len: (ids.len() - cached) as u32,
                context_len: ids.len() as u32,
                table_start: (at * width) as u32,
            });
            step.wanted.push(step.ids.len() as u32 - 1);
        }
        step
    }

    fn batch<'a>(&'a self, tables: &'a [u32]) -> ForwardBatch<'a> {
        ForwardBatch {
            input_ids: &self.ids,
            positions: &self.positions,
            slot_mapping: &self.slots,
            sequences: &self.spans,
            block_tables: tables,
            logits_rows: &self.wanted,
            adapters: &[],
            adapter_of: &[],
        }
    }
}
