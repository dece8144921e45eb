//! Models on real weights against golden output of `transformers`; looks in `TARN_TEST_MODELS`.

use std::path::PathBuf;

use tarn::model::{Decoder, DtypeChoice, Exec, ForwardBatch, KvCache, LoadOptions, ModelSource, SeqSpan};

/// The folder `name` of the test models, or a line that says what was not run.
fn model(name: &str) -> Option<PathBuf> {
    let found =
        std::env::var_os("TARN_TEST_MODELS").map(|dir| PathBuf::from(dir).join(name)).filter(|p| p.exists());
    if found.is_none() {
        println!("not run: no models ({name})");
    }
    found
}

fn load(path: &std::path::Path, threads: usize) -> Decoder {
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

/// One step over `(new ids, tokens already cached)` a sequence; each sequence has 16 blocks of its own. Returns the
/// last row of logits of each.
fn step(decoder: &mut Decoder, kv: &mut KvCache, parts: &[(Vec<u32>, usize, u32)]) -> Vec<Vec<f32>> {
    let (mut ids, mut positions, mut slots) = (Vec::new(), Vec::new(), Vec::new());
    let (mut spans, mut tables, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    for (new, cached, lane) in parts {
        spans.push(SeqSpan {
            query_start: ids.len() as u32,
            query_len: new.len() as u32,
            context_len: (cached + new.len()) as u32,
            table_start: tables.len() as u32,
        });
        // Scattered blocks, so that a mix-up of tables shows.
        let table: Vec<u32> = (0..16).map(|block| (block * 37 + lane * 5 + 3) % 1024).collect();
        for (at, id) in new.iter().enumerate() {
            let position = cached + at;
            ids.push(*id);
            positions.push(position as u32);
            slots.push(table[position / 16] * 16 + (position % 16) as u32);
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
    };
    let logits = decoder.forward(&batch, kv).expect("forward");
    (0..rows.len()).map(|row| logits.row(row).to_vec()).collect()
}

fn argmax(row: &[f32]) -> u32 {
    let mut best = 0;
    for (at, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = at;
        }
    }
    best as u32
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
