//! Many adapters in one engine, while others come and go: each answers as if it were alone.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use safetensors::tensor::TensorView;
use serde_json::json;
use tarn::engine::{AdapterLease, Adapters, EngineConfig, SampledToken};
use tarn::model::{LoraAdapter, LoraOptions, ModelConfig, ModelSource};

use super::engines::{Ask, Build, Engine, answers, tiny, ways};
use super::support::{tensor, write_model};

const ADAPTERS: usize = 8;

const MAX_RANK: usize = 8;

/// Writes a PEFT folder with an update of attention, router and `experts` experts of the tiny Mixtral, of those modules
/// that `has` keeps.
pub(crate) fn write_adapter(dir: &Path, seed: usize, experts: usize, has: impl Fn(&str) -> bool) {
    let rank = seed % MAX_RANK + 1;
    let mut shapes: Vec<(String, [usize; 2])> = Vec::new();
    for layer in 0..2 {
        let mut add = |module: String, out: usize, inner: usize| {
            if !has(&module) {
                return;
            }
            let name = format!("base_model.model.model.layers.{layer}.{module}");
            shapes.push((format!("{name}.lora_A.weight"), [rank, inner]));
            shapes.push((format!("{name}.lora_B.weight"), [out, rank]));
        };
        for (part, out) in [("q", 64), ("k", 32), ("v", 32), ("o", 64)] {
            add(format!("self_attn.{part}_proj"), out, 64);
        }
        add("block_sparse_moe.gate".to_owned(), experts, 64);
        for expert in 0..experts {
            for (part, out, inner) in [("w1", 96, 64), ("w2", 64, 96), ("w3", 96, 64)] {
                add(format!("block_sparse_moe.experts.{expert}.{part}"), out, inner);
            }
        }
    }
    let config = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "bias": "none",
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate", "w1", "w2", "w3"],
    });
    std::fs::create_dir_all(dir).expect("folder");
    std::fs::write(dir.join("adapter_config.json"), config.to_string()).expect("config");
    let data: Vec<_> =
        shapes.iter().map(|(name, shape)| (name, shape, tensor(&format!("{seed} {name}"), shape))).collect();
    let views = data.iter().map(|(name, shape, bytes)| {
        (*name, TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes).expect("shape"))
    });
    safetensors::serialize_to_file(views, None, &dir.join("adapter_model.safetensors")).expect("writes");
}

fn name(seed: usize) -> String {
    format!("adapter-{seed}")
}

/// A registry over the folders in `dir`, with the first of them loaded.
fn registry(dir: &Path) -> Adapters {
    let source = ModelSource::open(dir).expect("opens");
    let ModelConfig::Decoder(config) = source.config().clone() else { panic!("a decoder") };
    let load = move |path: &Path| LoraAdapter::load(path, &config, LoraOptions { max_rank: MAX_RANK });
    let adapters = Adapters::new(ADAPTERS + 2, load);
    for seed in 0..ADAPTERS {
        adapters.load(&name(seed), &dir.join(name(seed)), seed == 0).expect("loads");
    }
    adapters
}

/// Requests of different lengths with each of the adapters and with none, drawn in every way.
fn asks(leases: &[Option<AdapterLease>]) -> Vec<Ask> {
    let lengths = [1, 7, 16, 30, 61];
    let mut asks = Vec::new();
    for (at, lease) in leases.iter().enumerate() {
        for (way, sampling) in ways(at as u64).into_iter().enumerate() {
            let len = lengths[(at + way) % lengths.len()];
            // Beginnings are shared by several adapters: blocks must not be.
            let prompt: Vec<u32> = (0..len).map(|at| (at * 37 + way as u32) % 125 + 3).collect();
            let ask = Ask::new(&prompt, 12 + (at * 5 + way * 3) as u32 % 17, sampling);
            asks.push(Ask { adapter: lease.clone(), ..ask });
        }
    }
    asks
}

fn build(max_num_seqs: usize, prefix_cache: bool) -> Build {
    let build = Build::default();
    let config = EngineConfig { max_num_seqs, prefix_cache, ..build.config };
    Build { config, max_rank: MAX_RANK, ..build }
}

