use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::engine::{
    EventStream, Priority, Request, RequestId, SamplingParams, SubmitError, TokenLogprobs, Usage,
};
use crate::testing::{FakeRunner, expected_tokens};

mod fairness;
mod properties;

const VOCAB: u32 = 997;

fn config() -> EngineConfig {
    EngineConfig { max_num_seqs: 8, max_num_batched_tokens: 32, max_waiting: 100, ..EngineConfig::default() }
}

fn engine(runner: FakeRunner) -> (EngineHandle, EngineThread) {
    start(config(), move || Ok(runner)).expect("starts")
}

fn request(customer: &str, prompt: Vec<u32>, max_tokens: u32) -> Request {
    Request {
        id: RequestId::new(),
        customer: Arc::from(customer),
        priority: Priority::Interactive,
        cache_salt: None,
        prompt,
        sampling: SamplingParams::greedy(),
        max_tokens,
        min_tokens: 0,
        stop_token_ids: Vec::new(),
        n: 1,
        deadline: None,
        adapter: None,
        constraint: None,
    }
}

fn prompt(seed: u32, len: u32) -> Vec<u32> {
    (0..len).map(|at| (seed * 131 + at * 7 + 1) % VOCAB).collect()
}

struct Outcome {
    answers: Vec<Vec<u32>>,
    reasons: Vec<FinishReason>,
    prompt: Option<(Vec<Option<TokenLogprobs>>, u32)>,
    end: Result<Usage, EngineError>,
}

fn collect(mut stream: EventStream, n: usize) -> Outcome {
    let mut outcome = Outcome {
        answers: vec![Vec::new(); n],
        reasons: vec![FinishReason::Cancelled; n],
        prompt: None,
        end: Err(EngineError::Stopped),
    };
    let mut terminal = 0;
    while let Some(event) = stream.blocking_next() {
        assert_eq!(terminal, 0, "nothing follows the terminal event");
        match event {
            Event::Prompt { logprobs, cached_tokens } => outcome.prompt = Some((logprobs, cached_tokens)),
            Event::Token { index, token } => outcome.answers[index as usize].push(token.id),
            Event::Finished { index, reason } => outcome.reasons[index as usize] = reason,
            Event::Done(usage) => (outcome.end, terminal) = (Ok(usage), terminal + 1),
            Event::Failed(error) => (outcome.end, terminal) = (Err(error), terminal + 1),
        }
    }
    assert_eq!(terminal, 1, "exactly one terminal event");
    outcome
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < Duration::from_secs(20), "{what} did not happen");
        std::thread::yield_now();
    }
}

#[test]
fn many_requests_at_once_get_what_each_gets_alone() {
    let (handle, _thread) = engine(FakeRunner::new(200, VOCAB, 500));
    let streams: Vec<_> = (0..30)
        .map(|at| (at, handle.submit(request("a", prompt(at, 5 + at * 3), 20)).expect("taken")))
        .collect();
    for (at, stream) in streams {
        let outcome = collect(stream, 1);
        assert_eq!(outcome.answers[0], expected_tokens(&prompt(at, 5 + at * 3), 20, VOCAB));
        assert_eq!(outcome.reasons[0], FinishReason::Length);
        assert_eq!(outcome.end.expect("done").completion_tokens, 20);
    }
    wait_until("blocks are free", || handle.stats().blocks_used == 0 && handle.open_requests() == 0);
}

#[test]
fn too_few_blocks_preempt_and_still_give_the_same_tokens() {
    let (handle, _thread) = engine(FakeRunner::new(14, VOCAB, 200));
    let streams: Vec<_> =
        (0..8).map(|at| (at, handle.submit(request("a", prompt(at, 40), 60)).expect("taken"))).collect();
    for (at, stream) in streams {
        assert_eq!(collect(stream, 1).answers[0], expected_tokens(&prompt(at, 40), 60, VOCAB));
    }
    assert!(handle.stats().preemptions > 0);
}

#[test]
fn a_known_prefix_is_not_computed_again_and_never_crosses_customers_or_salts() {
    let (handle, _thread) = engine(FakeRunner::new(100, VOCAB, 300));
    let cached = |customer: &str, salt: Option<&str>| {
        let request = Request { cache_salt: salt.map(Arc::from), ..request(customer, prompt(1, 100), 3) };
        let outcome = collect(handle.submit(request).expect("taken"), 1);
        assert_eq!(outcome.answers[0], expected_tokens(&prompt(1, 100), 3, VOCAB));
        outcome.end.expect("done").cached_tokens
    };
    assert_eq!(cached("a", None), 0);
    assert_eq!(cached("a", None), 96);
    assert_eq!(cached("b", None), 0);
    assert_eq!(cached("a", Some("s")), 0);
    assert_eq!(cached("a", Some("s")), 96);
}

