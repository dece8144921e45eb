use std::io::Write;

use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::super::config::{MoeConfig, RopeConfig, RopeScaling};
use super::*;

fn config(moe: Option<MoeConfig>) -> DecoderConfig {
    DecoderConfig {
        architecture: "LlamaForCausalLM".to_owned(),
        hidden: 8,
        intermediate: 12,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 4,
        vocab: 10,
        max_positions: 16,
        eps: 1e-5,
        rope: RopeConfig { theta: 1e4, scaling: RopeScaling::Default },
        sliding_window: None,
        tied: true,
        attention_bias: false,
        moe,
    }
}

const MOE: Option<MoeConfig> = Some(MoeConfig { experts: 3, top_k: 2 });

fn settings() -> Value {
    json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "use_dora": false, "modules_to_save": null})
}

/// A tensor of ones.
fn ones(shape: &[usize], dtype: Dtype) -> (Vec<usize>, Dtype, Vec<u8>) {
    let count = shape.iter().product();
    let one: &[u8] = match dtype {
        Dtype::F16 => &f16::ONE.to_le_bytes(),
        Dtype::BF16 => &bf16::ONE.to_le_bytes(),
        Dtype::F32 => &1.0_f32.to_le_bytes(),
        _ => &1.0_f64.to_le_bytes(),
    };
    (shape.to_vec(), dtype, one.repeat(count))
}

type Tensors<'a> = Vec<(&'a str, (Vec<usize>, Dtype, Vec<u8>))>;

fn write(settings: &Value, tensors: &Tensors<'_>) -> TempDir {
    let dir = tempfile::tempdir().expect("dir");
    std::fs::write(dir.path().join("adapter_config.json"), settings.to_string()).expect("config");
    let views = tensors.iter().map(|(name, (shape, dtype, bytes))| {
        (*name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor"))
    });
    let file = dir.path().join("adapter_model.safetensors");
    safetensors::serialize_to_file(views, None, &file).expect("weights");
    dir
}

fn load(dir: &TempDir, moe: Option<MoeConfig>) -> Result<LoraAdapter> {
    LoraAdapter::load(dir.path(), &config(moe), LoraOptions { max_rank: 4 })
}

/// Why the folder is refused; it must be in `needles`' words.
fn refused(dir: &TempDir, moe: Option<MoeConfig>, needles: &[&str]) {
    let message = load(dir, moe).expect_err("refused").to_string();
    for needle in needles {
        assert!(message.contains(needle), "`{needle}` is not in: {message}");
    }
}

const A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
const B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";

fn query() -> Tensors<'static> {
    vec![(A, ones(&[2, 8], Dtype::F32)), (B, ones(&[8, 2], Dtype::F32))]
}

#[test]
fn a_subset_of_products_and_layers_loads_from_any_float() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let dir = write(
            &settings(),
            &vec![
                ("base_model.model.model.layers.1.mlp.up_proj.lora_A.weight", ones(&[2, 8], dtype)),
                ("base_model.model.model.layers.1.mlp.up_proj.lora_B.weight", ones(&[12, 2], dtype)),
                // As older versions and other tools write it.
                ("model.layers.1.self_attn.v_proj.lora_A.default.weight", ones(&[2, 8], dtype)),
                ("model.layers.1.self_attn.v_proj.lora_B.default.weight", ones(&[4, 2], dtype)),
            ],
        );
        let adapter = load(&dir, None).expect("loads");
        assert_eq!(adapter.rank(), 2);
        assert_eq!(adapter.layer(0).updates().count(), 0);
        let layer = adapter.layer(1);
        assert!(layer.qkv.is_some() && layer.w13[0].is_some() && layer.w2[0].is_none());
        assert!(adapter.bytes() > 0 && adapter.is_for(&config(None)) && !adapter.is_for(&config(MOE)));
    }
}

#[test]
fn ranks_and_scales_follow_pefts_patterns() {
    let mut json = settings();
    json["rank_pattern"] = json!({"v_proj": 8, r"layers\.1\.self_attn\.q_proj": 3});
    json["alpha_pattern"] = json!({"^model.layers.0.self_attn.q_proj": 1, "proj": 100, r".*\.o_proj": 6});
    let dir = write(&json, &query());
    let read = Settings::read(dir.path()).expect("settings");
    let q = |layer: usize| format!("model.layers.{layer}.self_attn.q_proj");
    assert_eq!((read.rank(&q(0)), read.rank(&q(1))), (2, 3));
    assert_eq!(read.rank("model.layers.5.self_attn.v_proj"), 8);
    // `proj` is no whole last component, so it fits nothing.
    assert_eq!((read.scale(&q(0), 2), read.scale(&q(1), 2)), (0.5, 2.0));
    assert_eq!(read.scale("model.layers.1.self_attn.o_proj", 2), 3.0);
    json["use_rslora"] = json!(true);
    let read = Settings::read(write(&json, &query()).path()).expect("settings");
    assert_eq!(read.scale("model.layers.1.self_attn.k_proj", 4), 2.0);
    // The pattern's rank counts against the most that there is room for, and against the tensors.
    json["rank_pattern"] = json!({"q_proj": 8});
    refused(&write(&json, &query()), None, &["q_proj", "rank 8", "from 1 to 4", "largest rank"]);
    json["rank_pattern"] = json!({"q_proj": 3});
    refused(&write(&json, &query()), None, &[A, "[2, 8]", "[3, 8]"]);
    json["rank_pattern"] = json!({"(": 3});
    refused(&write(&json, &query()), None, &["rank_pattern", "no pattern"]);
    json["rank_pattern"] = json!({"a{1000}{1000}": 3});
    refused(&write(&json, &query()), None, &["rank_pattern", "no pattern"]);
}

