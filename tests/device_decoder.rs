//! The decoder on a device, emulated, against the CPU's. Weights are rounded to the device's type first, so that both
//! have the same; what differs is that the device also rounds every activation.

use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tarn::engine::{AdapterLease, Adapters, DeviceRunner, EngineConfig, SampledToken, SamplingParams};
use tarn::model::{
    Decoder, DecoderConfig, DeviceAdapters, DeviceDecoder, DeviceFormat, DeviceOptions, DtypeChoice, Exec,
    KvCache, LoadOptions, LoraAdapter, LoraOptions, ModelConfig, ModelSource,
};
use tarn_kernels::DType;
use tarn_kernels::emulated::{Emulator, Mode};

use super::engines::{Ask, BATCHED, Build, Engine, WINDOW, tiny};
use super::forward::{Arrays, Part};
use super::mixed_adapters::write_adapter;
use super::support::write_model;

const BLOCKS: usize = 64;
const EXPERTS: usize = 4;
const SLOTS: usize = 2;
const MAX_RANK: usize = 8;

/// How far a row of logits may be off, in units of the device's type relative to the row: the root mean square of its
/// errors, and the largest.
///
/// A token passes some eleven roundings a layer and two after the last. A rounding costs a unit at most, some 0.4 on
/// average, so that 24 of them, were nothing amplified, cost √24 · 0.4 = 2 units. Sums whose parts cancel amplify, and
/// attention brings in the errors of other tokens: 6 units were seen, in either type, and of 128 errors the largest is
/// some three times their mean square. A wrong adapter, block or position costs a hundred.
const MEAN: f32 = 10.0;
const LARGEST: f32 = 35.0;

/// The largest relative error of a rounding to `dtype`.
fn unit(dtype: DType) -> f32 {
    if dtype == DType::BF16 { 2.0_f32.powi(-8) } else { 2.0_f32.powi(-11) }
}

/// Rounds the matrices of a safetensors file, which are f32, to `dtype`.
fn round(path: &Path, dtype: DType) {
    let bytes = std::fs::read(path).expect("there");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let to = |value: f32| match dtype {
        DType::BF16 => bf16::from_f32(value).to_f32(),
        _ => f16::from_f32(value).to_f32(),
    };
    let rounded = |view: &TensorView<'_>| -> Vec<u8> {
        let values = view.data().chunks_exact(4).map(|at| f32::from_le_bytes([at[0], at[1], at[2], at[3]]));
        let keep = view.shape().len() == 1;
        values.flat_map(|value| if keep { value } else { to(value) }.to_le_bytes()).collect()
    };
    let tensors: Vec<_> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, view.shape().to_vec(), rounded(&view)))
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).expect("shape"))
    });
    safetensors::serialize_to_file(views, None, path).expect("writes");
}

/// A model with weights of `dtype`, and for a Mixtral three adapters: two of everything, one of q and v alone.
fn write(dir: &Path, config: &Value, dtype: DType) {
    write_model(dir, config, 1);
    round(&dir.join("model.safetensors"), dtype);
    if config["num_local_experts"].is_number() {
        let everything = |_: &str| true;
        let some = |module: &str| module.ends_with("q_proj") || module.ends_with("v_proj");
        write_adapter(&dir.join("0"), 4, EXPERTS, everything);
        write_adapter(&dir.join("1"), 7, EXPERTS, everything);
        write_adapter(&dir.join("2"), 2, EXPERTS, some);
        (0..3).for_each(|at| round(&dir.join(format!("{at}/adapter_model.safetensors")), dtype));
    }
}

fn mixtral() -> Value {
    let mut config = tiny("mixtral");
    config["num_local_experts"] = json!(EXPERTS);
    config
}

fn config(dir: &Path) -> DecoderConfig {
    let source = ModelSource::open(dir).expect("opens");
    let ModelConfig::Decoder(config) = source.config().clone() else { panic!("a decoder") };
    config
}

fn adapter(dir: &Path, at: usize) -> LoraAdapter {
    let options = LoraOptions { max_rank: MAX_RANK };
    LoraAdapter::load(&dir.join(at.to_string()), &config(dir), options).expect("loads")
}