/// Brings the adapter `seed` in, asks it, forgets it while it answers, and says what it answered.
fn visit(engine: &Engine, adapters: &Adapters, dir: &Path, seed: usize, ask: &Ask) -> Vec<SampledToken> {
    adapters.load(&name(seed), &dir.join(name(seed)), false).expect("there is room");
    let lease = adapters.acquire(&name(seed)).expect("in memory");
    let stream = engine.submit(&Ask { adapter: Some(lease), ..ask.clone() });
    adapters.unload(&name(seed)).expect("known");
    answers(stream, 1).expect("an answer").remove(0)
}

#[test]
fn eight_adapters_and_the_base_in_one_batch_answer_as_each_does_alone_while_others_come_and_go() {
    let dir = tempfile::tempdir().expect("dir");
    write_model(dir.path(), &tiny("mixtral"), 1);
    (0..ADAPTERS + 2).for_each(|seed| write_adapter(&dir.path().join(name(seed)), seed, 8, |_| true));
    let adapters = registry(dir.path());
    let source = ModelSource::open(dir.path()).expect("opens");
    let ModelConfig::Decoder(config) = source.config() else { panic!("a decoder") };
    for (seed, info) in adapters.list().into_iter().enumerate() {
        let (planned, real) =
            (config.adapter_bytes(seed % MAX_RANK + 1), info.resident_bytes.expect("loaded"));
        println!("{}: {real} bytes, planned {planned}", info.name);
        assert!(
            (real..=real + real / 3).contains(&planned),
            "{}: {real} bytes, planned {planned}",
            info.name
        );
    }
    let lease = |seed: usize| adapters.acquire(&name(seed)).expect("in memory");
    let mut leases: Vec<_> = (0..ADAPTERS).map(|seed| Some(lease(seed))).collect();
    leases.push(None);
    let asks = asks(&leases);
    let guest = Ask::new(&[9, 8, 7, 6, 5], 20, ways(77)[1].clone());

    // One after another, each from nothing.
    let quiet = Engine::start(dir.path(), build(1, false));
    let alone: Vec<_> = asks.iter().map(|ask| quiet.answer(ask)).collect();
    let guests = [ADAPTERS, ADAPTERS + 1].map(|seed| visit(&quiet, &adapters, dir.path(), seed, &guest));
    assert_ne!(guests[0], guests[1], "adapters change nothing");
    for (at, answer) in alone.iter().enumerate().take(3 * ADAPTERS) {
        let base = quiet.answer(&Ask { adapter: None, ..asks[at].clone() });
        assert!(*answer != base, "ask {at}: its adapter changes nothing");
    }

    let engine = Engine::start(dir.path(), build(32, true));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let visits = scope.spawn(|| {
            let mut visits = 0;
            while !done.load(Ordering::Relaxed) || visits < 4 {
                let found = visit(&engine, &adapters, dir.path(), ADAPTERS + visits % 2, &guest);
                assert!(found == guests[visits % 2], "visit {visits}");
                visits += 1;
            }
            visits
        });
        // The second round finds its prompts in the cache.
        for round in 0..2 {
            let streams: Vec<_> = asks.iter().map(|ask| engine.submit(ask)).collect();
            for (at, stream) in streams.into_iter().enumerate() {
                let found = answers(stream, 1).expect("an answer").remove(0);
                assert!(found == alone[at], "ask {at} in round {round}");
            }
        }
        done.store(true, Ordering::Relaxed);
        let visits = visits.join().expect("every visit was answered as it is alone");
        println!("{visits} adapters came and went");
    });
    let stats = engine.idle();
    assert!(stats.prefix_hits > 0, "{stats:?}");
    assert_eq!(quiet.idle().blocks_used, 0);
    drop((asks, leases));
    let left = adapters.list();
    assert_eq!(left.len(), ADAPTERS);
    assert!(left.iter().all(|info| info.leases == 0 && info.resident_bytes.is_some()), "{left:?}");
}
