//! Citations: which source says what the answer says, and in which words.
//!
//! The quote of a citation is a verbatim piece of the chunk's text, chosen by the words
//! that it shares with the answer's sentence. Asking the model for the quote was rejected:
//! small models invent quotes, and a quote that is searched cannot be wrong in its letters.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use serde::Serialize;
use unicode_segmentation::UnicodeSegmentation;

use crate::lake::ScoredChunk;

use super::marker::markers;
pub use super::place::Place;

/// The longest quote, in characters.
const LONGEST_QUOTE: usize = 400;
/// The share of a sentence's words, by weight, that a source must have to be cited for it
/// although the model did not name the source.
const SUPPORT: f32 = 0.6;
/// The weight of common words below which nothing is supported: a name or a number, not two particles.
const LEAST_WEIGHT: f32 = 2.0;

/// A source as it stood in the context.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its number in the context, from 1.
    pub marker: u32,
    /// What was retrieved.
    pub hit: ScoredChunk,
    /// Bytes of the chunk's text that the model saw.
    pub shown: Range<usize>,
}

impl Source {
    /// The text that the model saw.
    pub fn text(&self) -> &str {
        self.hit.chunk.text.get(self.shown.clone()).unwrap_or_default()
    }
}

/// A document's words behind a statement of the answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Citation {
    /// The `[n]` by which the answer names it.
    pub marker: u32,
    /// The document.
    pub document_id: String,
    /// The version of the document.
    pub ingest_id: String,
    /// The passage.
    pub chunk_id: String,
    /// The document's name.
    pub name: String,
    /// Where the document came from.
    pub source_uri: String,
    /// The headings above the passage, outermost first.
    pub heading_path: Vec<String>,
    /// Where in the document.
    pub place: Place,
    /// Verbatim from the passage.
    pub quote: String,
    /// The quote's first character in the passage's text.
    pub quote_start: usize,
    /// One past its last character.
    pub quote_end: usize,
    /// The passage's score in the retrieval.
    pub score: f32,
}

/// The citations of `answer`, in the order in which it names its sources.
///
/// Where the answer names none, those whose text supports one of its sentences by the words.
/// Every source cited is one of `sources`.
pub fn cite(question: &str, answer: &str, sources: &[Source]) -> Vec<Citation> {
    let sentences: Vec<(Range<usize>, Words)> =
        pieces(answer).into_iter().map(|range| (range.clone(), Words::of(&answer[range]))).collect();
    let question = Words::of(question);
    let mut statements: BTreeMap<u32, Words> = BTreeMap::new();
    let mut order = Vec::new();
    for (at, named) in markers(answer) {
        let said = sentence_of(answer, &sentences, at);
        for marker in named {
            let words = statements.entry(marker).or_insert_with(|| {
                order.push(marker);
                Words::default()
            });
            words.extend(said);
        }
    }
    if order.is_empty() {
        for (_, said) in &sentences {
            if let Some(marker) = supporting(said, &question, sources) {
                statements.entry(marker).or_insert_with(|| {
                    order.push(marker);
                    Words::default()
                });
                if let Some(words) = statements.get_mut(&marker) {
                    words.extend(Some(said));
                }
            }
        }
    }
    order
        .into_iter()
        .filter_map(|marker| {
            let source = sources.iter().find(|source| source.marker == marker)?;
            citation(source, statements.get(&marker)?, &question)
        })
        .collect()
}

/// The words of the sentence that a marker at byte `at` closes: its own, or the one before on the
/// same line where the marker stands behind the full stop.
fn sentence_of<'a>(answer: &str, sentences: &'a [(Range<usize>, Words)], at: usize) -> Option<&'a Words> {
    let own = sentences.iter().rposition(|(range, _)| range.start <= at)?;
    let before = own.checked_sub(1).filter(|before| {
        sentences[own].0.start == at && !answer[sentences[*before].0.end..at].contains('\n')
    });
    Some(&sentences[before.unwrap_or(own)].1)
}

/// One citation a source, for a retrieval without an answer: the words that meet the question best.
pub fn cite_all(question: &str, sources: &[Source]) -> Vec<Citation> {
    let question = Words::of(question);
    sources.iter().filter_map(|source| citation(source, &Words::default(), &question)).collect()
}

fn citation(source: &Source, said: &Words, question: &Words) -> Option<Citation> {
    let chunk = &source.hit.chunk;
    let range = quote(source.text(), said, question)?;
    let range = range.start + source.shown.start..range.end + source.shown.start;
    let quote = chunk.text.get(range.clone())?.to_owned();
    let quote_start = chunk.text[..range.start].chars().count();
    Some(Citation {
        marker: source.marker,
        document_id: chunk.document_id.clone(),
        ingest_id: chunk.ingest_id.clone(),
        chunk_id: chunk.chunk_id.clone(),
        name: source.hit.document.name.clone(),
        source_uri: source.hit.document.source_uri.clone(),
        heading_path: chunk.heading_path.clone(),
        place: Place::of(chunk),
        quote_end: quote_start + quote.chars().count(),
        quote,
        quote_start,
        score: source.hit.score,
    })
}

