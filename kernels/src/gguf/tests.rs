//! The decoder against a second one, written after ggml's C, and against values worked out by hand.

use super::*;
use crate::check::Random;

fn f16_at(b: &[u8], at: usize) -> f32 {
    f16::from_bits(u16::from(b[at]) | u16::from(b[at + 1]) << 8).to_f32()
}

/// `dequantize_row_q4_K`, transliterated.
fn ggml_q4k(b: &[u8], y: &mut Vec<f32>) {
    let (d, min) = (f16_at(b, 0), f16_at(b, 2));
    let scales = &b[4..16];
    let get = |j: usize| {
        if j < 4 {
            (scales[j] & 63, scales[j + 4] & 63)
        } else {
            ((scales[j + 4] & 0xF) | ((scales[j - 4] >> 6) << 4), (scales[j + 4] >> 4) | ((scales[j] >> 6) << 4))
        }
    };
    let mut q = &b[16..];
    let mut is = 0;
    for _ in (0..256).step_by(64) {
        let (sc, m) = get(is);
        let (d1, m1) = (d * sc as f32, min * m as f32);
        let (sc, m) = get(is + 1);
        let (d2, m2) = (d * sc as f32, min * m as f32);
        (0..32).for_each(|l| y.push(d1 * (q[l] & 0xF) as f32 - m1));
        (0..32).for_each(|l| y.push(d2 * (q[l] >> 4) as f32 - m2));
        q = &q[32..];
        is += 2;
    }
}

/// `dequantize_row_q5_K`, transliterated.
fn ggml_q5k(b: &[u8], y: &mut Vec<f32>) {
    let (d, min) = (f16_at(b, 0), f16_at(b, 2));
    let s = &b[4..16];
    let get = |j: usize| {
        if j < 4 {
            (s[j] & 63, s[j + 4] & 63)
        } else {
            ((s[j + 4] & 0xF) | ((s[j - 4] >> 6) << 4), (s[j + 4] >> 4) | ((s[j] >> 6) << 4))
        }
    };
    let (qh, mut ql) = (&b[16..48], &b[48..]);
    let (mut u1, mut u2, mut is) = (1u8, 2u8, 0);
    for _ in (0..256).step_by(64) {
        let (sc, m) = get(is);
        let (d1, m1) = (d * sc as f32, min * m as f32);
        let (sc, m) = get(is + 1);
        let (d2, m2) = (d * sc as f32, min * m as f32);
        (0..32).for_each(|l| y.push(d1 * ((ql[l] & 0xF) as i32 + if qh[l] & u1 != 0 { 16 } else { 0 }) as f32 - m1));
        (0..32).for_each(|l| y.push(d2 * ((ql[l] >> 4) as i32 + if qh[l] & u2 != 0 { 16 } else { 0 }) as f32 - m2));
        ql = &ql[32..];
        is += 2;
        u1 = u1.wrapping_shl(2);
        u2 = u2.wrapping_shl(2);
    }
}

/// `dequantize_row_q6_K`, transliterated.
fn ggml_q6k(b: &[u8], out: &mut Vec<f32>) {
    let d = f16_at(b, 208);
    let (mut ql, mut qh, mut sc) = (&b[..128], &b[128..192], &b[192..208]);
    for _ in 0..2 {
        let mut y = [0f32; 128];
        for l in 0..32 {
            let is = l / 16;
            let q1 = ((ql[l] & 0xF) | ((qh[l] & 3) << 4)) as i32 - 32;
            let q2 = ((ql[l + 32] & 0xF) | (((qh[l] >> 2) & 3) << 4)) as i32 - 32;
            let q3 = ((ql[l] >> 4) | (((qh[l] >> 4) & 3) << 4)) as i32 - 32;
            let q4 = ((ql[l + 32] >> 4) | (((qh[l] >> 6) & 3) << 4)) as i32 - 32;
            y[l] = d * sc[is] as i8 as f32 * q1 as f32;
            y[l + 32] = d * sc[is + 2] as i8 as f32 * q2 as f32;
            y[l + 64] = d * sc[is + 4] as i8 as f32 * q3 as f32;
            y[l + 96] = d * sc[is + 6] as i8 as f32 * q4 as f32;
        }
        out.extend(y);
        (ql, qh, sc) = (&ql[64..], &qh[32..], &sc[8..]);
    }
}

fn ggml_small(block: Block, b: &[u8], y: &mut Vec<f32>) {
    let d = f16_at(b, 0);
    match block {
        Block::Q8_0 => (0..32).for_each(|j| y.push(b[2 + j] as i8 as f32 * d)),
        Block::Q4_0 => {
            (0..16).for_each(|j| y.push(((b[2 + j] & 0xF) as i32 - 8) as f32 * d));
            (0..16).for_each(|j| y.push(((b[2 + j] >> 4) as i32 - 8) as f32 * d));
        }
        Block::Q4_1 => {
            let m = f16_at(b, 2);
            (0..16).for_each(|j| y.push((b[4 + j] & 0xF) as f32 * d + m));
            (0..16).for_each(|j| y.push((b[4 + j] >> 4) as f32 * d + m));
        }
        Block::Q5_0 => {
            let qh = u32::from_le_bytes(b[2..6].try_into().unwrap());
            for j in 0..16 {
                let high = ((qh >> j) << 4) & 0x10;
                y.push(((u32::from(b[6 + j]) & 0xF | high) as i32 - 16) as f32 * d);
            }
            for j in 0..16 {
                let high = (qh >> (j + 12)) & 0x10;
                y.push(((u32::from(b[6 + j]) >> 4 | high) as i32 - 16) as f32 * d);
            }
        }
        Block::Q4K => ggml_q4k(b, y),
        Block::Q5K => ggml_q5k(b, y),
        Block::Q6K => ggml_q6k(b, y),
    }
}

#[test]
fn every_block_decodes_as_ggml_does_bit_for_bit() {
    let mut random = Random::new(7);
    for block in [Block::Q8_0, Block::Q5_0, Block::Q4_0, Block::Q4_1, Block::Q4K, Block::Q5K, Block::Q6K] {
        let k = block.len() * 3;
        for _ in 0..50 {
            let row = random.gguf_rows(block, 1, k);
            let mut expected = Vec::new();
            row.chunks_exact(block.bytes()).for_each(|b| ggml_small(block, b, &mut expected));
            let mut decoded = vec![0.0; k];
            block.decode_row(&row, &mut decoded);
            for (i, (a, b)) in decoded.iter().zip(&expected).enumerate() {
                // ggml adds Q4_1's minimum and we subtract its negative: only the sign of a zero may differ.
                assert!(a.to_bits() == b.to_bits() || (*a == 0.0 && *b == 0.0), "{block:?} {i}: {a} {b}");
            }
        }
    }
}

#[test]
fn a_q8_0_block_is_scale_times_byte() {
    let mut row = f16::from_f32(0.5).to_le_bytes().to_vec();
    row.extend((0..32).map(|i| (i as i8 - 16) as u8));
    let mut out = [0.0; 32];
    Block::Q8_0.decode_row(&row, &mut out);
    assert_eq!((out[0], out[17], out[31]), (-8.0, 0.5, 7.5));
}
