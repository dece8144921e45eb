use proptest::prelude::*;

use super::*;
use crate::rag::fixture::hit;

fn sources(texts: &[&str]) -> Vec<Source> {
    (1..)
        .zip(texts)
        .map(|(marker, text)| Source {
            marker,
            hit: hit(&format!("{marker}.pdf"), text),
            shown: 0..text.len(),
        })
        .collect()
}

const BREAKER: &str = "The circuit breaker S201-B16 has a rated current of 16 A. It has one pole. \
    Its breaking capacity is 6 kA according to IEC 60898-1.";
const CABLE: &str = "The cable NYM-J 3x1,5 is sold in rings.\nIts sheath is grey.\nA ring has 100 m.";

#[test]
fn a_marker_is_cited_with_the_sentence_that_supports_the_statement() {
    let cited = cite(
        "What is the breaking capacity of the S201?",
        "The sheath of the NYM cable is grey [2]. The breaking capacity is 6 kA [1].",
        &sources(&[BREAKER, CABLE]),
    );
    let quotes: Vec<_> = cited.iter().map(|citation| (citation.marker, citation.quote.as_str())).collect();
    assert_eq!(
        quotes,
        [(2, "Its sheath is grey."), (1, "Its breaking capacity is 6 kA according to IEC 60898-1.")]
    );
    assert_eq!(
        (cited[1].name.as_str(), &cited[1].place),
        ("1.pdf", &Place::Pages { page_start: 3, page_end: 3 })
    );
}

#[test]
fn a_marker_behind_the_full_stop_belongs_to_the_sentence_before() {
    let cited = cite("q", "Its sheath is grey. [1] More is not known.", &sources(&[CABLE]));
    assert_eq!(cited[0].quote, "Its sheath is grey.");
    let listed = cite("q", "Two things:\n[1] A ring has 100 m.", &sources(&[CABLE]));
    assert_eq!(listed[0].quote, "A ring has 100 m.");
}

#[test]
fn a_marker_that_is_not_in_the_context_is_never_cited() {
    assert_eq!(cite("q", "It is so [3].", &sources(&[BREAKER, CABLE])), []);
}

#[test]
fn without_markers_the_source_is_cited_whose_words_support_the_answer() {
    let cited =
        cite("Which current?", "The S201-B16 has a rated current of 16 A.", &sources(&[CABLE, BREAKER]));
    assert_eq!(cited.len(), 1);
    assert_eq!(cited[0].marker, 2);
    assert_eq!(cited[0].quote, "The circuit breaker S201-B16 has a rated current of 16 A.");
}

#[test]
fn an_answer_that_no_source_supports_is_not_cited() {
    for answer in ["I do not know.", "The moon is made of cheese and orbits Jupiter.", "Yes.", ""] {
        assert_eq!(cite("Which current has the S201?", answer, &sources(&[CABLE, BREAKER])), [], "{answer}");
    }
}

#[test]
fn an_answer_that_only_repeats_the_question_is_not_cited() {
    let cited =
        cite("rated current breaker S201-B16", "breaker S201-B16 rated current", &sources(&[BREAKER]));
    assert_eq!(cited, []);
}

#[test]
fn a_quote_stays_inside_what_the_model_saw() {
    let mut sources = sources(&[BREAKER]);
    sources[0].shown = 0..BREAKER.find(" Its").unwrap();
    let cited = cite("q", "The breaking capacity is 6 kA [1].", &sources);
    assert!(!cited[0].quote.contains("6 kA"), "{}", cited[0].quote);
}

#[test]
fn a_sentence_longer_than_a_quote_is_cut_around_the_words_that_matter() {
    let filler = "lorem ipsum dolor sit amet ".repeat(60);
    let text = format!("{filler}the torque is 2,5 Nm at terminal 14 {filler}");
    let cited = cite("q", "The torque is 2,5 Nm at terminal 14 [1].", &sources(&[&text]));
    assert!(cited[0].quote.contains("torque is 2,5 Nm"), "{}", cited[0].quote);
    assert!(cited[0].quote.chars().count() <= LONGEST_QUOTE);
}

proptest! {
    #[test]
    fn a_quote_is_a_verbatim_piece_of_its_text(
        text in "(\\PC{0,30}|[a-zß\u{1F600} .\n]{0,200}|x{350,900}){1,4}",
        answer in "\\PC{0,60}",
    ) {
        let sources = sources(&[&text]);
        let answer = format!("{answer} [1].");
        for citation in cite("why", &answer, &sources).into_iter().chain(cite_all("why", &sources)) {
            prop_assert!(text.contains(&citation.quote));
            let found: String =
                text.chars().skip(citation.quote_start).take(citation.quote_end - citation.quote_start).collect();
            prop_assert_eq!(&found, &citation.quote);
            prop_assert!(!citation.quote.is_empty() && citation.quote.chars().count() <= LONGEST_QUOTE);
        }
    }
}
