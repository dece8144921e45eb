//! Cross-encoders: against `transformers`, alone and in a batch, and from a program's flags to its answers.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use tarn::model::{DtypeChoice, Encoder, Exec, LoadOptions, ModelConfig, ModelSource, ScoreScale};
use tarn::text::{EncoderInput, Tokenizer};

use super::support::{Server, tarn, write_embedder, write_model, write_reranker};

fn load(dir: &Path) -> (Encoder, ScoreScale) {
    let source = ModelSource::open(dir).expect("opens");
    let ModelConfig::Encoder(config) = source.config() else { panic!("an encoder") };
    let scale = config.head.expect("a head").scale;
    let options = LoadOptions {
        dtype: DtypeChoice::Auto,
        max_num_batched_tokens: 128,
        max_num_seqs: 1,
        dummy_weights: false,
        exec: Exec::simd(2),
        progress: None,
    };
    (Encoder::load(&source, options).expect("loads"), scale)
}

/// The logits of each text alone, and of all in one batch.
fn logits(encoder: &mut Encoder, texts: &[EncoderInput]) -> (Vec<f32>, Vec<f32>) {
    let (mut alone, mut out) = (Vec::new(), Vec::new());
    let (mut ids, mut types, mut cu_seqlens) = (Vec::new(), Vec::new(), vec![0]);
    for text in texts {
        encoder.score(&text.ids, &text.types, &[0, text.ids.len() as u32], &mut out).expect("scores");
        alone.extend_from_slice(&out);
        ids.extend_from_slice(&text.ids);
        types.extend_from_slice(&text.types);
        cu_seqlens.push(ids.len() as u32);
    }
    encoder.score(&ids, &types, &cu_seqlens, &mut out).expect("scores");
    (alone, out)
}

#[derive(Deserialize)]
pub(super) struct Seeded {
    pub(super) models: BTreeMap<String, SeededModel>,
}

#[derive(Deserialize)]
pub(super) struct SeededModel {
    pub(super) config: Value,
    pub(super) rows: Vec<SeededRow>,
}

#[derive(Deserialize)]
pub(super) struct SeededRow {
    pub(super) ids: Vec<u32>,
    pub(super) types: Vec<u32>,
    pub(super) logit: f32,
}

pub(super) fn golden() -> Seeded {
    serde_json::from_str(include_str!("golden/reranker_seeded.json")).expect("golden")
}

#[test]
fn heads_of_both_families_give_the_logits_of_transformers_alone_and_in_a_batch() {
    let golden = golden();
    assert_eq!(golden.models.len(), 2);
    for (name, model) in golden.models {
        let dir = tempfile::tempdir().expect("dir");
        write_model(dir.path(), &model.config, 1);
        let (mut encoder, _) = load(dir.path());
        let texts: Vec<EncoderInput> = model
            .rows
            .iter()
            .map(|row| EncoderInput { ids: row.ids.clone(), types: row.types.clone() })
            .collect();
        let (alone, batched) = logits(&mut encoder, &texts);
        for (row, logit) in model.rows.iter().zip(&alone) {
            let error = (row.logit - logit).abs();
            assert!(error < 1e-4, "{name}, {} tokens: {logit} and not {}", row.ids.len(), row.logit);
        }
        assert_eq!(alone, batched, "{name}: a batch changes bits");
        let mut out = Vec::new();
        assert!(encoder.score(&[5], &[0, 0], &[0, 1], &mut out).is_err(), "types of other tokens");
        assert!(encoder.score(&[5], &[0], &[0, 0, 1], &mut out).is_err(), "a text without a token");
    }
}

#[derive(Deserialize)]
struct Real {
    template: String,
    rows: Vec<RealRow>,
}

#[derive(Deserialize)]
struct RealRow {
    query: String,
    document: String,
    single: RealScore,
    pair: RealScore,
}

#[derive(Deserialize)]
struct RealScore {
    tokens: usize,
    logit: f32,
}

#[test]
fn a_real_reranker_scores_pairs_as_transformers_does_cut_ones_included() {
    let Some(models) = std::env::var_os("TARN_TEST_MODELS") else {
        return println!("not run: no TARN_TEST_MODELS");
    };
    let dir = Path::new(&models).join("reranker-bert-mini");
    if !dir.is_dir() {
        return println!("not run: no model (reranker-bert-mini, which tests/golden/reranker.py makes)");
    }
    let golden: Real = serde_json::from_str(include_str!("golden/reranker.json")).expect("golden");
    let (mut encoder, scale) = load(&dir);
    assert_eq!(scale, ScoreScale::Sigmoid);
    let json = std::fs::read(dir.join("tokenizer.json")).expect("tokenizer");
    let tokenizer = Tokenizer::from_json(&json, None).expect("tokenizer");
    for row in &golden.rows {
        let text = golden.template.replace("{query}", &row.query).replace("{document}", &row.document);
        for (input, expected) in [
            (tokenizer.encode_cut(&text, None, 512), &row.single),
            (tokenizer.encode_cut(&row.query, Some(&row.document), 512), &row.pair),
        ] {
            let input = input.expect("encodes");
            assert_eq!(input.ids.len(), expected.tokens, "{} | {}", row.query, row.document);
            let (alone, _) = logits(&mut encoder, &[input]);
            let error = (alone[0] - expected.logit).abs();
            assert!(
                error < 2e-3,
                "{} | {}: {} and not {}",
                row.query,
                row.document,
                alone[0],
                expected.logit
            );
        }
    }
}

