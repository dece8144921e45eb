//! The engine thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self as std_mpsc, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::handle::{Command, EngineHandle, EngineLimits, Shared};
use super::request::{EngineError, Event, FinishReason, SampledToken, TokenLogprobs};
use super::runner::StepRunner;
use super::scheduler::{Scheduler, SchedulerConfig};
use super::sequence::{Group, Sequence};
use super::stats::EngineStats;
use super::step::{StepOutput, StepPlan};

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
    let max_waiting = config.max_waiting;
    let thread = std::thread::Builder::new()
        .name("tarn-engine".to_owned())
        .spawn(move || {
            let built =
                catch_unwind(AssertUnwindSafe(build)).unwrap_or_else(|panic| Err(panic_message(&*panic)));
            let runner = match built {
                Ok(runner) => runner,
                Err(message) => {
                    let _ = ready.send(Err(message));
                    return;
                }
            };
            let limits = EngineLimits {
                max_model_len: runner.max_model_len() as u32,
                vocab_size: runner.vocab_size() as u32,
                block_size: crate::model::KvSpec::BLOCK_SIZE as u32,
                num_blocks: runner.num_blocks() as u32,
            };
            let shared = Arc::new(Shared {
                limits,
                max_waiting,
                waiting: AtomicUsize::new(0),
                open: AtomicUsize::new(0),
                draining: AtomicBool::new(false),
                stop: AtomicBool::new(false),
                stats: Mutex::new(EngineStats {
                    blocks_total: runner.num_blocks(),
                    ..EngineStats::default()
                }),
            });
            let _ = ready.send(Ok(shared.clone()));
            let scheduler = Scheduler::new(SchedulerConfig {
                max_num_seqs: config.max_num_seqs,
                max_num_batched_tokens: config.max_num_batched_tokens,
                prefix_cache: config.prefix_cache,
                limits,
            });
            let stats = EngineStats { blocks_total: limits.num_blocks as usize, ..EngineStats::default() };
            Engine { runner, scheduler, shared, receiver, stats, groups: 0 }.run();
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
    groups: u64,
}

impl<R: StepRunner> Engine<R> {
    fn run(mut self) {
        let mut plan = StepPlan::default();
        while self.take_commands() {
            self.end_abandoned();
            self.scheduler.schedule(&mut plan);
            if plan.tokens() > 0 {
                match self.step(&plan) {
                    Ok(output) => self.update(output),
                    Err(message) => self.fail_step(&message),
                }
            }
            self.publish_stats();
        }
        self.fail_all(&EngineError::Stopped);
        self.publish_stats();
    }

    fn step(&mut self, plan: &StepPlan) -> Result<StepOutput, String> {
        let runner = &mut self.runner;
        self.stats.steps += 1;
        catch_unwind(AssertUnwindSafe(|| {
            let ticket = runner.launch(plan)?;
            runner.collect(plan, ticket)
        }))
        .unwrap_or_else(|panic| Err(super::RunnerError { message: panic_message(&*panic) }))
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
            if !self.scheduler.is_idle() {
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
        let Command::Run(mut request, events) = command else { return };
        self.groups += 1;
        let id = self.groups;
        let constraint = request.constraint.take();
        let group = Group::new(&mut request, events);
        self.stats.prompt_tokens += group.prompt.len() as u64;
        let first = sequence(id, 0, &group, constraint);
        self.scheduler.groups.insert(id, group);
        self.scheduler.enqueue(first);
    }

    /// Ends what nobody waits for any more and what is past its deadline.
    fn end_abandoned(&mut self) {
        let now = Instant::now();
        let reason = |group: &Group| {
            if group.is_abandoned() {
                Some(FinishReason::Cancelled)
            } else {
                group.deadline.filter(|deadline| *deadline <= now).map(|_| FinishReason::Deadline)
            }
        };
        let waiting = self.scheduler.remove_waiting(|group| reason(group).is_some());
        for sequence in waiting {
            let why = self
                .scheduler
                .groups
                .get(&sequence.group)
                .and_then(reason)
                .unwrap_or(FinishReason::Cancelled);
            self.finish(sequence, why);
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

    /// Hands a step's tokens out.
    fn update(&mut self, output: StepOutput) {
        let now = Instant::now();
        let drew = self.scheduler.computed();
        self.take_prompt_logprobs(output.prompt_logprobs);
        let mut samples = output.samples.into_iter();
        let mut ended: Vec<(usize, FinishReason)> = Vec::new();
        for at in drew {
            let id = self.scheduler.running[at].group;
            self.after_prompt(id, now);
            if self.scheduler.groups[&id].max_tokens == 0 {
                ended.push((at, FinishReason::Length));
                continue;
            }
            let Some(token) = samples.next() else { break };
            if let Some(reason) = self.accept(at, token) {
                ended.push((at, reason));
            }
        }
        ended.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        for (at, reason) in ended {
            let sequence = self.scheduler.running.remove(at);
            self.finish(sequence, reason);
        }
    }

    fn take_prompt_logprobs(&mut self, logprobs: Vec<TokenLogprobs>) {
        // They come in the order of the plan: by running sequence, then by position.
        let mut logprobs = logprobs.into_iter();
        for at in 0..self.scheduler.running.len() {
            let sequence = &self.scheduler.running[at];
            let wanted = sequence.computed.min(sequence.prompt_len.saturating_sub(1));
            let Some(group) = self.scheduler.groups.get_mut(&sequence.group) else { continue };
            if group.params.prompt_logprobs.is_some() {
                let missing = wanted.saturating_sub(group.prompt_logprobs.len());
                group.prompt_logprobs.extend(logprobs.by_ref().take(missing).map(Some));
            }
        }
    }

    /// The prompt of a group is computed: says so once, and lets its other answers begin on the cached prompt.
    fn after_prompt(&mut self, id: u64, now: Instant) {
        let Some(group) = self.scheduler.groups.get_mut(&id) else { return };
        if group.prompt_sent {
            return;
        }
        group.prompt_sent = true;
        group.first_token = Some(now);
        let mut logprobs = Vec::new();
        if group.params.prompt_logprobs.is_some() {
            logprobs.push(None);
            logprobs.append(&mut group.prompt_logprobs);
        }
        group.send(Event::Prompt { logprobs, cached_tokens: group.cached_tokens });
        let siblings: Vec<Sequence> = (1..group.open).map(|index| sequence(id, index, group, None)).collect();
        siblings.into_iter().for_each(|sibling| self.scheduler.enqueue(sibling));
    }

    /// Takes over a drawn token; says why the answer ended, if it did.
    fn accept(&mut self, at: usize, token: SampledToken) -> Option<FinishReason> {
        self.scheduler.push_token(at, &token);
        self.stats.generation_tokens += 1;
        let sequence = &self.scheduler.running[at];
        let generated = sequence.output().len() as u32;
        let group = self.scheduler.groups.get_mut(&sequence.group)?;
        group.completion_tokens += 1;
        let id = token.id;
        group.send(Event::Token { index: sequence.index, token });
        if generated >= group.min_tokens && group.stop.contains(&id) {
            return Some(FinishReason::Stop(Some(id)));
        }
        let full = sequence.tokens.len() >= self.scheduler.config.limits.max_model_len as usize;
        (generated >= group.max_tokens || full).then_some(FinishReason::Length)
    }

    /// Ends one answer; the last one ends its request.
    fn finish(&mut self, sequence: Sequence, reason: FinishReason) {
        let sequence = self.scheduler.release(sequence);
        let Some(group) = self.scheduler.groups.get_mut(&sequence.group) else { return };
        group.send(Event::Finished { index: sequence.index, reason: reason.clone() });
        let not_started = if group.prompt_sent { 0 } else { group.open - 1 };
        for index in 1..=not_started {
            group.send(Event::Finished { index, reason: reason.clone() });
        }
        group.open -= 1 + not_started;
        group.last_reason = Some(reason);
        if group.open == 0 {
            group.send(Event::Done(group.usage()));
            match group.last_reason {
                Some(FinishReason::Stop(_)) => self.stats.finished_stop += 1,
                Some(FinishReason::Length) => self.stats.finished_length += 1,
                _ => self.stats.finished_abort += 1,
            }
            self.close(sequence.group);
        }
    }

    fn close(&mut self, group: u64) {
        self.scheduler.groups.remove(&group);
        self.shared.open.fetch_sub(1, Ordering::SeqCst);
    }

    /// A step failed: its sequences fail with it, everything else goes on.
    fn fail_step(&mut self, message: &str) {
        self.stats.failed_steps += 1;
        let planned = std::mem::take(&mut self.scheduler.planned);
        let failed: Vec<u64> = planned.iter().map(|(at, _)| self.scheduler.running[*at].group).collect();
        self.fail_groups(&failed, &EngineError::Step { message: message.to_owned() });
    }

    fn fail_all(&mut self, error: &EngineError) {
        while let Ok(command) = self.receiver.try_recv() {
            self.take(command);
        }
        let all: Vec<u64> = self.scheduler.groups.keys().copied().collect();
        self.fail_groups(&all, error);
    }

    fn fail_groups(&mut self, failed: &[u64], error: &EngineError) {
        let mut kept = Vec::with_capacity(self.scheduler.running.len());
        for sequence in std::mem::take(&mut self.scheduler.running) {
            if failed.contains(&sequence.group) {
                self.scheduler.release(sequence);
            } else {
                kept.push(sequence);
            }
        }
        self.scheduler.running = kept;
        for id in failed {
            if let Some(group) = self.scheduler.groups.get(id) {
                group.send(Event::Failed(error.clone()));
                // Waiting answers of the group hold no blocks; they are dropped with it.
                let events = group.events.clone();
                self.scheduler.remove_waiting(|other| other.events.same_channel(&events));
                self.close(*id);
            }
        }
    }

    fn publish_stats(&mut self) {
        let scheduler = &self.scheduler;
        self.stats.running = scheduler.running.len();
        self.stats.waiting = scheduler.waiting();
        self.stats.blocks_used = scheduler.pool.used();
        self.stats.prefix_queries = scheduler.prefix_queries;
        self.stats.prefix_hits = scheduler.prefix_hits;
        self.stats.preemptions = scheduler.preemptions;
        self.note_first_steps();
        *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner) = self.stats;
    }

    /// Requests that are in the running batch for the first time leave the waiting room.
    fn note_first_steps(&mut self) {
        let now = Instant::now();
        let scheduler = &mut self.scheduler;
        for sequence in &scheduler.running {
            if let Some(group) = scheduler.groups.get_mut(&sequence.group)
                && group.first_step.is_none()
            {
                group.first_step = Some(now);
            }
        }
        let queued = scheduler.groups.values().filter(|group| group.first_step.is_none()).count();
        self.shared.waiting.store(queued, Ordering::SeqCst);
    }
}

fn sequence(id: u64, index: u32, group: &Group, constraint: Option<Box<dyn super::Constraint>>) -> Sequence {
    Sequence {
        group: id,
        index,
        tokens: group.prompt.to_vec(),
        prompt_len: group.prompt.len(),
        computed: 0,
        blocks: Vec::new(),
        hashes: Vec::new(),
        constraint,
        admitted: 0,
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panicked".to_owned())
}

#[cfg(test)]
mod tests;