#[test]
fn several_answers_share_one_prompt() {
    let (handle, _thread) = engine(FakeRunner::new(100, VOCAB, 300));
    let outcome =
        collect(handle.submit(Request { n: 4, ..request("a", prompt(3, 50), 10) }).expect("taken"), 4);
    for answer in &outcome.answers {
        assert_eq!(*answer, expected_tokens(&prompt(3, 50), 10, VOCAB));
    }
    assert_eq!(outcome.end.expect("done").completion_tokens, 40);
    assert_eq!(handle.stats().prefix_queries, 50, "the others did not compute or look up the prompt");
}

#[test]
fn dropping_the_stream_frees_the_blocks_of_running_and_waiting_requests() {
    let runner = FakeRunner::new(100, VOCAB, 1600).with_delay(Duration::from_millis(1));
    let (handle, _thread) = engine(runner);
    let mut streams: Vec<_> =
        (0..12).map(|at| handle.submit(request("a", prompt(at, 20), 100)).expect("taken")).collect();
    assert!(matches!(streams[0].blocking_next(), Some(Event::Prompt { .. })));
    drop(streams);
    wait_until("all are gone", || handle.open_requests() == 0 && handle.stats().blocks_used == 0);
    assert_eq!(handle.stats().finished_abort, 12);
}

#[test]
fn a_panicking_step_fails_its_requests_and_nothing_else() {
    let (handle, _thread) = engine(FakeRunner::new(100, VOCAB, 300).panicking_on(996));
    let bad = collect(handle.submit(request("a", vec![1, 996], 5)).expect("taken"), 1);
    assert!(matches!(bad.end, Err(EngineError::Step { .. })));
    let good = collect(handle.submit(request("a", vec![1, 2], 5)).expect("taken"), 1);
    assert_eq!(good.answers[0].len(), 5);
    assert_eq!(handle.stats().failed_steps, 1);
    wait_until("blocks are free", || handle.stats().blocks_used == 0);
}

#[test]
fn stops_minimum_deadline_and_prompt_log_probabilities() {
    let (handle, _thread) = engine(FakeRunner::new(100, VOCAB, 300));
    let expected = expected_tokens(&prompt(5, 9), 20, VOCAB);
    let run = |change: &dyn Fn(&mut Request)| {
        let mut request = request("a", prompt(5, 9), 20);
        change(&mut request);
        collect(handle.submit(request).expect("taken"), 1)
    };
    let stopped = run(&|request| request.stop_token_ids = vec![expected[7]]);
    assert_eq!(stopped.answers[0], expected[..8]);
    assert_eq!(stopped.reasons[0], FinishReason::Stop(Some(expected[7])));
    let late = run(&|request| (request.stop_token_ids, request.min_tokens) = (vec![expected[7]], 9));
    assert_eq!(late.answers[0].len(), 20);
    let dead = run(&|request| request.deadline = Some(Instant::now()));
    assert_eq!(dead.reasons[0], FinishReason::Deadline);
    let scored = run(&|request| request.sampling.prompt_logprobs = Some(0));
    let (logprobs, _) = scored.prompt.expect("prompt event");
    let found: Vec<Option<f32>> = logprobs.iter().map(|l| l.as_ref().map(|l| l.logprob)).collect();
    let wanted: Vec<Option<f32>> =
        std::iter::once(None).chain(prompt(5, 9)[1..].iter().map(|id| Some(-(*id as f32)))).collect();
    assert_eq!(found, wanted);
}

/// What the fake runner says of a prompt's tokens.
fn fake_logprobs(prompt: &[u32]) -> Vec<Option<f32>> {
    std::iter::once(None).chain(prompt[1..].iter().map(|id| Some(-(*id as f32)))).collect()
}

fn scored(outcome: &Outcome) -> Vec<Option<f32>> {
    let (logprobs, _) = outcome.prompt.as_ref().expect("prompt event");
    logprobs.iter().map(|one| one.as_ref().map(|one| one.logprob)).collect()
}

