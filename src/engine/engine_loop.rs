//! The engine thread.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self as std_mpsc, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::handle::{Command, EngineHandle, EngineLimits, Shared};
use super::request::{EngineError, Event, FinishReason, SampledToken, TokenLogprobs};
use super::runner::{RunnerError, StepRunner};
use super::scheduler::{Planned, Scheduler, SchedulerConfig, caught};
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
            let built = caught(build).unwrap_or_else(Err);
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
                dead: AtomicBool::new(false),
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
            let _dead = DeadOnDrop(shared.clone());
            Engine { runner, scheduler, shared, receiver, stats, groups: 0 }.serve();
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

/// Says that the thread ended, however it does.
struct DeadOnDrop(Arc<Shared>);

impl Drop for DeadOnDrop {
    fn drop(&mut self) {
        self.0.dead.store(true, Ordering::SeqCst);
    }
}

impl<R: StepRunner> Engine<R> {
    /// Runs until it is stopped. A panic outside of a step is a bug of the engine: it ends the thread, but every
    /// request still gets its terminal event and [`EngineHandle::is_alive`] says so.
    fn serve(mut self) {
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
        let mut plan = StepPlan::default();
        while self.take_commands() {
            self.end_abandoned();
            self.scheduler.schedule(&mut plan);
            if plan.tokens() > 0 {
                let result = self.step(&plan);
                // The plan's shares of the sequences' state go before that state is changed.
                plan.clear();
                match result {
                    Ok(output) => self.update(output),
                    Err(message) => self.fail_step(&message),
                }
                self.fail_unlucky();
            }
            self.publish_stats();
        }
    }

    fn step(&mut self, plan: &StepPlan) -> Result<StepOutput, String> {
        let runner = &mut self.runner;
        self.stats.steps += 1;
        caught(|| {
            let ticket = runner.launch(plan)?;
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
        let Command::Run(mut request, entry) = command else { return };
        self.groups += 1;
        let id = self.groups;
        let constraint = request.constraint.take();
        let group = Group::new(&mut request, entry);
        self.stats.prompt_tokens += group.prompt.len() as u64;
        let first = Sequence::new(id, 0, &group, constraint);
        self.scheduler.groups.insert(id, group);
        self.scheduler.enqueue(first);
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
        let planned = std::mem::take(&mut self.scheduler.planned);
        let drew = self.scheduler.computed(&planned);
        self.take_prompt_logprobs(&planned, output.prompt_logprobs);
        let mut samples = output.samples.into_iter();
        let mut ended: Vec<(usize, FinishReason)> = Vec::new();
        for at in drew {
            let id = self.scheduler.running[at].group;
            self.after_prompt(id, now);
            if self.scheduler.groups[&id].max_tokens == 0 {
                ended.push((at, FinishReason::Length));
                continue;
            }
            let Some(sampled) = samples.next() else { break };
            if self.scheduler.failed.iter().any(|(failed, _)| *failed == id) {
                continue;
            }
            match sampled {
                Ok(token) => ended.extend(self.accept(at, token).map(|reason| (at, reason))),
                Err(error) => self.scheduler.failed.push((id, error.into())),
            }
        }
        ended.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        for (at, reason) in ended {
            let sequence = self.scheduler.running.remove(at);
            self.finish(sequence, reason);
        }
    }

    /// Ends the requests whose own grammar or logits failed in this step; the step's other requests go on.
    fn fail_unlucky(&mut self) {
        for (id, error) in std::mem::take(&mut self.scheduler.failed) {
            self.fail_groups(&[id], &error);
        }
    }

    /// Each planned sequence takes exactly the rows that were planned for it.
    fn take_prompt_logprobs(&mut self, planned: &[Planned], logprobs: Vec<TokenLogprobs>) {
        let mut logprobs = logprobs.into_iter();
        for part in planned {
            let own = logprobs.by_ref().take(part.logprob_rows).map(Some);
            let group = self.scheduler.groups.get_mut(&self.scheduler.running[part.at].group);
            match group {
                Some(group) => group.prompt_logprobs.extend(own),
                None => own.for_each(drop),
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
        let siblings: Vec<Sequence> =
            (1..group.open).map(|index| Sequence::new(id, index, group, None)).collect();
        siblings.into_iter().for_each(|sibling| self.scheduler.enqueue(sibling));
    }

    /// Takes over a drawn token; says why the answer ended, if it did.
    fn accept(&mut self, at: usize, token: SampledToken) -> Option<FinishReason> {
        if let Err(error) = self.scheduler.push_token(at, token.id) {
            self.scheduler.failed.push((self.scheduler.running[at].group, error));
            return None;
        }
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
        if group.open > 0 {
            return;
        }
        if let Some(error) = group.overrun() {
            group.send_terminal(Event::Failed(error));
            self.stats.finished_abort += 1;
        } else {
            let usage = group.usage();
            group.send_terminal(Event::Done(usage));
            match group.last_reason {
                Some(FinishReason::Stop(_)) => self.stats.finished_stop += 1,
                Some(FinishReason::Length) => self.stats.finished_length += 1,
                _ => self.stats.finished_abort += 1,
            }
        }
        self.scheduler.groups.remove(&sequence.group);
    }

    /// A step failed: its sequences fail with it, everything else goes on.
    fn fail_step(&mut self, message: &str) {
        self.stats.failed_steps += 1;
        let planned = std::mem::take(&mut self.scheduler.planned);
        let failed: Vec<u64> = planned.iter().map(|part| self.scheduler.running[part.at].group).collect();
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
        // Waiting answers of the groups hold no blocks.
        self.scheduler.forget_waiting(failed);
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
            if let Some(mut group) = self.scheduler.groups.remove(id) {
                group.send_terminal(Event::Failed(error.clone()));
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
        *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner) = self.stats;
    }
}

#[cfg(test)]
mod tests;
