//! The models that are measured, as their `config.json` describes them, and the same in small for the emulator.

use crate::model::{
    Activation, DecoderConfig, EncoderConfig, MoeConfig, Pooling, PositionStyle, RopeConfig, RopeScaling,
};

/// Mixtral 8x7B.
pub(super) fn mixtral_8x7b() -> DecoderConfig {
    DecoderConfig {
        architecture: "MixtralForCausalLM".to_owned(),
        hidden: 4096,
        intermediate: 14336,
        layers: 32,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        vocab: 32000,
        max_positions: 32768,
        eps: 1e-5,
        rope: RopeConfig { theta: 1e6, scaling: RopeScaling::Default },
        sliding_window: None,
        tied: false,
        attention_bias: false,
        moe: Some(MoeConfig { experts: 8, top_k: 2 }),
    }
}

/// A mixture that the emulator computes in moments.
pub(super) fn small_mixture() -> DecoderConfig {
    DecoderConfig {
        hidden: 64,
        intermediate: 96,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        vocab: 100,
        max_positions: 128,
        moe: Some(MoeConfig { experts: 4, top_k: 2 }),
        ..mixtral_8x7b()
    }
}

/// multilingual-e5-large.
pub(super) fn e5_large() -> EncoderConfig {
    EncoderConfig {
        architecture: "XLMRobertaModel".to_owned(),
        hidden: 1024,
        intermediate: 4096,
        layers: 24,
        heads: 16,
        vocab: 250_002,
        position_rows: 514,
        type_rows: 1,
        eps: 1e-5,
        activation: Activation::GeluErf,
        positions: PositionStyle::Offset(2),
        max_tokens: 512,
        pooling: Pooling::Mean,
        normalize: true,
        head: None,
    }
}

/// An encoder that the emulator computes in moments.
pub(super) fn small_encoder() -> EncoderConfig {
    EncoderConfig {
        hidden: 64,
        intermediate: 96,
        layers: 2,
        heads: 4,
        vocab: 100,
        position_rows: 34,
        max_tokens: 32,
        ..e5_large()
    }
}
