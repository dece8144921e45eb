//! The sections on the emulator, whose times mean nothing; and that the comparison of a model can fail.

use std::path::Path;

use serde_json::Value;
use tarn_kernels::DType;

use super::super::device::Place;
use super::checkpoint::Checkpoint;
use super::model::{Agreement, Answer, compare, on_cpu, on_device, prompts};
use super::shapes::small_mixture;
use super::{Section, check};
use crate::config::{Device, RawSettings, Settings};
use crate::model::{DeviceFormat, DeviceOptions, DtypeChoice, Exec, LoadOptions, ModelConfig, ModelSource};

/// Tokens of an answer.
const ANSWER: usize = 6;
/// Answers.
const ANSWERS: usize = 3;

#[test]
fn every_section_finds_numbers_and_says_how_long_it_took() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("report.json");
    let raw = RawSettings {
        device: Some(Device::Emulated),
        threads: Some(2),
        models_dir: Some("/nonexistent".into()),
        ..RawSettings::default()
    };
    let settings = Settings::resolve(raw).expect("resolves");
    let sections = [Section::Decode, Section::Prefill, Section::Engine, Section::Encoder, Section::Weights];
    let ended = check(&settings, &Place::Emulated, &sections, Some(file.clone())).expect("runs");
    let report: Value = serde_json::from_slice(&std::fs::read(file).expect("written")).expect("JSON");
    assert_eq!(ended, std::process::ExitCode::SUCCESS, "{report:#}");

    let finite = |value: &Value| value.as_f64().is_some_and(|value| value.is_finite() && value > 0.0);
    for (section, op) in [
        ("decode", "lora_expand w2"),
        ("decode", "expert_up fp8"),
        ("prefill", "dense qkv fp8"),
        ("encoder_ops", "encoder_attention"),
        ("encoder_ops", "scan_topk"),
    ] {
        let ops = report[section]["ops"].as_array().expect("ops");
        assert!(ops.iter().any(|found| found["op"] == op), "{op}");
        assert!(ops.iter().all(|found| finite(&found["seconds"]) && finite(&found["share"])), "{ops:#?}");
    }
    for (section, count) in [("engine", 7), ("encoder", 1), ("weights", 1)] {
        let rows = report[section]["rows"].as_array().expect("rows");
        assert_eq!(rows.len(), count, "{section}");
        for row in rows {
            let value = &row["value"];
            // What adapters cost may be less than nothing.
            let sensible = if row["unit"] == "%" { value.is_f64() } else { finite(value) };
            assert!(sensible && row["verdict"].is_string(), "{row:#}");
            if let Some(experts) = row.get("experts_a_layer") {
                let hit = experts["hit"].as_f64().expect("a number");
                assert!((2.0..=4.0).contains(&hit), "two experts of four for a token: {row:#}");
            }
        }
        assert!(finite(&report["sections"][section]["seconds"]));
    }
    let rows = report["engine"]["rows"].as_array().expect("rows");
    assert_eq!(rows[0]["experts_a_layer"]["hit"], 2.0, "one token hits two");
    assert_eq!(
        rows.iter().filter(|row| row.get("experts_a_layer").is_some()).count(),
        6,
        "all but the prompt's"
    );
    assert_eq!(
        rows.iter().filter(|row| row.get("share_of_floor").is_some()).count(),
        6,
        "all but the adapters'"
    );
}

/// How the device has the small mixture.
fn options(projections: DeviceFormat, dummy_weights: bool) -> DeviceOptions {
    DeviceOptions {
        dtype: DType::BF16,
        projections,
        max_num_batched_tokens: 64,
        max_num_seqs: ANSWERS,
        max_model_len: 64,
        adapters: None,
        dummy_weights,
        progress: None,
    }
}

