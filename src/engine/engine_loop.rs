//! The engine thread.

mod answers;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self as std_mpsc, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::constraint::Grammar;
use super::drafts::SpeculationConfig;
use super::handle::{Command, EngineHandle, EngineLimits, Shared};
use super::request::{EngineError, Event, FinishReason};
use super::runner::{RunnerError, StepRunner};
use super::scheduler::{Planned, Scheduler, SchedulerConfig};
use super::sequence::{Group, Sequence, caught};
use super::stats::EngineStats;
use super::step::{StepOutput, StepPlan, Ticket};

/// The engine's limits.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Sequences in one step.
    pub max_num_seqs: usize,
    /// Tokens in one step.
    pub max_num_batched_tokens: usize,
    /// Requests that wait; one more is refused.
    pub max_waiting: usize,
    /// Reuse equal prompt beginnings.
    pub prefix_cache: bool,
    /// Guess tokens by prompt lookup; answers are the same with and without it.
    pub speculation: Option<SpeculationConfig>,
}

impl Default for EngineConfig {
    fn default() -> EngineConfig {
        EngineConfig {
            max_num_seqs: 64,
            max_num_batched_tokens: 512,
            max_waiting: 1024,
            prefix_cache: true,
            speculation: None,
        }
    }
}

/// The running thread; dropping it stops the engine and waits for it.
#[derive(Debug)]
pub struct EngineThread {
    handle: EngineHandle,
    thread: Option<JoinHandle<()>>,
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        self.handle.shared.stop.store(true, Ordering::SeqCst);
        self.handle.drain();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Starts the thread, builds the runner on it, and returns once it is ready.
///
/// # Errors
/// [`EngineError::Start`] with what `build` said.
pub fn start<R: StepRunner + 'static>(
    config: EngineConfig,
    build: impl FnOnce() -> Result<R, String> + Send + 'static,
) -> Result<(EngineHandle, EngineThread), EngineError> {
    let (commands, receiver) = std_mpsc::channel();
    let (ready, started) = std_mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .name("tarn-engine".to_owned())
        .spawn(move || {
            let built = caught(build).unwrap_or_else(Err);
            let runner = match built {
                Ok(runner) => runner,
                Err(message) => {
                    let _ = ready.send(Err(message));
                    return;
                }
            };
            let engine = Engine::new(&config, runner, receiver);
            let _ = ready.send(Ok(engine.shared.clone()));
            engine.serve();
        })
        .map_err(|error| EngineError::Start { message: error.to_string() })?;
    let started = started.recv().unwrap_or_else(|_| Err("its thread ended".to_owned()));
    let shared = started.map_err(|message| EngineError::Start { message })?;
    let handle = EngineHandle { shared, commands };
    Ok((handle.clone(), EngineThread { handle, thread: Some(thread) }))
}

struct Engine<R> {
    runner: R,
    scheduler: Scheduler,
    shared: Arc<Shared>,
    receiver: Receiver<Command>,
    stats: EngineStats,
    /// A step that was launched behind the last one before that was over.
    ahead: Option<Flight>,
    /// Plans that no step uses, for their memory.
    spare: Vec<StepPlan>,
}

/// A step that was launched, or why it could not be.
struct Flight {
    plan: StepPlan,
    planned: Vec<Planned>,
    ticket: Result<Ticket, String>,
}

/// Says that the thread ended, however it does.
struct DeadOnDrop(Arc<Shared>);

impl Drop for DeadOnDrop {
    fn drop(&mut self) {
        self.0.dead.store(true, Ordering::SeqCst);
    }
}

impl<R: StepRunner> Engine<R> {
    fn new(config: &EngineConfig, runner: R, receiver: Receiver<Command>) -> Engine<R> {
        let limits = EngineLimits {
            max_model_len: runner.max_model_len() as u32,
            vocab_size: runner.vocab_size() as u32,
            block_size: crate::model::KvSpec::BLOCK_SIZE as u32,
            num_blocks: runner.num_blocks() as u32,
        };
        let scheduler = Scheduler::new(SchedulerConfig {
            max_num_seqs: config.max_num_seqs,
            max_num_batched_tokens: config.max_num_batched_tokens,
            prefix_cache: config.prefix_cache,
            speculation: config.speculation,
            limits,
        });
        let stats = EngineStats { blocks_total: runner.num_blocks(), ..EngineStats::default() };
        let shared = Arc::new(Shared {
            limits,
            max_waiting: config.max_waiting,
            requests: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            stats: Mutex::new(stats),
        });
        Engine { runner, scheduler, shared, receiver, stats, ahead: None, spare: Vec::new() }
    }

