//! The loop, turn by turn on this thread: whatever comes, in whatever order, the same must hold.

use std::collections::HashSet;

use proptest::prelude::*;

use super::super::*;
use super::request;
use crate::engine::{AdapterLease, Adapters, BitMask, Constraint, EventStream, Priority, Request};
use crate::testing::{Draw, FakeRunner, expected_answer, tiny_adapters};

/// An engine without its thread.
pub(super) struct Turns {
    pub(super) engine: Engine<FakeRunner>,
    pub(super) handle: EngineHandle,
}

impl Turns {
    pub(super) fn new(config: &EngineConfig, runner: FakeRunner) -> Turns {
        let (commands, receiver) = std_mpsc::channel();
        let engine = Engine::new(config, runner, receiver);
        let handle = EngineHandle { shared: engine.shared.clone(), commands };
        Turns { engine, handle }
    }

    pub(super) fn submit(&self, request: Request) -> Asked {
        let n = request.n as usize;
        let stream = self.handle.submit(request).expect("taken");
        Asked { stream, answers: vec![Vec::new(); n], reasons: vec![None; n], prompts: 0, end: None }
    }

    /// One step; then what must always hold.
    pub(super) fn turn(&mut self) {
        while let Ok(command) = self.engine.receiver.try_recv() {
            self.engine.take(command);
        }
        self.engine.turn();
        let scheduler = &self.engine.scheduler;
        assert_eq!(scheduler.pool.check_integrity(), Ok(()));
        let held: HashSet<u32> = scheduler.running.iter().flat_map(|seq| seq.blocks.clone()).collect();
        assert_eq!(scheduler.pool.used(), held.len(), "blocks are held by running sequences only");
        assert!(scheduler.running.len() <= scheduler.config.max_num_seqs);
        assert_eq!(self.engine.stats.failed_steps, 0);
    }

    /// Turns until all is done; reads meanwhile, so that nobody is too slow.
    pub(super) fn finish(&mut self, asked: &mut [Asked]) {
        for _ in 0..20_000 {
            self.turn();
            asked.iter_mut().for_each(Asked::read);
            if self.engine.scheduler.is_idle() && self.engine.ahead.is_none() {
                return;
            }
        }
        panic!("it never ends");
    }

    pub(super) fn stats(&self) -> EngineStats {
        self.engine.stats
    }
}

/// A request under way.
pub(super) struct Asked {
    pub(super) stream: EventStream,
    pub(super) answers: Vec<Vec<u32>>,
    pub(super) reasons: Vec<Option<FinishReason>>,
    pub(super) prompts: usize,
    pub(super) end: Option<Result<(), EngineError>>,
}

impl Asked {
    pub(super) fn read(&mut self) {
        while let Some(event) = self.stream.try_next() {
            assert!(self.end.is_none(), "nothing follows the terminal event");
            match event {
                Event::Prompt { .. } => self.prompts += 1,
                Event::Token { index, token } => {
                    assert!(self.reasons[index as usize].is_none(), "nothing follows `Finished`");
                    self.answers[index as usize].push(token.id);
                }
                Event::Finished { index, reason } => {
                    assert!(self.reasons[index as usize].replace(reason).is_none(), "finished twice");
                }
                Event::Done(_) => self.end = Some(Ok(())),
                Event::Failed(error) => self.end = Some(Err(error)),
            }
        }
    }
}

pub(super) fn speculative(vocab: u32) -> EngineConfig {
    let speculation =
        SpeculationConfig { row_cost: if vocab < 10 { 0.01 } else { 0.1 }, ..Default::default() };
    EngineConfig {
        max_num_seqs: 8,
        max_num_batched_tokens: 32,
        max_waiting: 1000,
        prefix_cache: true,
        speculation: Some(speculation),
    }
}

pub(super) fn prompt(seed: u32, len: u32, vocab: u32) -> Vec<u32> {
    (0..len).map(|at| (seed * 131 + at * 7 + 1) % vocab).collect()
}

