//! LoRA adapters in the forward pass: against peft, and against themselves in every mix.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::TensorView;
use serde::Deserialize;
use serde_json::Value;
use tarn::model::{
    Decoder, DecoderConfig, ForwardBatch, KvCache, LoraAdapter, LoraOptions, ModelConfig, ModelSource,
    SeqSpan,
};

use super::forward::{self, Part, argmax, model};
use super::support::{tensor, test_data, write_model};

const RANK: usize = 16;

fn load(path: &Path, threads: usize) -> Decoder {
    forward::load(path, threads).with_adapters(RANK).expect("room")
}

fn adapter(path: &Path, config: &DecoderConfig) -> Arc<LoraAdapter> {
    Arc::new(LoraAdapter::load(path, config, LoraOptions { max_rank: RANK }).expect("an adapter"))
}

/// A decoder with its cache and its adapters.
struct Bench {
    decoder: Decoder,
    kv: KvCache,
    adapters: Vec<Arc<LoraAdapter>>,
}

impl Bench {
    fn new(decoder: Decoder, adapters: Vec<Arc<LoraAdapter>>) -> Bench {
        let kv = KvCache::new(decoder.kv_spec(), 1024).expect("cache");
        Bench { decoder, kv, adapters }
    }

    fn step(&mut self, parts: &[Part]) -> Vec<Vec<f32>> {
        forward::step(&mut self.decoder, &mut self.kv, &self.adapters, parts)
    }

    /// The logits of each greedy step alone, with the prompt in chunks of `chunk`.
    fn alone(
        &mut self,
        prompt: &[u32],
        tokens: usize,
        chunk: usize,
        adapter: Option<usize>,
    ) -> Vec<Vec<f32>> {
        let mut part = Part { new: Vec::new(), cached: 0, table: forward::lane(77), adapter };
        let mut out: Vec<Vec<f32>> = Vec::new();
        for new in prompt.chunks(chunk) {
            part.cached += part.new.len();
            part.new = new.to_vec();
            out = self.step(std::slice::from_ref(&part));
        }
        while out.len() < tokens {
            part.cached += part.new.len();
            part.new = vec![argmax(&out[out.len() - 1])];
            out.extend(self.step(std::slice::from_ref(&part)));
        }
        out
    }

    /// All of `prompts` with each of the adapters and with none, one joining after another in one batch: every step's
    /// logits are those of the sequence alone, bit for bit.
    fn a_mix_equals_each_alone(&mut self, prompts: &[Vec<u32>], tokens: usize) {
        let choices: Vec<Option<usize>> = (0..self.adapters.len()).map(Some).chain([None]).collect();
        let pairs: Vec<(&Vec<u32>, Option<usize>)> =
            prompts.iter().flat_map(|prompt| choices.iter().map(move |choice| (prompt, *choice))).collect();
        let alone: Vec<_> = pairs
            .iter()
            .enumerate()
            .map(|(at, (p, a))| self.alone(p, tokens, [256, 3][at % 2], *a))
            .collect();
        for (at, one) in alone.iter().enumerate() {
            let base = &alone[at / choices.len() * choices.len() + choices.len() - 1];
            assert!(pairs[at].1.is_none() || one != base, "the adapter changes nothing");
        }
        let mut running: Vec<(usize, usize)> = Vec::new();
        let mut parts: Vec<Part> = Vec::new();
        let mut waiting = 0..pairs.len();
        let mut mixed = 0;
        loop {
            // Two join a step, so that prefills and decodes of all adapters meet.
            for at in waiting.by_ref().take(2) {
                running.push((at, 0));
                parts.push(Part {
                    new: pairs[at].0.clone(),
                    cached: 0,
                    table: forward::lane(at as u32),
                    adapter: pairs[at].1,
                });
            }
            if parts.is_empty() {
                break;
            }
            let kinds: std::collections::BTreeSet<_> = parts.iter().map(|part| part.adapter).collect();
            mixed += usize::from(kinds.len() == choices.len());
            let logits = self.step(&parts);
            for ((part, (at, step)), logits) in parts.iter_mut().zip(&mut running).zip(logits) {
                assert!(logits == alone[*at][*step], "sequence {at} with {:?}, step {step}", part.adapter);
                *step += 1;
                part.cached += part.new.len();
                part.new = vec![argmax(&logits)];
            }
            let mut left = running.iter().map(|(_, step)| *step < tokens);
            parts.retain(|_| left.next() == Some(true));
            running.retain(|(_, step)| *step < tokens);
        }
        assert!(mixed > 0, "no step had all adapters");
    }
}

