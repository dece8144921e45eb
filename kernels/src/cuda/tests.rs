//! The host's side against a stand-in for the driver (`kernels/emu/driver.cpp`), which has the emulator for a GPU and runs
//! nothing before something waits for it.

mod blas;

use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys;

use super::CudaDevice;
use crate::DType;
use crate::check::{CheckDevice, TimedDevice, hash, suites, timing};
use crate::device::fill::{Fill, fill};
use crate::device::rms_norm::{RmsNorm, rms_norm};
use crate::device::{Device, Launch, Ptr, READ, Use};
use crate::emulated::load_stand_in;
use crate::gpu::{Gpu, Priority};

/// One test at a time: what fails on a GPU fails for the whole process.
static ALONE: Mutex<()> = Mutex::new(());

/// The stand-in's GPU.
fn gpu() -> (MutexGuard<'static, ()>, Gpu) {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    load_stand_in("driver.so").expect("the build script compiled it");
    let gpu = crate::gpu::find(0).expect("the stand-in has one");
    assert_eq!((gpu.name.as_str(), gpu.capability), ("Emulated", (8, 0)));
    (alone, gpu)
}

/// One that has kernels alone.
fn device() -> (MutexGuard<'static, ()>, CudaDevice) {
    let (alone, gpu) = gpu();
    (alone, CudaDevice::with_kernels(gpu, Priority::Foreground).expect("opens"))
}

fn bytes(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|at| hash(at, seed) as u8).collect()
}

fn read(device: &mut CudaDevice, from: Ptr, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    device.download(from, 0, &mut bytes).expect("copies");
    bytes
}

#[test]
fn every_kernels_cases_pass_through_the_driver() {
    let (_alone, mut device) = device();
    for suite in suites() {
        let ran = (suite.run)(&mut device, true);
        assert!(ran.as_ref().is_ok_and(|ran| *ran >= 10), "{}.cu: {ran:?}", suite.file);
    }
}

#[test]
fn copies_of_any_size_arrive_although_their_source_is_gone() {
    let (_alone, mut device) = device();
    // Several turns of both halves, and places that no line starts at.
    let len = (5 << 24) + 12_345;
    let to = device.alloc("to", len, Use::ReadWrite).expect("allocates");
    let all = bytes(len, 1);
    let mut from = 0;
    for part in [3, 1 << 24, (1 << 24) + 1, 0, 7, len] {
        let part = part.min(len - from);
        let mut own = all[from..from + part].to_vec();
        device.upload(to, from, &own).expect("copies");
        own.fill(0);
        from += part;
    }
    assert_eq!(from, len);
    assert!(read(&mut device, to, len) == all, "what comes back is what went up");
    let mut middle = vec![0; 1000];
    device.download(to, 77, &mut middle).expect("copies");
    assert_eq!(middle, all[77..1077]);
    // Many that are small share a half.
    for at in 0..3000 {
        device.upload(to, at, &[at as u8]).expect("copies");
    }
    let expected: Vec<u8> = (0..3000).map(|at| at as u8).collect();
    assert_eq!(read(&mut device, to, 3000), expected);
    for (offset, len) in [(len, 1), (0, len + 1), (usize::MAX, 2)] {
        let error = device.upload(to, offset, &vec![0; len]).expect_err("refused").to_string();
        assert!(error.contains("of a buffer of"), "{error}");
    }
    assert!(device.upload(Ptr(to.0 + 1), 0, &[0]).expect_err("refused").to_string().contains("no buffer"));
    device.clear();
    assert!(device.download(to, 0, &mut [0]).is_err(), "a buffer that was forgotten is none");
}

