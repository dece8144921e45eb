//! What several subjects need: models whose weights follow from their names, and Tarn as a child process.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// The built program.
pub(crate) const TARN: &str = env!("CARGO_BIN_EXE_tarn");

/// Element `at` of the tensor `name`, in [-0.5, 0.5); `tests/golden/seeded.py` has the same.
fn value(name: &str, at: u64) -> f32 {
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut z = at.wrapping_add(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (z >> 40) as f32 / (1_u64 << 24) as f32 - 0.5
}

/// The bytes of the tensor `name`, f32.
pub(crate) fn tensor(name: &str, shape: &[usize]) -> Vec<u8> {
    let spread = |x: f32| match shape.len() {
        1 if name.ends_with("bias") => x * 0.25,
        1 => 1.0 + x * 0.25,
        _ => x * 0.5,
    };
    let count = shape.iter().product::<usize>() as u64;
    (0..count).flat_map(|at| spread(value(name, at)).to_le_bytes()).collect()
}

/// Names and shapes of what `config.json` describes, as the hub's files have them.
fn tensors(config: &Value) -> Vec<(String, Vec<usize>)> {
    let number = |field: &str| config[field].as_u64().unwrap_or(0) as usize;
    let (hidden, inner, vocab) = (number("hidden_size"), number("intermediate_size"), number("vocab_size"));
    let mut all: Vec<(String, Vec<usize>)> = Vec::new();
    let mut add = |name: String, shape: &[usize]| all.push((name, shape.to_vec()));
    let encoder = config.get("type_vocab_size").is_some();
    for layer in 0..number("num_hidden_layers") {
        if encoder {
            let at = format!("encoder.layer.{layer}");
            let mut dense = |name: &str, n: usize, k: usize| {
                add(format!("{at}.{name}.weight"), &[n, k]);
                add(format!("{at}.{name}.bias"), &[n]);
            };
            for part in ["query", "key", "value"] {
                dense(&format!("attention.self.{part}"), hidden, hidden);
            }
            dense("attention.output.dense", hidden, hidden);
            dense("intermediate.dense", inner, hidden);
            dense("output.dense", hidden, inner);
            for norm in ["attention.output.LayerNorm", "output.LayerNorm"] {
                add(format!("{at}.{norm}.weight"), &[hidden]);
                add(format!("{at}.{norm}.bias"), &[hidden]);
            }
            continue;
        }
        let at = format!("model.layers.{layer}");
        let (q, kv) = (
            number("num_attention_heads") * number("head_dim"),
            number("num_key_value_heads") * number("head_dim"),
        );
        for (part, n, k) in
            [("q_proj", q, hidden), ("k_proj", kv, hidden), ("v_proj", kv, hidden), ("o_proj", hidden, q)]
        {
            add(format!("{at}.self_attn.{part}.weight"), &[n, k]);
            if config["attention_bias"] == true {
                add(format!("{at}.self_attn.{part}.bias"), &[n]);
            }
        }
        match number("num_local_experts") {
            0 => {
                add(format!("{at}.mlp.gate_proj.weight"), &[inner, hidden]);
                add(format!("{at}.mlp.up_proj.weight"), &[inner, hidden]);
                add(format!("{at}.mlp.down_proj.weight"), &[hidden, inner]);
            }
            experts => {
                add(format!("{at}.block_sparse_moe.gate.weight"), &[experts, hidden]);
                for expert in 0..experts {
                    let at = format!("{at}.block_sparse_moe.experts.{expert}");
                    add(format!("{at}.w1.weight"), &[inner, hidden]);
                    add(format!("{at}.w3.weight"), &[inner, hidden]);
                    add(format!("{at}.w2.weight"), &[hidden, inner]);
                }
            }
        }
        add(format!("{at}.input_layernorm.weight"), &[hidden]);
        add(format!("{at}.post_attention_layernorm.weight"), &[hidden]);
    }
    if encoder {
        add("embeddings.word_embeddings.weight".to_owned(), &[vocab, hidden]);
        add("embeddings.position_embeddings.weight".to_owned(), &[number("max_position_embeddings"), hidden]);
        add("embeddings.token_type_embeddings.weight".to_owned(), &[number("type_vocab_size"), hidden]);
        add("embeddings.LayerNorm.weight".to_owned(), &[hidden]);
        add("embeddings.LayerNorm.bias".to_owned(), &[hidden]);
        let architecture = config["architectures"][0].as_str().unwrap_or_default();
        if let Some(family) = architecture.strip_suffix("ForSequenceClassification") {
            let (dense, out) = if family == "Bert" {
                ("pooler.dense", "classifier")
            } else {
                ("classifier.dense", "classifier.out_proj")
            };
            for (name, n) in [(dense, hidden), (out, 1)] {
                add(format!("{name}.weight"), &[n, hidden]);
                add(format!("{name}.bias"), &[n]);
            }
        }
    } else {
        add("model.embed_tokens.weight".to_owned(), &[vocab, hidden]);
        add("model.norm.weight".to_owned(), &[hidden]);
        if config["tie_word_embeddings"] != true {
            add("lm_head.weight".to_owned(), &[vocab, hidden]);
        }
    }
    all
}

/// Writes the model that `config` describes, in `shards` files (with an index where there are several).
pub(crate) fn write_model(dir: &Path, config: &Value, shards: usize) {
    std::fs::create_dir_all(dir).expect("folder");
    std::fs::write(dir.join("config.json"), config.to_string()).expect("config.json");
    let all = tensors(config);
    let mut map: HashMap<String, String> = HashMap::new();
    for (at, part) in all.chunks(all.len().div_ceil(shards)).enumerate() {
        let file = match shards {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{shards:05}.safetensors", at + 1),
        };
        let data: Vec<(&str, &[usize], Vec<u8>)> =
            part.iter().map(|(name, shape)| (name.as_str(), &shape[..], tensor(name, shape))).collect();
        let views = data.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes).expect("shape");
            (*name, view)
        });
        safetensors::serialize_to_file(views, None, &dir.join(&file)).expect("writes");
        map.extend(part.iter().map(|(name, _)| (name.clone(), file.clone())));
    }
    if shards > 1 {
        let index = json!({"metadata": {}, "weight_map": map});
        std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).expect("index");
    }
}

