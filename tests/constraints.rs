//! Grammars and allowed tokens on a real decoder, through the whole engine.

use std::sync::Arc;

use tarn::engine::{BitMask, Constraint, EngineError, SamplingParams};

use super::engines::{Ask, Build, Engine, answers, tiny, ways};
use super::support::write_model;

/// Every token is `step` after the one before it or one more; it panics when it is filled too often.
#[derive(Clone)]
struct Stairs {
    last: u32,
    step: u32,
    fills: u32,
}

impl Constraint for Stairs {
    fn advance(&mut self, id: u32) {
        self.last = id;
    }

    fn fill(&mut self, mask: &mut BitMask) {
        assert!(self.fills > 0, "filled once too often");
        self.fills -= 1;
        [self.step, self.step + 1].iter().for_each(|step| mask.allow((self.last + step) % 128));
    }

    fn is_complete(&self) -> bool {
        false
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

#[test]
fn each_of_a_batch_follows_its_own_grammar_and_one_that_panics_ends_alone() {
    let dir = tempfile::tempdir().expect("dir");
    write_model(dir.path(), &tiny("mixtral"), 1);
    for threads in [1, 3] {
        let engine = Engine::start(dir.path(), Build { threads, ..Build::default() });
        let free = Ask::new(&[9, 8, 7], 30, ways(1)[1].clone());
        let alone = engine.answer(&free);
        let submit = |step: u32, fills: u32, n: u32| {
            let ask = Ask { n, ..Ask::new(&[5, 6, step], 30, ways(step.into())[step as usize % 3].clone()) };
            let mut request = ask.request();
            request.constraint = Some(Box::new(Stairs { last: 6, step, fills }));
            (step, n, engine.handle.submit(request).expect("accepted"))
        };
        let following: Vec<_> = (1..7).map(|step| submit(step, 30, 1 + step % 3)).collect();
        let brittle = submit(7, 11, 2);
        let beside = engine.submit(&free);
        for (step, n, stream) in following {
            for answer in answers(stream, n).expect("answers") {
                let ids: Vec<u32> = std::iter::once(6).chain(answer.iter().map(|token| token.id)).collect();
                assert_eq!(ids.len(), 31);
                let taken = |pair: &[u32]| (pair[1] + 128 - pair[0]) % 128;
                assert!(
                    ids.windows(2).all(|pair| [step, step + 1].contains(&taken(pair))),
                    "{step}: {ids:?}"
                );
            }
        }
        let failed = answers(brittle.2, brittle.1);
        let Err(EngineError::Constraint { message }) = failed else { panic!("{failed:?}") };
        assert_eq!(message, "filled once too often");
        assert!(answers(beside, 1).expect("an answer")[0] == alone, "a grammar beside it shows");
        assert_eq!(engine.idle().failed_steps, 0);
    }
}

#[test]
fn only_allowed_tokens_are_drawn_and_as_with_a_bias_against_all_others() {
    let dir = tempfile::tempdir().expect("dir");
    write_model(dir.path(), &tiny("llama"), 1);
    let engine = Engine::start(dir.path(), Build::default());
    let mut mask = BitMask::none(128);
    [3, 64, 127].iter().for_each(|id| mask.allow(*id));
    let allowed = Some(Arc::new(mask));
    let prompt = [9, 3, 64, 127, 3, 64];
    for way in ways(5) {
        let only =
            engine.answer(&Ask::new(&prompt, 40, SamplingParams { allowed: allowed.clone(), ..way.clone() }));
        assert_eq!(only.len(), 40);
        assert!(only.iter().all(|token| [3, 64, 127].contains(&token.id)), "{only:?}");
        // The same as a bias that leaves no others.
        let others = (0..128).filter(|id| ![3, 64, 127].contains(id));
        let logit_bias = others.map(|id| (id, f32::NEG_INFINITY)).collect();
        assert!(engine.answer(&Ask::new(&prompt, 40, SamplingParams { logit_bias, ..way })) == only);
    }
}
