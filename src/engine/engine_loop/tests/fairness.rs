//! Who gets how much of the machine, turn by turn on this thread.

use super::super::*;
use super::properties::{Asked, Turns, prompt, speculative};
use super::request;
use crate::engine::{Priority, Request};
use crate::testing::FakeRunner;

#[test]
fn a_flood_of_long_prompts_holds_nobody_elses_first_token_up() {
    let mut turns = Turns::new(&speculative(997), FakeRunner::new(400, 997, 600));
    let flood: Vec<Asked> =
        (0..20).map(|at| turns.submit(request("flood", prompt(at, 500, 997), 20))).collect();
    (0..5).for_each(|_| turns.turn());
    let mut calm = turns.submit(request("calm", prompt(50, 16, 997), 20));
    (0..2).for_each(|_| turns.turn());
    calm.read();
    assert_eq!(calm.prompts, 1, "its first token came with the second step");
    drop(flood);
}

/// Milliseconds that a small model takes on a CPU: a constant and a part for each row.
const CPU: (f64, f64) = (7.0, 0.8);

/// An engine on a machine of that speed that `customer` has used before: it knows what its steps take.
fn warm(customer: &str) -> Turns {
    let ms = |value: f64| Duration::from_secs_f64(value / 1e3);
    let runner = FakeRunner::new(4000, 997, 1000).saying_it_took(ms(CPU.0), ms(CPU.1));
    let config =
        EngineConfig { max_num_seqs: 64, max_num_batched_tokens: 512, speculation: None, ..speculative(997) };
    let mut turns = Turns::new(&config, runner);
    let mut asked: Vec<Asked> =
        (1..5).map(|at| turns.submit(request(customer, prompt(at, at * 40, 997), 30))).collect();
    turns.finish(&mut asked);
    turns
}

/// Milliseconds that its steps took so far.
fn busy(turns: &Turns) -> f64 {
    turns.engine.runner.busy().as_secs_f64() * 1e3
}

#[test]
fn a_flood_leaves_another_customer_half_of_its_speed_and_all_go_on() {
    let mut turns = warm("quiet");
    let mut quiet = turns.submit(request("quiet", prompt(99, 40, 997), 400));
    let mut speed = |turns: &mut Turns, steps: usize| {
        let (since, before) = (busy(turns), quiet.answers[0].len());
        for _ in 0..steps {
            turns.turn();
            quiet.read();
        }
        (quiet.answers[0].len() - before) as f64 / (busy(turns) - since)
    };
    let alone = speed(&mut turns, 60);
    let mut flood: Vec<Asked> =
        (0..80).map(|at| turns.submit(request("flood", prompt(at, 300, 997), 60))).collect();
    speed(&mut turns, 5);
    let since = busy(&turns);
    let beside = speed(&mut turns, 200);
    assert!(beside > 0.48 * alone, "{beside} of {alone} tokens a millisecond");
    // The other half is the flood's, less what small steps cost.
    let took = busy(&turns) - since;
    let rows = (took - CPU.0 * 200.0) / CPU.1 - 200.0;
    let most = took / (CPU.0 / 512.0 + CPU.1);
    assert!(rows > 0.35 * most, "the flood had {rows} of {most} rows");
    let scheduler = &turns.engine.scheduler;
    let longest = scheduler.running.iter().map(|seq| scheduler.steps - seq.last_step).max();
    assert!(longest < Some(64), "{longest:?} steps without a row");
    turns.finish(&mut flood);
    assert!(flood.iter().all(|asked| asked.end == Some(Ok(()))));
}

#[test]
fn who_comes_back_into_a_flood_has_its_first_token_soon() {
    let mut turns = warm("quiet");
    let flood: Vec<Asked> =
        (0..80).map(|at| turns.submit(request("flood", prompt(at, 300, 997), 60))).collect();
    (0..30).for_each(|_| turns.turn());
    // It comes as a step begins.
    let since = busy(&turns);
    turns.turn();
    let mut quiet = turns.submit(request("quiet", prompt(99, 40, 997), 4));
    while quiet.prompts == 0 {
        turns.turn();
        quiet.read();
    }
    let (took, alone) = (busy(&turns) - since, CPU.0 + CPU.1 * 40.0);
    assert!(took < 110.0 + 2.2 * alone, "{took} ms, alone {alone}");
    drop(flood);
}

#[test]
fn one_customer_alone_has_whole_steps() {
    let mut turns = warm("a");
    let asked: Vec<Asked> =
        (0..8).map(|at| turns.submit(request("a", prompt(10 + at, 300, 997), 60))).collect();
    let since = busy(&turns);
    turns.turn();
    assert!(busy(&turns) - since > CPU.0 + 511.0 * CPU.1);
    drop(asked);
}

#[test]
fn places_are_shared_while_others_wait_and_taken_from_batch_requests() {
    let config = EngineConfig { max_num_seqs: 4, ..speculative(997) };
    let held = |turns: &Turns, name: &str| {
        let scheduler = &turns.engine.scheduler;
        scheduler.running.iter().filter(|seq| &*scheduler.groups[&seq.group].customer == name).count()
    };
    let mut turns = Turns::new(&config, FakeRunner::new(100, 997, 600));
    let mut asked: Vec<Asked> =
        (0..8).map(|at| turns.submit(request("flood", prompt(at, 8, 997), 100))).collect();
    (0..4).for_each(|_| turns.turn());
    assert_eq!(held(&turns, "flood"), 4);
    asked.extend((0..8).map(|at| turns.submit(request("calm", prompt(at, 8, 997), 100))));
    (0..6).for_each(|_| turns.turn());
    assert_eq!((held(&turns, "flood"), held(&turns, "calm")), (2, 2));
    let batch = |at| Request { priority: Priority::Batch, ..request("bulk", prompt(at, 8, 997), 100) };
    let mut turns = Turns::new(&config, FakeRunner::new(100, 997, 600));
    let mut slow: Vec<Asked> = (0..8).map(|at| turns.submit(batch(at))).collect();
    (0..4).for_each(|_| turns.turn());
    slow.extend((0..4).map(|at| turns.submit(request("bulk", prompt(20 + at, 8, 997), 100))));
    (0..6).for_each(|_| turns.turn());
    let scheduler = &turns.engine.scheduler;
    let interactive = |seq: &&Sequence| scheduler.groups[&seq.group].priority == Priority::Interactive;
    assert_eq!(scheduler.running.iter().filter(interactive).count(), 4);
    turns.finish(&mut slow);
    assert!(slow.iter().all(|asked| asked.end == Some(Ok(()))), "batch requests come to their end");
    drop(asked);
}
