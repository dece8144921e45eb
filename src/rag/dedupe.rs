//! Drops hits that repeat what a better hit already says.
//!
//! Catalogues repeat themselves: the same page in two editions, the same row in a PDF and
//! a workbook. But two rows that differ in one article number are two facts, however alike
//! they look. So a hit is a repetition only if nearly all its word triples are those of a
//! better hit *and* both have the same words with digits.

use std::collections::HashSet;

use crate::lake::ScoredChunk;

/// The share of common word triples from which two texts say the same.
const SAME: f32 = 0.9;

/// What a text is compared by.
struct Shape {
    triples: HashSet<[String; 3]>,
    /// The words with digits, in their order.
    numbers: Vec<String>,
    words: Vec<String>,
}

impl Shape {
    fn of(text: &str) -> Shape {
        let words: Vec<String> = text
            .split(|c: char| !c.is_alphanumeric())
            .filter(|word| !word.is_empty())
            .map(str::to_lowercase)
            .collect();
        let triples = words.windows(3).map(|w| [w[0].clone(), w[1].clone(), w[2].clone()]).collect();
        let numbers = words.iter().filter(|word| word.chars().any(|c| c.is_ascii_digit())).cloned().collect();
        Shape { triples, numbers, words }
    }

    fn repeats(&self, other: &Shape) -> bool {
        if self.words == other.words {
            return true;
        }
        if self.numbers != other.numbers || self.triples.is_empty() {
            return false;
        }
        let common = self.triples.intersection(&other.triples).count() as f32;
        let all = (self.triples.len() + other.triples.len()) as f32 - common;
        common / all >= SAME
    }
}

/// Keeps, best first, at most `limit` hits that each say something of their own.
pub fn distinct(hits: Vec<ScoredChunk>, limit: usize) -> Vec<ScoredChunk> {
    let mut shapes: Vec<Shape> = Vec::new();
    let mut kept = Vec::new();
    for hit in hits {
        if kept.len() == limit {
            break;
        }
        let shape = Shape::of(&hit.chunk.text);
        if !shapes.iter().any(|better| shape.repeats(better)) {
            shapes.push(shape);
            kept.push(hit);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::Shape;

    fn repeats(a: &str, b: &str) -> bool {
        Shape::of(a).repeats(&Shape::of(b))
    }

    #[test]
    fn the_same_words_in_another_layout_are_a_repetition() {
        assert!(repeats("Cable NYM-J 3x1,5\n grey", "cable  NYM-J 3x1,5 | grey"));
    }

    #[test]
    fn rows_that_differ_in_one_number_are_two_facts() {
        let row = |number: &str| {
            format!(
                "Cable duct made of PVC, white, with cover and base perforation, two metres long, {number}"
            )
        };
        assert!(!repeats(&row("4011160"), &row("4011161")));
    }

    #[test]
    fn a_text_with_a_word_more_is_a_repetition_and_another_text_is_not() {
        let text = "The switch is mounted on a rail and protects the motor against overload and against short \
                    circuits in all three phases of the supply line";
        assert!(repeats(&format!("{text} safely"), text));
        assert!(!repeats("The lamp is mounted on a ceiling", text));
    }
}
