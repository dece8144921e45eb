use std::sync::Arc;

use super::*;
use crate::engine::{Banned, BitMask, SamplingParams, TokenCounts};

fn spec(params: SamplingParams, seed: u64, position: u32) -> SampleSpec {
    SampleSpec {
        row: 0,
        drafts: Vec::new(),
        params: Arc::new(params),
        seed,
        position,
        history: None,
        banned: None,
        grammar: None,
    }
}

fn frequencies(params: &SamplingParams, logits: &[f32], draws: u32) -> Vec<f64> {
    let mut sampler = Sampler::default();
    let mut counts = vec![0.0; logits.len()];
    for position in 0..draws {
        let token = sampler.sample(logits, &spec(params.clone(), 42, position), None).expect("draws");
        counts[token.id as usize] += 1.0 / f64::from(draws);
    }
    counts
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
    spec.banned = Some(Banned { ids: Arc::from([3]), before: 1 });
    sampler.sample(&[4.0, -1.0, 2.0, 9.0, 0.0], &spec, None).expect("draws");
    assert_eq!(sampler.logits, [2.0, -2.0 - 0.5 - 0.5, 1.0 - 0.25 - 0.5, f32::NEG_INFINITY, 3.0]);
}

#[test]
fn log_probabilities_are_the_models_own() {
    let mut sampler = Sampler::default();
    let params = SamplingParams { temperature: 0.0, logprobs: Some(2), ..SamplingParams::default() };
    let token = sampler.sample(&[1.0, 3.0, 2.0], &spec(params, 0, 0), None).expect("draws");
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
        let (nothing, mut of_none) = (BitMask::none(3), params.clone());
        let found = sampler.sample(&[1.0, 2.0, 3.0], &spec(params.clone(), 1, 1), Some(&nothing));
        assert_eq!(found, Err(SampleError::NothingAllowed));
        of_none.allowed = Some(Arc::new(nothing));
        let found = sampler.sample(&[1.0, 2.0, 3.0], &spec(of_none, 1, 1), None);
        assert_eq!(found, Err(SampleError::NothingAllowed));
        for bad in [f32::NAN, f32::INFINITY] {
            let found = sampler.sample(&[1.0, bad, 3.0], &spec(params.clone(), 1, 1), None);
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
        let token = sampler.sample(&logits, &spec(params, 3, 9), None).expect("draws");
        assert_eq!(logits[token.id as usize], 4.999);
    }
}

