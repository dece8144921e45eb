//! Small models of every architecture against `transformers`, without a file: the weights follow from their names.

use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

use tarn::model::{
    Decoder, DtypeChoice, Encoder, Exec, ForwardBatch, KvCache, LoadOptions, ModelConfig, ModelSource,
    SeqSpan,
};

use super::support::write_model;

#[derive(Deserialize)]
pub(super) struct Golden {
    decoders: BTreeMap<String, Model>,
    pub(super) encoders: BTreeMap<String, Model>,
}

#[derive(Deserialize)]
pub(super) struct Model {
    pub(super) config: Value,
    pub(super) rows: Vec<Row>,
}

#[derive(Deserialize)]
pub(super) struct Row {
    pub(super) ids: Vec<u32>,
    #[serde(default)]
    logits: Vec<f32>,
    #[serde(default)]
    pub(super) vector: Vec<f32>,
}

pub(super) fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/seeded.json")).expect("golden")
}

fn options(threads: usize) -> LoadOptions {
    LoadOptions {
        dtype: DtypeChoice::Auto,
        max_num_batched_tokens: 128,
        max_num_seqs: 8,
        dummy_weights: false,
        exec: Exec::simd(threads),
        progress: None,
    }
}

/// The last logits of `ids`, computed in chunks of `chunk` on the blocks from `first` on.
fn last_logits(decoder: &mut Decoder, kv: &mut KvCache, ids: &[u32], chunk: usize, first: u32) -> Vec<f32> {
    let table: Vec<u32> = (0..ids.len().div_ceil(16) as u32).map(|at| first + at * 2).collect();
    let mut logits = Vec::new();
    for (at, part) in ids.chunks(chunk).enumerate() {
        let positions: Vec<u32> = (0..part.len()).map(|i| (at * chunk + i) as u32).collect();
        let slots: Vec<u32> = positions.iter().map(|p| table[*p as usize / 16] * 16 + p % 16).collect();
        let span = SeqSpan {
            query_start: 0,
            query_len: part.len() as u32,
            context_len: (at * chunk + part.len()) as u32,
            table_start: 0,
        };
        let batch = ForwardBatch {
            input_ids: part,
            positions: &positions,
            slot_mapping: &slots,
            sequences: &[span],
            block_tables: &table,
            logits_rows: &[part.len() as u32 - 1],
            adapters: &[],
            adapter_of: &[],
        };
        logits = decoder.forward(&batch, kv).expect("forward").row(0).to_vec();
    }
    logits
}

#[test]
fn decoders_of_every_family_give_the_logits_of_transformers() {
    for (name, model) in golden().decoders {
        let dir = tempfile::tempdir().expect("dir");
        write_model(dir.path(), &model.config, if name == "mixtral" { 3 } else { 1 });
        let source = ModelSource::open(dir.path()).expect("opens");
        let mut decoder = Decoder::load(&source, options(2)).expect("loads");
        let mut kv = KvCache::new(decoder.kv_spec(), 32).expect("cache");
        for row in &model.rows {
            let whole = last_logits(&mut decoder, &mut kv, &row.ids, 128, 1);
            let worst = whole.iter().zip(&row.logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4, "{name}, {} tokens: logits differ by {worst}", row.ids.len());
            assert_eq!(
                whole,
                last_logits(&mut decoder, &mut kv, &row.ids, 7, 9),
                "{name}: chunks change bits"
            );
        }
    }
}

/// The encoder `name`, which says how it pools.
pub(super) fn write_encoder(dir: &Path, name: &str, model: &Model) -> ModelSource {
    write_model(dir, &model.config, 1);
    let cls = name.ends_with("cls");
    std::fs::create_dir(dir.join("1_Pooling")).expect("folder");
    let pooling = serde_json::json!({"pooling_mode_cls_token": cls, "pooling_mode_mean_tokens": !cls});
    std::fs::write(dir.join("1_Pooling/config.json"), pooling.to_string()).expect("writes");
    ModelSource::open(dir).expect("opens")
}

