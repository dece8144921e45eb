use super::*;
use crate::check::{suites, timing};

fn emulator(mode: Mode) -> Emulator {
    Emulator::new(mode).expect("the build script compiled it")
}

fn run_all(mode: Mode, small: bool) {
    let mut device = emulator(mode);
    for suite in suites() {
        let ran =
            (suite.run)(&mut device, small).unwrap_or_else(|error| panic!("{}.cu: {error}", suite.file));
        assert!(ran >= 10, "{}.cu: {ran} cases", suite.file);
    }
}

#[test]
fn kernels_equal_the_references() {
    run_all(Mode::Plain, false);
}

#[test]
fn kernels_equal_the_references_whatever_runs_first() {
    run_all(Mode::Reversed, true);
}

#[test]
fn kernels_stay_in_bounds_and_do_not_race() {
    run_all(Mode::Checked, true);
}

#[test]
fn the_ops_that_are_timed_are_those_of_a_step_and_stay_in_bounds() {
    let mut device = emulator(Mode::Checked);
    let ceilings = timing::ceilings(&mut device, &timing::SMALL).expect("runs");
    assert!(ceilings.bandwidth > 0.0 && ceilings.arithmetic > 0.0);
    let mut timed = |step| {
        let mut all = Vec::new();
        timing::time_step(&mut device, &timing::SMALL, step, &mut |timing| all.push(timing)).expect("runs");
        all
    };
    let mixture = [
        "dense output",
        "dense output fp8",
        "dense router",
        "route_topk",
        "expert_align",
        "expert_up",
        "expert_up fp8",
        "expert_down",
        "expert_down fp8",
        "expert_combine",
    ];
    let decode = timed(timing::Step::Decode { sequences: 3, context: 37 });
    let expected = [
        &["rms_norm", "dense qkv", "dense qkv fp8", "rope_kv_write", "paged_decode"][..],
        &mixture,
        &["dense head", "sample"],
    ]
    .concat();
    assert_eq!(decode.iter().map(|timing| timing.op).collect::<Vec<_>>(), expected);
    // Keys and values of 3 × 37 tokens, 2 heads of 16.
    assert_eq!(decode[4].bytes, (3 * 37 * 2 * 2 * 16 * 2) as f64);
    let prefill = timed(timing::Step::Prefill { tokens: 70 });
    let expected =
        [&["rms_norm", "dense qkv", "dense qkv fp8", "rope_kv_write", "paged_prefill"][..], &mixture]
            .concat();
    assert_eq!(prefill.iter().map(|timing| timing.op).collect::<Vec<_>>(), expected);
    // 70 tokens hit all 4 experts of [2 · 96, 64]; codes are half the bytes, with a scale a row.
    assert_eq!(prefill[10].flops, (2 * 140 * 2 * 96 * 64) as f64);
    assert!(prefill[10].shape.contains("4 experts"), "{}", prefill[10].shape);
    assert_eq!(prefill[10].bytes - prefill[11].bytes, (4 * 2 * 96 * (64 - 4)) as f64);
    let adapters = timed(timing::Step::Adapters { sequences: 3, adapters: 2, rank: 8 });
    let halves = ["qkv", "output", "w13", "w2"]
        .map(|part| [format!("lora_shrink {part}"), format!("lora_expand {part}")]);
    assert_eq!(adapters.iter().map(|timing| timing.op).collect::<Vec<_>>(), halves.as_flattened());
    // Both adapters of q, k and v are hit: A is [24, 64], and a part of the three tokens' way down 24 f32 each.
    assert_eq!(adapters[0].bytes, (2 * 24 * 64 * 2 + 3 * 64 * 2 + 3 * 24 * 4) as f64);
    assert_eq!(adapters[4].flops, (2 * 6 * 16 * 64) as f64);
    let of = timing::Encode { passages: 2, tokens: 9, h: 64, inner: 96, heads: 4 };
    let encode = timed(timing::Step::Encode(of));
    let expected = ["encoder_embed", "layer_norm", "encoder_attention", "gelu", "pool"];
    assert_eq!(encode.iter().map(|timing| timing.op).collect::<Vec<_>>(), expected);
    // Scores and sums of two passages of 9 tokens: 2 · 9 · 9 pairs, 64 columns each, twice.
    assert_eq!(encode[2].flops, (2 * 9 * 9 * 64 * 2 * 2) as f64);
    let search = timed(timing::Step::Search { rows: 300, d: 64, k: 5 });
    assert_eq!((search[0].op, search[0].bytes), ("scan_topk", (300 * 64 * 2) as f64));
    let slow = timing::Timing { seconds: 2.0, bytes: 8.0, flops: 2.0, ..prefill[10].clone() };
    let of = timing::Ceilings { bandwidth: 8.0, arithmetic: 4.0 };
    assert_eq!((slow.share(&of), slow.computes(&of)), (0.5, false));
    let computes = timing::Timing { flops: 8.0, ..slow };
    assert_eq!((computes.share(&of), computes.computes(&of)), (1.0, true));
}

