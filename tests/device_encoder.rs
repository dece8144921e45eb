//! Encoders whose every launch runs on the emulated device, against the CPU's pass and `transformers`; then the embed
//! thread and the program over them.

use std::path::Path;

use serde_json::{Value, json};
use tarn::embed::{
    EmbedConfig, EmbedderInfo, InputKind, Pair, Priority, RerankerInfo, RerankerParts, start_with_reranker,
};
use tarn::model::{
    DeviceEncoder, DeviceEncoderOptions, DtypeChoice, Encoder, Exec, LoadOptions, ModelSource, ScoreScale,
};
use tarn::text::Tokenizer;
use tarn_kernels::DType;
use tarn_kernels::emulated::{Emulator, Mode};

use super::reranker::{self, post};
use super::seeded::{golden, write_encoder};
use super::support::{Server, tarn, write_embedder, write_model, write_reranker};

/// Lengths of a batch's sequences: few tokens, whose products stream, and more, whose products are tiles; odd lengths,
/// nothing at the start, between and at the end; the longest that the models take.
const BATCHES: [&[usize]; 5] = [&[1], &[0, 7, 0, 17], &[31], &[3, 1, 50, 33, 13, 0], &[64, 0, 63]];

/// Most sequences of a pass on the device.
const SEQUENCES: usize = 7;

fn on_cpu(source: &ModelSource) -> Encoder {
    let options = LoadOptions {
        dtype: DtypeChoice::F32,
        max_num_batched_tokens: 128,
        max_num_seqs: 8,
        dummy_weights: false,
        exec: Exec::simd(1),
        progress: None,
    };
    Encoder::load(source, options).expect("loads")
}

fn on_device(source: &ModelSource, dtype: DType, mode: Mode) -> DeviceEncoder {
    let device = Box::new(Emulator::new(mode).expect("the build script compiled it"));
    let options = DeviceEncoderOptions {
        dtype,
        max_num_batched_tokens: 128,
        max_num_seqs: SEQUENCES,
        dummy_weights: false,
        progress: None,
    };
    DeviceEncoder::load(device, source, &options).expect("loads")
}

/// Token ids of sequences of these lengths, and their bounds.
fn batch(lengths: &[usize]) -> (Vec<u32>, Vec<u32>) {
    let mut bounds = vec![0];
    for length in lengths {
        bounds.push(bounds[bounds.len() - 1] + *length as u32);
    }
    let tokens = bounds[lengths.len()];
    ((0..tokens).map(|at| at.wrapping_mul(0x9e37_79b9) >> 25).collect(), bounds)
}

/// The relative error that `layers` layers may have in `dtype`.
///
/// A layer rounds 9 activations (q, k and v; probabilities; what attention gives; four products and sums; two norms) and
/// 4 weights, and the embeddings are 2 sums of 3 rounded tables: each rounding is off by some unit / √12, roundings are
/// independent, and norms keep their share of the state what it was.
fn error_of(dtype: DType, layers: usize) -> f32 {
    let unit = if dtype == DType::F16 { 2.0_f32.powi(-11) } else { 2.0_f32.powi(-8) };
    unit * ((5 + 13 * layers) as f32 / 12.0).sqrt()
}

/// Vectors of norm 1 that are `error` apart, and no element more than six times its share; zeros where nothing was.
fn same(what: &str, found: &[f32], expected: &[f32], dim: usize, error: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (found, expected)) in found.chunks_exact(dim).zip(expected.chunks_exact(dim)).enumerate() {
        if expected.iter().all(|x| *x == 0.0) {
            assert_eq!(found, expected, "{what}, sequence {at}");
            continue;
        }
        let cosine: f32 = found.iter().zip(expected).map(|(a, b)| a * b).sum();
        let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(cosine > 1.0 - 2.0 * error * error - 1e-6, "{what}, sequence {at}: cosine {cosine}");
        let bound = 6.0 * error / (dim as f32).sqrt();
        assert!(worst < bound, "{what}, sequence {at}: an element is off by {worst}, more than {bound}");
    }
}