#[test]
fn encoders_give_the_vectors_of_transformers_alone_and_in_a_batch() {
    for (name, model) in golden().encoders {
        let dir = tempfile::tempdir().expect("dir");
        let source = write_encoder(dir.path(), &name, &model);
        let mut encoder = Encoder::load(&source, options(2)).expect("loads");
        let mut alone = Vec::new();
        let mut vector = Vec::new();
        for row in &model.rows {
            encoder.forward(&row.ids, &[0, row.ids.len() as u32], &mut vector).expect("forward");
            let cosine: f32 = vector.iter().zip(&row.vector).map(|(a, b)| a * b).sum();
            assert!(cosine > 0.99999, "{name}, {} tokens: cosine {cosine}", row.ids.len());
            alone.extend_from_slice(&vector);
        }
        let ids: Vec<u32> = model.rows.iter().flat_map(|row| row.ids.clone()).collect();
        let cu_seqlens: Vec<u32> = std::iter::once(0)
            .chain(model.rows.iter().scan(0, |sum, row| {
                *sum += row.ids.len() as u32;
                Some(*sum)
            }))
            .collect();
        encoder.forward(&ids, &cu_seqlens, &mut vector).expect("forward");
        assert_eq!(vector, alone, "{name}: a batch changes bits");
    }
}

#[test]
fn what_a_model_takes_is_known_before_it_is_loaded() {
    let close = |planned: usize, real: usize, name: &str| {
        println!("{name}: workspace of {real} bytes, planned {planned}");
        assert!((real..=real + real / 20).contains(&planned), "{name}: {real} bytes, planned {planned}");
    };
    let exact = |name: &str, config: &Value, dtype: DtypeChoice| {
        let dir = tempfile::tempdir().expect("dir");
        write_model(dir.path(), config, 1);
        let source = ModelSource::open(dir.path()).expect("opens");
        let planned = source.footprint(dtype, false, 128, 8).expect("plans");
        let options = LoadOptions { dtype, ..options(1) };
        match source.config() {
            ModelConfig::Decoder(_) => {
                let decoder = Decoder::load(&source, options).expect("loads");
                assert_eq!(planned.matrices, decoder.weight_bytes(), "{name} {dtype:?}");
                close(planned.workspace, decoder.workspace_bytes(), name);
                let config = decoder.config().clone();
                let adapted = decoder.with_adapters(24).expect("room");
                let scratch = config.adapter_scratch_bytes(128, 24);
                assert!(scratch > 128 * 3 * 24 * 4);
                close(planned.workspace + scratch, adapted.workspace_bytes(), name);
            }
            ModelConfig::Encoder(_) => {
                let encoder = Encoder::load(&source, options).expect("loads");
                assert_eq!(planned.matrices + planned.small, encoder.weight_bytes(), "{name} {dtype:?}");
            }
        }
        assert!(planned.workspace > 0 && planned.small > 0);
    };
    let golden = golden();
    for (name, model) in golden.decoders.iter().chain(&golden.encoders) {
        for dtype in [DtypeChoice::Auto, DtypeChoice::F16, DtypeChoice::Fp8] {
            exact(name, &model.config, dtype);
        }
    }
    let (name, model) = golden.decoders.iter().find(|(name, _)| *name == "mixtral").expect("a mixtral");
    let dir = tempfile::tempdir().expect("dir");
    write_model(dir.path(), &model.config, 1);
    let source = ModelSource::open(dir.path()).expect("opens");
    let planned = source.footprint(DtypeChoice::Auto, true, 128, 8).expect("plans");
    let dummy = LoadOptions { dummy_weights: true, ..options(1) };
    assert_eq!(planned.matrices, Decoder::load(&source, dummy).expect("loads").weight_bytes(), "{name}");
}