fn options(dtype: DType, adapters: bool) -> DeviceOptions {
    DeviceOptions {
        dtype,
        projections: DeviceFormat::Plain,
        max_num_batched_tokens: BATCHED,
        max_num_seqs: 6,
        max_model_len: WINDOW,
        adapters: adapters.then_some(DeviceAdapters { slots: SLOTS, max_rank: MAX_RANK }),
        dummy_weights: false,
        progress: None,
    }
}

fn on_device(dir: &Path, mode: Mode, options: &DeviceOptions) -> DeviceDecoder {
    let source = ModelSource::open(dir).expect("opens");
    let emulator = Box::new(Emulator::new(mode).expect("the build script compiled it"));
    let decoder = DeviceDecoder::load(emulator, &source, options).expect("loads");
    decoder.with_blocks(BLOCKS).expect("room")
}

/// Both decoders, fed the same steps.
struct Both {
    cpu: Decoder,
    kv: KvCache,
    device: DeviceDecoder,
    adapters: Vec<Arc<LoraAdapter>>,
    unit: f32,
    /// The largest errors, in units.
    mean: f32,
    largest: f32,
}

impl Both {
    fn new(config: &Value, dtype: DType, projections: DeviceFormat, mode: Mode) -> Both {
        let dir = tempfile::tempdir().expect("dir");
        write(dir.path(), config, dtype);
        let adapted = config["num_local_experts"].is_number();
        let own = LoadOptions {
            dtype: if projections == DeviceFormat::Fp8 { DtypeChoice::Fp8 } else { DtypeChoice::Auto },
            max_num_batched_tokens: BATCHED,
            max_num_seqs: BATCHED,
            dummy_weights: false,
            exec: Exec::simd(1),
            progress: None,
        };
        let source = ModelSource::open(dir.path()).expect("opens");
        let cpu = Decoder::load(&source, own).and_then(|cpu| cpu.with_adapters(MAX_RANK)).expect("loads");
        let kv = KvCache::new(cpu.kv_spec(), BLOCKS).expect("room");
        let options = DeviceOptions { projections, ..options(dtype, adapted) };
        let device = on_device(dir.path(), mode, &options);
        let adapters = (0..if adapted { 3 } else { 0 }).map(|at| Arc::new(adapter(dir.path(), at))).collect();
        Both { cpu, kv, device, adapters, unit: unit(dtype), mean: 0.0, largest: 0.0 }
    }

    /// A step on both, in which blocks are copied first: the logits of every token are close.
    fn step(&mut self, what: &str, copies: &[(u32, u32)], parts: &[Part]) {
        let arrays = Arrays::new(&self.adapters, parts);
        let all: Vec<u32> = (0..arrays.ids.len() as u32).collect();
        self.kv.copy_blocks(copies).expect("blocks");
        let expected = self.cpu.forward(&arrays.batch(&all), &mut self.kv).expect("forward");
        let step = self.device.launch(&arrays.batch(&all), copies, None).expect("launches");
        let found = self.device.logits(step).expect("collects");
        assert_eq!(found.rows(), all.len());
        for row in 0..all.len() {
            let (mean, largest) = distance(found.row(row), expected.row(row));
            let (mean, largest) = (mean / self.unit, largest / self.unit);
            assert!(
                mean <= MEAN && largest <= LARGEST,
                "{what}: row {row} is off by {mean} units, {largest} at most"
            );
            self.mean = self.mean.max(mean);
            self.largest = self.largest.max(largest);
        }
    }
}

/// The root mean square of the differences and the largest, relative to the root mean square of `expected`.
fn distance(found: &[f32], expected: &[f32]) -> (f32, f32) {
    let square =
        |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>() / expected.len() as f32;
    let scale = square(&mut expected.iter().copied()).sqrt();
    let differences = || found.iter().zip(expected).map(|(found, expected)| found - expected);
    let largest = differences().map(f32::abs).fold(0.0, f32::max);
    (square(&mut differences()).sqrt() / scale, largest / scale)
}

fn tokens(len: usize, seed: usize) -> Vec<u32> {
    (0..len).map(|at| ((at * 37 + seed * 11) % 125 + 3) as u32).collect()
}