#[test]
fn prompt_log_probabilities_stay_with_their_request() {
    let runner = FakeRunner::new(200, VOCAB, 500).with_delay(Duration::from_millis(1));
    let (handle, _thread) = engine(runner);
    let score = |seed: u32, len: u32, n: u32| {
        let mut request = Request { n, ..request("a", prompt(seed, len), 40) };
        request.sampling.prompt_logprobs = Some(0);
        request
    };
    // The first one's prompt is done and it decodes while the others' prompts are computed, in several chunks.
    let mut first = handle.submit(score(1, 20, 1)).expect("taken");
    let Some(Event::Prompt { logprobs, .. }) = first.blocking_next() else { panic!("prompt first") };
    let found: Vec<Option<f32>> = logprobs.iter().map(|one| one.as_ref().map(|one| one.logprob)).collect();
    assert_eq!(found, fake_logprobs(&prompt(1, 20)));
    let second = handle.submit(score(2, 70, 1)).expect("taken");
    let third = handle.submit(score(3, 90, 2)).expect("taken");
    let (second, third) = (collect(second, 1), collect(third, 2));
    assert_eq!(scored(&second), fake_logprobs(&prompt(2, 70)));
    assert_eq!(scored(&third), fake_logprobs(&prompt(3, 90)));
    for answer in &third.answers {
        assert_eq!(*answer, expected_tokens(&prompt(3, 90), 40, VOCAB));
    }
    // The second answer began on the computed prompt instead of computing and scoring it again.
    assert_eq!(handle.stats().prefix_queries, 0);
}

#[test]
fn a_preempted_request_still_gets_each_prompt_log_probability_once() {
    let (handle, _thread) = engine(FakeRunner::new(14, VOCAB, 200));
    let streams: Vec<_> = (0..6)
        .map(|at| {
            let mut request = request("a", prompt(at, 60), 60);
            request.sampling.prompt_logprobs = Some(0);
            (at, handle.submit(request).expect("taken"))
        })
        .collect();
    for (at, stream) in streams {
        let outcome = collect(stream, 1);
        assert_eq!(scored(&outcome), fake_logprobs(&prompt(at, 60)));
        assert_eq!(outcome.answers[0], expected_tokens(&prompt(at, 60), 60, VOCAB));
    }
    assert!(handle.stats().preemptions > 0);
}

#[test]
fn the_waiting_room_is_empty_after_any_number_of_refusals_and_ends() {
    let runner = FakeRunner::new(100, VOCAB, 1600).with_delay(Duration::from_micros(100));
    let config = EngineConfig { max_num_seqs: 1, max_waiting: 3, ..config() };
    let (handle, _thread) = start(config, move || Ok(runner)).expect("starts");
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let handle = &handle;
            scope.spawn(move || {
                for at in 0..60 {
                    match handle.submit(request("a", prompt(worker * 100 + at, 4), 2)) {
                        Ok(stream) if at % 3 == 0 => drop(stream),
                        Ok(stream) => drop(collect(stream, 1)),
                        Err(error) => {
                            assert!(matches!(error, SubmitError::QueueFull { waiting: 3, .. }), "{error}")
                        }
                    }
                }
            });
        }
    });
    wait_until("all are gone", || handle.open_requests() == 0);
    assert_eq!(handle.shared.waiting.load(Ordering::SeqCst), 0);
    assert_eq!(collect(handle.submit(request("a", vec![1, 2], 3)).expect("taken"), 1).answers[0].len(), 3);
}

/// Allows everything until it panics.
struct Brittle {
    fills: u32,
    advances: u32,
}

impl crate::engine::Constraint for Brittle {
    fn advance(&mut self, _: u32) {
        assert!(self.advances > 0, "advanced once too often");
        self.advances -= 1;
    }

    fn fill(&mut self, mask: &mut crate::engine::BitMask) {
        assert!(self.fills > 0, "filled once too often");
        self.fills -= 1;
        mask.words_mut().fill(u64::MAX);
    }

    fn is_complete(&self) -> bool {
        false
    }

    fn fork(&self) -> Box<dyn crate::engine::Constraint> {
        Box::new(Brittle { fills: self.fills, advances: self.advances })
    }
}

#[test]
fn a_grammar_that_panics_fails_its_own_request_only() {
    let runner = FakeRunner::new(100, VOCAB, 300).with_delay(Duration::from_micros(200));
    let (handle, _thread) = engine(runner);
    for (fills, advances, message) in [(2, 9, "filled"), (9, 3, "advanced")] {
        let other = handle.submit(request("a", prompt(8, 30), 30)).expect("taken");
        let constraint: Option<Box<dyn crate::engine::Constraint>> =
            Some(Box::new(Brittle { fills, advances }));
        let brittle = Request { constraint, ..request("a", prompt(7, 5), 20) };
        let failed = collect(handle.submit(brittle).expect("taken"), 1);
        let Err(EngineError::Constraint { message: found }) = failed.end else { panic!("{:?}", failed.end) };
        assert!(found.starts_with(message), "{found}");
        assert_eq!(failed.answers[0], expected_tokens(&prompt(7, 5), fills.min(advances) as usize, VOCAB));
        assert_eq!(collect(other, 1).answers[0], expected_tokens(&prompt(8, 30), 30, VOCAB));
    }
    wait_until("blocks are free", || handle.stats().blocks_used == 0);
    assert_eq!(handle.stats().failed_steps, 0);
    assert!(handle.is_alive());
}