fn leases(adapters: &Adapters, names: &[&str]) -> Vec<AdapterLease> {
    names.iter().map(|name| adapters.acquire(name).expect("in memory")).collect()
}

#[derive(Debug, Clone)]
struct Case {
    prompt: (u32, u32),
    tokens: u32,
    n: u32,
    seed: Option<u64>,
    adapter: usize,
    batch: bool,
    /// The token of its answer that is a stop.
    stop: u32,
    /// Turns before it comes.
    pause: u8,
    /// What its reader does after so many turns: nothing, drop it, or stop an answer.
    then: (u8, u8, u32),
}

impl Case {
    /// What it would be answered alone, stops aside.
    fn answer(&self, index: u64, leases: &[AdapterLease], vocab: u32) -> Vec<u32> {
        let adapter = self.adapter.checked_sub(1).map_or(0, |at| leases[at].uid());
        let draw = Draw { seed: self.seed.map(|seed| seed + index), adapter };
        expected_answer(&prompt(self.prompt.0, self.prompt.1, vocab), self.tokens as usize, vocab, draw)
    }

    fn stop_token(&self, leases: &[AdapterLease], vocab: u32) -> Vec<u32> {
        self.answer(0, leases, vocab).get(self.stop as usize).copied().into_iter().collect()
    }
}

fn cases() -> impl Strategy<Value = Vec<Case>> {
    let one = (
        (0_u32..4, 1_u32..70),
        0_u32..40,
        1_u32..5,
        proptest::option::of(0_u64..3),
        (0_usize..3, any::<bool>(), 0_u32..60),
        0_u8..4,
        (0_u8..4, 0_u8..30, 0_u32..4),
    );
    let case = one.prop_map(|(prompt, tokens, n, seed, (adapter, batch, stop), pause, then)| Case {
        prompt,
        tokens,
        n,
        seed,
        adapter,
        batch,
        stop,
        pause,
        then,
    });
    proptest::collection::vec(case, 1..14)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Arrivals, cancels, stopped answers, stops, forks, preemptions, guesses, adapters and priorities in any mix, on a
    /// runner that runs ahead or does not: every answer is what it would be alone, every request ends once, and nothing
    /// is left.
    #[test]
    fn every_answer_is_its_own_whatever_happens_around_it(
        cases in cases(),
        blocks in 8_usize..40,
        vocab in prop_oneof![Just(2_u32), Just(3), Just(997)],
        guesses in any::<bool>(),
        prefix_cache in any::<bool>(),
        ahead in any::<bool>(),
    ) {
        let adapters = tiny_adapters(2, &["one", "two"]);
        let leases = leases(&adapters, &["one", "two"]);
        let runner = leases.iter().fold(FakeRunner::new(blocks, vocab, 120), |runner, lease| {
            runner.with_adapter(lease)
        });
        let runner = if ahead { runner.running_ahead() } else { runner };
        let mut config = EngineConfig { prefix_cache, ..speculative(vocab) };
        config.speculation = config.speculation.filter(|_| guesses);
        let mut turns = Turns::new(&config, runner);
        let (mut asked, mut plans) = (Vec::new(), Vec::new());
        let mut now = 0_u32;
        let mut act = |turns: &mut Turns, asked: &mut Vec<Asked>, plans: &mut Vec<(Case, u32)>| {
            for (at, (case, since)) in plans.iter().enumerate() {
                if now - since == u32::from(case.then.1) {
                    match case.then.0 {
                        1 => asked[at].stream = closed(),
                        2 => asked[at].stream.stop_answer(case.then.2),
                        _ => {}
                    }
                }
            }
            turns.turn();
            asked.iter_mut().for_each(Asked::read);
            now += 1;
            now
        };
        for case in cases {
            let customer = ["a", "b", "c"][case.prompt.0 as usize % 3];
            let mut request = request(customer, prompt(case.prompt.0, case.prompt.1, vocab), case.tokens);
            (request.n, request.sampling.seed) = (case.n, case.seed);
            request.sampling.temperature = f32::from(u8::from(case.seed.is_some()));
            request.adapter = case.adapter.checked_sub(1).map(|at| leases[at].clone());
            request.stop_token_ids = case.stop_token(&leases, vocab);
            request.priority = if case.batch { Priority::Batch } else { Priority::Interactive };
            asked.push(turns.submit(request));
            let mut since = 0;
            for _ in 0..=case.pause {
                since = act(&mut turns, &mut asked, &mut plans);
            }
            plans.push((case, since));
        }
        for _ in 0..31 {
            act(&mut turns, &mut asked, &mut plans);
        }
        turns.finish(&mut asked);
        for (asked, (case, _)) in asked.iter().zip(&plans) {
            if case.then.0 == 1 {
                continue;
            }
            prop_assert_eq!(asked.end.clone(), Some(Ok(())));
            prop_assert!(asked.prompts <= 1);
            for (index, answer) in (0_u64..).zip(&asked.answers) {
                let mut whole = case.answer(index, &leases, vocab);
                let stop = whole.iter().position(|id| case.stop_token(&leases, vocab).contains(id));
                whole.truncate(stop.map_or(whole.len(), |at| at + 1));
                let end = stop.map_or(FinishReason::Length, |at| FinishReason::Stop(Some(whole[at])));
                let reason = asked.reasons[index as usize].clone().expect("finished");
                if case.then.0 == 2 && u64::from(case.then.2) == index && reason == FinishReason::Stop(None) {
                    prop_assert_eq!(answer, &whole[..answer.len()]);
                } else {
                    prop_assert_eq!((answer, reason), (&whole, end));
                }
            }
        }
        prop_assert_eq!(turns.engine.scheduler.pool.used(), 0);
        prop_assert_eq!(turns.handle.open_requests(), 0);
        prop_assert!(turns.engine.scheduler.groups.is_empty());
        let held = adapters.list().iter().map(|info| info.leases).sum::<usize>();
        prop_assert_eq!(held, leases.len(), "the engine let go of its adapters");
    }
}

