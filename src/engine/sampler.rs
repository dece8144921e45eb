//! From logits to a token.
//!
//! Order, as in vLLM: grammar mask and bans, bias, penalties, then greedy or temperature, top-k, min-p, top-p and a
//! draw. Log probabilities are those of the model, before all of it. Random numbers are Philox4x32-10 keyed by the
//! request's seed with the position as counter: they depend on nothing else, so a seed gives the same tokens in any
//! batch, after any preemption, on any device.

use tarn_kernels::{Exec, SOFTMAX_BLOCK, SoftmaxStats, argmax, softmax_stats, softmax_weight};

use super::request::{SampleError, SampledToken, TokenLogprobs};
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

/// Draws tokens; holds scratch for one row at a time, so that each worker has its own.
#[derive(Debug)]
pub struct Sampler {
    exec: Exec,
    logits: Vec<f32>,
    candidates: Vec<(f32, u32)>,
    /// Softmax sums of the blocks of a row.
    sums: Vec<f32>,
}

impl Default for Sampler {
    fn default() -> Sampler {
        Sampler { exec: Exec::simd(1), logits: Vec::new(), candidates: Vec::new(), sums: Vec::new() }
    }
}

/// Below this temperature the likeliest token is taken: dividing by less overflows.
const GREEDY_BELOW: f32 = 1e-5;

/// Steps below the maximum, in units of the temperature, at which candidates are looked for before all are taken.
const LADDER: [f32; 3] = [4.0, 10.0, 20.0];

impl Sampler {
    /// The token for `spec` from the model's `logits` `[vocab]`.
    ///
    /// # Errors
    /// [`SampleError`] when no token can be drawn.
    pub fn sample(&mut self, logits: &[f32], spec: &SampleSpec) -> Result<SampledToken, SampleError> {
        // The row is copied only where something changes it.
        let mut own = std::mem::take(&mut self.logits);
        let id = if adjusts(spec) {
            own.clear();
            own.extend_from_slice(logits);
            adjust(&mut own, spec);
            self.choose(&own, spec)
        } else {
            self.choose(logits, spec)
        };
        self.logits = own;
        let id = id?;
        Ok(match spec.params.logprobs {
            None => SampledToken { id, logprob: None, top: Vec::new() },
            Some(n) => {
                let TokenLogprobs { logprob, top } = self.logprobs(logits, id, n);
                SampledToken { id, logprob: Some(logprob), top }
            }
        })
    }

    /// The log probability of `id` and the `n` likeliest tokens under `logits`.
    pub fn logprobs(&mut self, logits: &[f32], id: u32, n: u8) -> TokenLogprobs {
        let stats = self.stats(logits, 1.0);
        let log_total = f64::from(stats.max) + stats.sum.ln();
        let logprob = |x: f32| (f64::from(x) - log_total) as f32;
        self.candidates.clear();
        if n > 0 && stats.max.is_finite() {
            self.gather(logits, stats.max, 1.0, |found| found.len() >= usize::from(n));
            keep_best(&mut self.candidates, usize::from(n));
        }
        let top = self.candidates.iter().map(|(x, id)| (*id, logprob(*x))).collect();
        TokenLogprobs { logprob: logits.get(id as usize).map_or(f32::NEG_INFINITY, |x| logprob(*x)), top }
    }

    fn stats(&mut self, logits: &[f32], inverse: f32) -> SoftmaxStats {
        self.sums.clear();
        self.sums.resize(logits.len().div_ceil(SOFTMAX_BLOCK), 0.0);
        // The shapes agree by the line above; a row that they did not fit would be refused as not finite.
        softmax_stats(&self.exec, logits, inverse, &mut self.sums)
            .unwrap_or(SoftmaxStats { max: f32::NAN, sum: f64::NAN })
    }

    fn choose(&mut self, logits: &[f32], spec: &SampleSpec) -> Result<u32, SampleError> {
        if spec.params.temperature < GREEDY_BELOW {
            let (id, max) = argmax(&self.exec, logits).ok_or(SampleError::NotFinite)?;
            return check(max).map(|()| id);
        }
        self.draw(logits, spec)
    }

