use super::*;
use crate::check::fill;
use crate::kv::KvCacheBuf;
use crate::rope::{RopeTable, rope_kv_write};

const HEADS: HeadLayout = HeadLayout { q: 6, kv: 2, dim: 24 };

fn run(
    threads: usize,
    len: usize,
    queries: usize,
    table: &[u32],
    kv: &mut KvCacheBuf,
    window: Option<u32>,
    seed: u64,
) -> Vec<f32> {
    run_with(&Exec::simd(threads), len, queries, table, kv, window, seed)
}

/// Writes `len` tokens of a seeded sequence into the cache through `table`, then attends with the last `queries`.
fn run_with(
    exec: &Exec,
    len: usize,
    queries: usize,
    table: &[u32],
    kv: &mut KvCacheBuf,
    window: Option<u32>,
    seed: u64,
) -> Vec<f32> {
    let mut qkv = fill(len * HEADS.width(), seed);
    let rope = RopeTable::new(&fill(HEADS.dim / 2, 99), 1.0, 512).expect("table");
    let positions: Vec<u32> = (0..len as u32).collect();
    let slots: Vec<u32> = positions.iter().map(|p| table[*p as usize / 16] * 16 + p % 16).collect();
    let mut view = ViewMut::new(&mut qkv, len, HEADS.width()).expect("view");
    rope_kv_write(exec, view.reborrow(), HEADS, &rope, &positions, &slots, kv.layer_mut(0).expect("layer"))
        .expect("writes");
    let rows = view.as_view().rows(len - queries, len).expect("rows");
    let mut out = vec![0.0; queries * HEADS.q * HEADS.dim];
    let span = SeqSpan { query_start: 0, query_len: queries as u32, context_len: len as u32, table_start: 0 };
    paged_attention(
        exec,
        rows,
        HEADS,
        kv.layer(0).expect("layer"),
        &[span],
        table,
        0.2,
        window,
        ViewMut::new(&mut out, queries, HEADS.q * HEADS.dim).expect("out"),
    )
    .expect("attends");
    out
}

#[test]
fn chunks_and_threads_and_tables_do_not_change_a_bit() {
    for window in [None, Some(5), Some(33)] {
        let len = 70;
        let mut kv = KvCacheBuf::new(1, 12, HEADS.kv, HEADS.dim).expect("cache");
        let whole = run(1, len, len, &[0, 1, 2, 3, 4], &mut kv, window, 1);
        // Other blocks, whose slots are stale with another sequence.
        let mut other = KvCacheBuf::new(1, 12, HEADS.kv, HEADS.dim).expect("cache");
        let _ = run(2, 80, 80, &[4, 9, 2, 11, 7], &mut other, None, 2);
        for queries in [1, 3, 17, 70] {
            let part = run(2, len, queries, &[7, 2, 11, 4, 9], &mut other, window, 1);
            let row = HEADS.q * HEADS.dim;
            assert_eq!(part, whole[(len - queries) * row..], "window {window:?} queries {queries}");
        }
    }
}

#[test]
fn it_equals_plain_softmax_attention() {
    let len = 37;
    for window in [None, Some(7)] {
        let mut kv = KvCacheBuf::new(1, 3, HEADS.kv, HEADS.dim).expect("cache");
        let out = run(2, len, len, &[0, 1, 2], &mut kv, window, 3);
        let mut qkv = fill(len * HEADS.width(), 3);
        let rope = RopeTable::new(&fill(HEADS.dim / 2, 99), 1.0, 512).expect("table");
        let mut scratch = KvCacheBuf::new(1, 3, HEADS.kv, HEADS.dim).expect("cache");
        let positions: Vec<u32> = (0..len as u32).collect();
        let mut view = ViewMut::new(&mut qkv, len, HEADS.width()).expect("view");
        rope_kv_write(
            &Exec::Reference,
            view.reborrow(),
            HEADS,
            &rope,
            &positions,
            &positions,
            scratch.layer_mut(0).expect("layer"),
        )
        .expect("rotates");
        let at =
            |row: usize, head: usize, d: usize| f64::from(qkv[row * HEADS.width() + head * HEADS.dim + d]);
        for row in 0..len {
            for head in 0..HEADS.q {
                let kv_head = HEADS.q + head / 3;
                let from = window.map_or(0, |w| (row + 1).saturating_sub(w as usize));
                let scores: Vec<f64> = (from..=row)
                    .map(|key| {
                        0.2 * (0..HEADS.dim).map(|d| at(row, head, d) * at(key, kv_head, d)).sum::<f64>()
                    })
                    .collect();
                let total: f64 = scores.iter().map(|s| s.exp()).sum();
                for d in 0..HEADS.dim {
                    let expected: f64 = (from..=row)
                        .zip(&scores)
                        .map(|(key, s)| s.exp() / total * at(key, kv_head + HEADS.kv, d))
                        .sum();
                    let found = f64::from(out[(row * HEADS.q + head) * HEADS.dim + d]);
                    assert!((found - expected).abs() < 2e-5, "{found} {expected}");
                }
            }
        }
    }
}