/// What CPU and device answer.
fn both(cpu: &ModelSource, device: &ModelSource, options: &DeviceOptions) -> [Vec<Answer>; 2] {
    let prompts = prompts(small_mixture().vocab, ANSWERS);
    let own = LoadOptions {
        dtype: if options.projections == DeviceFormat::Fp8 { DtypeChoice::Fp8 } else { DtypeChoice::BF16 },
        max_num_batched_tokens: 64,
        max_num_seqs: ANSWERS,
        dummy_weights: options.dummy_weights,
        exec: Exec::simd(1),
        progress: None,
    };
    let expected = on_cpu(cpu, own, &prompts, ANSWER).expect("answers");
    let found = on_device(&Place::Emulated, device, options, &prompts, ANSWER).expect("answers");
    [expected, found]
}

/// Turns the signs of a tensor's values, in whichever shard it is.
fn negate(dir: &Path, tensor: &str) {
    for entry in std::fs::read_dir(dir).expect("a folder").flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|ext| ext != "safetensors") {
            continue;
        }
        let mut bytes = std::fs::read(&path).expect("there");
        let (header, found) = safetensors::SafeTensors::read_metadata(&bytes).expect("safetensors");
        if let Some(info) = found.info(tensor) {
            let (start, end) = info.data_offsets;
            let values = &mut bytes[8 + header..][start..end];
            values.iter_mut().skip(1).step_by(2).for_each(|byte| *byte ^= 0x80);
            return std::fs::write(&path, bytes).expect("writes");
        }
    }
    panic!("no shard has {tensor}");
}

#[test]
fn a_models_answers_agree_with_the_cpus_and_those_of_a_changed_weight_do_not() {
    let dir = tempfile::tempdir().expect("dir");
    Checkpoint::write(dir.path(), &small_mixture()).expect("writes");
    let source = ModelSource::open(dir.path()).expect("opens");
    assert_eq!(
        source.config(),
        &ModelConfig::Decoder(small_mixture()),
        "what is written is what is described"
    );
    let options = options(DeviceFormat::Plain, false);
    let [expected, found] = both(&source, &source, &options);
    let agreement = compare(&expected, &found);
    assert!(agreement.holds() && agreement.compared > ANSWER, "{agreement:?}");

    let changed = tempfile::tempdir().expect("dir");
    Checkpoint::write(changed.path(), &small_mixture()).expect("writes");
    negate(changed.path(), "model.layers.0.self_attn.o_proj.weight");
    let changed = ModelSource::open(changed.path()).expect("opens");
    let [expected, found] = both(&source, &changed, &options);
    let agreement = compare(&expected, &found);
    assert!(!agreement.holds(), "{agreement:?}");
}

#[test]
fn answers_may_part_where_two_tokens_are_nearly_as_likely_and_nowhere_else() {
    let answer = |ids: &[u32], first: [f32; 3]| Answer {
        ids: ids.to_vec(),
        rows: vec![first.to_vec(), vec![0.0, 1.0, 0.5]],
    };
    let cpu = [answer(&[2, 1], [0.0, 0.95, 1.0])];
    let same = compare(&cpu, &cpu);
    assert_eq!(same, Agreement { compared: 2, partings: Vec::new() });
    for (ids, compared, gap, holds) in
        [([1, 0], 1, 0.05, true), ([0, 1], 1, 1.0, false), ([2, 2], 2, 0.5, false)]
    {
        let found = compare(&cpu, &[answer(&ids, [0.0; 3])]);
        assert!((found.partings[0].gap - gap).abs() < 1e-6, "{found:?}");
        assert_eq!((found.compared, found.holds()), (compared, holds), "{found:?}");
    }
}

#[test]
fn dummy_weights_are_the_same_on_the_device_as_on_the_cpu() {
    let source = ModelSource::of_dummies(ModelConfig::Decoder(small_mixture()));
    // Codes are those of another scale there: what rounding to three bits of mantissa costs, twice.
    for (projections, most) in [(DeviceFormat::Plain, 0.05), (DeviceFormat::Fp8, 0.3)] {
        let [expected, found] = both(&source, &source, &options(projections, true));
        for (expected, found) in expected.iter().zip(&found) {
            let (expected, found) = (&expected.rows[0], &found.rows[0]);
            let size = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
            let off = size(&mut expected.iter().zip(found).map(|(a, b)| a - b));
            let off = off / size(&mut expected.iter().copied());
            assert!(off < most, "{projections:?}: {off}");
        }
    }
}
