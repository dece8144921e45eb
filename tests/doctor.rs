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
    for name in ["model", "tokenizer", "embedder", "reranker", "lake", "port", "memory"] {
        assert_eq!(status(name), Some(json!("ok")), "{name} in {report:#}");
    }
    assert_eq!(status("template"), Some(json!("warn")), "a base model has none");
    let memory = &report["memory"];
    assert_eq!(memory["parts"]["kv_cache"], 1 << 20);
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