    fn draw(&mut self, logits: &[f32], spec: &SampleSpec) -> Result<u32, SampleError> {
        let params = &spec.params;
        let uniform = f64::from(philox_uniform(spec.seed, u64::from(spec.position)));
        let inverse = 1.0 / params.temperature;
        let stats = self.stats(logits, inverse);
        check(stats.max)?;
        let weight = |logit: f32| f64::from(softmax_weight(logit, stats.max, inverse));
        let top_k = params.top_k.map(|k| (k as usize).max(1));
        if top_k.is_none() && params.top_p >= 1.0 && params.min_p <= 0.0 {
            return Ok(self.draw_from_all(logits, uniform * stats.sum, weight));
        }
        let top_p = f64::from(params.top_p);
        let enough = |found: &[(f32, u32)]| {
            if let Some(k) = top_k {
                return found.len() >= k;
            }
            let least = found.iter().map(|(x, _)| *x).fold(f32::INFINITY, f32::min);
            (params.min_p > 0.0 && weight(least) < f64::from(params.min_p))
                || (params.min_p <= 0.0
                    && found.iter().map(|(x, _)| weight(*x)).sum::<f64>() >= top_p * stats.sum * 1.001)
        };
        self.gather(logits, stats.max, params.temperature, enough);
        if let Some(k) = top_k {
            keep_best(&mut self.candidates, k);
        }
        if params.min_p > 0.0 {
            self.candidates.retain(|(x, _)| weight(*x) >= f64::from(params.min_p));
        }
        let whole = top_k.is_none() && params.min_p <= 0.0;
        let total = if whole { stats.sum } else { self.candidates.iter().map(|(x, _)| weight(*x)).sum() };
        if params.top_p < 1.0 {
            self.nucleus(top_p * total, weight);
        } else if top_k.is_none() {
            self.candidates.sort_unstable_by(best_first);
        }
        let total: f64 = self.candidates.iter().map(|(x, _)| weight(*x)).sum();
        let mut left = uniform * total;
        for (x, id) in &self.candidates {
            let w = weight(*x);
            if left < w {
                return Ok(*id);
            }
            left -= w;
        }
        self.candidates.last().map(|(_, id)| *id).ok_or(SampleError::NothingAllowed)
    }

    /// The token in whose share of the whole `left` falls: first the block by the sums, then the token in it.
    fn draw_from_all(&self, logits: &[f32], mut left: f64, weight: impl Fn(f32) -> f64) -> u32 {
        let mut last = None;
        for (block, sum) in self.sums.iter().map(|sum| f64::from(*sum)).enumerate() {
            if left >= sum {
                left -= sum;
                continue;
            }
            let from = block * SOFTMAX_BLOCK;
            for (id, logit) in (from..).zip(logits[from..].iter().take(SOFTMAX_BLOCK)) {
                let w = weight(*logit);
                if w > 0.0 {
                    last = Some(id as u32);
                    if left < w {
                        return id as u32;
                    }
                    left -= w;
                }
            }
            break;
        }
        // Rounding pushed it past the block's last share, or past the last block.
        last.or_else(|| argmax(&self.exec, logits).map(|(id, _)| id)).unwrap_or(0)
    }

    /// Candidates for truncation: all logits within the first step of the ladder that has `enough`, else all that
    /// are possible. Whatever is left out is less likely than everything that is in.
    fn gather(&mut self, logits: &[f32], max: f32, temperature: f32, enough: impl Fn(&[(f32, u32)]) -> bool) {
        for step in LADDER {
            let bound = max - step * temperature;
            self.candidates.clear();
            self.candidates.extend(logits.iter().copied().zip(0..).filter(|(x, _)| *x >= bound));
            if enough(&self.candidates) {
                return;
            }
        }
        self.candidates.clear();
        self.candidates.extend(logits.iter().copied().zip(0..).filter(|(x, _)| *x > f32::NEG_INFINITY));
    }