#[test]
fn logits_without_a_token_fail_their_own_request_only() {
    let (handle, _thread) = engine(FakeRunner::new(100, VOCAB, 300).refusing(995));
    let other = handle.submit(request("a", prompt(8, 30), 10)).expect("taken");
    let failed = collect(handle.submit(request("a", vec![1, 995], 5)).expect("taken"), 1);
    assert!(matches!(failed.end, Err(EngineError::Sample(_))), "{:?}", failed.end);
    assert_eq!(collect(other, 1).answers[0], expected_tokens(&prompt(8, 30), 10, VOCAB));
    wait_until("blocks are free", || handle.stats().blocks_used == 0);
}

#[test]
fn a_runner_that_loses_a_token_fails_the_step() {
    let (handle, _thread) = engine(FakeRunner::new(100, VOCAB, 300).losing_a_sample_on(996));
    let failed = collect(handle.submit(request("a", vec![1, 996], 5)).expect("taken"), 1);
    assert!(matches!(failed.end, Err(EngineError::Step { .. })), "{:?}", failed.end);
    assert_eq!(collect(handle.submit(request("a", vec![1, 2], 5)).expect("taken"), 1).answers[0].len(), 5);
    assert_eq!(handle.stats().failed_steps, 1);
}

#[test]
fn a_handle_knows_when_its_engine_is_gone() {
    let (handle, thread) = engine(FakeRunner::new(10, VOCAB, 100));
    assert!(handle.is_alive());
    drop(thread);
    assert!(!handle.is_alive());
}

#[test]
fn a_reader_that_is_too_slow_is_dropped_and_nobody_else() {
    let (handle, _thread) = engine(FakeRunner::new(200, VOCAB, 1600));
    let slow = handle.submit(request("a", prompt(1, 10), 1500)).expect("taken");
    wait_until("the slow one is dropped", || handle.open_requests() == 0);
    let good = collect(handle.submit(request("a", prompt(2, 10), 20)).expect("taken"), 1);
    assert_eq!(good.answers[0], expected_tokens(&prompt(2, 10), 20, VOCAB));
    let outcome = collect(slow, 1);
    assert!(matches!(outcome.end, Err(EngineError::SlowReader { behind: 256 })), "{:?}", outcome.end);
    let read = outcome.answers[0].len();
    assert_eq!(outcome.answers[0], expected_tokens(&prompt(1, 10), read, VOCAB));
    assert_eq!(handle.stats().finished_abort, 1);
    wait_until("blocks are free", || handle.stats().blocks_used == 0);
}

#[test]
fn usage_tells_the_queue_from_the_prompt_and_a_reader_that_has_enough_counts_as_stopped() {
    let runner = FakeRunner::new(100, VOCAB, 300).with_delay(Duration::from_millis(4));
    let (handle, _thread) = engine(runner);
    let usage = collect(handle.submit(request("a", prompt(1, 20), 3)).expect("taken"), 1).end.expect("done");
    assert!(usage.prefill_s >= 0.004, "{usage:?}");
    assert!(usage.decode_s >= 0.008, "{usage:?}");
    let mut stream = handle.submit(request("a", prompt(2, 20), 200)).expect("taken");
    assert!(stream.blocking_next().is_some());
    stream.stop();
    wait_until("it is gone", || handle.open_requests() == 0 && handle.stats().finished_stop == 1);
    assert_eq!(handle.stats().finished_abort, 0);
}

#[test]
fn a_blocked_head_of_the_queue_is_counted_once() {
    let runner = FakeRunner::new(8, VOCAB, 128).with_delay(Duration::from_micros(200));
    let (handle, _thread) = engine(runner);
    let first = handle.submit(request("a", prompt(1, 40), 80)).expect("taken");
    let second = handle.submit(request("a", prompt(2, 40), 60)).expect("taken");
    drop((collect(first, 1), collect(second, 1)));
    let stats = handle.stats();
    let admissions = 2 + stats.preemptions;
    assert!(stats.prefix_queries <= admissions * 120, "{stats:?}");
}