/// Blocks from `from` on, so many.
fn blocks(from: u32, count: u32) -> Vec<u32> {
    // Odd steps, so that a table is no run.
    (from..from + count).map(|at| at * 37 % BLOCKS as u32).collect()
}

/// Prompts in chunks, beside decoding; a prefix by reference and a fork by copy; adapters come, go and come again.
fn conversation(both: &mut Both, adapters: [Option<usize>; 3]) {
    let [first, second, third] = adapters;
    let part = |new: &[u32], cached: usize, table: &[u32], adapter| Part {
        new: new.to_vec(),
        cached,
        table: table.to_vec(),
        adapter,
    };
    let (a, b) = (blocks(0, 8), blocks(8, 8));
    // Its first 32 tokens are a's.
    let shared: Vec<u32> = a[..2].iter().chain(&b[6..8]).copied().collect();
    let prompt = tokens(70, 1);
    both.step("a chunk that fills a step", &[], &[part(&prompt[..BATCHED], 0, &a, first)]);
    let rest = &prompt[BATCHED..];
    both.step(
        "the rest, beside a short prompt",
        &[],
        &[part(&tokens(5, 2), 0, &b, second), part(rest, BATCHED, &a, first)],
    );
    both.step("decoding", &[], &[part(&[9], 70, &a, first), part(&[10], 5, &b, second)]);
    both.step(
        "decoding, beside a prompt whose beginning is another's",
        &[],
        &[part(&[11], 71, &a, first), part(&tokens(7, 3), 32, &shared, first)],
    );
    // b's first block has 6 tokens: its fork goes on by itself.
    let fork = blocks(20, 2);
    both.step(
        "a fork, beside who it is a copy of",
        &[(b[0], fork[0])],
        &[part(&[12], 6, &b, second), part(&[13], 6, &fork, second), part(&[14], 72, &a, first)],
    );
    let c = blocks(30, 3);
    both.step("one with another adapter", &[], &[part(&tokens(33, 4), 0, &c, third)]);
    both.step("decoding with two", &[], &[part(&[15], 33, &c, third), part(&[16], 7, &fork, second)]);
    both.step("the first again", &[], &[part(&[17], 73, &a, first), part(&[18], 34, &c, third)]);
    let last: Vec<Part> = (0..6).map(|at| part(&[20 + at], at as usize, &blocks(40 + at, 1), None)).collect();
    // Nobody has written what these see: the tokens before are written first.
    for (at, one) in last.iter().enumerate() {
        both.step("words alone", &[], &[part(&tokens(at + 1, at), 0, &one.table, None)]);
    }
    both.step("decoding six without adapters", &[], &last);
}

fn compare(what: &str, config: &Value, dtype: DType, projections: DeviceFormat) {
    let mut both = Both::new(config, dtype, projections, Mode::Plain);
    let adapters = if both.adapters.is_empty() { [None; 3] } else { [Some(0), Some(1), Some(2)] };
    conversation(&mut both, adapters);
    println!("{what} in {dtype:?}, {projections:?}: off by {} units, {} at most", both.mean, both.largest);
}

#[test]
fn a_mixtral_with_adapters_gives_the_cpus_logits() {
    // In bf16 some of so many tokens would be nearer to a tie of experts than to what is rounded.
    compare("Mixtral", &mixtral(), DType::F16, DeviceFormat::Plain);
}

#[test]
fn a_llama_with_biases_and_one_table_gives_the_cpus_logits() {
    let mut config = tiny("llama");
    config["attention_bias"] = json!(true);
    config["tie_word_embeddings"] = json!(true);
    compare("Llama", &config, DType::BF16, DeviceFormat::Plain);
}

#[test]
fn a_mistral_with_a_window_gives_the_cpus_logits() {
    let mut config = tiny("llama");
    config["architectures"] = json!(["MistralForCausalLM"]);
    config["model_type"] = json!("mistral");
    config["sliding_window"] = json!(20);
    compare("Mistral", &config, DType::F16, DeviceFormat::Plain);
}

#[test]
fn projections_in_fp8_give_the_cpus_logits() {
    compare("Mixtral", &mixtral(), DType::F16, DeviceFormat::Fp8);
}