#[test]
fn encoders_on_a_device_give_the_vectors_of_the_cpu() {
    for (name, model) in golden().encoders {
        let dir = tempfile::tempdir().expect("dir");
        let source = write_encoder(dir.path(), &name, &model);
        let mut cpu = on_cpu(&source);
        let (dim, layers) = (cpu.dim(), cpu.config().layers);
        let (mut expected, mut found) = (Vec::new(), Vec::new());
        for dtype in [DType::BF16, DType::F16] {
            let error = error_of(dtype, layers);
            let mut device = on_device(&source, dtype, Mode::Plain);
            for lengths in BATCHES {
                let (ids, bounds) = batch(lengths);
                cpu.forward(&ids, &bounds, &mut expected).expect("forward");
                device.forward(&ids, &bounds, &mut found).expect("forward");
                same(&format!("{name} {dtype:?} {lengths:?}"), &found, &expected, dim, error);
            }
            for row in &model.rows {
                device.forward(&row.ids, &[0, row.ids.len() as u32], &mut found).expect("forward");
                same(&format!("{name} {dtype:?}, transformers"), &found, &row.vector, dim, error);
            }
        }
    }
}

#[test]
fn an_encoders_pass_stays_in_bounds_and_does_not_race() {
    for (name, model) in golden().encoders {
        let dir = tempfile::tempdir().expect("dir");
        let source = write_encoder(dir.path(), &name, &model);
        let mut device = on_device(&source, DType::BF16, Mode::Checked);
        for lengths in [BATCHES[1], BATCHES[3]] {
            let (ids, bounds) = batch(lengths);
            let mut found = Vec::new();
            device.forward(&ids, &bounds, &mut found).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(found.len(), lengths.len() * device.config().hidden);
        }
    }
}

#[test]
fn a_batch_that_a_device_has_no_room_for_is_refused() {
    let golden = golden();
    let (name, model) = golden.encoders.first_key_value().expect("an encoder");
    let dir = tempfile::tempdir().expect("dir");
    let source = write_encoder(dir.path(), name, model);
    let mut device = on_device(&source, DType::F16, Mode::Plain);
    let mut refuse = |ids: &[u32], bounds: &[u32], part: &str| {
        let error = device.forward(ids, bounds, &mut Vec::new()).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    };
    refuse(&[1; 129], &[0, 60, 120, 129], "129 tokens");
    refuse(&[1; 8], &[0, 1, 2, 3, 4, 5, 6, 7, 8], "8 sequences");
    refuse(&[1, 128], &[0, 2], "token 128");
    let mut out = vec![1.0];
    device.forward(&[], &[0, 0], &mut out).expect("forward");
    assert!(out.len() > 1 && out.iter().all(|x| *x == 0.0));
}

/// How far a logit may be off whose model has `layers` layers of width `hidden`.
///
/// `support::tensor` spreads matrices evenly over ±1/4. A row of the head's dense layer is a sum of `hidden` such weights and
/// numbers of a state, whose mean square is about 1; the logit is a sum of as many of its tanh's, which are no steeper than
/// it. Errors of a sum grow as its root.
fn logit_error(dtype: DType, layers: usize, hidden: usize) -> f32 {
    let weight = 0.25 / 3.0_f32.sqrt();
    // As for the elements of vectors, the largest of some is several times what is usual.
    6.0 * error_of(dtype, layers) * weight * weight * hidden as f32
}

