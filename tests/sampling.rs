//! What a request asks of the draw reaches a real decoder's rows, through the whole engine.

use tarn::engine::{Event, SampledToken};

use super::engines::{Ask, Build, Engine, answers, tiny, ways};
use super::support::write_model;

fn engine() -> (Engine, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("dir");
    write_model(dir.path(), &tiny("llama"), 1);
    (Engine::start(dir.path(), Build::default()), dir)
}

fn ids(answer: &[SampledToken]) -> Vec<u32> {
    answer.iter().map(|token| token.id).collect()
}

#[test]
fn penalties_change_an_answer_that_repeats_its_prompt() {
    let (engine, _dir) = engine();
    let prompt: Vec<u32> = (0..40).map(|at| 3 + at % 8).collect();
    let [_, plain, penalised] = ways(5);
    let answer = |way| ids(&engine.answer(&Ask::new(&prompt, 40, way)));
    assert_ne!(answer(plain), answer(penalised));
}

#[test]
fn no_stop_is_drawn_before_the_least_length_and_the_first_after_it_ends() {
    let (engine, _dir) = engine();
    let ask = Ask::new(&[9, 8, 7], 24, ways(3)[0].clone());
    let free = ids(&engine.answer(&ask));
    let stop = free[2];
    let mut request = ask.request();
    (request.min_tokens, request.stop_token_ids) = (8, vec![stop]);
    let stream = engine.handle.submit(request).expect("accepted");
    let answer = ids(&answers(stream, 1).expect("an answer").remove(0));
    assert_eq!(answer[..2], free[..2]);
    assert!(answer.len() >= 8 && !answer[..7].contains(&stop), "{answer:?} with the stop {stop}");
}

#[test]
fn log_probabilities_of_a_prompt_are_those_of_writing_it() {
    let (engine, _dir) = engine();
    let ask = Ask::new(&[5, 6, 7, 8, 9], 30, ways(1)[0].clone());
    let written = engine.answer(&ask);
    let mut again = ask.clone();
    again.prompt.extend(ids(&written));
    again.tokens = 1;
    again.sampling.prompt_logprobs = Some(0);
    let mut stream = engine.submit(&again);
    let first = stream.blocking_next().expect("events");
    let Event::Prompt { logprobs: scored, .. } = first else { panic!("the prompt comes first: {first:?}") };
    let scored: Vec<_> = scored[5..].iter().map(|one| one.as_ref().map(|one| one.logprob)).collect();
    assert_eq!(scored, written.iter().map(|token| token.logprob).collect::<Vec<_>>());
}