#[test]
fn a_step_stays_in_bounds_and_does_not_race() {
    let mut both = Both::new(&mixtral(), DType::BF16, DeviceFormat::Plain, Mode::Checked);
    let part = |new: Vec<u32>, cached, from, adapter| Part { new, cached, table: blocks(from, 2), adapter };
    both.step("two prompts", &[], &[part(tokens(5, 1), 0, 0, Some(0)), part(tokens(3, 2), 0, 4, None)]);
    let copies = [(blocks(0, 1)[0], blocks(8, 1)[0])];
    both.step(
        "decoding",
        &copies,
        &[part(vec![7], 5, 8, Some(1)), part(vec![8], 3, 4, None), part(vec![9], 5, 0, Some(0))],
    );
}

/// An engine on an emulated device, for the model in `dir`; `adapters` are brought there as they are read.
fn device_engine(dir: &Path, dtype: DType, adapters: Option<&Adapters>) -> Engine {
    let decoder = on_device(dir, Mode::Plain, &options(dtype, true));
    if let Some(adapters) = adapters {
        let loader = decoder.adapter_loader().expect("a copier").expect("slots");
        adapters.placed_by(move |adapter| loader.load(adapter)).expect("room");
    }
    let config = EngineConfig { max_num_seqs: 6, max_num_batched_tokens: BATCHED, ..EngineConfig::default() };
    Engine::start_with(config, move || Ok(DeviceRunner::new(decoder, Exec::simd(1), WINDOW)))
}

fn ids(answer: &[SampledToken]) -> Vec<u32> {
    answer.iter().map(|token| token.id).collect()
}

/// Where two answers part, the token that was not chosen was as likely as rounding can tell. Returns how many tokens
/// are the same.
fn close(found: &[SampledToken], expected: &[SampledToken], bound: f32) -> usize {
    assert_eq!(found.len(), expected.len());
    let Some(at) = (0..found.len()).find(|at| found[*at].id != expected[*at].id) else { return found.len() };
    let other = expected[at].top.iter().find(|(id, _)| *id == found[at].id);
    let gap = other.map(|(_, logprob)| expected[at].top[0].1 - logprob);
    assert!(gap.is_some_and(|gap| gap <= bound), "token {at} is {}: {gap:?} less likely", found[at].id);
    at
}

#[test]
fn an_engine_on_a_device_answers_as_one_on_the_cpu() {
    let dir = tempfile::tempdir().expect("dir");
    write(dir.path(), &mixtral(), DType::F16);
    let base = config(dir.path());
    let adapters =
        Adapters::new(2, move |path| LoraAdapter::load(path, &base, LoraOptions { max_rank: MAX_RANK }));
    for name in ["0", "1"] {
        adapters.load(name, &dir.path().join(name), false).expect("loads");
    }
    let leases: [Option<AdapterLease>; 3] = [None, adapters.acquire("0").ok(), adapters.acquire("1").ok()];
    let greedy = SamplingParams { logprobs: Some(8), ..SamplingParams::greedy() };
    let asks: Vec<Ask> = (0..6)
        .map(|at| {
            let ask = Ask::new(&tokens([3, 17, 40, 90][at % 4], at), 10, greedy.clone());
            Ask { adapter: leases[at % 3].clone(), ..ask }
        })
        .collect();
    let cpu = Engine::start(dir.path(), Build { max_rank: MAX_RANK, ..Build::default() });
    let expected: Vec<_> = asks.iter().map(|ask| cpu.answer(ask)).collect();
    let device = device_engine(dir.path(), DType::F16, Some(&adapters));
    // Logits are about 1: an error of one and of the other.
    let bound = 2.0 * LARGEST * unit(DType::F16) * 1.5;
    for logprobs in [Some(0), None] {
        let sampling = SamplingParams { logprobs, ..greedy.clone() };
        let streams: Vec<_> = asks
            .iter()
            .map(|ask| device.submit(&Ask { sampling: sampling.clone(), ..ask.clone() }))
            .collect();
        let mut same = 0;
        for (stream, expected) in streams.into_iter().zip(&expected) {
            let found = super::engines::answers(stream, 1).expect("an answer").remove(0);
            assert!(found.iter().all(|token| token.logprob.is_some() == logprobs.is_some()));
            same += close(&found, expected, bound);
        }
        println!("with log probabilities {logprobs:?}: {same} of 60 tokens are the CPU's");
        assert!(same >= 50, "{same} tokens are the CPU's");
    }
    let stats = device.idle();
    assert!(stats.prefix_hits > 0, "the second round found its prompts: {stats:?}");
}