    /// Runs until it is stopped. A panic outside of a step is a bug of the engine: it ends the thread, but every
    /// request still gets its terminal event and [`EngineHandle::is_alive`] says so.
    fn serve(mut self) {
        let _dead = DeadOnDrop(self.shared.clone());
        let error = match caught(|| self.run()) {
            Ok(()) => EngineError::Stopped,
            Err(message) => EngineError::Step { message },
        };
        self.shared.dead.store(true, Ordering::SeqCst);
        let _ = caught(|| {
            self.fail_all(&error);
            self.publish_stats();
        });
    }

    fn run(&mut self) {
        while self.take_commands() {
            self.turn();
        }
    }

    /// One step: plans and launches it, unless that was done behind the last one; launches the one behind it, where no
    /// more than its tokens are missing; waits for it and hands its tokens out.
    fn turn(&mut self) {
        self.end_abandoned();
        let flight = self.ahead.take().or_else(|| self.next());
        if let Some(flight) = flight {
            self.ahead = self.follow(&flight);
            self.land(flight);
        }
        self.fail_unlucky();
        self.publish_stats();
    }

    /// Plans and launches the next step, if there is something to do.
    fn next(&mut self) -> Option<Flight> {
        let mut plan = self.spare.pop().unwrap_or_default();
        self.scheduler.schedule(&mut plan);
        if plan.tokens() == 0 {
            self.spare.push(plan);
            return None;
        }
        let planned = std::mem::take(&mut self.scheduler.planned);
        Some(self.launch(plan, planned))
    }

    /// Plans and launches the step behind one that is in flight, where that can be done.
    fn follow(&mut self, flight: &Flight) -> Option<Flight> {
        if flight.ticket.is_err() || !self.runner.runs_ahead() {
            return None;
        }
        let mut plan = self.spare.pop().unwrap_or_default();
        match self.scheduler.follow(&flight.plan, &flight.planned, &mut plan) {
            Some(planned) => {
                self.stats.steps_ahead += 1;
                Some(self.launch(plan, planned))
            }
            None => {
                self.spare.push(plan);
                None
            }
        }
    }

    fn launch(&mut self, plan: StepPlan, planned: Vec<Planned>) -> Flight {
        self.stats.steps += 1;
        let runner = &mut self.runner;
        let launched = caught(|| runner.launch(&plan).map_err(|error| error.message));
        Flight { plan, planned, ticket: launched.unwrap_or_else(Err) }
    }

    /// Waits for a step and takes over what came of it.
    fn land(&mut self, flight: Flight) {
        let Flight { mut plan, planned, ticket } = flight;
        let rows = plan.tokens();
        let result = ticket.and_then(|ticket| self.collect(&mut plan, ticket));
        self.scheduler.take_grammars_back(&planned, &mut plan);
        let copies = std::mem::take(&mut plan.copies);
        // The plan's shares of the sequences' state go before that state is changed.
        plan.clear();
        self.spare.push(plan);
        match result {
            Ok(output) => {
                self.scheduler.cost.observe(rows, output.took);
                self.update(planned, output);
            }
            Err(message) => self.fail_step(&planned, &copies, &message),
        }
    }

    fn collect(&mut self, plan: &mut StepPlan, ticket: Ticket) -> Result<StepOutput, String> {
        let runner = &mut self.runner;
        caught(|| {
            let output = runner.collect(plan, ticket)?;
            let (samples, logprobs) = (output.samples.len(), output.prompt_logprobs.len());
            if (samples, logprobs) != (plan.samples.len(), plan.prompt_logprobs.len()) {
                return Err(RunnerError {
                    message: format!(
                        "the runner gave {samples} tokens and {logprobs} log probabilities for {} and {}",
                        plan.samples.len(),
                        plan.prompt_logprobs.len()
                    ),
                });
            }
            Ok(output)
        })
        .unwrap_or_else(|message| Err(RunnerError { message }))
        .map_err(|error| error.message)
    }