pub(super) async fn post(url: &str, body: Value) -> (u16, Value) {
    let request = reqwest::Client::new().post(url).header("content-type", "application/json");
    let answer = request.body(body.to_string()).send().await.expect("answers");
    let status = answer.status().as_u16();
    (status, serde_json::from_str(&answer.text().await.expect("body")).expect("json"))
}

#[tokio::test]
async fn a_server_with_a_reranker_orders_documents_and_passages() {
    let dir = tempfile::tempdir().expect("dir");
    let (embedder, reranker, lake) =
        (dir.path().join("embedder"), dir.path().join("reranker"), dir.path().join("lake"));
    write_embedder(&embedder);
    write_reranker(&reranker);
    for (at, text) in ["red fuses of 16 a", "blue cables", "green relays for doors"].iter().enumerate() {
        let file = dir.path().join(format!("{at}.txt"));
        std::fs::write(&file, text).expect("writes");
        let ingested = tarn(&embedder, &lake).arg("ingest").arg(&file).output().expect("runs");
        assert!(ingested.status.success(), "{}", String::from_utf8_lossy(&ingested.stderr));
    }
    let mut command = tarn(&embedder, &lake);
    command.arg("--reranker").arg(&reranker);
    let server = Server::start(command);
    let url = &server.url;

    let documents = ["blue cables", "red fuses", "doors"];
    let ask = json!({"model": "reranker", "query": "which fuse", "documents": documents});
    let (status, all) = post(&format!("{url}/v1/rerank"), ask.clone()).await;
    assert_eq!(status, 200, "{all}");
    let scored = |answer: &Value| -> Vec<(u64, f64)> {
        let results = answer["results"].as_array().expect("results").iter();
        results
            .map(|r| (r["index"].as_u64().expect("index"), r["relevance_score"].as_f64().expect("score")))
            .collect()
    };
    let best = scored(&all);
    assert!(best.windows(2).all(|pair| pair[0].1 >= pair[1].1), "{all}");
    assert!(best.iter().all(|(_, score)| (0.0..=1.0).contains(score)), "{all}");
    let (_, scores) =
        post(&format!("{url}/score"), json!({"text_1": "which fuse", "text_2": documents})).await;
    for (index, score) in &best {
        assert_eq!(scores["data"][*index as usize]["score"].as_f64(), Some(*score), "{scores}");
    }

    let (status, answer) =
        post(&format!("{url}/v1/rag/query"), json!({"query": "which fuse", "top_k": 2, "rerank": true}))
            .await;
    assert_eq!(status, 200, "{answer}");
    let texts = ["red fuses of 16 a", "blue cables", "green relays for doors"];
    let (_, judged) =
        post(&format!("{url}/rerank"), json!({"query": "which fuse", "documents": texts, "top_n": 2})).await;
    let expected: Vec<String> = scored(&judged).iter().map(|(index, _)| format!("{index}.txt")).collect();
    let found: Vec<&str> = answer["citations"]
        .as_array()
        .expect("citations")
        .iter()
        .filter_map(|c| c["name"].as_str())
        .collect();
    assert_eq!(found, expected, "{answer}");
    assert!(answer["timings"]["retrieve"]["rerank_ms"].is_number(), "{answer}");
}

#[test]
fn models_in_the_wrong_role_are_refused_with_the_right_one() {
    let dir = tempfile::tempdir().expect("dir");
    let (embedder, reranker, lake) =
        (dir.path().join("embedder"), dir.path().join("reranker"), dir.path().join("lake"));
    write_embedder(&embedder);
    write_reranker(&reranker);
    let said = |embedder: &Path, reranker: &Path| {
        let mut command = tarn(embedder, &lake);
        command.arg("--reranker").arg(reranker).args(["query", "x", "--rerank", "--no-answer"]);
        let output = command.output().expect("runs");
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(said(&reranker, &reranker).contains("give it as --reranker"));
    assert!(said(&embedder, &embedder).contains("BertForSequenceClassification"));
}
