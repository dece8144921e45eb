//! The smallest LoRA adapters.

use std::path::Path;

use crate::engine::Adapters;
use crate::model::{DecoderConfig, LoraAdapter, LoraOptions, RopeConfig, RopeScaling};

const WIDTH: usize = 16;

/// A registry of `names`, each of rank 1 for a model of one layer.
///
/// # Panics
/// When they cannot be written to a temporary folder or read from there.
#[must_use]
pub fn tiny_adapters(max_resident: usize, names: &[&str]) -> Adapters {
    let config = DecoderConfig {
        architecture: "LlamaForCausalLM".to_owned(),
        hidden: WIDTH,
        intermediate: WIDTH,
        layers: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: WIDTH,
        vocab: WIDTH,
        max_positions: WIDTH,
        eps: 1e-5,
        rope: RopeConfig { theta: 1e4, scaling: RopeScaling::Default },
        sliding_window: None,
        tied: false,
        attention_bias: false,
        moe: None,
    };
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path());
    let path = folder.path().to_owned();
    let load = move |path: &Path| {
        let _kept = &folder;
        LoraAdapter::load(path, &config, LoraOptions { max_rank: 1 })
    };
    let adapters = Adapters::new(max_resident, load);
    names.iter().for_each(|name| adapters.load(name, &path, false).expect("loads"));
    adapters
}

/// A PEFT folder with the updates of one product.
fn write(folder: &Path) {
    let settings = r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}"#;
    std::fs::write(folder.join("adapter_config.json"), settings).expect("written");
    let tensor = |part: &str, shape: [usize; 2], from: usize| {
        let to = from + WIDTH * 4;
        format!(
            r#""base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{from},{to}]}}"#
        )
    };
    let mut header =
        format!("{{{},{}}}", tensor("A", [1, WIDTH], 0), tensor("B", [WIDTH, 1], WIDTH * 4)).into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    (0..2 * WIDTH).for_each(|at| file.extend((at as f32 * 0.01).to_le_bytes()));
    std::fs::write(folder.join("adapter_model.safetensors"), file).expect("written");
}
