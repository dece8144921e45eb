//! What a pass depends on: its extents, rounded up so that few shapes cover all counts, and what is wanted of it.

use super::super::super::config::EncoderConfig;
use super::DeviceEncoderOptions;

/// Most tokens of a sequence alone that is a query: what a person asks in a line or two.
const QUERY: usize = 64;
/// Tokens that a query is rounded up to: those of one product on tensor cores, of which spare ones cost nothing.
const QUERY_STEP: usize = 8;

/// The largest pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Tokens over all sequences.
    pub(super) tokens: usize,
    pub(super) sequences: usize,
    /// Tokens of one sequence.
    pub(super) longest: usize,
}

/// What a pass makes of the token states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Wanted {
    /// A vector a sequence.
    Vectors,
    /// What the head's dense layer makes of a sequence's first token.
    HeadRows,
}

/// Upper bounds of a pass, and what is wanted of it: all that its list depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) tokens: usize,
    pub(super) sequences: usize,
    /// Most tokens of one sequence.
    pub(super) longest: usize,
    pub(super) wanted: Wanted,
}

impl Limits {
    pub(super) fn new(config: &EncoderConfig, options: &DeviceEncoderOptions) -> Limits {
        let tokens = options.max_num_batched_tokens.max(config.max_tokens);
        Limits { tokens, sequences: options.max_num_seqs.clamp(1, tokens), longest: config.max_tokens }
    }

    /// The shape of the largest pass.
    pub(super) fn largest(self, wanted: Wanted) -> Shape {
        let Limits { tokens, sequences, longest } = self;
        Shape { tokens, sequences, longest, wanted }
    }

    /// The shape of a pass over the sequences `cu_seqlens[i]..cu_seqlens[i + 1]`, which is within these limits.
    pub(super) fn shape(self, cu_seqlens: &[u32], wanted: Wanted) -> Shape {
        let lengths = cu_seqlens.windows(2).map(|pair| (pair[1] - pair[0]) as usize);
        let (tokens, longest) = (lengths.clone().sum::<usize>(), lengths.clone().max().unwrap_or(0));
        if lengths.len() == 1 && tokens <= QUERY {
            let tokens = tokens.next_multiple_of(QUERY_STEP).min(self.longest);
            return Shape { tokens, sequences: 1, longest: tokens, wanted };
        }
        Shape {
            tokens: padded(tokens, self.tokens),
            sequences: padded(lengths.len(), self.sequences),
            longest: padded(longest, self.longest),
            wanted,
        }
    }
}

impl Shape {
    /// Whether it is a query's: one of few shapes, which come again, and whose launches take the host longer than the
    /// device. Those are worth recording. A pass of many texts keeps the device busy while the host queues it.
    pub(super) fn is_query(self) -> bool {
        self.sequences == 1 && self.tokens <= QUERY
    }
}

/// `count` rounded up to an eighth of the next power of two, at most `most`.
fn padded(count: usize, most: usize) -> usize {
    count.next_multiple_of((count.next_power_of_two() / 8).max(1)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { tokens: 16 << 10, sequences: 1000, longest: 514 };

    fn shape(lengths: &[u32]) -> Shape {
        let mut bounds = vec![0];
        lengths.iter().for_each(|length| bounds.push(bounds[bounds.len() - 1] + length));
        LIMITS.shape(&bounds, Wanted::Vectors)
    }

    #[test]
    fn few_shapes_cover_all_counts_and_those_of_queries_are_fewer_still() {
        let mut queries: Vec<Shape> = (1..=64).map(|length| shape(&[length])).collect();
        assert!(queries.iter().zip(1..).all(|(of, length)| of.is_query() && of.tokens >= length));
        queries.dedup();
        assert_eq!(queries.len(), 8);
        assert!(!shape(&[65]).is_query() && !shape(&[3, 4]).is_query());
        let mut passes: Vec<Shape> = (65..=514).map(|length| shape(&[length; 7])).collect();
        for (of, length) in passes.iter().zip(65..) {
            let bounds = [(of.tokens, 7 * length), (of.sequences, 7), (of.longest, length)];
            assert!(bounds.iter().all(|(bound, count)| bound >= count), "{of:?} of 7 sequences of {length}");
            assert!(of.tokens * 4 <= 7 * length * 5, "a quarter too many at most: {of:?}");
        }
        passes.dedup();
        assert!(passes.len() < 50, "{} shapes", passes.len());
        let largest = LIMITS.largest(Wanted::Vectors);
        assert_eq!(shape(&[512; 32]), Shape { sequences: 32, longest: 512, ..largest });
        assert_eq!(LIMITS.shape(&[0, 514], Wanted::HeadRows).longest, 514);
    }
}