#[derive(Deserialize)]
struct Greedy {
    random_mixtral: GreedyMixtral,
    smollm2: GreedySmol,
}

#[derive(Deserialize)]
struct GreedyMixtral {
    base: Vec<GreedyRow>,
    adapters: Vec<GreedyAdapter>,
}

#[derive(Deserialize)]
struct GreedyAdapter {
    seed: usize,
    rows: Vec<GreedyRow>,
}

#[derive(Deserialize)]
struct GreedySmol {
    adapter: String,
    base: Vec<GreedyRow>,
    lora: Vec<GreedyRow>,
}

#[derive(Deserialize)]
struct GreedyRow {
    prompt_ids: Vec<u32>,
    ids: Vec<u32>,
}

fn greedy() -> Greedy {
    serde_json::from_str(include_str!("golden/lora_greedy.json")).expect("golden")
}

fn check_greedy(bench: &mut Bench, rows: &[GreedyRow], adapter: Option<usize>) {
    for (at, row) in rows.iter().enumerate() {
        let logits = bench.alone(&row.prompt_ids, row.ids.len(), [256, 1, 3][at % 3], adapter);
        let ids: Vec<u32> = logits.iter().map(|logits| argmax(logits)).collect();
        assert_eq!(ids, row.ids, "prompt {at}, adapter {adapter:?}");
    }
}

#[test]
fn a_real_adapter_answers_as_peft_does_in_a_mix_too() {
    let Some(path) = model("smollm2-f32") else { return };
    let golden = greedy().smollm2;
    let Some(folder) = test_data(&format!("models/{}", golden.adapter)) else { return };
    let decoder = load(&path, 2);
    let adapter = adapter(&folder, decoder.config());
    assert_eq!(adapter.rank(), 16);
    let mut bench = Bench::new(decoder, vec![adapter]);
    check_greedy(&mut bench, &golden.base, None);
    check_greedy(&mut bench, &golden.lora, Some(0));
    let prompts: Vec<Vec<u32>> = golden.lora.iter().take(3).map(|row| row.prompt_ids.clone()).collect();
    bench.a_mix_equals_each_alone(&prompts, 6);
}

/// Writes the q half of the adapter `from`, with the rows of B in the order of a llama GGUF if `permuted`.
fn write_query_half(from: &Path, to: &Path, heads: usize, permuted: bool) {
    std::fs::create_dir_all(to).expect("folder");
    std::fs::copy(from.join("adapter_config.json"), to.join("adapter_config.json")).expect("config");
    let bytes = std::fs::read(from.join("adapter_model.safetensors")).expect("weights");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let half = |name: &str, view: &TensorView<'_>| {
        let (data, shape) = (view.data(), view.shape());
        let row = data.len() / shape[0];
        let dim = shape[0] / heads;
        if !permuted || name.contains("lora_A") {
            return data.to_vec();
        }
        let from = |at: usize| at / dim * dim + at % dim / 2 + at % 2 * (dim / 2);
        (0..shape[0]).flat_map(|at| data[from(at) * row..][..row].to_vec()).collect()
    };
    let all = file.tensors();
    let q = all.iter().filter(|(name, _)| name.contains("q_proj"));
    let data: Vec<_> = q.map(|(name, view)| (name, view.shape().to_vec(), half(name, view))).collect();
    let views = data.iter().map(|(name, shape, bytes)| {
        (*name, TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).expect("shape"))
    });
    safetensors::serialize_to_file(views, None, &to.join("adapter_model.safetensors")).expect("writes");
}