    /// Takes what was sent; sleeps when there is nothing to do. False when the engine is to end.
    fn take_commands(&mut self) -> bool {
        loop {
            while let Ok(command) = self.receiver.try_recv() {
                self.take(command);
            }
            if self.shared.stop.load(Ordering::SeqCst) {
                return false;
            }
            if !self.scheduler.is_idle() || self.ahead.is_some() {
                return true;
            }
            debug_assert_eq!(self.scheduler.pool.check_integrity(), Ok(()));
            debug_assert_eq!(self.scheduler.pool.used(), 0, "an idle engine holds no blocks");
            match self.receiver.recv_timeout(Duration::from_secs(3600)) {
                Ok(command) => self.take(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Run(mut request, entry) => {
                let (id, vocab) = (entry.id, self.scheduler.config.limits.vocab_size as usize);
                let grammar = request.constraint.take().map(|constraint| Grammar::new(constraint, vocab));
                let group = Group::new(&mut request, entry);
                self.stats.prompt_tokens += group.prompt.len() as u64;
                let first = Sequence::new(id, 0, &group, grammar);
                self.scheduler.groups.insert(id, group);
                self.scheduler.enqueue(first);
            }
            Command::StopAnswer(id, index) => self.stop_answer(id, index),
            Command::Wake => {}
        }
    }

    /// Ends what nobody waits for any more, what is past its deadline, and what is read too slowly.
    fn end_abandoned(&mut self) {
        let overrun = |(id, group): (&u64, &Group)| group.overrun().map(|error| (*id, error));
        for (id, error) in self.scheduler.groups.iter().filter_map(overrun).collect::<Vec<_>>() {
            self.fail_groups(&[id], &error);
            self.stats.finished_abort += 1;
        }
        let now = Instant::now();
        let reason = |group: &Group| group.ended(now);
        let Scheduler { queues, groups, .. } = &mut self.scheduler;
        for sequence in queues.remove(|sequence| reason(&groups[&sequence.group]).is_some()) {
            let why = self.scheduler.groups.get(&sequence.group).and_then(reason);
            self.finish(sequence, why.unwrap_or(FinishReason::Cancelled));
        }
        let mut at = 0;
        while at < self.scheduler.running.len() {
            match self.scheduler.groups.get(&self.scheduler.running[at].group).and_then(reason) {
                Some(why) => {
                    let sequence = self.scheduler.running.remove(at);
                    self.finish(sequence, why);
                }
                None => at += 1,
            }
        }
    }

    /// A step failed: its sequences and those that rely on a block that it copied fail with it, everything else goes on.
    fn fail_step(&mut self, planned: &[Planned], copies: &[(u32, u32)], message: &str) {
        self.stats.failed_steps += 1;
        let (scheduler, running) = (&self.scheduler, &self.scheduler.running);
        let relies = |seq: &&Sequence| copies.iter().any(|(_, copy)| seq.blocks.contains(copy));
        let planned = planned.iter().filter_map(|part| scheduler.find(part)).map(|at| running[at].group);
        let failed: Vec<u64> = planned.chain(running.iter().filter(relies).map(|seq| seq.group)).collect();
        self.fail_groups(&failed, &EngineError::Step { message: message.to_owned() });
    }

    /// Ends the requests whose own grammar or logits failed in this step; the step's other requests go on.
    fn fail_unlucky(&mut self) {
        for (id, error) in std::mem::take(&mut self.scheduler.failed) {
            self.fail_groups(&[id], &error);
        }
    }

    fn fail_all(&mut self, error: &EngineError) {
        while let Ok(command) = self.receiver.try_recv() {
            self.take(command);
        }
        let all: Vec<u64> = self.scheduler.groups.keys().copied().collect();
        self.fail_groups(&all, error);
    }

    fn fail_groups(&mut self, failed: &[u64], error: &EngineError) {
        // Waiting answers of the groups hold no blocks.
        self.scheduler.queues.remove(|sequence| failed.contains(&sequence.group));
        let all = std::mem::take(&mut self.scheduler.running);
        let (ended, kept): (Vec<_>, _) = all.into_iter().partition(|seq| failed.contains(&seq.group));
        self.scheduler.running = kept;
        ended.into_iter().for_each(|mut sequence| self.scheduler.free(&mut sequence));
        for id in failed {
            if let Some(mut group) = self.scheduler.groups.remove(id) {
                group.send_terminal(Event::Failed(error.clone()));
            }
        }
    }

    fn publish_stats(&mut self) {
        let scheduler = &self.scheduler;
        self.stats.running = scheduler.running.len();
        self.stats.waiting = scheduler.queues.len();
        self.stats.blocks_used = scheduler.pool.used();
        self.stats.prefix_queries = scheduler.prefix_queries;
        self.stats.prefix_hits = scheduler.prefix_hits;
        self.stats.preemptions = scheduler.preemptions;
        *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner) = self.stats;
    }
}

#[cfg(test)]
mod tests;
