//! Random numbers that depend on a seed and a position and on nothing else.

/// The first word of Philox4x32-10 (Salmon et al. 2011) with `position` as counter and `seed` as key.
#[must_use]
pub fn philox(seed: u64, position: u64) -> u32 {
    let mut counter = [position as u32, (position >> 32) as u32, 0, 0];
    let mut key = [seed as u32, (seed >> 32) as u32];
    for _ in 0..10 {
        let (a, b) = (u64::from(counter[0]) * 0xD251_1F53, u64::from(counter[2]) * 0xCD9E_8D57);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter[0]
}

/// A uniform number in `[0, 1)`: 24 bits of [`philox`].
#[must_use]
pub fn philox_uniform(seed: u64, position: u64) -> f32 {
    (philox(seed, position) >> 8) as f32 / (1_u32 << 24) as f32
}

#[cfg(test)]
mod tests {
    use super::philox;

    #[test]
    fn it_gives_the_published_word() {
        // Random123's known-answer test: counter and key all zero give 6627e8d5 first.
        assert_eq!(philox(0, 0), 0x6627_e8d5);
    }
}