#[test]
fn rounding_is_that_of_the_half_crate() {
    let device = emulator(Mode::Plain);
    // Every exponent and sign with mantissas around every boundary that 7 and 10 bits have, and some at random.
    let mut values = Vec::new();
    for high in 0..=u16::MAX {
        for low in [0, 1, 0x0fff, 0x1000, 0x1001, 0x2000, 0x7fff, 0x8000, 0x8001, 0xffff] {
            values.push(f32::from_bits(u32::from(high) << 16 | low));
        }
        values.push(f32::from_bits(crate::check::hash(u64::from(high), 5) as u32));
    }
    let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    for (at, found) in device.round(0, &values).iter().enumerate() {
        assert!(
            same(*found, half::bf16::from_f32(values[at]).to_f32()),
            "bf16 of {:e} is {found:e}",
            values[at]
        );
    }
    for (at, found) in device.round(1, &values).iter().enumerate() {
        assert!(
            same(*found, half::f16::from_f32(values[at]).to_f32()),
            "f16 of {:e} is {found:e}",
            values[at]
        );
    }
}

fn input(device: &mut Emulator, words: &[u32]) -> Ptr {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let at = device.alloc("in", bytes.len(), Use::Read).expect("memory");
    device.upload(at, 0, &bytes).expect("uploads");
    at
}

fn output(device: &mut Emulator, from: Ptr, len: usize) -> Vec<u32> {
    let mut bytes = vec![0; len * 4];
    device.download(from, 0, &mut bytes).expect("downloads");
    bytes.chunks_exact(4).map(|at| u32::from_le_bytes([at[0], at[1], at[2], at[3]])).collect()
}

#[test]
fn votes_and_shuffles_are_cudas() {
    for mode in [Mode::Plain, Mode::Reversed, Mode::Checked] {
        let mut device = emulator(mode);
        let own: Vec<u32> = (0..32).map(|lane| lane * 37 % 211).collect();
        let from = input(&mut device, &own);
        let to = device.alloc("out", 7 * 32 * 4, Use::Write).expect("memory");
        device.launch(&Launch::new("self_collectives", [1; 3], 32, 0).ptrs(&[from, to])).expect("runs");
        let found = output(&mut device, to, 7 * 32);
        let bits = |holds: &dyn Fn(u32) -> bool| {
            own.iter().rev().fold(0_u32, |bits, x| bits << 1 | u32::from(holds(*x)))
        };
        for lane in 0..32 {
            assert_eq!(found[lane], bits(&|x| x > 100));
            assert_eq!(found[32 + lane], bits(&|x| x % 3 == own[lane] % 3));
            assert_eq!(found[64 + lane], own[5]);
            assert_eq!(found[96 + lane], own[lane ^ 9]);
            assert_eq!(found[128 + lane], own[if lane < 3 { lane } else { lane - 3 }]);
            assert_eq!(found[160 + lane], own[if lane > 27 { lane } else { lane + 4 }]);
            assert_eq!(found[192 + lane], if lane % 2 == 1 { own[31] } else { 0 });
        }
    }
}