#[test]
fn tables_that_point_outside_are_refused() {
    let kv = KvCacheBuf::new(1, 2, HEADS.kv, HEADS.dim).expect("cache");
    let qkv = fill(HEADS.width(), 1);
    let mut out = vec![0.0; HEADS.q * HEADS.dim];
    let span = SeqSpan { query_start: 0, query_len: 1, context_len: 20, table_start: 0 };
    let mut attend = |table: &[u32]| {
        paged_attention(
            &Exec::Reference,
            View::new(&qkv, 1, HEADS.width()).expect("qkv"),
            HEADS,
            kv.layer(0).expect("layer"),
            &[span],
            table,
            1.0,
            None,
            ViewMut::new(&mut out, 1, HEADS.q * HEADS.dim).expect("out"),
        )
    };
    assert!(attend(&[0, 2]).is_err());
    assert!(attend(&[0]).is_err());
    assert!(attend(&[0, 1]).is_ok());
}

#[test]
fn simd_is_close_to_the_reference_and_equal_on_every_instruction_set() {
    for window in [None, Some(20)] {
        let run = |exec: &Exec| {
            let mut kv = KvCacheBuf::new(1, 5, HEADS.kv, HEADS.dim).expect("cache");
            run_with(exec, 70, 70, &[3, 0, 4, 1, 2], &mut kv, window, 6)
        };
        let (reference, simd) = (run(&Exec::Reference), run(&Exec::simd(1)));
        assert!(simd.iter().zip(&reference).all(|(a, b)| (a - b).abs() < 2e-6), "{window:?}");
        for level in crate::check::levels() {
            assert_eq!(crate::cpu::with_level(level, || run(&Exec::simd(1))), simd, "{level:?}");
        }
    }
}

#[test]
fn spans_that_overlap_or_wrap_are_refused() {
    let kv = KvCacheBuf::new(1, 2, HEADS.kv, HEADS.dim).expect("cache");
    let qkv = fill(4 * HEADS.width(), 1);
    let mut out = vec![0.0; 4 * HEADS.q * HEADS.dim];
    let mut attend = |spans: &[(u32, u32, u32, u32)]| {
        let spans: Vec<SeqSpan> = spans
            .iter()
            .map(|(query_start, query_len, context_len, table_start)| SeqSpan {
                query_start: *query_start,
                query_len: *query_len,
                context_len: *context_len,
                table_start: *table_start,
            })
            .collect();
        paged_attention(
            &Exec::simd(2),
            View::new(&qkv, 4, HEADS.width()).expect("qkv"),
            HEADS,
            kv.layer(0).expect("layer"),
            &spans,
            &[0, 1],
            1.0,
            None,
            ViewMut::new(&mut out, 4, HEADS.q * HEADS.dim).expect("out"),
        )
    };
    assert!(attend(&[(0, 2, 2, 0), (2, 2, 2, 1)]).is_ok());
    assert!(attend(&[(0, 2, 2, 0), (1, 2, 2, 1)]).is_err());
    assert!(attend(&[(0, 4, 4, 0), (0, 4, 4, 1)]).is_err());
    assert!(attend(&[(0, 3, 3, 0), (3, u32::MAX, u32::MAX, 1)]).is_err());
    assert!(attend(&[(0, 4, 4, u32::MAX)]).is_err());
}