#[test]
fn a_read_has_what_was_there_when_it_was_queued() {
    let (_alone, mut device) = device();
    let at = device.alloc("at", 4096, Use::ReadWrite).expect("allocates");
    let put = |device: &mut CudaDevice, byte: u8| {
        device.upload(at, 0, &[byte; 4096]).expect("copies");
        device.read(at, 1000, 3000).expect("queues")
    };
    let is = |bytes: crate::Result<Vec<u8>>, byte: u8| bytes.is_ok_and(|bytes| bytes == [byte; 3000]);
    let (first, second) = (put(&mut device, 1), put(&mut device, 2));
    device.upload(at, 0, &[3; 4096]).expect("copies");
    assert!(is(device.finish(first), 1) && is(device.finish(second), 2));
    // Of three the first is given up.
    let [first, second, third] = [4, 5, 6].map(|byte| put(&mut device, byte));
    assert!(is(device.finish(third), 6));
    assert!(device.finish(first).expect_err("gone").to_string().contains("given up"));
    assert!(is(device.finish(second), 5));
    assert!(device.read(at, 0, READ + 1).is_err() && device.read(at, 4000, 97).is_err());
}

/// A norm of `rows` rows of 64, and what it reads.
fn norm(device: &mut CudaDevice, rows: usize) -> (Launch, [Ptr; 3]) {
    let mut alloc = |name, bytes| device.alloc(name, bytes, Use::ReadWrite).expect("allocates");
    let (x, weight, out) = (alloc("x", rows * 256), alloc("weight", 256), alloc("out", rows * 256));
    let count = alloc("rows", 4);
    device.upload(count, 0, &(rows as u32).to_le_bytes()).expect("copies");
    let ones: Vec<u8> = [1.0_f32; 64].iter().flat_map(|one| one.to_le_bytes()).collect();
    device.upload(weight, 0, &ones).expect("copies");
    let op = RmsNorm {
        x,
        residual: Ptr::NONE,
        weight,
        out,
        rows: count,
        dtype: DType::F32,
        max_rows: rows,
        h: 64,
        eps: 1e-5,
    };
    (rms_norm(&op).expect("fits"), [x, out, count])
}

#[test]
fn a_graph_does_again_what_it_captured_with_what_is_in_memory_then() {
    let (_alone, mut device) = device();
    let (launch, [x, out, _]) = norm(&mut device, 3);
    let random = |seed| fill(&Fill { out: x, dtype: DType::F32, len: 192, seed, scale: 1.0 }).expect("fits");
    let list = device.record(vec![launch.clone(), launch.clone()]).expect("captures");
    let mut results = Vec::new();
    for seed in [1, 2] {
        device.launch(&random(seed)).expect("queues");
        device.replay(list).expect("queues");
        let replayed = read(&mut device, out, 768);
        device.launch(&random(7)).expect("queues");
        device.launch(&launch).expect("queues");
        assert_ne!(read(&mut device, out, 768), replayed, "the other input's result is another");
        device.launch(&random(seed)).expect("queues");
        device.launch(&launch).expect("queues");
        assert_eq!(read(&mut device, out, 768), replayed);
        results.push(replayed);
    }
    assert_ne!(results[0], results[1]);
    // What cannot be queued ends the capture and leaves the device as it was.
    let wrong = Launch::new("no_such_kernel", [1; 3], 32, 0);
    assert!(device.record(vec![launch.clone(), wrong]).is_err() && device.replay(list + 1).is_err());
    device.launch(&launch).expect("queues");
    device.synchronize().expect("runs");
}

#[test]
fn devices_of_one_gpu_have_the_priorities_asked_for_and_do_not_disturb_each_other() {
    let (_alone, mut first) = device();
    let mut second = CudaDevice::open(first.gpu().clone(), Priority::Background).expect("opens");
    let priority = |device: &CudaDevice| {
        device.context.enter().expect("enters");
        let mut priority = 1;
        // SAFETY: the stream lives, the pointer is to a live number.
        unsafe { sys::cuStreamGetPriority(device.stream.handle, &raw mut priority) }.result().expect("asks");
        priority
    };
    // As the driver counts: the lower, the sooner.
    assert_eq!((priority(&first), priority(&second)), (-5, 0));
    let (from, to) = (bytes(1000, 1), bytes(1000, 2));
    let mut ends = Vec::new();
    for (device, bytes) in [(&mut first, &from), (&mut second, &to)] {
        let at = device.alloc("to", bytes.len(), Use::ReadWrite).expect("allocates");
        device.upload(at, 0, bytes).expect("copies");
        ends.push(at);
    }
    assert!(read(&mut first, ends[0], 1000) == from && read(&mut second, ends[1], 1000) == to);
    drop(second);
    assert!(read(&mut first, ends[0], 1000) == from, "the other's end is not this one's");
}