/// The piece of `text` that shares most with what was said, the question breaking ties.
fn quote(text: &str, said: &Words, question: &Words) -> Option<Range<usize>> {
    let mut best: Option<(f32, Range<usize>)> = None;
    for range in pieces(text).into_iter().flat_map(|range| within(text, range)) {
        let words = Words::of(&text[range.clone()]);
        let score = said.likeness(&words) + 0.25 * question.likeness(&words);
        if best.as_ref().is_none_or(|(most, _)| score > *most) {
            best = Some((score, range));
        }
    }
    best.map(|(_, range)| range)
}

/// The source whose words cover `said` best, if it covers enough that the question did not bring.
fn supporting(said: &Words, question: &Words, sources: &[Source]) -> Option<u32> {
    let new = said.0.iter().any(|word| !question.0.contains(word));
    let mut best: Option<(f32, u32)> = None;
    for source in sources {
        let common = said.common(&Words::of(source.text()));
        let covered = common / said.weight().max(f32::EPSILON);
        let enough = new && covered >= SUPPORT && common >= LEAST_WEIGHT;
        if enough && best.is_none_or(|(most, _)| covered > most) {
            best = Some((covered, source.marker));
        }
    }
    best.map(|(_, marker)| marker)
}

/// The sentences and lines of a text, without the blanks around them.
pub(super) fn pieces(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut line_start = 0;
    for line in text.split_inclusive('\n') {
        for (at, sentence) in line.split_sentence_bound_indices() {
            let blank = sentence.len() - sentence.trim_start().len();
            let start = line_start + at + blank;
            let end = start + sentence.trim().len();
            if start < end {
                found.push(start..end);
            }
        }
        line_start += line.len();
    }
    found
}

/// `range` itself, or the overlapping windows of words that a quote of its length must be cut to.
fn within(text: &str, range: Range<usize>) -> Vec<Range<usize>> {
    if text[range.clone()].chars().count() <= LONGEST_QUOTE {
        return vec![range];
    }
    let words: Vec<(usize, &str)> =
        text[range.clone()].split_word_bound_indices().filter(|(_, word)| !word.trim().is_empty()).collect();
    let mut windows = Vec::new();
    let mut next = 0;
    while next < words.len() {
        let start = words[next].0;
        let mut last = next;
        while last + 1 < words.len() {
            let (at, word) = words[last + 1];
            if text[range.start + start..range.start + at + word.len()].chars().count() > LONGEST_QUOTE {
                break;
            }
            last += 1;
        }
        let end = last_byte(words[last], start);
        windows.push(range.start + start..range.start + end);
        if last + 1 == words.len() {
            break;
        }
        next += ((last - next) / 2).max(1);
    }
    windows.retain(|window| text.is_char_boundary(window.end));
    windows.iter_mut().for_each(|window| window.end = shorten(text, window.clone()));
    windows
}

fn last_byte((at, word): (usize, &str), start: usize) -> usize {
    (at + word.len()).max(start)
}

/// The end of a window, cut where a single word alone is longer than a quote.
fn shorten(text: &str, window: Range<usize>) -> usize {
    text[window.clone()].char_indices().nth(LONGEST_QUOTE).map_or(window.end, |(at, _)| window.start + at)
}

/// The words of a text as they are compared: in lower case, cut to their first letters
/// (a stemmer for all languages), those of one or two letters left out unless they carry a digit.
#[derive(Debug, Default, Clone)]
struct Words(HashSet<String>);

impl Words {
    fn of(text: &str) -> Words {
        let mut words = HashSet::new();
        let mut outside = text.to_owned();
        for (at, _) in markers(text).into_iter().rev() {
            if let Some(end) = outside[at..].find(']') {
                outside.replace_range(at..=at + end, " ");
            }
        }
        for word in outside.unicode_words() {
            let word = word.to_lowercase();
            match has_digit(&word) {
                true => words.insert(word),
                false if word.chars().count() > 2 => words.insert(word.chars().take(6).collect()),
                false => false,
            };
        }
        Words(words)
    }

    fn extend(&mut self, more: Option<&Words>) {
        self.0.extend(more.into_iter().flat_map(|words| words.0.iter().cloned()));
    }

    fn weight(&self) -> f32 {
        self.0.iter().map(|word| weight(word)).sum()
    }

    fn common(&self, other: &Words) -> f32 {
        self.0.intersection(&other.0).map(|word| weight(word)).sum()
    }

    /// The cosine of the two as weighted sets.
    fn likeness(&self, other: &Words) -> f32 {
        let product = self.weight() * other.weight();
        if product > 0.0 { self.common(other) / product.sqrt() } else { 0.0 }
    }
}

fn has_digit(word: &str) -> bool {
    word.chars().any(|c| c.is_ascii_digit())
}

/// What a word says: figures and article numbers most, short words least.
fn weight(word: &str) -> f32 {
    match word.chars().count() {
        _ if has_digit(word) => 3.0,
        0..=3 => 0.3,
        4 => 0.6,
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests;