#[test]
fn settings_that_nothing_here_computes_are_refused_by_name() {
    for (field, value) in [
        ("use_dora", json!(true)),
        ("lora_bias", json!(true)),
        ("bias", json!("lora_only")),
        ("modules_to_save", json!(["lm_head"])),
        ("trainable_token_indices", json!([1, 2])),
        ("fan_in_fan_out", json!(true)),
        ("layer_replication", json!([[0, 1]])),
        ("alora_invocation_tokens", json!([3])),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("peft_type", json!("IA3")),
        ("r", json!(0)),
        ("r", json!("8")),
        ("lora_alpha", Value::Null),
    ] {
        let mut json = settings();
        json[field] = value;
        refused(&write(&json, &query()), None, &["adapter_config.json", field]);
    }
    let mut plain = settings();
    for field in ["trainable_token_indices", "layer_replication", "megatron_config", "arrow_config"] {
        plain[field] = Value::Null;
    }
    plain["loftq_config"] = json!({});
    plain["init_lora_weights"] = json!("gaussian");
    load(&write(&plain, &query()), None).expect("what does not matter does not hurt");
}

#[test]
fn tensors_that_do_not_belong_are_refused_by_name() {
    let with = |name: &'static str, shape: &[usize]| {
        let mut all = query();
        all.push((name, ones(shape, Dtype::F32)));
        write(&settings(), &all)
    };
    for (name, needle) in [
        ("base_model.model.model.embed_tokens.lora_embedding_A", "embed_tokens"),
        ("base_model.model.lm_head.lora_A.weight", "output head"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", "DoRA"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias", "bias"),
        ("base_model.model.model.layers.0.input_layernorm.weight", "does not know"),
        ("base_model.model.model.layers.x.self_attn.q_proj.lora_A.weight", "does not know"),
        ("base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight", "pairs"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "twice"),
    ] {
        refused(&with(name, &[2, 8]), None, &[name, needle]);
    }
    let pair = |module: &str, a: &[usize], b: &[usize]| {
        let names = ["A", "B"].map(|x| format!("base_model.model.model.layers.{module}.lora_{x}.weight"));
        let all = vec![(names[0].as_str(), ones(a, Dtype::F32)), (names[1].as_str(), ones(b, Dtype::F32))];
        write(&settings(), &all)
    };
    refused(&pair("7.self_attn.q_proj", &[2, 8], &[8, 2]), None, &["layers.7", "2 layers", "another model"]);
    refused(&pair("0.self_attn.q_proj", &[2, 16], &[16, 2]), None, &["q_proj.lora_A", "[2, 16]", "[2, 8]"]);
    refused(&pair("0.self_attn.k_proj", &[2, 8], &[8, 2]), None, &["k_proj.lora_B", "[8, 2]", "[4, 2]"]);
    refused(&pair("0.mlp.down_proj", &[2, 12], &[8, 2]), MOE, &["down_proj", "another model"]);
    refused(&pair("0.block_sparse_moe.gate", &[2, 8], &[3, 2]), None, &["gate", "another model"]);
    refused(&pair("0.block_sparse_moe.experts.3.w1", &[2, 8], &[12, 2]), MOE, &["3 experts"]);
    refused(&pair("0.block_sparse_moe.experts.1.w4", &[2, 8], &[12, 2]), MOE, &["w4"]);
    load(&pair("0.block_sparse_moe.experts.1.w3", &[2, 8], &[12, 2]), MOE).expect("an expert");
    load(&pair("0.mlp.experts.base_layer", &[6, 8], &[24, 6]), MOE).expect("gate and up of all experts");
    load(&pair("0.mlp.experts", &[6, 12], &[8, 6]), MOE).expect("down of all experts");
    let doubles = vec![(A, ones(&[2, 8], Dtype::F64)), (B, ones(&[8, 2], Dtype::F64))];
    refused(&write(&settings(), &doubles), None, &["F64", "F32, F16 and BF16"]);
    refused(&write(&settings(), &Vec::new()), None, &["no tensors"]);
}

#[test]
fn damaged_files_are_errors_and_no_more() {
    let dir = write(&settings(), &query());
    let path = dir.path().join("adapter_model.safetensors");
    let whole = std::fs::read(&path).expect("weights");
    for len in 0..whole.len() {
        std::fs::write(&path, &whole[..len]).expect("writes");
        assert!(load(&dir, None).is_err(), "cut at {len}");
    }
    // A header that claims exabytes.
    let mut huge = whole.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(&path, &huge).expect("writes");
    refused(&dir, None, &["damaged or truncated"]);
    for at in 0..whole.len().min(400) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x15;
        std::fs::write(&path, &bytes).expect("writes");
        // Loads or is refused: a flipped bit of a weight is a weight.
        let _ = load(&dir, None);
    }
    // A sparse file of a terabyte costs nothing to make.
    let file = std::fs::File::create(&path).expect("creates");
    if file.set_len(1 << 40).is_ok() {
        refused(&dir, None, &["1099511627776 bytes", "rank 4"]);
    }
    std::fs::remove_file(&path).expect("removes");
    refused(&dir, None, &["cannot read", "adapter_model.safetensors"]);
    std::fs::create_dir(&path).expect("a folder");
    refused(&dir, None, &["no regular file"]);
    std::fs::remove_dir(&path).expect("removes");
    std::fs::write(dir.path().join("adapter_model.bin"), b"pickle").expect("writes");
    refused(&dir, None, &["adapter_model.bin", "pickle", "safetensors"]);
    let mut file = std::fs::File::create(dir.path().join("adapter_config.json")).expect("creates");
    file.write_all(b"{\"peft_type\": ").expect("writes");
    refused(&dir, None, &["adapter_config.json", "not valid"]);
}