#[test]
fn rerankers_on_a_device_give_the_scores_of_the_cpu_alone_and_in_a_batch() {
    for (name, model) in reranker::golden().models {
        let dir = tempfile::tempdir().expect("dir");
        write_model(dir.path(), &model.config, 1);
        let source = ModelSource::open(dir.path()).expect("opens");
        let mut cpu = on_cpu(&source);
        let (hidden, layers) = (cpu.dim(), cpu.config().layers);
        let (mut ids, mut types, mut bounds) = (Vec::new(), Vec::new(), vec![0]);
        for row in &model.rows {
            ids.extend_from_slice(&row.ids);
            types.extend_from_slice(&row.types);
            bounds.push(ids.len() as u32);
        }
        let expected: Vec<f32> = model.rows.iter().map(|row| row.logit).collect();
        let (mut all, mut found) = (Vec::new(), Vec::new());
        for dtype in [DType::BF16, DType::F16] {
            let bound = logit_error(dtype, layers, hidden);
            let mut device = on_device(&source, dtype, Mode::Plain);
            device.score(&ids, &types, &bounds, &mut all).expect("scores");
            assert_eq!(all.len(), expected.len());
            for (at, row) in model.rows.iter().enumerate() {
                let mut scores = vec![all[at]];
                if dtype == DType::BF16 {
                    let bounds = [0, row.ids.len() as u32];
                    device.score(&row.ids, &row.types, &bounds, &mut found).expect("scores");
                    scores.extend_from_slice(&found);
                }
                for found in scores {
                    let error = (found - expected[at]).abs();
                    assert!(error < bound, "{name} {dtype:?}, text {at}: {found} and not {}", expected[at]);
                }
            }
            // What a token's text is counts, by more than roundings do.
            cpu.score(&ids, &[], &bounds, &mut found).expect("scores");
            let apart = found.iter().zip(&all).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            device.score(&ids, &[], &bounds, &mut all).expect("scores");
            for (found, expected) in all.iter().zip(&found) {
                assert!(
                    (found - expected).abs() < bound,
                    "{name} {dtype:?}, one text: {found} and not {expected}"
                );
            }
            assert!(name != "bert" || dtype != DType::F16 || apart > 2.0 * bound, "{apart} apart");
        }
    }
}

#[test]
fn pairs_that_cannot_be_scored_are_refused() {
    let model = &reranker::golden().models["bert"];
    let dir = tempfile::tempdir().expect("dir");
    write_model(dir.path(), &model.config, 1);
    let mut device = on_device(&ModelSource::open(dir.path()).expect("opens"), DType::BF16, Mode::Checked);
    let mut out = Vec::new();
    let mut refuse = |types: &[u32], bounds: &[u32], part: &str| {
        let error = device.score(&[5, 6], types, bounds, &mut out).expect_err(part).to_string();
        assert!(error.contains(part), "`{part}` is not in: {error}");
    };
    refuse(&[0], &[0, 2], "1 type ids");
    refuse(&[0, 2], &[0, 2], "type 2");
    refuse(&[0, 0], &[0, 0, 2], "without a token");
    refuse(&[], &[0, 1], "do not cover");
    device.score(&[5, 6], &[0, 1], &[0, 1, 2], &mut out).expect("in bounds and without a race");
    assert_eq!(out.len(), 2);
    let (name, model) = golden().encoders.pop_first().expect("an encoder");
    let dir = tempfile::tempdir().expect("dir");
    let mut embedder = on_device(&write_encoder(dir.path(), &name, &model), DType::BF16, Mode::Plain);
    let error = embedder.score(&[5], &[], &[0, 1], &mut out).expect_err("no head").to_string();
    assert!(error.contains("a model without a head"), "{error}");
}