/// Writes a small BERT embedder with a word-piece tokenizer that knows letters and digits.
pub(crate) fn write_embedder(dir: &Path) {
    write_bert(dir, "BertModel");
}

/// As [`write_embedder`], with a head of one label: a cross-encoder.
pub(crate) fn write_reranker(dir: &Path) {
    write_bert(dir, "BertForSequenceClassification");
}

fn write_bert(dir: &Path, architecture: &str) {
    let mut vocab: Vec<String> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"].map(str::to_owned).to_vec();
    for c in ('a'..='z').chain('0'..='9') {
        vocab.push(c.to_string());
        vocab.push(format!("##{c}"));
    }
    vocab.extend([".", ",", "-", ":", ";"].map(str::to_owned));
    let config = json!({
        "architectures": [architecture], "id2label": {"0": "LABEL_0"}, "model_type": "bert", "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": vocab.len(), "max_position_embeddings": 256,
        "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0,
    });
    write_model(dir, &config, 1);
    let ids: serde_json::Map<String, Value> =
        vocab.iter().enumerate().map(|(id, piece)| (piece.clone(), json!(id))).collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let around = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
        "pair": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
            "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "[PAD]"), special(1, "[UNK]"), special(2, "[CLS]"), special(3, "[SEP]")],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": around,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": ids},
    });
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).expect("tokenizer.json");
}

/// The folder of real files, or a line that says what was not run.
pub(crate) fn test_data(what: &str) -> Option<PathBuf> {
    let dir =
        std::env::var_os("TARN_TEST_DATA").map_or_else(|| PathBuf::from("../shared/data"), PathBuf::from);
    let found = Some(dir.join(what)).filter(|path| path.exists());
    if found.is_none() {
        println!("not run: no data ({what})");
    }
    found
}

/// A command with the settings that every test shares and nothing of this environment.
pub(crate) fn tarn(embedder: &Path, lake: &Path) -> Command {
    let mut command = Command::new(TARN);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TARN_")) {
        command.env_remove(name);
    }
    command.arg("--embedder").arg(embedder).arg("--lake").arg(lake).args(["--threads", "1"]);
    command
}

/// A running `tarn serve`, killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// `http://ADDRESS`.
    pub(crate) url: String,
}

impl Server {
    /// Starts it on a free port and waits until it says that it is up.
    pub(crate) fn start(mut command: Command) -> Server {
        let mut child = command
            .args(["serve", "--listen", "127.0.0.1:0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let mut said = Vec::new();
        let url = loop {
            let Some(Ok(line)) = lines.next() else { panic!("the server ended: {said:#?}") };
            if let Some((_, rest)) = line.split_once("http://") {
                let address: String =
                    rest.chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect();
                break format!("http://{address}");
            }
            said.push(line);
        };
        std::thread::spawn(move || lines.for_each(drop));
        Server { child, url }
    }

    /// SIGKILL: no destructor, no signal handler.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("kills");
        self.child.wait().expect("ends");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks until `ready` says so; panics after a minute.
pub(crate) async fn eventually<T>(what: &str, mut ready: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = ready().await {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "waited a minute for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
