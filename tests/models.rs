//! Models on real weights against golden output of `transformers`; looks in `TARN_TEST_MODELS`.

use super::forward::{self, Part, argmax, load, model};
use tarn::model::{Decoder, DtypeChoice, Exec, ForwardBatch, KvCache, LoadOptions, ModelSource, SeqSpan};

/// One step over `(new ids, tokens already cached, lane)` a sequence, by the base model alone.
fn step(decoder: &mut Decoder, kv: &mut KvCache, parts: &[(Vec<u32>, usize, u32)]) -> Vec<Vec<f32>> {
    let part = |(new, cached, lane): &(Vec<u32>, usize, u32)| Part {
        new: new.clone(),
        cached: *cached,
        table: forward::lane(*lane),
        adapter: None,
    };
    forward::step(decoder, kv, &[], &parts.iter().map(part).collect::<Vec<_>>())
}

/// Greedy continuation alone, with the prompt in chunks of `chunk`.
fn greedy(
    decoder: &mut Decoder,
    kv: &mut KvCache,
    prompt: &[u32],
    tokens: usize,
    chunk: usize,
    lane: u32,
) -> Vec<u32> {
    let mut out = Vec::new();
    let mut cached = 0;
    let mut logits = Vec::new();
    for part in prompt.chunks(chunk) {
        logits = step(decoder, kv, &[(part.to_vec(), cached, lane)]).remove(0);
        cached += part.len();
    }
    while out.len() < tokens {
        let id = argmax(&logits);
        out.push(id);
        if out.len() < tokens {
            logits = step(decoder, kv, &[(vec![id], cached, lane)]).remove(0);
            cached += 1;
        }
    }
    out
}

#[derive(serde::Deserialize)]
struct Golden {
    rows: Vec<GoldenRow>,
}

#[derive(serde::Deserialize)]
struct GoldenRow {
    prompt_ids: Vec<u32>,
    ids: Vec<u32>,
    gaps: Vec<f64>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/greedy_smollm2.json")).expect("golden")
}

#[test]
fn smollm2_greedy_equals_transformers_and_itself_in_batches_of_16() {
    let Some(path) = model("smollm2-f32") else { return };
    let golden = golden();
    let mut decoder = load(&path, 2);
    let mut kv = KvCache::new(decoder.kv_spec(), 1024).expect("cache");
    let mut alone = Vec::new();
    let mut differing = 0;
    for (at, row) in golden.rows.iter().enumerate() {
        let ids = greedy(&mut decoder, &mut kv, &row.prompt_ids, 64, [1, 3, 256][at % 3], 0);
        if let Some(first) = (0..64).find(|at| ids[*at] != row.ids[*at]) {
            println!("prompt {at} differs at token {first}, gap of the top two logits {}", row.gaps[first]);
            assert!(
                row.gaps[first] < 1e-4,
                "prompt {at} differs at token {first} with a gap of {}",
                row.gaps[first]
            );
            differing += 1;
        }
        alone.push(ids);
    }
    assert!(differing <= 1, "{differing} prompts differ");
    // The first 16 prompts together, joining one step after another.
    let mut running: Vec<(usize, usize, Vec<u32>)> = Vec::new();
    let mut waiting = 0..16;
    loop {
        let mut parts: Vec<(Vec<u32>, usize, u32)> = running
            .iter()
            .filter(|(_, _, out)| out.len() < 64)
            .map(|(at, cached, out)| (vec![*out.last().expect("sampled")], *cached, *at as u32))
            .collect();
        let joined = waiting.next();
        if let Some(at) = joined {
            parts.push((golden.rows[at].prompt_ids.clone(), 0, at as u32));
            running.push((at, 0, Vec::new()));
        }
        if parts.is_empty() {
            break;
        }
        for (logits, (new, _, lane)) in step(&mut decoder, &mut kv, &parts).iter().zip(&parts) {
            let seq = running.iter_mut().find(|seq| seq.0 == *lane as usize).expect("running");
            seq.1 += new.len();
            seq.2.push(argmax(logits));
        }
    }
    for (at, _, out) in &running {
        assert_eq!(out, &alone[*at], "prompt {at} in a batch");
    }
}

