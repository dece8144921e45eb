//! From logits to a token.
//!
//! Order, as in vLLM: grammar mask and bans, bias, penalties, then greedy or temperature, top-k, min-p, top-p and a
//! draw. Log probabilities are those of the model, before all of it. Random numbers are Philox4x32-10 keyed by the
//! request's seed with the position as counter: they depend on nothing else, so a seed gives the same tokens in any
//! batch, after any preemption, on any device.

use super::request::{SampledToken, TokenLogprobs};
use super::step::SampleSpec;

/// A uniform number in `[0, 1)` for `(seed, position)`: Philox4x32-10 (Salmon et al. 2011), 24 bits of its first word.
#[must_use]
pub fn philox_uniform(seed: u64, position: u64) -> f32 {
    let mut counter = [position as u32, (position >> 32) as u32, 0, 0];
    let mut key = [seed as u32, (seed >> 32) as u32];
    for _ in 0..10 {
        let (a, b) = (u64::from(counter[0]) * 0xD251_1F53, u64::from(counter[2]) * 0xCD9E_8D57);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    (counter[0] >> 8) as f32 / (1_u32 << 24) as f32
}

/// Draws tokens; holds scratch for one vocabulary.
#[derive(Debug, Default)]
pub struct Sampler {
    logits: Vec<f32>,
    candidates: Vec<(f32, u32)>,
    counts: std::collections::HashMap<u32, u32>,
}

impl Sampler {
    /// The token for `spec` from the model's `logits` `[vocab]`.
    pub fn sample(&mut self, logits: &[f32], spec: &SampleSpec) -> SampledToken {
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        self.adjust(spec);
        let id = if spec.params.temperature <= 0.0 { argmax(&self.logits) } else { self.draw(spec) };
        match spec.params.logprobs {
            None => SampledToken { id, logprob: None, top: Vec::new() },
            Some(n) => {
                let TokenLogprobs { logprob, top } = self.logprobs(logits, id, n);
                SampledToken { id, logprob: Some(logprob), top }
            }
        }
    }

    /// The log probability of `id` and the `n` likeliest tokens under `logits`.
    pub fn logprobs(&mut self, logits: &[f32], id: u32, n: u8) -> TokenLogprobs {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f64 = logits.iter().map(|x| f64::from((x - largest).exp())).sum();
        let log_total = f64::from(largest) + total.ln();
        let logprob = |x: f32| (f64::from(x) - log_total) as f32;
        self.candidates.clear();
        if n > 0 {
            self.candidates.extend(logits.iter().copied().zip(0..));
            keep_best(&mut self.candidates, usize::from(n));
        }
        let top = self.candidates.iter().map(|(x, id)| (*id, logprob(*x))).collect();
        TokenLogprobs { logprob: logits.get(id as usize).map_or(f32::NEG_INFINITY, |x| logprob(*x)), top }
    }

    fn adjust(&mut self, spec: &SampleSpec) {
        let logits = &mut self.logits;
        if let Some(mask) = &spec.mask {
            for (id, logit) in logits.iter_mut().enumerate() {
                if !mask.allows(id as u32) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        for id in spec.banned.iter() {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        for (id, bias) in &spec.params.logit_bias {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit += bias;
            }
        }
        let Some((prompt, output)) = &spec.history else { return };
        let params = &spec.params;
        self.counts.clear();
        for id in output {
            *self.counts.entry(*id).or_insert(0) += 1;
        }
        if params.repetition_penalty != 1.0 {
            let mut seen: Vec<u32> = prompt.iter().chain(output).copied().collect();
            seen.sort_unstable();
            seen.dedup();
            for id in seen {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit = if *logit > 0.0 {
                        *logit / params.repetition_penalty
                    } else {
                        *logit * params.repetition_penalty
                    };
                }
            }
        }
        for (id, count) in &self.counts {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit -= params.frequency_penalty * *count as f32 + params.presence_penalty;
            }
        }
    }

    fn draw(&mut self, spec: &SampleSpec) -> u32 {
        let params = &spec.params;
        let uniform = philox_uniform(spec.seed, u64::from(spec.position));
        let inverse = 1.0 / params.temperature;
        let largest = self.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !largest.is_finite() {
            return argmax(&self.logits);
        }
        let weight = |logit: f32| ((logit - largest) * inverse).exp();
        let truncates = params.top_k.is_some() || params.top_p < 1.0 || params.min_p > 0.0;
        if !truncates {
            let total: f64 = self.logits.iter().map(|x| f64::from(weight(*x))).sum();
            let mut left = f64::from(uniform) * total;
            let mut last = 0;
            for (id, logit) in self.logits.iter().enumerate() {
                let w = f64::from(weight(*logit));
                if w > 0.0 {
                    last = id as u32;
                    if left < w {
                        break;
                    }
                    left -= w;
                }
            }
            return last;
        }
        self.candidates.clear();
        self.candidates.extend(self.logits.iter().copied().zip(0..).filter(|(x, _)| *x > f32::NEG_INFINITY));
        if let Some(k) = params.top_k {
            keep_best(&mut self.candidates, (k as usize).max(1));
        }
        if params.min_p > 0.0 {
            self.candidates.retain(|(x, _)| weight(*x) >= params.min_p);
        }
        if params.top_p < 1.0 {
            self.nucleus(params.top_p, weight);
        } else if params.top_k.is_none() {
            self.candidates.sort_unstable_by(best_first);
        }
        let total: f64 = self.candidates.iter().map(|(x, _)| f64::from(weight(*x))).sum();
        let mut left = f64::from(uniform) * total;
        for (x, id) in &self.candidates {
            let w = f64::from(weight(*x));
            if left < w {
                return *id;
            }
            left -= w;
        }
        self.candidates.last().map_or_else(|| argmax(&self.logits), |(_, id)| *id)
    }

    /// Cuts the candidates to the smallest best-first prefix with probability `top_p`. Sorts only as many as that takes.
    fn nucleus(&mut self, top_p: f32, weight: impl Fn(f32) -> f32) {
        let total: f64 = self.candidates.iter().map(|(x, _)| f64::from(weight(*x))).sum();
        let mut sorted = 256.min(self.candidates.len());
        loop {
            if sorted < self.candidates.len() {
                self.candidates.select_nth_unstable_by(sorted, best_first);
            }
            self.candidates[..sorted].sort_unstable_by(best_first);
            let mut sum = 0.0;
            for at in 0..sorted {
                sum += f64::from(weight(self.candidates[at].0));
                if sum >= f64::from(top_p) * total {
                    self.candidates.truncate(at + 1);
                    return;
                }
            }
            if sorted == self.candidates.len() {
                return;
            }
            sorted = (sorted * 8).min(self.candidates.len());
        }
    }
}

fn best_first(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// The `n` best, sorted.
fn keep_best(candidates: &mut Vec<(f32, u32)>, n: usize) {
    if n < candidates.len() {
        candidates.select_nth_unstable_by(n, best_first);
        candidates.truncate(n);
    }
    candidates.sort_unstable_by(best_first);
}

/// The largest logit's id, the lowest on ties.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::SamplingParams;

    fn spec(params: SamplingParams, seed: u64, position: u32) -> SampleSpec {
        SampleSpec {
            row: 0,
            params: Arc::new(params),
            seed,
            position,
            history: None,
            banned: Arc::from([]),
            mask: None,
        }
    }

    fn frequencies(params: &SamplingParams, logits: &[f32], draws: u32) -> Vec<f64> {
        let mut sampler = Sampler::default();
        let mut counts = vec![0.0; logits.len()];
        for position in 0..draws {
            counts[sampler.sample(logits, &spec(params.clone(), 42, position)).id as usize] +=
                1.0 / f64::from(draws);
        }
        counts
    }

    #[test]
    fn philox_gives_the_published_words() {
        // Random123's known-answer test: counter and key all zero give 6627e8d5 first.
        assert_eq!(philox_uniform(0, 0), (0x6627_e8d5_u32 >> 8) as f32 / (1_u32 << 24) as f32);
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits = [0.0, 1.0, 2.0, -1.0];
        for temperature in [0.5_f32, 1.0, 2.0] {
            let weights: Vec<f64> = logits.iter().map(|x| f64::from(x / temperature).exp()).collect();
            let total: f64 = weights.iter().sum();
            let found =
                frequencies(&SamplingParams { temperature, ..SamplingParams::default() }, &logits, 20_000);
            for (f, w) in found.iter().zip(&weights) {
                assert!((f - w / total).abs() < 0.012, "{found:?}");
            }
        }
    }

    #[test]
    fn truncation_keeps_exactly_the_likeliest() {
        let logits: Vec<f32> = (0..1000).map(|at| -((at * 7 % 1000) as f32) * 0.01).collect();
        let kept =
            |params: SamplingParams| frequencies(&params, &logits, 5000).iter().filter(|f| **f > 0.0).count();
        let base = SamplingParams::default();
        assert_eq!(kept(SamplingParams { top_k: Some(3), ..base.clone() }), 3);
        // exp(-0.01 n) >= 0.95 for n <= 5.
        assert_eq!(kept(SamplingParams { min_p: 0.95, ..base.clone() }), 6);
        // 1 - exp(-0.01 n) of the whole (nearly 1): 5 % takes 6 tokens.
        assert_eq!(kept(SamplingParams { top_p: 0.05, ..base.clone() }), 6);
        assert!(kept(SamplingParams { top_p: 0.999, ..base }) > 400);
    }

    #[test]
    fn penalties_bias_and_bans_equal_their_definitions() {
        let params = SamplingParams {
            temperature: 0.0,
            repetition_penalty: 2.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            logit_bias: vec![(4, 3.0)],
            ..SamplingParams::default()
        };
        let mut sampler = Sampler::default();
        let mut spec = spec(params, 0, 0);
        spec.history = Some((Arc::from([0, 1]), vec![1, 1, 2]));
        spec.banned = Arc::from([3]);
        sampler.sample(&[4.0, -1.0, 2.0, 9.0, 0.0], &spec);
        assert_eq!(sampler.logits, [2.0, -2.0 - 0.5 - 0.5, 1.0 - 0.25 - 0.5, f32::NEG_INFINITY, 3.0]);
    }

    #[test]
    fn log_probabilities_are_the_models_own() {
        let mut sampler = Sampler::default();
        let params = SamplingParams { temperature: 0.0, logprobs: Some(2), ..SamplingParams::default() };
        let token = sampler.sample(&[1.0, 3.0, 2.0], &spec(params, 0, 0));
        let total: f32 = [1.0_f32, 3.0, 2.0].iter().map(|x| x.exp()).sum();
        assert_eq!(token.id, 1);
        assert!((token.logprob.expect("asked") - (3.0 - total.ln())).abs() < 1e-6);
        assert_eq!(token.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2]);
    }
}