/// The stream of nothing, in place of one that is dropped.
fn closed() -> EventStream {
    Turns::new(&speculative(9), FakeRunner::new(1, 9, 16))
        .handle
        .submit(request("x", vec![1], 1))
        .expect("taken")
}

#[test]
fn guesses_save_steps_and_change_no_token() {
    let run = |speculation| {
        let config = EngineConfig { speculation, ..speculative(2) };
        let mut turns = Turns::new(&config, FakeRunner::new(40, 2, 400));
        let mut asked = [turns.submit(request("a", prompt(1, 40, 2), 300))];
        turns.finish(&mut asked);
        (asked[0].answers[0].clone(), turns.stats())
    };
    let (plain, without) = run(None);
    let (guessed, with) = run(speculative(2).speculation);
    assert_eq!(plain, guessed);
    assert_eq!(without.drafted_tokens, 0);
    assert!(with.accepted_tokens > 50 && with.accepted_tokens < with.drafted_tokens, "{with:?}");
    assert_eq!(with.steps + with.accepted_tokens, without.steps);
}

#[test]
fn a_runner_that_runs_ahead_always_has_a_step_and_computes_one_in_vain_at_a_stop() {
    let run = |stop: Option<usize>, ahead: bool| {
        let config = EngineConfig { speculation: None, ..speculative(997) };
        let runner = FakeRunner::new(60, 997, 400);
        let runner = if ahead { runner.running_ahead() } else { runner };
        let mut turns = Turns::new(&config, runner);
        let whole = expected_answer(&prompt(1, 20, 997), 100, 997, Draw::default());
        let stop_token_ids = stop.map(|at| whole[at]).into_iter().collect();
        let requests = [
            Request { stop_token_ids, ..request("a", prompt(1, 20, 997), 100) },
            request("a", prompt(2, 11, 997), 100),
        ];
        let mut asked = requests.map(|request| turns.submit(request));
        turns.finish(&mut asked);
        (asked.map(|asked| asked.answers[0].clone()), turns.stats())
    };
    for stop in [None, Some(40)] {
        let (alone, without) = run(stop, false);
        let (answers, with) = run(stop, true);
        assert_eq!(answers, alone);
        assert_eq!((without.steps_ahead, with.generation_tokens), (0, without.generation_tokens));
        // The prompts' step, and the one after a stop or before an end, are planned when the one before is over.
        assert!(with.steps_ahead >= with.steps - 5, "{with:?}");
        assert!(with.steps - without.steps <= 1, "{with:?} beside {without:?}");
    }
}