#[test]
fn what_the_device_draws_is_what_the_host_draws_from_its_logits() {
    let dir = tempfile::tempdir().expect("dir");
    write(dir.path(), &mixtral(), DType::BF16);
    let engine = device_engine(dir.path(), DType::BF16, None);
    let plain = SamplingParams { temperature: 1.0, seed: Some(5), ..SamplingParams::default() };
    let ways = [
        SamplingParams { temperature: 0.0, ..plain.clone() },
        plain.clone(),
        SamplingParams { top_p: 0.8, ..plain.clone() },
        SamplingParams { top_k: Some(20), temperature: 1.5, ..plain.clone() },
        SamplingParams { min_p: 0.1, ..plain.clone() },
    ];
    let mut kinds = std::collections::BTreeSet::new();
    for (at, way) in ways.iter().enumerate() {
        // Three answers part from one prompt: they share the row of their first token, and copy its last block.
        let n = if at == 1 { 3 } else { 1 };
        let [host, device] = [Some(0), None].map(|logprobs| {
            let sampling = SamplingParams { logprobs, ..way.clone() };
            let ask = Ask { n, ..Ask::new(&tokens(21, at), 8, sampling) };
            engine.answers(&ask).expect("answers").iter().map(|answer| ids(answer)).collect::<Vec<_>>()
        });
        assert_eq!(device, host, "{way:?}");
        kinds.extend(device);
    }
    assert_eq!(kinds.len(), 7, "every way and answer is its own: {kinds:?}");
    // All steps of an answer but the first, and the one in which answers part.
    let stats = engine.idle();
    assert!(stats.steps_ahead >= 5 * 5, "steps are launched behind one another: {stats:?}");
}

#[test]
fn what_does_not_fit_is_refused_with_words() {
    let dir = tempfile::tempdir().expect("dir");
    write(dir.path(), &mixtral(), DType::BF16);
    let source = ModelSource::open(dir.path()).expect("opens");
    let refused = |adapters: DeviceAdapters| {
        let emulator = Box::new(Emulator::new(Mode::Plain).expect("the build script compiled it"));
        let options = DeviceOptions { adapters: Some(adapters), ..options(DType::BF16, true) };
        DeviceDecoder::load(emulator, &source, &options).expect_err("too much").to_string()
    };
    let error = refused(DeviceAdapters { slots: 65, max_rank: 8 });
    assert!(error.contains("65 adapters on 4 experts") && error.contains("64 or less"), "{error}");
    let error = refused(DeviceAdapters { slots: 1, max_rank: 86 });
    assert!(error.contains("rank 86") && error.contains("1 to 85"), "{error}");

    let mut device = on_device(dir.path(), Mode::Plain, &options(DType::BF16, true));
    let adapters: Vec<_> = (0..3).map(|at| Arc::new(adapter(dir.path(), at))).collect();
    let part = |table: &[u32], cached, adapter| Part { new: vec![3], cached, table: table.to_vec(), adapter };
    let mut refused = |parts: &[Part], copies: &[(u32, u32)]| {
        let arrays = Arrays::new(&adapters, parts);
        device.launch(&arrays.batch(&arrays.last_rows), copies, None).expect_err("outside").to_string()
    };
    let outside = BLOCKS as u32;
    for (parts, copies, says) in [
        (vec![part(&[outside], 0, None)], vec![], "slot 1024 of 64 blocks"),
        (vec![part(&[outside, 1], 16, None)], vec![], "block 64 of 64"),
        (vec![part(&[0; 17], WINDOW, None)], vec![], "position 256 of 256"),
        (vec![part(&[0], 0, None)], vec![(0, outside)], "a copy of block 0 to 64"),
        ((0..7).map(|at| part(&[at], 0, None)).collect(), vec![], "7 sequences"),
        ((0..3).map(|at| part(&[at], 0, Some(at as usize))).collect(), vec![], "3 adapters"),
    ] {
        let error = refused(&parts, &copies);
        assert!(error.contains(says), "{error}: does not say {says}");
    }
}