#[test]
fn a_device_goes_from_the_thread_that_opened_it_to_another() {
    let (_alone, mut device) = device();
    let at = device.alloc("to", 5, Use::ReadWrite).expect("allocates");
    let device = std::thread::spawn(move || {
        device.upload(at, 0, &[1, 2, 3, 4, 5]).expect("copies");
        assert_eq!(read(&mut device, at, 5), [1, 2, 3, 4, 5]);
        device
    });
    drop(device.join().expect("no panic"));
}

#[test]
fn what_does_not_fit_is_refused_before_it_runs() {
    let (_alone, mut device) = device();
    let (launch, [x, ..]) = norm(&mut device, 1);
    let mut greedy = launch.clone();
    greedy.shared = 1 << 20;
    for (wrong, said) in [
        (Launch::new("no_such_kernel", [1; 3], 32, 0), "there is no kernel no_such_kernel"),
        (Launch::new("fill_f32", [1; 3], 32, 0).ptr(x), "fill_f32: arguments of [8] bytes"),
        (Launch::new("fill_f32", [1; 3], 32, 0).ptr(x).int(1).wide(1).float(1.0), "takes [8, 8, 8, 8, 8, 4]"),
        (greedy, "1048576 bytes of shared memory"),
    ] {
        let error = device.launch(&wrong).expect_err(said).to_string();
        assert!(error.contains(said), "`{said}` is not in: {error}");
    }
    let error = device.alloc("weights", 2 << 30, Use::Read).expect_err("too much").to_string();
    assert!(error.contains("`weights` needs 2048 MiB") && error.contains("512 MiB are free"), "{error}");
    device.launch(&launch).expect("queues");
    device.synchronize().expect("runs");
}

#[test]
fn what_goes_wrong_in_a_kernel_is_said_of_it_and_ends_with_the_device() {
    for alone_after in [false, true] {
        let (_alone, device) = device();
        let mut device = if alone_after { device.one_by_one() } else { device };
        let (mut wrong, _) = norm(&mut device, 2);
        // A block that no kernel was compiled for.
        wrong.block = [2048, 1, 1];
        let queued = device.launch(&wrong);
        let error = if alone_after {
            queued.expect_err("waits").to_string()
        } else {
            queued.expect("only queued");
            device.synchronize().expect_err("runs").to_string()
        };
        assert!(error.contains("2048 threads"), "{error}");
        assert!(!alone_after || error.starts_with("rms_norm_f32: "), "{error}");
        assert!(device.synchronize().is_err(), "it stays");
    }
    let (_alone, mut device) = device();
    let (launch, _) = norm(&mut device, 2);
    device.launch(&launch).expect("queues");
    device.synchronize().expect("another device is well");
}

#[test]
fn ops_are_timed_in_graphs_and_copies_between_events() {
    let (_alone, mut device) = device();
    let ceilings = timing::ceilings(&mut device, &timing::SMALL).expect("runs");
    // Every pair of events is 0.1 s apart in the stand-in: of three runs.
    let copied = 2.0 * timing::SMALL.copy as f64 / (0.1 / 3.0);
    assert!((ceilings.bandwidth / copied - 1.0).abs() < 1e-6, "{}", ceilings.bandwidth);
    let (launch, _) = norm(&mut device, 2);
    let seconds = device.time(&[launch]).expect("runs");
    assert!((seconds - 0.1 / 3.0).abs() < 1e-6, "{seconds}");
}