#[test]
fn a_step_that_fails_takes_the_one_behind_it_with_it_and_nobody_else() {
    let config = EngineConfig { speculation: None, ..speculative(997) };
    let whole = expected_answer(&prompt(1, 20, 997), 100, 997, Draw::default());
    let runner = FakeRunner::new(60, 997, 400).running_ahead().panicking_on(whole[50]);
    let mut turns = Turns::new(&config, runner);
    let mut asked = [turns.submit(request("a", prompt(1, 20, 997), 100))];
    while asked[0].end.is_none() || turns.engine.ahead.is_some() {
        turns.engine.take_commands();
        turns.engine.turn();
        asked.iter_mut().for_each(Asked::read);
    }
    assert!(matches!(asked[0].end, Some(Err(EngineError::Step { .. }))), "{:?}", asked[0].end);
    assert_eq!(asked[0].answers[0], whole[..51]);
    // The step and the one behind it.
    assert_eq!((turns.stats().failed_steps, turns.engine.scheduler.pool.used()), (2, 0));
    (turns.engine.stats.failed_steps, asked) = (0, [turns.submit(request("a", prompt(2, 20, 997), 30))]);
    turns.finish(&mut asked);
    assert_eq!(asked[0].answers[0], expected_answer(&prompt(2, 20, 997), 30, 997, Draw::default()));
}

#[test]
fn who_relies_on_a_block_that_a_failed_step_copied_fails_with_it() {
    let mut turns = Turns::new(&speculative(997), FakeRunner::new(40, 997, 400));
    let two = Request { n: 2, ..request("a", prompt(1, 20, 997), 50) };
    let mut asked = [two, request("a", prompt(2, 5, 997), 50)].map(|request| turns.submit(request));
    // Both prompts: the second answer of the first begins with a copy of its last block.
    turns.turn();
    let mut plan = StepPlan::default();
    turns.engine.scheduler.schedule(&mut plan);
    assert_eq!(plan.copies.len(), 1);
    turns.engine.fail_step(&[], &plan.copies, "lost");
    turns.engine.stats.failed_steps = 0;
    turns.finish(&mut asked);
    assert!(matches!(asked[0].end, Some(Err(EngineError::Step { .. }))), "{:?}", asked[0].end);
    assert_eq!(asked[1].answers[0], expected_answer(&prompt(2, 5, 997), 50, 997, Draw::default()));
}

#[test]
fn stops_and_least_lengths_hold_within_an_accepted_run() {
    let whole = expected_answer(&prompt(1, 40, 2), 200, 2, Draw::default());
    let mut turns = Turns::new(&speculative(2), FakeRunner::new(40, 2, 400));
    for (min_tokens, max_tokens) in [(0, 200), (120, 200), (0, 1), (7, 13)] {
        let stop = vec![whole[100]];
        let asked = request("a", prompt(1, 40, 2), max_tokens);
        let mut asked = [turns.submit(Request { min_tokens, stop_token_ids: stop.clone(), ..asked })];
        turns.finish(&mut asked);
        let stops = |at: &usize| at + 1 >= min_tokens as usize && whole[*at] == stop[0];
        let end = (0..whole.len()).find(stops).map_or(200, |at| at + 1).min(max_tokens as usize);
        assert_eq!(asked[0].answers[0], whole[..end], "min {min_tokens}, max {max_tokens}");
    }
}