#[test]
fn an_adapter_of_q_means_the_same_on_a_gguf_file_whose_rows_were_permuted() {
    let (Some(floats), Some(gguf)) = (model("smollm2-f32"), model("smollm2.Q8_0.gguf")) else { return };
    let golden = greedy().smollm2;
    let Some(folder) = test_data(&format!("models/{}", golden.adapter)) else { return };
    let dir = tempfile::tempdir().expect("dir");
    // What the adapter changes in the logits after each prompt.
    let effects = |path: &Path, permuted: bool| {
        let decoder = load(path, 2);
        let half = dir.path().join(format!("permuted-{permuted}"));
        write_query_half(&folder, &half, decoder.config().heads, permuted);
        let adapter = adapter(&half, decoder.config());
        let mut bench = Bench::new(decoder, vec![adapter]);
        let mut effect = |row: &GreedyRow| {
            let with = bench.alone(&row.prompt_ids, 1, 256, Some(0)).remove(0);
            let without = bench.alone(&row.prompt_ids, 1, 256, None).remove(0);
            with.iter().zip(&without).map(|(with, without)| with - without).collect::<Vec<f32>>()
        };
        golden.lora.iter().flat_map(&mut effect).collect::<Vec<_>>()
    };
    let cosine = |a: &[f32], b: &[f32]| {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    let wanted = effects(&floats, false);
    let (found, wrong) = (cosine(&wanted, &effects(&gguf, false)), cosine(&wanted, &effects(&gguf, true)));
    println!("effect on Q8_0 against f32: cosine {found:.4}; of rows in the file's order {wrong:.4}");
    assert!(found > 0.9, "{found}");
    // Weights and activations of 8 bits blur the effect; rows in the wrong order blur it far more.
    assert!(1.0 - found < 0.5 * (1.0 - wrong), "{found} is no better than {wrong}");
}

#[test]
fn adapters_of_a_mixtral_reach_attention_router_and_experts() {
    let Some(path) = model("random-mixtral") else { return };
    let golden = greedy().random_mixtral;
    let decoder = load(&path, 2);
    let mut adapters = Vec::new();
    for wanted in &golden.adapters {
        let Some(folder) = model(&format!("random-mixtral-lora-{}", wanted.seed)) else { return };
        adapters.push(adapter(&folder, decoder.config()));
    }
    let mut bench = Bench::new(decoder, adapters);
    check_greedy(&mut bench, &golden.base, None);
    for (at, wanted) in golden.adapters.iter().enumerate() {
        check_greedy(&mut bench, &wanted.rows, Some(at));
    }
    let prompts: Vec<Vec<u32>> = golden.base.iter().map(|row| row.prompt_ids.clone()).collect();
    bench.a_mix_equals_each_alone(&prompts[..4], 8);
}

#[derive(Deserialize)]
struct Seeded {
    #[serde(flatten)]
    cases: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct Case {
    config: Value,
    adapter_config: Value,
    tensors: BTreeMap<String, Vec<usize>>,
    rows: Vec<SeededRow>,
}

#[derive(Deserialize)]
struct SeededRow {
    ids: Vec<u32>,
    logits: Vec<f32>,
}

fn case(name: &str) -> Case {
    let all: Seeded = serde_json::from_str(include_str!("golden/seeded_lora.json")).expect("golden");
    serde_json::from_value(all.cases[name].clone()).expect("a case")
}

impl Case {
    fn write_adapter(&self, dir: &Path) {
        std::fs::create_dir_all(dir).expect("folder");
        std::fs::write(dir.join("adapter_config.json"), self.adapter_config.to_string()).expect("config");
        let data: Vec<_> =
            self.tensors.iter().map(|(name, shape)| (name, shape, tensor(name, shape))).collect();
        let views = data.iter().map(|(name, shape, bytes)| {
            (*name, TensorView::new(safetensors::Dtype::F32, (*shape).clone(), bytes).expect("shape"))
        });
        let file = dir.join("adapter_model.safetensors");
        safetensors::serialize_to_file(views, None, &file).expect("writes");
    }
}

/// The base model of the cases `names` with their adapters.
fn seeded(names: &[&str], threads: usize) -> (Bench, Vec<Case>) {
    let dir = tempfile::tempdir().expect("dir");
    let cases: Vec<Case> = names.iter().map(|name| case(name)).collect();
    write_model(dir.path(), &cases[0].config, 1);
    let decoder = load(dir.path(), threads);
    let adapters = cases.iter().zip(names).map(|(case, name)| {
        let folder = dir.path().join(name);
        case.write_adapter(&folder);
        adapter(&folder, decoder.config())
    });
    let adapters = adapters.collect();
    (Bench::new(decoder, adapters), cases)
}

#[test]
fn seeded_adapters_give_the_logits_of_peft_and_of_merged_weights() {
    for names in [&["llama"][..], &["mixtral", "mixtral_fused"]] {
        let (mut bench, cases) = seeded(names, 2);
        for (adapter, name) in bench.adapters.iter().zip(names) {
            let planned = bench.decoder.config().adapter_bytes(adapter.rank());
            assert!(planned >= adapter.bytes(), "{name}: {} bytes, planned {planned}", adapter.bytes());
        }
        for (at, (case, name)) in cases.iter().zip(names).enumerate() {
            for row in &case.rows {
                let found = bench.alone(&row.ids, 1, 256, Some(at)).remove(0);
                let worst = found.iter().zip(&row.logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                println!("{name}, {} tokens: logits differ by at most {worst:.2e}", row.ids.len());
                assert!(worst < 1e-4, "{name}, {} tokens: {worst}", row.ids.len());
                assert_eq!(
                    found,
                    bench.alone(&row.ids, 1, 7, Some(at)).remove(0),
                    "{name}: chunks change bits"
                );
            }
        }
    }
}

#[test]
fn a_batch_of_every_adapter_and_the_base_equals_each_alone_on_any_number_of_threads() {
    for names in [&["llama"][..], &["mixtral", "mixtral_fused"]] {
        let mut first = None;
        for threads in [1, 3] {
            let (mut bench, cases) = seeded(names, threads);
            let prompts: Vec<Vec<u32>> = cases[0].rows.iter().map(|row| row.ids.clone()).collect();
            bench.a_mix_equals_each_alone(&prompts, 5);
            let logits = bench.alone(&prompts[1], 5, 256, Some(0));
            assert!(*first.get_or_insert_with(|| logits.clone()) == logits, "threads change bits");
        }
    }
}

#[test]
fn a_pass_refuses_an_adapter_that_it_has_no_room_for_or_that_is_of_another_model() {
    let (bench, _) = seeded(&["llama"], 1);
    let dir = tempfile::tempdir().expect("dir");
    let other = case("mixtral");
    write_model(dir.path(), &other.config, 1);
    let refused = |decoder: Decoder, adapter: &Arc<LoraAdapter>| {
        let (mut decoder, adapters) = (decoder, [adapter.clone()]);
        let mut kv = KvCache::new(decoder.kv_spec(), 4).expect("cache");
        let span = SeqSpan { query_start: 0, query_len: 1, context_len: 1, table_start: 0 };
        let batch = ForwardBatch {
            input_ids: &[5],
            positions: &[0],
            slot_mapping: &[0],
            sequences: &[span],
            block_tables: &[0],
            logits_rows: &[0],
            adapters: &adapters,
            adapter_of: &[0],
        };
        decoder.forward(&batch, &mut kv).expect_err("refused").to_string()
    };
    let llama = &bench.adapters[0];
    assert_eq!(refused(load(dir.path(), 1), llama), "invalid batch: an adapter of another model");
    let narrow = load(dir.path(), 1).with_adapters(6).expect("room");
    assert_eq!(
        refused(narrow, llama),
        "invalid batch: an adapter of rank 7, the decoder was sized for 6",
        "the largest rank of its products counts"
    );
    let source = ModelSource::open(dir.path()).expect("opens");
    let ModelConfig::Decoder(config) = source.config() else { panic!("a decoder") };
    other.write_adapter(&dir.path().join("adapter"));
    let few = LoraAdapter::load(&dir.path().join("adapter"), config, LoraOptions { max_rank: 3 });
    let message = few.expect_err("refused").to_string();
    assert!(message.contains("rank 4") && message.contains("from 1 to 3"), "{message}");
}