#[test]
fn the_talking_mixtral_equals_its_dense_parent() {
    let Some(path) = model("talking-mixtral") else { return };
    let golden = golden();
    let mut decoder = load(&path, 2);
    let mut kv = KvCache::new(decoder.kv_spec(), 1024).expect("cache");
    for row in golden.rows.iter().take(6) {
        assert_eq!(greedy(&mut decoder, &mut kv, &row.prompt_ids, 24, 256, 1), row.ids[..24]);
    }
}

/// All logits of `ids` from an empty cache, as `-ln p` of each following id.
fn chunk_nll(decoder: &mut Decoder, kv: &mut KvCache, ids: &[u32]) -> f64 {
    let positions: Vec<u32> = (0..ids.len() as u32).collect();
    let table: Vec<u32> = (0..ids.len().div_ceil(16) as u32).collect();
    let span = SeqSpan {
        query_start: 0,
        query_len: ids.len() as u32,
        context_len: ids.len() as u32,
        table_start: 0,
    };
    let batch = ForwardBatch {
        input_ids: ids,
        positions: &positions,
        slot_mapping: &positions,
        sequences: &[span],
        block_tables: &table,
        logits_rows: &positions,
        adapters: &[],
        adapter_of: &[],
    };
    let logits = decoder.forward(&batch, kv).expect("forward");
    let nll = |at: usize| {
        let row = logits.row(at);
        let highest = f64::from(row.iter().copied().fold(f32::MIN, f32::max));
        let total: f64 = row.iter().map(|x| (f64::from(*x) - highest).exp()).sum();
        highest + total.ln() - f64::from(row[ids[at + 1] as usize])
    };
    (0..ids.len() - 1).map(nll).sum()
}

/// Perplexity of `golden/perplexity.txt` as `golden/perplexity.py` defines it, with weights of type `dtype`.
fn perplexity(path: &std::path::Path, dtype: DtypeChoice, ids: &[u32]) -> f64 {
    let source = ModelSource::open(path).expect("opens");
    let options = LoadOptions {
        dtype,
        max_num_batched_tokens: 512,
        max_num_seqs: 512,
        dummy_weights: false,
        exec: Exec::simd(2),
        progress: None,
    };
    let mut decoder = Decoder::load(&source, options).expect("loads");
    let mut kv = KvCache::new(decoder.kv_spec(), 32).expect("cache");
    let chunks = ids.chunks_exact(512);
    let count = chunks.len() * 511;
    (chunks.map(|chunk| chunk_nll(&mut decoder, &mut kv, chunk)).sum::<f64>() / count as f64).exp()
}

#[derive(serde::Deserialize)]
struct Perplexity {
    ids: Vec<u32>,
    results: Vec<PerplexityResult>,
}

#[derive(serde::Deserialize)]
struct PerplexityResult {
    model: String,
    dtype: String,
    engine: String,
    perplexity: f64,
}

fn perplexity_golden() -> Perplexity {
    serde_json::from_str(include_str!("golden/perplexity.json")).expect("golden")
}

#[test]
fn perplexity_is_that_of_transformers_in_f32_and_fp8_and_of_llama_cpp_in_q8_0() {
    let golden = perplexity_golden();
    for wanted in &golden.results {
        let Some(path) = model(&wanted.model) else { return };
        let dtype = if wanted.dtype == "fp8" { DtypeChoice::Fp8 } else { DtypeChoice::Auto };
        let ratio = perplexity(&path, dtype, &golden.ids) / wanted.perplexity;
        println!(
            "{} {}: {:.4} by {}, Tarn's over it {ratio:.5}",
            wanted.model, wanted.dtype, wanted.perplexity, wanted.engine
        );
        let within = if wanted.model.ends_with(".gguf") { 5e-3 } else { 1e-4 };
        assert!((ratio - 1.0).abs() < within, "{} {}: {ratio}", wanted.model, wanted.dtype);
    }
}

#[test]
fn fp8_weights_cost_less_than_a_percent_of_perplexity() {
    let golden = perplexity_golden();
    for name in ["smollm2-f32", "talking-mixtral"] {
        let Some(path) = model(name) else { return };
        let [bf16, fp8] =
            [DtypeChoice::BF16, DtypeChoice::Fp8].map(|dtype| perplexity(&path, dtype, &golden.ids));
        println!("{name}: {fp8:.4} with fp8 weights, {bf16:.4} with bf16, ratio {:.5}", fp8 / bf16);
        assert!((fp8 / bf16 - 1.0).abs() < 0.01, "{name}: {fp8} beside {bf16}");
    }
}

