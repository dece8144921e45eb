//! Large products through a stand-in for cuBLASLt (`kernels/emu/blas.cpp`) on the driver's.

use std::sync::MutexGuard;

use super::{gpu, read};
use crate::DType;
use crate::check::{suites, timing};
use crate::cuda::CudaDevice;
use crate::device::dense::{Dense, dense};
use crate::device::fill::{Fill, fill};
use crate::device::{Device, Launch, Ptr, Use, Weights};
use crate::emulated::load_stand_in;
use crate::gpu::Priority;

/// Rows that there are, and that there is room for.
const ROWS: usize = 3;
const ROOM: usize = 40;
const N: usize = 65;
const K: usize = 72;

fn device() -> (MutexGuard<'static, ()>, CudaDevice) {
    let (alone, gpu) = gpu();
    load_stand_in("blas.so").expect("the build script compiled it");
    let device = CudaDevice::open(gpu, Priority::Foreground).expect("opens");
    assert_eq!(device.blas().expect("it is there").to_string(), "cuBLASLt 13.0.0");
    (alone, device)
}

/// A product of random rows of bf16, to f32, `beside` bytes behind the start of the last buffer; its first buffer is `x`.
fn product(device: &mut CudaDevice, beside: usize) -> (Launch, [Ptr; 2]) {
    let mut alloc = |name, bytes| device.alloc(name, bytes, Use::ReadWrite).expect("allocates");
    let (x, w, rows) = (alloc("x", ROOM * K * 2), alloc("w", N * K * 2), alloc("rows", 4));
    let out = alloc("out", ROOM * N * 4 + beside);
    device.upload(rows, 0, &(ROWS as u32).to_le_bytes()).expect("copies");
    device.upload(out, 0, &vec![0; ROOM * N * 4 + beside]).expect("copies");
    for (at, len) in [(x, ROOM * K), (w, N * K)] {
        random(device, at, len, at.0);
    }
    let op = Dense {
        x,
        w: Weights::Plain(w),
        bias: Ptr::NONE,
        out: Ptr(out.0 + beside as u64),
        rows,
        dtype: DType::BF16,
        out_dtype: DType::F32,
        max_rows: ROOM,
        n: N,
        k: K,
    };
    (dense(&op).expect("fits"), [x, out])
}

fn random(device: &mut CudaDevice, out: Ptr, len: usize, seed: u64) {
    let fill = fill(&Fill { out, dtype: DType::BF16, len, seed, scale: 1.0 }).expect("fits");
    device.launch(&fill).expect("queues");
}

/// The rows that there are, and whether there are others: only the library writes them.
fn result(device: &mut CudaDevice, out: Ptr, beside: usize) -> (Vec<f32>, bool) {
    let bytes = read(device, out, ROOM * N * 4 + beside);
    let values = bytes[beside..].as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value));
    let mut values: Vec<f32> = values.collect();
    let others = values.split_off(ROWS * N);
    assert!(values.iter().all(|value| *value != 0.0), "a product of random values was computed");
    (values, others.iter().any(|value| *value != 0.0))
}

/// Equal but for the order of sums of `K` products of values below 1.
fn same(found: &[f32], expected: &[f32]) -> bool {
    found.len() == expected.len()
        && found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-4)
}

#[test]
fn the_cases_of_products_pass_by_the_library_and_by_the_kernels_beside_it() {
    let (_alone, mut device) = device();
    for suite in suites().iter().filter(|suite| suite.file.starts_with("dense")) {
        let ran = (suite.run)(&mut device, true);
        assert!(ran.as_ref().is_ok_and(|ran| *ran >= 10), "{}.cu: {ran:?}", suite.file);
    }
}

#[test]
fn a_large_product_is_the_librarys_where_there_is_one_and_the_kernels_elsewhere() {
    let (alone, mut device) = device();
    let (launch, [_, out]) = product(&mut device, 0);
    device.launch(&launch).expect("queues");
    let (by_library, taken) = result(&mut device, out, 0);
    assert!(taken, "the library computes every row that there is room for");
    device.upload(out, 0, &[0; ROOM * N * 4]).expect("copies");
    device.launch(&launch.by_kernel()).expect("queues");
    let (by_kernel, others) = result(&mut device, out, 0);
    assert!(!others && same(&by_kernel, &by_library));
    drop((device, alone));

    let (_alone, mut device) = super::device();
    assert!(device.blas().expect_err("none").to_string().contains("libcublasLt.so.13"));
    let (launch, [_, out]) = product(&mut device, 0);
    device.launch(&launch).expect("queues");
    assert!(!result(&mut device, out, 0).1, "the kernel keeps to the rows that there are");
}

#[test]
fn what_the_library_does_not_take_the_kernel_computes() {
    let (_alone, mut device) = device();
    // An address that is no multiple of what the algorithm was chosen for.
    let (launch, [_, out]) = product(&mut device, 4);
    device.launch(&launch).expect("queues");
    assert!(!result(&mut device, out, 4).1);
    // Types that the library does not have; the launch is of others.
    for other in [DType::F16, DType::U8] {
        let (mut launch, [_, out]) = product(&mut device, 0);
        launch.product.as_mut().expect("a large one").shape.out_dtype = other;
        for _ in 0..2 {
            device.launch(&launch).expect("queues");
        }
        assert!(!result(&mut device, out, 0).1, "{other:?}");
    }
}

#[test]
fn a_captured_product_is_of_what_is_in_memory_when_it_is_replayed() {
    let (_alone, mut device) = device();
    let (launch, [x, out]) = product(&mut device, 0);
    // Its shape is first seen here: the capture contains nothing of its preparation.
    let list = device.record(vec![launch.clone(), launch.clone()]).expect("captures");
    let mut results = Vec::new();
    for seed in [1, 2] {
        random(&mut device, x, ROOM * K, seed);
        device.replay(list).expect("queues");
        let (replayed, taken) = result(&mut device, out, 0);
        assert!(taken);
        device.upload(out, 0, &[0; ROOM * N * 4]).expect("copies");
        device.launch(&launch).expect("queues");
        assert_eq!(result(&mut device, out, 0).0, replayed);
        results.push(replayed);
    }
    assert_ne!(results[0], results[1]);
}

#[test]
fn large_products_are_timed_by_the_library_and_by_tiles() {
    let (_alone, mut device) = device();
    let model = timing::SMALL;
    let mut shapes = Vec::new();
    timing::time_step(&mut device, &model, timing::Step::Prefill { tokens: 50 }, &mut |timing| {
        if timing.op == "dense qkv" {
            shapes.push(timing.shape);
        }
    })
    .expect("runs");
    let extents = format!("50 × {} × {}", model.heads.width(), model.h);
    assert_eq!(shapes, [format!("{extents}, cuBLASLt"), format!("{extents}, tiles")]);
    let ceilings = timing::ceilings(&mut device, &model).expect("runs");
    assert!(ceilings.arithmetic.is_finite() && ceilings.arithmetic > 0.0);
}