#[test]
fn queries_whose_list_was_recorded_give_each_its_own_vector() {
    let (name, model) = golden().encoders.pop_first().expect("an encoder");
    let dir = tempfile::tempdir().expect("dir");
    let source = write_encoder(dir.path(), &name, &model);
    let (mut cpu, mut device) = (on_cpu(&source), on_device(&source, DType::BF16, Mode::Plain));
    let error = error_of(DType::BF16, cpu.config().layers);
    let mut first = Vec::new();
    for round in 0..2 {
        // All of one shape, the longest first: what it leaves behind is none of the others'.
        for (at, length) in [16, 9].into_iter().enumerate() {
            let ids: Vec<u32> = (0..length).map(|token| (7 * at as u32 + 3 * token) % 128).collect();
            let (mut expected, mut found) = (Vec::new(), Vec::new());
            cpu.forward(&ids, &[0, length], &mut expected).expect("forward");
            device.forward(&ids, &[0, length], &mut found).expect("forward");
            same(&format!("{length} tokens"), &found, &expected, cpu.dim(), error);
            if round == 0 {
                first.push(found);
            } else {
                assert_eq!(found, first[at], "{length} tokens: a second time changes bits");
            }
        }
    }
}

fn tokenizer(dir: &Path) -> Tokenizer {
    let json = std::fs::read(dir.join("tokenizer.json")).expect("tokenizer.json");
    Tokenizer::from_json(&json, None).expect("a tokenizer")
}

/// Logits of `documents` for `query` on the CPU.
fn cpu_logits(reranker: &Path, query: &str, documents: &[&str]) -> Vec<f32> {
    let mut cpu = on_cpu(&ModelSource::open(reranker).expect("opens"));
    let tokenizer = tokenizer(reranker);
    let mut out = Vec::new();
    let scored = documents.iter().map(|document| {
        let input = tokenizer.encode_cut(query, Some(document), 128).expect("encodes");
        assert!(input.types.contains(&1), "a pair");
        cpu.score(&input.ids, &input.types, &[0, input.ids.len() as u32], &mut out).expect("scores");
        out[0]
    });
    scored.collect()
}

#[tokio::test]
async fn an_embed_thread_over_devices_gives_the_cpus_vectors_and_scores_over_several_passes() {
    let dir = tempfile::tempdir().expect("dir");
    let (embedder, reranker) = (dir.path().join("embedder"), dir.path().join("reranker"));
    write_embedder(&embedder);
    write_reranker(&reranker);
    let source = ModelSource::open(&embedder).expect("opens");
    let mut cpu = on_cpu(&source);
    let (dim, error) = (cpu.dim(), error_of(DType::BF16, 1));
    let info = EmbedderInfo {
        id: "embedder".to_owned(),
        sha256: String::new(),
        dim,
        pooling: "mean".to_owned(),
        query_prefix: String::new(),
        passage_prefix: String::new(),
        max_tokens: 128,
    };
    let scoring = ModelSource::open(&reranker).expect("opens");
    let parts = RerankerParts {
        info: RerankerInfo {
            id: "reranker".to_owned(),
            max_tokens: 128,
            template: None,
            scale: ScoreScale::Logit,
        },
        tokenizer: tokenizer(&reranker),
        build: Box::new(move || Ok(Box::new(on_device(&scoring, DType::BF16, Mode::Plain)))),
    };
    // No text is shorter than 20 tokens: with these a pass has fewer sequences than there is room for.
    let config = EmbedConfig { max_batch_tokens: 128 };
    let build = move || Ok(on_device(&source, DType::BF16, Mode::Plain));
    let (handle, _thread) =
        start_with_reranker(config, tokenizer(&embedder), info, build, Some(parts)).expect("starts");

    let texts: Vec<String> = (0..12_u32)
        .map(|at| (0..20 + 7 * at % 40).map(|c| char::from(b'a' + ((c * (at + 3)) % 26) as u8)).collect())
        .collect();
    for priority in [Priority::Bulk, Priority::Interactive] {
        let vectors = handle.embed(InputKind::Raw, texts.clone(), priority).await.expect("embeds");
        for (text, vector) in texts.iter().zip(&vectors) {
            let ids = handle.tokenizer().encode(text, true).expect("encodes");
            let mut expected = Vec::new();
            cpu.forward(&ids, &[0, ids.len() as u32], &mut expected).expect("forward");
            same(text, vector, &expected, dim, error);
        }
    }
    assert!(handle.tokens_computed() > 2 * 2 * 128, "{} tokens are few", handle.tokens_computed());

    let documents: Vec<&str> = texts.iter().map(String::as_str).collect();
    let query = "a question";
    let pairs =
        documents.iter().map(|text| Pair { query: query.into(), document: (*text).to_owned() }).collect();
    let scored = handle.score_pairs(pairs, None, Priority::Bulk).await.expect("scores");
    let (expected, bound) = (cpu_logits(&reranker, query, &documents), logit_error(DType::BF16, 1, dim));
    assert_eq!(scored.scores.len(), expected.len());
    for (at, (found, expected)) in scored.scores.iter().zip(&expected).enumerate() {
        assert!((found - expected).abs() < bound, "{}: {found} and not {expected}", texts[at]);
    }
    assert!(scored.tokens > 2 * 128, "{} tokens are few", scored.tokens);
}