#[test]
fn tensor_core_products_are_plain_products() {
    use half::bf16;
    for mode in [Mode::Plain, Mode::Reversed, Mode::Checked] {
        let mut device = emulator(mode);
        let (a, b) = (crate::check::fill(256, 1), crate::check::fill(128, 2));
        let round = |values: &[f32]| -> Vec<bf16> { values.iter().map(|x| bf16::from_f32(*x)).collect() };
        let (a, b) = (round(&a), round(&b));
        // b is [8 columns, 16 k]; as rows of k it is [16, 8].
        let rows: Vec<bf16> = (0..128).map(|at| b[at % 8 * 16 + at / 8]).collect();
        let words = |values: &[bf16]| -> Vec<u32> {
            values
                .chunks_exact(2)
                .map(|pair| u32::from(pair[1].to_bits()) << 16 | u32::from(pair[0].to_bits()))
                .collect()
        };
        let [at_a, at_b, at_rows] = [&a, &b, &rows].map(|values| input(&mut device, &words(values)));
        let (c, again) = (
            device.alloc("c", 512, Use::Write).expect("memory"),
            device.alloc("again", 512, Use::Write).expect("memory"),
        );
        device
            .launch(&Launch::new("self_mma", [1; 3], 32, 0).ptrs(&[at_a, at_b, at_rows, c, again]))
            .expect("runs");
        for out in [c, again] {
            for (at, bits) in output(&mut device, out, 128).into_iter().enumerate() {
                let (row, column) = (at / 8, at % 8);
                let expected: f32 =
                    (0..16).map(|k| a[row * 16 + k].to_f32() * b[column * 16 + k].to_f32()).sum();
                assert!((f32::from_bits(bits) - expected).abs() < 1e-5, "{row}, {column}");
            }
        }
    }
}

#[test]
fn atomics_of_all_blocks_add_up() {
    for mode in [Mode::Plain, Mode::Checked] {
        let mut device = emulator(mode);
        let counters = device.alloc("counters", 8, Use::ReadWrite).expect("memory");
        device.upload(counters, 0, &[0; 8]).expect("uploads");
        let sum = device.alloc("sum", 4, Use::ReadWrite).expect("memory");
        device.upload(sum, 0, &[0; 4]).expect("uploads");
        let wide = device.alloc("wide", 8, Use::ReadWrite).expect("memory");
        device.upload(wide, 0, &[0; 8]).expect("uploads");
        let launch = Launch::new("self_atomics", [3, 1, 1], 64, 0).ptrs(&[counters, sum, wide]);
        device.launch(&launch).expect("runs");
        assert_eq!(output(&mut device, wide, 2), [0, 192 * 2]);
        assert_eq!(output(&mut device, counters, 2), [192, 191]);
        assert_eq!(output(&mut device, sum, 1), [96.0_f32.to_bits()]);
    }
}

#[test]
fn barriers_and_waits_order_what_they_order() {
    let words: Vec<u32> = (0..256).map(|at| at * 3 + 1).collect();
    for mode in [Mode::Plain, Mode::Reversed, Mode::Checked] {
        let mut device = emulator(mode);
        let from = input(&mut device, &words);
        let to = device.alloc("out", 512, Use::Write).expect("memory");
        device.launch(&Launch::new("self_handed_on", [1; 3], 64, 0).ptrs(&[from, to])).expect("no race");
        let found = output(&mut device, to, 128);
        for thread in 0..64 {
            assert_eq!(found[thread], words[(thread / 32 * 32 + (thread + 1) % 32) * 4]);
            assert_eq!(found[64 + thread], words[(thread + 1) % 64 * 4]);
        }
    }
}

/// What a faulty kernel gets: 33 words in, 32 threads' worth out, and what the report must say.
struct Wrong {
    kernel: &'static str,
    input: bool,
    threads: usize,
    blocks: u32,
    /// Also found without watching accesses.
    plainly: bool,
    says: &'static [&'static str],
}

const fn wrong(
    kernel: &'static str,
    input: bool,
    threads: usize,
    plainly: bool,
    says: &'static [&'static str],
) -> Wrong {
    Wrong { kernel, input, threads, blocks: 1, plainly, says }
}