#[test]
fn what_can_never_run_is_refused_before_it_waits() {
    let (handle, thread) = engine(FakeRunner::new(4, VOCAB, 100));
    let refused = |request| handle.submit(request).expect_err("refused");
    assert!(matches!(
        refused(request("a", prompt(1, 90), 20)),
        SubmitError::TooLong { tokens: 110, limit: 100 }
    ));
    assert!(matches!(
        refused(request("a", prompt(1, 60), 20)),
        SubmitError::NeverFits { blocks: 5, total: 4, .. }
    ));
    assert!(matches!(refused(request("a", vec![], 1)), SubmitError::Invalid { .. }));
    assert!(matches!(refused(request("a", vec![VOCAB], 1)), SubmitError::Invalid { .. }));
    drop(thread);
    assert_eq!(refused(request("a", vec![1], 1)), SubmitError::Stopped);
}

#[test]
fn a_full_queue_is_refused_with_a_time_to_come_back() {
    let runner = FakeRunner::new(100, VOCAB, 1600).with_delay(Duration::from_millis(20));
    let config = EngineConfig { max_num_seqs: 1, max_waiting: 2, ..config() };
    let (handle, _thread) = start(config, move || Ok(runner)).expect("starts");
    let mut streams = Vec::new();
    let refused = loop {
        match handle.submit(request("a", prompt(1, 4), 200)) {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
        assert!(streams.len() < 8, "the queue has no bound");
    };
    assert!(matches!(refused, SubmitError::QueueFull { .. }), "{refused}");
}

#[test]
fn a_flood_of_one_customer_leaves_the_other_its_share() {
    let runner = FakeRunner::new(400, VOCAB, 1600).with_delay(Duration::from_micros(200));
    let config = EngineConfig { max_num_seqs: 2, max_waiting: 1000, ..config() };
    let (handle, _thread) = start(config, move || Ok(runner)).expect("starts");
    let flood: Vec<_> =
        (0..60).map(|at| handle.submit(request("flood", prompt(at, 10), 20)).expect("taken")).collect();
    let calm: Vec<_> =
        (0..5).map(|at| handle.submit(request("calm", prompt(at, 10), 20)).expect("taken")).collect();
    calm.into_iter().for_each(|stream| drop(collect(stream, 1)));
    // With equal shares the flood is served about as much as the calm customer meanwhile, not all of its 60.
    let served = handle.stats().generation_tokens;
    assert!(served < 20 * 25, "{served} tokens before the calm customer was done");
    drop(flood);
}

#[test]
fn interactive_requests_go_before_batch() {
    let runner = FakeRunner::new(400, VOCAB, 1600).with_delay(Duration::from_micros(300));
    let config = EngineConfig { max_num_seqs: 1, ..config() };
    let (handle, _thread) = start(config, move || Ok(runner)).expect("starts");
    let batch: Vec<_> = (0..20)
        .map(|at| Request { priority: Priority::Batch, ..request("a", prompt(at, 10), 10) })
        .map(|request| handle.submit(request).expect("taken"))
        .collect();
    drop(collect(handle.submit(request("a", prompt(50, 10), 10)).expect("taken"), 1));
    assert!(handle.stats().generation_tokens < 10 * 12);
    drop(batch);
}

#[test]
fn a_runner_that_cannot_be_built_says_why() {
    let failed = start(config(), || Err::<FakeRunner, _>("no weights".to_owned()));
    assert_eq!(failed.expect_err("fails").to_string(), "the engine could not start: no weights");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_mix_of_arrivals_and_cancels_ends_with_no_block_in_use(
        requests in proptest::collection::vec((0_u32..4, 1_u32..80, 1_u32..40, 1_u32..4, any::<bool>()), 1..25),
        blocks in 12_usize..40,
    ) {
        let (handle, _thread) = engine(FakeRunner::new(blocks, VOCAB, 120));
        let mut open = Vec::new();
        for (seed, len, tokens, n, cancel) in requests {
            let request = Request { n, ..request(["a", "b"][seed as usize % 2], prompt(seed, len), tokens) };
            if let Ok(mut stream) = handle.submit(request) {
                if cancel {
                    stream.blocking_next();
                } else {
                    open.push((seed, len, tokens, n, stream));
                }
            }
        }
        for (seed, len, tokens, n, stream) in open {
            for answer in collect(stream, n as usize).answers {
                prop_assert_eq!(answer, expected_tokens(&prompt(seed, len), tokens as usize, VOCAB));
            }
        }
        wait_until("all are gone", || handle.open_requests() == 0 && handle.stats().blocks_used == 0);
    }
}