#[derive(serde::Deserialize)]
struct Embeddings {
    texts: Vec<String>,
    #[serde(flatten)]
    models: std::collections::BTreeMap<String, serde_json::Value>,
}

#[derive(serde::Deserialize)]
struct EmbeddingRow {
    text: usize,
    prefix: String,
    vector: Vec<f32>,
}

/// `tarn embed` over `texts`, in one call.
fn embed(path: &std::path::Path, prefix: &str, texts: &[&str]) -> Vec<Vec<f32>> {
    let mut command = std::process::Command::new(super::support::TARN);
    command.arg("embed").arg("--embedder").arg(path);
    match prefix {
        "query: " => drop(command.arg("--query")),
        "passage: " => drop(command.arg("--passage")),
        _ => {}
    }
    let output = command.arg("--").args(texts).output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let vector = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).expect("json");
        serde_json::from_value(line["embedding"].clone()).expect("numbers")
    };
    lines.lines().map(vector).collect()
}

#[test]
fn embeddings_equal_sentence_transformers_one_by_one_and_batched() {
    let golden: Embeddings = serde_json::from_str(include_str!("golden/embeddings.json")).expect("golden");
    let cosine = |a: &[f32], b: &[f32]| -> f64 {
        let dot =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    for name in ["all-MiniLM-L6-v2", "e5-small", "granite-30m"] {
        let Some(path) = model(name) else { return };
        let rows: Vec<EmbeddingRow> =
            serde_json::from_value(golden.models[name]["rows"].clone()).expect("rows");
        let mut worst = f64::MAX;
        for prefix in ["", "query: ", "passage: "] {
            let rows: Vec<&EmbeddingRow> = rows.iter().filter(|row| row.prefix == prefix).collect();
            let texts: Vec<&str> = rows.iter().map(|row| golden.texts[row.text].as_str()).collect();
            if texts.is_empty() {
                continue;
            }
            let batched = embed(&path, prefix, &texts);
            for ((row, text), vector) in rows.iter().zip(&texts).zip(&batched) {
                worst = worst.min(cosine(vector, &row.vector));
                assert_eq!(embed(&path, prefix, &[text]), std::slice::from_ref(vector), "{name}: {text}");
            }
        }
        println!("{name}: smallest cosine {worst:.7}");
        assert!(worst >= 0.9999, "{name}: {worst}");
    }
}

#[derive(serde::Deserialize)]
struct MixtralGolden {
    rows: Vec<MixtralRow>,
}

#[derive(serde::Deserialize)]
struct MixtralRow {
    ids: Vec<u32>,
    logits: Vec<f32>,
}

#[test]
fn a_sharded_random_mixtral_gives_the_logits_of_transformers() {
    let Some(path) = model("random-mixtral") else { return };
    let golden: MixtralGolden =
        serde_json::from_str(include_str!("golden/mixtral_logits.json")).expect("golden");
    let mut decoder = load(&path, 2);
    let mut kv = KvCache::new(decoder.kv_spec(), 1024).expect("cache");
    for row in golden.rows {
        let logits = step(&mut decoder, &mut kv, &[(row.ids.clone(), 0, 3)]).remove(0);
        let worst = logits.iter().zip(&row.logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{} tokens: logits differ by at most {worst:.2e}", row.ids.len());
        assert!(worst < 1e-4, "{} tokens: {worst}", row.ids.len());
    }
}

#[test]
fn what_real_models_take_is_known_before_they_are_loaded() {
    for name in ["smollm2.Q8_0.gguf", "smollm2.Q4_1.gguf", "random-mixtral"] {
        let Some(path) = model(name) else { continue };
        let source = ModelSource::open(&path).expect("opens");
        let planned = source.footprint(DtypeChoice::Auto, false, 16, 1).expect("plans");
        let decoder = load(&path, 1);
        assert_eq!(planned.matrices, decoder.weight_bytes(), "{name}");
    }
}
