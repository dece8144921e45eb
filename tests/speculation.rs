//! Speculation and parted answers on real decoders, through the whole engine: nothing of it shows in an answer.

use std::path::Path;

use serde::Deserialize;
use tarn::engine::{EngineConfig, EngineError, SampledToken, SpeculationConfig};

use super::engines::{Ask, Build, Engine, Fails, answers, tiny, ways};
use super::forward::model;
use super::support::write_model;

/// Guesses wherever there is one, in steps of any size.
fn eager() -> SpeculationConfig {
    SpeculationConfig { max_drafts: 6, min_match: 2, max_rows: 64, row_cost: 0.01 }
}

fn engine(path: &Path, speculation: Option<SpeculationConfig>) -> Engine {
    let build = Build::default();
    Engine::start(path, Build { config: EngineConfig { speculation, ..build.config }, ..build })
}

/// Numbers below `vocab` that never repeat a pair soon.
fn passage(seed: u32, len: u32, vocab: u32) -> Vec<u32> {
    (0..len).map(|at| (at * at * 7 + at * 31 + seed * 53) % (vocab - 3) + 3).collect()
}

/// A passage three times: its third reading quotes the second.
fn quoting(seed: u32, vocab: u32) -> Vec<u32> {
    let passage = passage(seed, 13, vocab);
    [&passage[..], &passage, &passage].concat()
}

/// All asks, each alone and then together; returns the answers and checks that both ways agree.
fn ask_all(engine: &Engine, asks: &[Ask]) -> Vec<Vec<SampledToken>> {
    let alone: Vec<_> = asks.iter().map(|ask| engine.answer(ask)).collect();
    let streams: Vec<_> = asks.iter().map(|ask| engine.submit(ask)).collect();
    for (at, stream) in streams.into_iter().enumerate() {
        let together = answers(stream, 1).expect("an answer").remove(0);
        assert!(together == alone[at], "ask {at} is answered otherwise in a batch");
    }
    alone
}

#[test]
fn guessing_changes_no_token_and_no_probability_of_a_real_decoder() {
    for family in ["llama", "mixtral"] {
        let dir = tempfile::tempdir().expect("dir");
        write_model(dir.path(), &tiny(family), 1);
        let mut asks = Vec::new();
        for seed in 0..4 {
            let prompts = [quoting(seed, 128), passage(seed, 9 + seed * 11, 128)];
            for (prompt, way) in prompts.iter().flat_map(|prompt| ways(seed.into()).map(|way| (prompt, way)))
            {
                asks.push(Ask::new(prompt, 48, way));
            }
        }
        let plain = engine(dir.path(), None);
        let wanted = ask_all(&plain, &asks);
        assert_eq!(plain.idle().drafted_tokens, 0);
        for speculation in [eager(), SpeculationConfig::default()] {
            let guessing = engine(dir.path(), Some(speculation));
            let found = ask_all(&guessing, &asks);
            for (at, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
                assert_eq!(found.len(), 48);
                assert!(found == wanted, "{family}, ask {at}");
            }
            let stats = guessing.idle();
            println!("{family}: {} of {} guesses accepted", stats.accepted_tokens, stats.drafted_tokens);
            assert!(stats.accepted_tokens > 0, "{family}: nothing was accepted, so nothing was tried");
            assert!(stats.accepted_tokens < stats.drafted_tokens, "{family}: nothing was refused");
            assert!(stats.steps < plain.idle().steps, "{family}: guesses saved no step");
        }
    }
}

#[derive(Deserialize)]
struct Row {
    prompt_ids: Vec<u32>,
}

#[test]
fn a_language_model_that_quotes_gets_its_tokens_in_fewer_steps_and_the_same_ones() {
    let Some(path) = model("smollm2.Q8_0.gguf") else { return };
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("golden/lora_greedy.json")).expect("golden");
    let rows: Vec<Row> = serde_json::from_value(golden["smollm2"]["base"].clone()).expect("rows");
    let texts: Vec<&[u32]> = rows.iter().map(|row| &row.prompt_ids[..row.prompt_ids.len().min(24)]).collect();
    let quoting: Vec<Ask> =
        texts.iter().take(3).flat_map(|text| ways(7).map(|way| Ask::new(&text.repeat(3), 24, way))).collect();
    let plain_text: Vec<Ask> =
        texts.iter().take(1).flat_map(|text| ways(8).map(|way| Ask::new(text, 12, way))).collect();
    let plain = engine(&path, None);
    let wanted = (ask_all(&plain, &quoting), ask_all(&plain, &plain_text));
    let guessing = engine(&path, Some(SpeculationConfig::default()));
    let quoted = ask_all(&guessing, &quoting);
    let stats = guessing.idle();
    println!("{} of {} guesses accepted", stats.accepted_tokens, stats.drafted_tokens);
    assert!(stats.accepted_tokens * 2 > stats.drafted_tokens, "quotes are easy to guess: {stats:?}");
    assert!((quoted, ask_all(&guessing, &plain_text)) == wanted, "guessing shows in the answers");
}

#[test]
fn answers_that_part_from_one_prompt_are_those_of_requests_of_their_own() {
    for (family, speculation) in [("llama", None), ("mixtral", None), ("llama", Some(eager()))] {
        let dir = tempfile::tempdir().expect("dir");
        write_model(dir.path(), &tiny(family), 1);
        let engine = engine(dir.path(), speculation);
        // Ends of blocks, a token beside them, and a prompt longer than a step.
        for len in [1, 15, 16, 17, 33, 100] {
            for way in ways(40) {
                let ask = Ask { n: 4, ..Ask::new(&passage(len, len, 128), 20, way.clone()) };
                let parted = engine.answers(&ask).expect("answers");
                for (index, parted) in (0..).zip(parted) {
                    let mut own = Ask { n: 1, ..ask.clone() };
                    own.sampling.seed = way.seed.map(|seed| seed + index);
                    assert!(parted == engine.answer(&own), "{family}, {len} tokens, answer {index}");
                }
            }
        }
        engine.idle();
    }
}

#[test]
fn a_step_that_fails_with_its_copies_spoils_nothing_that_comes_after() {
    let dir = tempfile::tempdir().expect("dir");
    write_model(dir.path(), &tiny("mixtral"), 1);
    let [_, way, _] = ways(3);
    // The first block is shared, the second is copied.
    let ask = Ask { n: 4, ..Ask::new(&passage(5, 25, 128), 20, way.clone()) };
    let beside = Ask::new(&passage(6, 30, 128), 60, way);
    let sound = Engine::start(dir.path(), Build::default());
    let wanted = (sound.answers(&ask).expect("answers"), sound.answer(&beside));
    for fails in [Fails::Before, Fails::After] {
        let engine = Engine::start(dir.path(), Build { fails: Some(fails), ..Build::default() });
        let failed = engine.answers(&ask);
        assert!(matches!(&failed, Err(EngineError::Step { message }) if message == "asked to fail"));
        assert_eq!(engine.idle().failed_steps, 1);
        // The prefix cache still knows the prompt's first block.
        let running = engine.submit(&beside);
        let found = engine.answers(&ask).expect("answers");
        let found = (found, answers(running, 1).expect("an answer").remove(0));
        assert!(found == wanted, "{fails:?}");
        assert!(engine.idle().prefix_hits >= 16, "{:?}", engine.handle.stats());
    }
}
