//! Steps of a decoder without an engine: several sequences, each with blocks of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tarn::model::{
    Decoder, DtypeChoice, Exec, ForwardBatch, KvCache, LoadOptions, LoraAdapter, ModelSource, NO_ADAPTER,
    SeqSpan,
};

/// The folder `name` of the test models, or a line that says what was not run.
pub(crate) fn model(name: &str) -> Option<PathBuf> {
    let found =
        std::env::var_os("TARN_TEST_MODELS").map(|dir| PathBuf::from(dir).join(name)).filter(|p| p.exists());
    if found.is_none() {
        println!("not run: no models ({name})");
    }
    found
}

pub(crate) fn load(path: &Path, threads: usize) -> Decoder {
    let source = ModelSource::open(path).expect("opens");
    let options = LoadOptions {
        dtype: DtypeChoice::Auto,
        max_num_batched_tokens: 256,
        max_num_seqs: 32,
        dummy_weights: false,
        exec: Exec::simd(threads),
        progress: None,
    };
    Decoder::load(&source, options).expect("loads")
}

/// New tokens of one sequence.
#[derive(Clone)]
pub(crate) struct Part {
    pub(crate) new: Vec<u32>,
    /// Tokens before them.
    pub(crate) cached: usize,
    /// Which 16 of the 1024 blocks are the sequence's.
    pub(crate) lane: u32,
    /// Index into the adapters.
    pub(crate) adapter: Option<usize>,
}

/// One step; returns the last row of logits of each part. Adapters are passed as the engine does: those in use, none
/// for none.
pub(crate) fn step(
    decoder: &mut Decoder,
    kv: &mut KvCache,
    all: &[Arc<LoraAdapter>],
    parts: &[Part],
) -> Vec<Vec<f32>> {
    let mut used: Vec<usize> = parts.iter().filter_map(|part| part.adapter).collect();
    used.sort_unstable();
    used.dedup();
    let adapters: Vec<_> = used.iter().map(|at| all[*at].clone()).collect();
    let (mut ids, mut positions, mut slots, mut of) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut spans, mut tables, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    for part in parts {
        spans.push(SeqSpan {
            query_start: ids.len() as u32,
            query_len: part.new.len() as u32,
            context_len: (part.cached + part.new.len()) as u32,
            table_start: tables.len() as u32,
        });
        // Scattered blocks, so that a mix-up of tables shows.
        let table: Vec<u32> = (0..16).map(|block| (block * 37 + part.lane * 5 + 3) % 1024).collect();
        let slot = used.iter().position(|at| Some(*at) == part.adapter);
        for (at, id) in part.new.iter().enumerate() {
            let position = part.cached + at;
            ids.push(*id);
            positions.push(position as u32);
            slots.push(table[position / 16] * 16 + (position % 16) as u32);
            of.push(slot.map_or(NO_ADAPTER, |slot| slot as u32));
        }
        tables.extend(table);
        rows.push(ids.len() as u32 - 1);
    }
    let batch = ForwardBatch {
        input_ids: &ids,
        positions: &positions,
        slot_mapping: &slots,
        sequences: &spans,
        block_tables: &tables,
        logits_rows: &rows,
        adapters: &adapters,
        adapter_of: if adapters.is_empty() { &[] } else { &of },
    };
    let logits = decoder.forward(&batch, kv).expect("forward");
    (0..rows.len()).map(|row| logits.row(row).to_vec()).collect()
}

pub(crate) fn argmax(row: &[f32]) -> u32 {
    let mut best = 0;
    for (at, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = at;
        }
    }
    best as u32
}