#[test]
fn of_the_allowed_tokens_a_grammar_takes_its_own_and_the_likeliest_is_drawn_without_speculation_too() {
    let of = |ids: &[u32]| {
        let mut mask = BitMask::none(200);
        ids.iter().for_each(|id| mask.allow(*id));
        mask
    };
    let logits: Vec<f32> = (0..200).map(|at| at as f32).collect();
    let allowed = Some(Arc::new(of(&[3, 90, 150])));
    let mut sampler = Sampler::default();
    let mut one = spec(SamplingParams { allowed, ..SamplingParams::greedy() }, 1, 1);
    assert_eq!(sampler.sample(&logits, &one, None).expect("draws").id, 150);
    assert_eq!(sampler.sample(&logits, &one, Some(&of(&[3, 90, 199]))).expect("draws").id, 90);
    assert_eq!(sampler.sample(&logits, &one, Some(&of(&[199]))), Err(SampleError::NothingAllowed));
    one.drafts = vec![150, 199];
    let run = sampler.sample_run(|_| &logits, &one).expect("draws");
    assert_eq!(run.iter().map(|token| token.id).collect::<Vec<_>>(), [150, 150]);
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
            let found = sampler.sample(&logits, &one, None).expect("draws");
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

/// Logits of a row, different for every context.
fn logits_after(context: &[u32], vocab: u32) -> Vec<f32> {
    let hash = context.iter().fold(7_u32, |hash, id| (hash ^ id).wrapping_mul(0x0100_0193));
    let peak = context.last().copied().unwrap_or(0);
    (0..vocab)
        .map(|id| {
            let noise = (hash ^ id.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b) >> 16;
            noise as f32 / 65536.0 * 2.0 + if id == (peak + 1) % vocab { 1.5 } else { 0.0 }
        })
        .collect()
}

/// An answer of `tokens` tokens, drawn one by one or in runs over `drafts` guessed tokens each.
fn answer(params: &SamplingParams, seed: u64, tokens: usize, drafts: usize) -> (Vec<SampledToken>, usize) {
    const VOCAB: u32 = 40;
    const PROMPT: [u32; 4] = [3, 4, 5, 3];
    let (mut sampler, mut accepted) = (Sampler::default(), 0);
    let (mut context, mut counts) = (PROMPT.to_vec(), TokenCounts::of_prompt(&PROMPT));
    let mut answer: Vec<SampledToken> = Vec::new();
    while answer.len() < tokens {
        let room = drafts.min(tokens - answer.len() - 1);
        let last = context[context.len() - 1];
        let guesses: Vec<u32> = (1..=room as u32).map(|step| (last + step) % VOCAB).collect();
        let rows: Vec<Vec<f32>> =
            (0..=room).map(|at| logits_after(&[&context[..], &guesses[..at]].concat(), VOCAB)).collect();
        let one = SampleSpec {
            drafts: guesses,
            history: params.has_penalties().then(|| Arc::new(counts.clone())),
            banned: Some(Banned { ids: Arc::from([4, 9]), before: 16 }),
            ..spec(params.clone(), seed, context.len() as u32)
        };
        let run = sampler.sample_run(|at| &rows[at], &one).expect("draws");
        accepted += run.len() - 1;
        for token in run {
            context.push(token.id);
            counts.push(token.id);
            answer.push(token);
        }
    }
    (answer, accepted)
}

#[test]
fn guesses_change_neither_tokens_nor_log_probabilities() {
    let base = SamplingParams { logprobs: Some(3), ..SamplingParams::default() };
    let penalties = SamplingParams {
        repetition_penalty: 1.2,
        presence_penalty: 0.4,
        frequency_penalty: 0.3,
        ..base.clone()
    };
    let all = [
        SamplingParams { temperature: 0.0, ..base.clone() },
        base.clone(),
        SamplingParams { top_p: 0.8, temperature: 0.7, ..base.clone() },
        SamplingParams { top_k: Some(5), min_p: 0.05, logit_bias: vec![(7, 2.0), (3, -5.0)], ..base },
        SamplingParams { temperature: 0.0, ..penalties.clone() },
        penalties,
    ];
    for params in all {
        let mut accepted = 0;
        for seed in 0..20 {
            let (plain, _) = answer(&params, seed, 60, 0);
            let (guessed, right) = answer(&params, seed, 60, 5);
            assert_eq!(plain, guessed, "{params:?}");
            assert!(plain.iter().take(12).all(|token| ![4, 9].contains(&token.id)), "bans hold in runs");
            accepted += right;
        }
        assert!(accepted > 20, "{accepted} accepted: the test must see runs ({params:?})");
    }
}

#[test]
fn guessed_answers_follow_the_distribution() {
    // The second token after a fixed first one, over many seeds, with a guess that is often right.
    let logits = logits_after(&[3, 4, 5, 3], 40);
    let weights: Vec<f64> = logits.iter().map(|x| f64::from(*x).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut sampler = Sampler::default();
    let mut counts = vec![0.0; 40];
    let first: Vec<f32> = (0..40).map(|id| if id == 3 { 9.0 } else { 0.0 }).collect();
    let (mut runs, seeds) = (0.0, 30_000);
    for seed in 0..seeds {
        let one = SampleSpec { drafts: vec![3], ..spec(SamplingParams::default(), seed, 3) };
        let run = sampler.sample_run(|at| if at == 0 { &first } else { &logits }, &one).expect("draws");
        if let Some(token) = run.get(1) {
            counts[token.id as usize] += 1.0;
            runs += 1.0;
        }
    }
    assert!(runs > seeds as f64 * 0.9);
    for (count, weight) in counts.iter().zip(&weights) {
        assert!((count / runs - weight / total).abs() < 0.012, "{counts:?}");
    }
}

#[test]
fn a_row_that_gives_no_token_ends_the_run_before_it() {
    let mut sampler = Sampler::default();
    let rows = [[0.0, 9.0], [f32::NAN, 0.0]];
    let greedy = SamplingParams::greedy();
    let one = SampleSpec { drafts: vec![1, 1], ..spec(greedy.clone(), 0, 0) };
    assert_eq!(sampler.sample_run(|at| &rows[at], &one).expect("draws").len(), 1);
    assert_eq!(sampler.sample_run(|_| &rows[1], &one), Err(SampleError::NotFinite));
}