#[test]
fn a_prompt_of_the_whole_window_is_computed_when_no_token_is_wanted() {
    let mut turns = Turns::new(&speculative(997), FakeRunner::new(8, 997, 64));
    let mut scored = request("a", prompt(1, 64, 997), 0);
    scored.sampling.prompt_logprobs = Some(0);
    scored.n = 2;
    let mut asked = [turns.submit(scored)];
    turns.finish(&mut asked);
    assert_eq!((asked[0].prompts, asked[0].end.clone()), (1, Some(Ok(()))));
    assert_eq!(asked[0].reasons, [Some(FinishReason::Length), Some(FinishReason::Length)]);
    assert_eq!(turns.stats().generation_tokens, 0);
}

#[test]
fn a_reader_that_leaves_frees_its_blocks_within_a_step() {
    let mut turns = Turns::new(&speculative(997), FakeRunner::new(40, 997, 400));
    let asked = turns.submit(Request { n: 3, ..request("a", prompt(1, 30, 997), 100) });
    (0..5).for_each(|_| turns.turn());
    assert!(turns.engine.scheduler.pool.used() > 3);
    drop(asked);
    turns.turn();
    assert_eq!(turns.engine.scheduler.pool.used(), 0);
}

#[test]
fn adapters_never_share_blocks_and_answers_share_all_but_the_last() {
    let adapters = tiny_adapters(2, &["one", "two"]);
    let leases = leases(&adapters, &["one", "two"]);
    let runner = FakeRunner::new(40, 997, 400).with_adapter(&leases[0]).with_adapter(&leases[1]);
    let mut turns = Turns::new(&speculative(997), runner);
    for lease in [None, Some(&leases[0]), Some(&leases[1])] {
        let same = || Request { n: 3, adapter: lease.cloned(), ..request("a", prompt(1, 40, 997), 10) };
        let before = turns.stats().prefix_hits;
        let mut asked = [turns.submit(same())];
        (0..3).for_each(|_| turns.turn());
        // Two full blocks of 40 tokens for all, and each answer's own third one.
        assert_eq!(turns.engine.scheduler.pool.used(), 2 + 3);
        turns.finish(&mut asked);
        assert_eq!(turns.stats().prefix_hits, before, "nobody else's blocks");
        turns.finish(&mut [turns.submit(same())]);
        assert_eq!(turns.stats().prefix_hits, before + 32);
    }
}

/// Allows the next number only, up to a last one.
#[derive(Clone)]
struct Count {
    next: u32,
    last: u32,
}

impl Constraint for Count {
    fn advance(&mut self, _: u32) {
        self.next += 1;
    }

    fn fill(&mut self, mask: &mut BitMask) {
        assert!(mask.words().iter().all(|word| *word == 0), "the mask comes empty");
        mask.allow(self.next);
    }

    fn is_complete(&self) -> bool {
        self.next > self.last
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

#[test]
fn a_complete_grammar_ends_each_answer() {
    let mut turns = Turns::new(&speculative(997), FakeRunner::new(40, 997, 400));
    let constraint: Option<Box<dyn Constraint>> = Some(Box::new(Count { next: 5, last: 8 }));
    let mut asked = [turns.submit(Request { n: 3, constraint, ..request("a", prompt(1, 20, 997), 50) })];
    turns.finish(&mut asked);
    for (answer, reason) in asked[0].answers.iter().zip(&asked[0].reasons) {
        assert_eq!((answer.len(), reason), (4, &Some(FinishReason::Stop(None))));
    }
}
