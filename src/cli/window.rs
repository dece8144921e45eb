//! The window of the generator and its KV cache.

use crate::model::KvSpec;

/// Most tokens of a sequence, and the KV blocks for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) max_model_len: usize,
    pub(super) blocks: usize,
}

/// How much of what is left the cache takes where nobody says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    /// A few contexts: the machine's memory is others', too.
    Modest,
    /// All of it: a GPU's is nobody else's.
    All,
}

impl Window {
    /// The window where none is asked for.
    const DEFAULT: usize = 8192;
    /// Bytes of cache for sequences beyond the first, where nobody says otherwise.
    const CACHE: usize = 512 << 20;

    /// Tokens below which a window that nobody asked for is not made smaller.
    const LEAST: usize = 256;

    /// The longest window that may come of what is asked for.
    pub(super) fn longest(asked: Option<usize>, max_positions: usize) -> usize {
        asked.unwrap_or(Window::DEFAULT).min(max_positions)
    }

    /// What is possible of what is asked for, in tokens and bytes; says so where that is less.
    ///
    /// Where no size of the cache is given it is at most the `left` bytes, but holds a sequence of the window that was
    /// asked for: whether that fits is for the memory plan to say.
    pub(super) fn plan(
        asked: Option<usize>,
        max_positions: usize,
        kv_bytes: Option<usize>,
        block_bytes: usize,
        (left, share): (Option<u64>, Share),
    ) -> anyhow::Result<Window> {
        anyhow::ensure!(asked != Some(0), "--max-model-len is 0, but must be at least 1");
        let wanted = asked.unwrap_or(Window::DEFAULT);
        let fits = Window::longest(asked, max_positions);
        if wanted > fits && asked.is_some() {
            tracing::warn!(
                "the window is {fits} tokens, the model's longest context, and not the {wanted} asked for"
            );
        } else if asked.is_none() && fits < max_positions {
            tracing::info!(
                "the window is {fits} tokens of the model's {max_positions}: --max-model-len sets it"
            );
        }
        let for_one = fits.div_ceil(KvSpec::BLOCK_SIZE).saturating_mul(block_bytes);
        let by_default = for_one.saturating_mul(8).min(for_one.max(Window::CACHE));
        let least = if asked.is_some() { fits } else { fits.min(Window::LEAST) };
        let least = least.div_ceil(KvSpec::BLOCK_SIZE).saturating_mul(block_bytes);
        let left = left.map(|left| usize::try_from(left).unwrap_or(usize::MAX));
        let by_default = left.filter(|_| share == Share::All).unwrap_or(by_default);
        let blocks = kv_bytes.unwrap_or(by_default.min(left.unwrap_or(usize::MAX)).max(least)) / block_bytes;
        anyhow::ensure!(
            blocks > 0,
            "--kv-cache-bytes is too small for one block of {} KiB",
            block_bytes >> 10
        );
        // Places in the cache are counted in 32 bits.
        anyhow::ensure!(
            blocks <= u32::MAX as usize / KvSpec::BLOCK_SIZE,
            "--kv-cache-bytes is too large: {blocks} blocks of {} KiB",
            block_bytes >> 10
        );
        let max_model_len = fits.min(blocks * KvSpec::BLOCK_SIZE);
        if max_model_len < fits {
            tracing::warn!(
                "the window is {max_model_len} tokens and not {fits}: the KV cache holds no more; --kv-cache-bytes sets it"
            );
        }
        Ok(Window { max_model_len, blocks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_what_model_and_cache_allow() {
        let plan = |asked, max, bytes| Window::plan(asked, max, bytes, 1 << 10, (None, Share::Modest));
        assert_eq!(plan(None, 100_000, None).expect("plans"), Window { max_model_len: 8192, blocks: 4096 });
        assert_eq!(plan(Some(64), 32, Some(1 << 20)).expect("plans").max_model_len, 32);
        assert_eq!(plan(Some(64), 100, Some(2 << 10)).expect("plans").max_model_len, 32);
        assert!(plan(Some(0), 100, None).is_err() && plan(None, 100, Some(1)).is_err());
        assert!(plan(None, 100, Some(usize::MAX)).is_err());
    }

    #[test]
    fn what_is_left_bounds_the_cache_but_not_below_what_was_asked_for() {
        let plan = |asked, left| {
            Window::plan(asked, 8192, None, 1 << 10, (Some(left), Share::Modest)).expect("plans")
        };
        assert_eq!(plan(None, 1 << 40).blocks, 4096);
        assert_eq!(plan(None, 64 << 10), Window { max_model_len: 1024, blocks: 64 });
        assert_eq!(plan(None, 0), Window { max_model_len: 256, blocks: 16 });
        assert_eq!(plan(Some(4096), 0), Window { max_model_len: 4096, blocks: 256 });
    }

    #[test]
    fn the_cache_of_a_gpu_takes_all_that_is_left_unless_somebody_says() {
        let plan = |bytes, left| Window::plan(None, 4096, bytes, 1 << 10, (left, Share::All)).expect("plans");
        assert_eq!(plan(None, Some(3 << 30)), Window { max_model_len: 4096, blocks: 3 << 20 });
        assert_eq!(plan(None, Some(64 << 10)), Window { max_model_len: 1024, blocks: 64 });
        assert_eq!(plan(Some(1 << 20), Some(3 << 30)).blocks, 1 << 10);
        // What is there is not known: as on a machine.
        assert_eq!(plan(None, None).blocks, 2048);
    }
}
