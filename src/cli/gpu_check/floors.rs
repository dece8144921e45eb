//! What one H200 allows at its nominal bandwidth and arithmetic: what is read, or computed, at least.

use crate::model::{DecoderConfig, DeviceFormat, EncoderConfig};

/// Bytes a second.
const BANDWIDTH: f64 = 4.8e12;
/// Floating-point operations a second of bf16 products without sparsity.
const ARITHMETIC: f64 = 989e12;

/// Distinct experts of a layer that `tokens` tokens hit where routing is random: `E (1 - (1 - k / E)^tokens)`.
pub(super) fn experts_hit(config: &DecoderConfig, tokens: usize) -> f64 {
    config.moe.map_or(1.0, |moe| {
        let experts = moe.experts as f64;
        experts * (1.0 - (1.0 - moe.top_k as f64 / experts).powf(tokens as f64))
    })
}

/// Seconds of a decoding step of `batch` sequences of `context` tokens: its weights and its cache are read once.
pub(super) fn decode_seconds(
    config: &DecoderConfig,
    format: DeviceFormat,
    batch: usize,
    context: f64,
) -> f64 {
    let Weights { attention, expert, router, head } = Weights::of(config);
    let stored = if format == DeviceFormat::Fp8 { 1.0 } else { 2.0 };
    let layer = (attention + experts_hit(config, batch) * expert) * stored + router * 2.0;
    let cache = 2.0 * 2.0 * (config.kv_heads * config.head_dim) as f64 * context * batch as f64;
    (config.layers as f64 * (layer + cache) + head * 2.0) / BANDWIDTH
}

/// Seconds of a prompt of `tokens` tokens: its products, of which the head's is for one token, and its causal attention.
pub(super) fn prefill_seconds(config: &DecoderConfig, tokens: usize) -> f64 {
    let Weights { attention, expert, router, head } = Weights::of(config);
    let top_k = config.moe.map_or(1, |moe| moe.top_k) as f64;
    let tokens = tokens as f64;
    let scores = 2.0 * tokens * (config.heads * config.head_dim) as f64;
    let layer = 2.0 * (attention + router + top_k * expert) + scores;
    (config.layers as f64 * layer * tokens + 2.0 * head) / ARITHMETIC
}

/// Seconds of `requests` that come at once, each with a prompt and an answer of as many tokens.
pub(super) fn wave_seconds(
    config: &DecoderConfig,
    format: DeviceFormat,
    requests: usize,
    prompt: usize,
    answer: usize,
) -> f64 {
    // The prompt gives the first token.
    let steps = answer.saturating_sub(1) as f64;
    let context = prompt as f64 + steps / 2.0;
    requests as f64 * prefill_seconds(config, prompt)
        + steps * decode_seconds(config, format, requests, context)
}

/// Seconds of `passages` of `tokens` tokens each: products, and attention both ways.
pub(super) fn encode_seconds(config: &EncoderConfig, passages: usize, tokens: usize) -> f64 {
    let hidden = config.hidden as f64;
    let weights = 4.0 * hidden * hidden + 2.0 * hidden * config.intermediate as f64;
    let layer = 2.0 * weights + 4.0 * tokens as f64 * hidden;
    config.layers as f64 * layer * (passages * tokens) as f64 / ARITHMETIC
}

/// Weights of a layer's parts, and of the head.
struct Weights {
    attention: f64,
    expert: f64,
    router: f64,
    head: f64,
}

impl Weights {
    fn of(config: &DecoderConfig) -> Weights {
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        Weights {
            attention: (config.hidden * (2 * q + 2 * kv)) as f64,
            expert: (3 * config.hidden * config.intermediate) as f64,
            router: config.moe.map_or(0, |moe| moe.experts * config.hidden) as f64,
            head: (config.vocab * config.hidden) as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::shapes::{e5_large, mixtral_8x7b};
    use super::*;

    #[test]
    fn the_floors_of_mixtral_are_those_of_its_parameters() {
        let config = mixtral_8x7b();
        // 46.7 B parameters, of which a token meets 12.7 B without the embeddings.
        for (batch, gigabytes) in [(1, 25.5), (8, 84.1), (64, 93.1)] {
            let bytes = decode_seconds(&config, DeviceFormat::Plain, batch, 0.0) * BANDWIDTH / 1e9;
            assert!((bytes / gigabytes - 1.0).abs() < 0.005, "{batch}: {bytes}");
        }
        let plain = decode_seconds(&config, DeviceFormat::Plain, 1, 0.0);
        let fp8 = decode_seconds(&config, DeviceFormat::Fp8, 1, 0.0);
        assert!((0.5..0.51).contains(&(fp8 / plain)), "the head stays as it is: {fp8} of {plain}");
        // The cache is 128 KiB a token.
        let cache = decode_seconds(&config, DeviceFormat::Plain, 1, 1024.0) - plain;
        assert!((cache * BANDWIDTH / (1024.0 * 131_072.0) - 1.0).abs() < 1e-6, "{cache}");
        // 25.2 GFLOP a token in layers, and attention's share.
        let flops = prefill_seconds(&config, 2048) * ARITHMETIC / 2048.0 / 1e9;
        assert!((25.2..25.9).contains(&flops), "{flops}");
        assert_eq!(experts_hit(&config, 1), 2.0);
        assert!((experts_hit(&config, 8) - 7.199).abs() < 0.001);
    }

    #[test]
    fn a_wave_is_its_prompts_and_its_steps_and_an_encoder_its_products() {
        let config = mixtral_8x7b();
        let seconds = wave_seconds(&config, DeviceFormat::Plain, 64, 512, 256);
        assert!((6.0..6.5).contains(&seconds), "{seconds}");
        // 24 layers of 12.6 M weights, twice, and 2 M of attention.
        let flops = encode_seconds(&e5_large(), 32, 512) * ARITHMETIC / (32.0 * 512.0) / 1e6;
        assert!((654.0..656.0).contains(&flops), "{flops}");
    }
}