#[tokio::test]
async fn the_program_embeds_and_reranks_on_a_device_over_a_lake_that_the_cpu_filled() {
    let dir = tempfile::tempdir().expect("dir");
    let (embedder, reranker, lake) =
        (dir.path().join("embedder"), dir.path().join("reranker"), dir.path().join("lake"));
    write_embedder(&embedder);
    write_reranker(&reranker);
    let documents = ["red fuses of 16 a", "blue cables", "green relays for doors"];
    for (at, text) in documents.iter().enumerate() {
        let file = dir.path().join(format!("{at}.txt"));
        std::fs::write(&file, text).expect("writes");
        let output =
            tarn(&embedder, &lake).args(["ingest", "--device", "cpu"]).arg(&file).output().expect("runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let embed = |device: &str| -> Vec<f32> {
        let mut command = tarn(&embedder, &lake);
        let output = command.args(["embed", "--device", device]).args(documents).output().expect("runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = String::from_utf8(output.stdout).expect("text");
        let vectors = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("json"));
        vectors
            .flat_map(|one| serde_json::from_value::<Vec<f32>>(one["embedding"].clone()).expect("a vector"))
            .collect()
    };
    let (on_cpu, on_device) = (embed("cpu"), embed("emulated"));
    assert_ne!(on_cpu, on_device, "the device rounds");
    same("tarn embed", &on_device, &on_cpu, on_cpu.len() / documents.len(), error_of(DType::BF16, 1));

    let mut command = tarn(&embedder, &lake);
    command.args(["--device", "emulated"]).arg("--reranker").arg(&reranker);
    let server = Server::start(command);
    let (query, url) = ("which fuse", &server.url);
    let (status, answer) =
        post(&format!("{url}/v1/rag/query"), json!({"query": query, "top_k": 2, "rerank": true})).await;
    let found = answer["citations"].as_array().map(Vec::len);
    assert_eq!(
        (status, found),
        (200, Some(2)),
        "vectors of the CPU are compared with the device's: {answer}"
    );
    let (status, answer) =
        post(&format!("{url}/v1/rerank"), json!({"query": query, "documents": documents})).await;
    assert_eq!(status, 200, "{answer}");
    let expected = cpu_logits(&reranker, query, &documents);
    for result in answer["results"].as_array().expect("results") {
        let at = result["index"].as_u64().expect("an index") as usize;
        let (score, logit) = (result["relevance_score"].as_f64().expect("a score") as f32, expected[at]);
        // A sigmoid is no steeper than a quarter.
        let error = (score - ScoreScale::Sigmoid.of(logit)).abs();
        assert!(error < logit_error(DType::BF16, 1, 32) / 4.0, "{}: {score}, logit {logit}", documents[at]);
    }
    let metrics = reqwest::get(format!("{url}/metrics")).await.expect("answers").text().await.expect("text");
    for part in ["embedder", "reranker"] {
        let line = format!("tarn_device_memory_bytes{{part=\"{part}\"}}");
        assert!(metrics.contains(&line), "{line} is not in:\n{metrics}");
    }
}