const WRONG: [Wrong; 19] = [
    wrong(
        "self_reads_past_the_end",
        true,
        32,
        false,
        &["thread (31, 0, 0)", "reads 4 bytes out of bounds", "`in`"],
    ),
    wrong("self_writes_past_the_end", false, 32, true, &["out of bounds", "`out`[byte 128 of 128]"]),
    wrong("self_writes_input", true, 32, false, &["`in`", "only reads"]),
    wrong("self_reads_unwritten", false, 32, false, &["thread (7, 0, 0)", "`box`", "nobody has written"]),
    wrong("self_no_barrier", false, 64, false, &["`box`", "race"]),
    wrong("self_no_barrier_before_reuse", false, 64, false, &["`box`", "in a race with a read"]),
    wrong("self_warp_without_sync", false, 32, false, &["`box`", "in a race with the write of thread"]),
    Wrong { blocks: 2, ..wrong("self_blocks_meet", false, 32, false, &["`out`", "another block"]) },
    wrong("self_divergent_barrier", false, 64, true, &["wait for one another", "barrier"]),
    wrong("self_thread_ends_before_barrier", false, 64, true, &["(40, 0, 0) has ended"]),
    wrong("self_lane_ends_before_shuffle", false, 32, true, &["__shfl_xor_sync", "lane 3"]),
    wrong("self_masks_differ", false, 32, true, &["mask"]),
    wrong("self_reads_before_the_wait", true, 32, false, &["`box`", "was not waited for"]),
    wrong("self_reads_anothers_copy", true, 32, false, &["`box`", "race"]),
    wrong("self_copies_over_readers", true, 64, false, &["`box`", "race"]),
    wrong("self_ends_in_flight", true, 32, true, &["in flight"]),
    wrong("self_divides_by_zero", true, 32, true, &["thread (0, 0, 0)", "divides by zero"]),
    wrong("self_far_away", true, 32, true, &["thread (0, 0, 0)", "far from every buffer"]),
    wrong("self_misaligned", true, 32, true, &["not aligned"]),
];

#[test]
fn faults_are_named() {
    for case in WRONG {
        for mode in [Mode::Checked, Mode::Plain] {
            if mode == Mode::Plain && !case.plainly {
                continue;
            }
            let mut device = emulator(mode);
            let words = case.threads * if case.threads == 32 && case.kernel.contains("past") { 1 } else { 4 };
            let mut arguments = Vec::new();
            if case.input {
                arguments.push(input(&mut device, &vec![1; words]));
            }
            arguments.push(device.alloc("out", case.threads * 4, Use::Write).expect("memory"));
            let launch = Launch::new(case.kernel, [case.blocks, 1, 1], case.threads, 0).ptrs(&arguments);
            let error = device.launch(&launch).expect_err(case.kernel).to_string();
            assert!(error.starts_with(case.kernel), "{mode:?}: {error}");
            if mode == Mode::Checked {
                for part in case.says {
                    assert!(error.contains(part), "{}: {error:?} does not say {part:?}", case.kernel);
                }
            }
        }
    }
}

#[test]
fn a_launch_that_does_not_fit_its_kernel_is_refused() {
    let mut device = emulator(Mode::Plain);
    let out = device.alloc("out", 128, Use::Write).expect("memory");
    let refuse = |device: &mut Emulator, launch: Launch, part: &str| {
        let error = device.launch(&launch).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    };
    let kernel = "self_writes_past_the_end";
    refuse(&mut device, Launch::new("no_such", [1; 3], 32, 0), "no kernel");
    refuse(&mut device, Launch::new(kernel, [1; 3], 32, 0), "takes 1 arguments");
    refuse(&mut device, Launch::new(kernel, [1; 3], 32, 0).int(1), "argument 0 has 8 bytes");
    refuse(&mut device, Launch::new(kernel, [1; 3], 64, 0).ptr(out), "64 threads");
    refuse(&mut device, Launch::new(kernel, [1; 3], 31, 0).ptr(out), "31 threads");
    refuse(&mut device, Launch::new(kernel, [0, 1, 1], 32, 0).ptr(out), "no grid");
    refuse(&mut device, Launch::new(kernel, [1; 3], 32, 1 << 20).ptr(out), "shared memory");
}

#[test]
fn copies_stay_inside_of_their_buffer() {
    let mut device = emulator(Mode::Plain);
    let at = device.alloc("some", 8, Use::ReadWrite).expect("memory");
    device.upload(at, 0, &[1, 2, 3, 4, 5, 6, 7, 8]).expect("all of it");
    device.upload(at, 6, &[9, 10]).expect("its end");
    let mut found = [0; 4];
    device.download(at, 4, &mut found).expect("a part");
    assert_eq!(found, [5, 6, 9, 10]);
    assert!(device.upload(at, 7, &[0, 0]).is_err());
    assert!(device.download(at, usize::MAX, &mut found).is_err());
    assert!(device.upload(Ptr(at.0 + 1), 0, &[0]).is_err(), "no buffer begins there");
}