    /// Cuts the candidates to the smallest best-first prefix that weighs `wanted`. Sorts only as many as that takes.
    fn nucleus(&mut self, wanted: f64, weight: impl Fn(f32) -> f64) {
        let mut sorted = 256.min(self.candidates.len());
        loop {
            if sorted < self.candidates.len() {
                self.candidates.select_nth_unstable_by(sorted, best_first);
            }
            self.candidates[..sorted].sort_unstable_by(best_first);
            let mut sum = 0.0;
            for at in 0..sorted {
                sum += weight(self.candidates[at].0);
                if sum >= wanted {
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

/// Whether `max` is the maximum of logits that a token can be drawn from.
fn check(max: f32) -> Result<(), SampleError> {
    if max == f32::NEG_INFINITY {
        return Err(SampleError::NothingAllowed);
    }
    if max.is_finite() { Ok(()) } else { Err(SampleError::NotFinite) }
}

/// Whether anything but the model decides the logits.
fn adjusts(spec: &SampleSpec) -> bool {
    spec.mask.is_some()
        || spec.banned.is_some()
        || spec.history.is_some()
        || !spec.params.logit_bias.is_empty()
}

fn adjust(logits: &mut [f32], spec: &SampleSpec) {
    if let Some(mask) = &spec.mask {
        apply_mask(logits, mask.words());
    }
    for id in spec.banned.iter().flat_map(|banned| banned.iter()) {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
    for (id, bias) in &spec.params.logit_bias {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit += bias;
        }
    }
    let Some(history) = &spec.history else { return };
    let params = &spec.params;
    for (id, count) in history.iter() {
        let Some(logit) = logits.get_mut(id as usize) else { continue };
        if params.repetition_penalty != 1.0 {
            *logit = if *logit > 0.0 {
                *logit / params.repetition_penalty
            } else {
                *logit * params.repetition_penalty
            };
        }
        if count > 0 {
            *logit -= params.frequency_penalty * count as f32 + params.presence_penalty;
        }
    }
}

/// Makes impossible what has no bit, a word of 64 tokens at a time.
fn apply_mask(logits: &mut [f32], words: &[u64]) {
    let covered = (words.len() * 64).min(logits.len());
    logits[covered..].fill(f32::NEG_INFINITY);
    for (logits, word) in logits.chunks_mut(64).zip(words) {
        match *word {
            u64::MAX => {}
            0 => logits.fill(f32::NEG_INFINITY),
            word => {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::{BitMask, SamplingParams, TokenCounts};

    fn spec(params: SamplingParams, seed: u64, position: u32) -> SampleSpec {
        SampleSpec {
            row: 0,
            params: Arc::new(params),
            seed,
            position,
            history: None,
            banned: None,
            mask: None,
        }
    }

    fn frequencies(params: &SamplingParams, logits: &[f32], draws: u32) -> Vec<f64> {
        let mut sampler = Sampler::default();
        let mut counts = vec![0.0; logits.len()];
        for position in 0..draws {
            let token = sampler.sample(logits, &spec(params.clone(), 42, position)).expect("draws");
            counts[token.id as usize] += 1.0 / f64::from(draws);
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
        let mut counts = TokenCounts::of_prompt(&[0, 1]);
        [1, 1, 2].iter().for_each(|id| counts.push(*id));
        spec.history = Some(Arc::new(counts));
        spec.banned = Some(Arc::from([3]));
        sampler.sample(&[4.0, -1.0, 2.0, 9.0, 0.0], &spec).expect("draws");
        assert_eq!(sampler.logits, [2.0, -2.0 - 0.5 - 0.5, 1.0 - 0.25 - 0.5, f32::NEG_INFINITY, 3.0]);
    }

    #[test]
    fn log_probabilities_are_the_models_own() {
        let mut sampler = Sampler::default();
        let params = SamplingParams { temperature: 0.0, logprobs: Some(2), ..SamplingParams::default() };
        let token = sampler.sample(&[1.0, 3.0, 2.0], &spec(params, 0, 0)).expect("draws");
        let total: f32 = [1.0_f32, 3.0, 2.0].iter().map(|x| x.exp()).sum();
        assert_eq!(token.id, 1);
        assert!((token.logprob.expect("asked") - (3.0 - total.ln())).abs() < 1e-6);
        assert_eq!(token.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn logits_without_a_possible_token_are_an_error_and_not_token_zero() {
        let mut sampler = Sampler::default();
        for temperature in [0.0, 1.0] {
            let params = SamplingParams { temperature, ..SamplingParams::default() };
            let mut nothing = spec(params.clone(), 1, 1);
            nothing.mask = Some(BitMask::none(3));
            assert_eq!(sampler.sample(&[1.0, 2.0, 3.0], &nothing), Err(SampleError::NothingAllowed));
            for bad in [f32::NAN, f32::INFINITY] {
                let found = sampler.sample(&[1.0, bad, 3.0], &spec(params.clone(), 1, 1));
                assert_eq!(found, Err(SampleError::NotFinite));
            }
        }
    }

    #[test]
    fn a_temperature_near_zero_is_greedy() {
        let mut sampler = Sampler::default();
        let logits: Vec<f32> = (0..5000).map(|at| (at * 37 % 5000) as f32 * 1e-3).collect();
        for temperature in [1e-6, 1e-38, f32::MIN_POSITIVE / 4.0] {
            let params = SamplingParams { temperature, ..SamplingParams::default() };
            let token = sampler.sample(&logits, &spec(params, 3, 9)).expect("draws");
            assert_eq!(logits[token.id as usize], 4.999);
        }
    }

    #[test]
    fn a_mask_decides_word_by_word_what_is_possible() {
        let mut mask = BitMask::none(200);
        (0..64).chain([70, 199]).for_each(|id| mask.allow(id));
        let mut logits = vec![1.0; 300];
        apply_mask(&mut logits, mask.words());
        let open: Vec<u32> = (0..300).filter(|id| logits[*id as usize] == 1.0).collect();
        assert_eq!(open, (0..64).chain([70, 199]).collect::<Vec<_>>());
    }

    #[test]
    fn candidates_that_are_gathered_step_by_step_give_what_all_of_them_give() {
        // A flat tail makes the first steps of the ladder too few for a large top-p, a peak makes them enough.
        let logits: Vec<f32> =
            (0..3000).map(|at| if at % 500 == 0 { 9.0 } else { -((at * 7 % 97) as f32) * 0.1 }).collect();
        let mut sampler = Sampler::default();
        for (top_p, top_k, min_p) in
            [(0.5, None, 0.0), (0.999, None, 0.0), (1.0, Some(700), 0.0), (0.9, None, 1e-4)]
        {
            let params = SamplingParams { top_p, top_k, min_p, ..SamplingParams::default() };
            for position in 0..50 {
                let one = spec(params.clone(), 5, position);
                let found = sampler.sample(&logits, &one).expect("draws");
                assert_eq!(found.id, plain_draw(&logits, &one), "{params:?}");
            }
        }
    }

    /// Truncation and draw over the whole sorted vocabulary.
    fn plain_draw(logits: &[f32], spec: &SampleSpec) -> u32 {
        let params = &spec.params;
        let mut all: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
        all.sort_by(best_first);
        let weight = |x: f32| f64::from(softmax_weight(x, all[0].0, 1.0 / params.temperature));
        let mut kept: Vec<(f64, u32)> = all.iter().map(|(x, id)| (weight(*x), *id)).collect();
        kept.truncate(params.top_k.map_or(usize::MAX, |k| k as usize));
        kept.retain(|(w, _)| *w >= f64::from(params.min_p));
        let total: f64 = kept.iter().map(|(w, _)| w).sum();
        let mut sum = 0.0;
        let cut = kept.iter().position(|(w, _)| {
            sum += w;
            sum >= f64::from(params.top_p) * total
        });
        kept.truncate(cut.map_or(usize::MAX, |cut| cut + 1));
        let total: f64 = kept.iter().map(|(w, _)| w).sum();
        let mut left = f64::from(philox_uniform(spec.seed, u64::from(spec.position))) * total;
        for (w, id) in &kept {
            if left < *w {
                return *id;
            }
            left -= w;
        }
        kept.last().expect("some").1
    }
}
