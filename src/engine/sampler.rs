//! From logits to a token.
//!
//! Order, as in vLLM: grammar mask and bans, bias, penalties, then greedy or temperature, top-k, min-p, top-p and a
//! draw. Log probabilities are those of the model, before all of it. Random numbers are Philox4x32-10 keyed by the
//! request's seed with the position as counter: they depend on nothing else, so a seed gives the same tokens in any
//! batch, after any preemption, on any device.

use std::sync::Arc;

use tarn_kernels::{
    Exec, SOFTMAX_BLOCK, SoftmaxStats, argmax, philox_uniform, softmax_stats, softmax_weight,
};

use super::constraint::BitMask;
use super::request::{SampleError, SampledToken, TokenLogprobs};
use super::step::SampleSpec;

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
    /// The tokens for `spec`, which follows no grammar, at least one: from `rows(0)`, and from `rows(i)` while the token before is its draft.
    ///
    /// Each is drawn as if nothing had been drafted: from its own row, with the random number of its own position and
    /// the tokens before it as history. A draft is accepted where it is the token that is drawn anyway, so the answer
    /// is the one without speculation, token for token; the rejection rule (Leviathan et al. 2023) only keeps the
    /// distribution.
    ///
    /// # Errors
    /// [`SampleError`] when the first token cannot be drawn. Where a later one cannot, the run ends before it.
    pub fn sample_run<'a>(
        &mut self,
        rows: impl Fn(usize) -> &'a [f32],
        spec: &SampleSpec,
    ) -> Result<Vec<SampledToken>, SampleError> {
        let first = self.sample(rows(0), spec, None)?;
        let mut run = vec![first];
        if spec.drafts.first() != Some(&run[0].id) {
            return Ok(run);
        }
        let mut next = SampleSpec { drafts: Vec::new(), ..spec.clone() };
        for at in 0..spec.drafts.len() {
            if spec.drafts[at] != run[at].id {
                break;
            }
            next.position = spec.position + at as u32 + 1;
            if let Some(history) = &mut next.history {
                Arc::make_mut(history).push(run[at].id);
            }
            match self.sample(rows(at + 1), &next, None) {
                Ok(token) => run.push(token),
                Err(_) => break,
            }
        }
        Ok(run)
    }

    /// The token for `spec` from the model's `logits` `[vocab]`, among those of `mask` where a grammar gives one.
    ///
    /// # Errors
    /// [`SampleError`] when no token can be drawn.
    pub fn sample(
        &mut self,
        logits: &[f32],
        spec: &SampleSpec,
        mask: Option<&BitMask>,
    ) -> Result<SampledToken, SampleError> {
        // The row is copied only where something changes it.
        let mut own = std::mem::take(&mut self.logits);
        let id = if mask.is_some() || spec.adjusts() {
            own.clear();
            own.extend_from_slice(logits);
            adjust(&mut own, spec, mask);
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

fn adjust(logits: &mut [f32], spec: &SampleSpec, mask: Option<&BitMask>) {
    for mask in mask.into_iter().chain(spec.params.allowed.as_deref()) {
        apply_mask(logits, mask.words());
    }
    for id in spec.banned().unwrap_or_default() {
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
mod tests;
