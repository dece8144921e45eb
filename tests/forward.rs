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
    /// Its cache blocks, as many as it may need.
    pub(crate) table: Vec<u32>,
    /// Index into the adapters.
    pub(crate) adapter: Option<usize>,
}

/// Which 16 of 1024 blocks are a sequence's: scattered, so that a mix-up of tables shows.
pub(crate) fn lane(at: u32) -> Vec<u32> {
    (0..16).map(|block| (block * 37 + at * 5 + 3) % 1024).collect()
}

/// What a step feeds a decoder.
#[derive(Default)]
pub(crate) struct Arrays {
    pub(crate) ids: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    sequences: Vec<SeqSpan>,
    tables: Vec<u32>,
    adapters: Vec<Arc<LoraAdapter>>,
    adapter_of: Vec<u32>,
    /// The last row of each part.
    pub(crate) last_rows: Vec<u32>,
}

impl Arrays {
    /// Adapters are passed as the engine does: those in use, none for none.
    pub(crate) fn new(all: &[Arc<LoraAdapter>], parts: &[Part]) -> Arrays {
        let mut used: Vec<usize> = parts.iter().filter_map(|part| part.adapter).collect();
        used.sort_unstable();
        used.dedup();
        let mut to =
            Arrays { adapters: used.iter().map(|at| all[*at].clone()).collect(), ..Arrays::default() };
        for part in parts {
            to.sequences.push(SeqSpan {
                query_start: to.ids.len() as u32,
                query_len: part.new.len() as u32,
                context_len: (part.cached + part.new.len()) as u32,
                table_start: to.tables.len() as u32,
            });
            let slot = used.iter().position(|at| Some(*at) == part.adapter);
            for (at, id) in part.new.iter().enumerate() {
                let position = part.cached + at;
                to.ids.push(*id);
                to.positions.push(position as u32);
                to.slots.push(part.table[position / 16] * 16 + (position % 16) as u32);
                if !used.is_empty() {
                    to.adapter_of.push(slot.map_or(NO_ADAPTER, |slot| slot as u32));
                }
            }
            to.tables.extend(&part.table);
            to.last_rows.push(to.ids.len() as u32 - 1);
        }
        to
    }

    /// The step, with the logits of `rows` wanted.
    pub(crate) fn batch<'a>(&'a self, rows: &'a [u32]) -> ForwardBatch<'a> {
        ForwardBatch {
            input_ids: &self.ids,
            positions: &self.positions,
            slot_mapping: &self.slots,
            sequences: &self.sequences,
            block_tables: &self.tables,
            logits_rows: rows,
            adapters: &self.adapters,
            adapter_of: &self.adapter_of,
        }
    }
}

/// One step; returns the last row of logits of each part.
pub(crate) fn step(
    decoder: &mut Decoder,
    kv: &mut KvCache,
    all: &[Arc<LoraAdapter>],
    parts: &[Part],
) -> Vec<Vec<f32>> {
    let arrays = Arrays::new(all, parts);
    let logits = decoder.forward(&arrays.batch(&arrays.last_rows), kv).expect("forward");
    (0..parts.len()).map(|row| logits.row(row).to_vec()).collect()
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
