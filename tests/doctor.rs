//! `tarn doctor`, and memory that is refused before it is needed.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use super::support::{tarn, write_embedder, write_model, write_reranker};

/// A generator that shares its tokenizer with the embedder, and both's folders.
fn models(dir: &Path) -> Command {
    let (model, embedder, reranker) = (dir.join("model"), dir.join("embedder"), dir.join("reranker"));
    write_embedder(&embedder);
    write_reranker(&reranker);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 128,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": true,
    });
    write_model(&model, &config, 1);
    std::fs::copy(embedder.join("tokenizer.json"), model.join("tokenizer.json")).expect("copies");
    let mut command = tarn(&embedder, &dir.join("lake"));
    command.arg("--model").arg(&model).arg("--reranker").arg(&reranker).args(["--listen", "127.0.0.1:0"]);
    command
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_healthy_setup_is_ok_and_its_memory_is_planned_by_part() {
    let dir = tempfile::tempdir().expect("dir");
    let output = models(dir.path())
        .args(["doctor", "--json", "--kv-cache-bytes", "1MiB", "--lora-dir"])
        .arg(dir.path())
        .args(["--max-loras", "2", "--max-lora-rank", "4"])
        .output()
        .expect("runs");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("json");
    let status = |name: &str| {
        let checks = report["checks"].as_array().expect("checks");
        checks.iter().find(|check| check["name"] == name).map(|check| check["status"].clone())
    };
    for name in ["device", "model", "tokenizer", "embedder", "reranker", "lake", "port", "memory"] {
        assert_eq!(status(name), Some(json!("ok")), "{name} in {report:#}");
    }
    assert_eq!(status("template"), Some(json!("warn")), "a base model has none");
    let memory = &report["memory"];
    assert_eq!(memory["parts"]["kv_cache"], 1 << 20);
    assert_eq!(memory["parts"]["kept"], (128 + 64) << 20, "responses and grammars");
    // Two adapters of rank 4: A and B of q, k, v, o, gate, up, down in f32; in panels, ranks are padded to 16.
    let bare = 2 * 4 * 4 * (4 * (32 + 32) + 3 * (32 + 48));
    let adapters = memory["parts"]["adapters"].as_u64().expect("a number");
    assert!((bare..=4 * bare).contains(&adapters), "{adapters} bytes, {bare} without padding");
    let parts: u64 = memory["parts"].as_object().expect("parts").values().filter_map(Value::as_u64).sum();
    assert_eq!(memory["planned_bytes"], parts);
    assert!(!dir.path().join("lake").exists(), "it leaves nothing behind");
}

#[test]
fn more_memory_than_there_is_fails_in_the_doctor_and_is_refused_at_start() {
    let dir = tempfile::tempdir().expect("dir");
    let greedy = ["--kv-cache-bytes", "900GiB", "--memory-utilization", "0.01"];
    let output = models(dir.path()).arg("doctor").args(greedy).output().expect("runs");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    for words in ["fail  memory", "kv_cache", "900 GiB", "--max-model-len"] {
        assert!(said(&output).contains(words), "`{words}` is not in:\n{}", said(&output));
    }
    for command in [&["serve"][..], &["generate", "x"]] {
        let output = models(dir.path()).args(command).args(greedy).output().expect("runs");
        assert_eq!(output.status.code(), Some(1));
        for words in ["--memory-utilization (now 0.01)", "weights", "--kv-cache-bytes"] {
            assert!(said(&output).contains(words), "`{words}` is not in:\n{}", said(&output));
        }
    }
}

#[test]
fn adapters_that_cannot_be_meant_are_refused_at_start() {
    let dir = tempfile::tempdir().expect("dir");
    for (typed, words) in
        [("prompt", "NAME=PATH"), ("model=/x", "--served-model-name"), ("a=/x a=/y", "twice")]
    {
        let output = models(dir.path()).args(["serve", "--lora-modules", typed]).output().expect("runs");
        assert_eq!(output.status.code(), Some(1), "{typed}");
        assert!(said(&output).contains(words), "{typed}: {}", said(&output));
    }
}

/// Of a program without GPU support, which is what tests build; the words for every other lack are the kernels' own.
#[cfg(not(feature = "cuda"))]
#[test]
fn a_gpu_that_is_asked_for_and_not_there_is_refused_and_otherwise_the_cpu_is_taken_in_words() {
    let dir = tempfile::tempdir().expect("dir");
    let output = models(dir.path()).arg("doctor").output().expect("runs");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(
        said(&output).contains("the CPU: this program was built without GPU support"),
        "{}",
        said(&output)
    );
    for command in [&["doctor"][..], &["serve"], &["generate", "x"], &["gpu-check"]] {
        let output = models(dir.path()).args(command).args(["--device", "cuda:0"]).output().expect("runs");
        assert_eq!(output.status.code(), Some(1), "{command:?}: {}", said(&output));
        for words in ["--device cuda:0", "make cuda"] {
            assert!(said(&output).contains(words), "{command:?}: {}", said(&output));
        }
    }
}

#[cfg(feature = "emulator")]
#[test]
fn on_a_device_the_models_have_a_plan_of_their_own_and_the_generator_generates() {
    let dir = tempfile::tempdir().expect("dir");
    let output =
        models(dir.path()).args(["doctor", "--json", "--device", "emulated"]).output().expect("runs");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("json");
    let (machine, device) = (&report["memory"]["parts"], &report["device_memory"]["parts"]);
    for part in ["weights", "kv_cache", "embedder", "reranker"] {
        assert_eq!(machine[part], Value::Null, "{part} in {report:#}");
        assert!(device[part].as_u64().is_some_and(|bytes| bytes > 0), "{part} in {report:#}");
    }
    // Keys and values of a layer in bf16: blocks of 16 tokens, 2 heads of 16.
    let cache = device["kv_cache"].as_u64().expect("a number");
    assert!(cache > 0 && cache % (2 * 16 * 2 * 16 * 2) == 0, "{cache}");
    // Small buffers take 512 bytes each: one table, rotations, norms, and six matrices.
    let weights = device["weights"].as_u64().expect("a number");
    let bare = 2 * (128 * 32 + 4 * 32 * 32 + 3 * 32 * 48) + 4 * (512 * 16 + 3 * 32);
    assert!((bare..bare + 10 * 512).contains(&weights), "{weights} bytes, {bare} without padding");
    let output = models(dir.path())
        .args(["generate", "--device", "emulated", "--max-tokens", "3", "a b"])
        .output()
        .expect("runs");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}

#[cfg(feature = "emulator")]
#[test]
fn a_check_of_a_gpu_runs_on_the_emulator_and_keeps_what_other_sections_found() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("report.json");
    let check = |section: &str| {
        let output = std::process::Command::new(super::support::TARN)
            .args(["gpu-check", "--device", "emulated", "--only", section, "--json"])
            .arg(&file)
            .output()
            .expect("runs");
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        let text = std::fs::read_to_string(&file).expect("a report");
        serde_json::from_str::<Value>(&text).expect("json")
    };
    check("decode");
    let report = check("prefill");
    for (section, op) in [("decode", "paged_decode"), ("prefill", "paged_prefill")] {
        let ops = report[section]["ops"].as_array().expect("ops");
        let found = ops.iter().find(|one| one["op"] == op).expect(op);
        assert!(found["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{found}");
        assert!(report[section]["ceilings"]["bytes_per_second"].as_f64().is_some_and(|rate| rate > 0.0));
    }
}
