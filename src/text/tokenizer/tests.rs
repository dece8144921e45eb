use std::path::PathBuf;

use super::*;
use crate::text::VocabKind;

/// A file of the shared test data, or a line that says what was not run.
fn data(name: &str) -> Option<Vec<u8>> {
    let dir =
        std::env::var_os("TARN_TEST_DATA").map_or_else(|| PathBuf::from("../shared/data"), PathBuf::from);
    let found = std::fs::read(dir.join("tokenizers").join(name)).ok();
    if found.is_none() {
        println!("not run: no data ({name})");
    }
    found
}

/// A SentencePiece vocabulary of letters, a few merges and all bytes.
fn sentence_piece() -> Tokenizer {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..=255_u8).map(|byte| format!("<0x{byte:02X}>")));
    let pieces = ["▁", "a", "b", "c", "ab", "▁ab", "abc", "▁abc"];
    tokens.extend(pieces.map(str::to_owned));
    let scores = (0..tokens.len()).map(|at| -(at as f32)).collect();
    let vocab = Vocab {
        kind: VocabKind::SentencePiece,
        pre: String::new(),
        tokens,
        merges: Vec::new(),
        scores,
        control: vec![1, 2],
        user_defined: Vec::new(),
        bos: Some(1),
        unk: Some(0),
        space_prefix: true,
    };
    Tokenizer::from_vocab(&vocab, Some(1), Some(2)).expect("builds")
}

#[test]
fn a_sentence_piece_vocabulary_round_trips_any_text() {
    let tokenizer = sentence_piece();
    for text in ["abc", " abc ab", "a€b\n", "日本", "", "<s>"] {
        let ids = tokenizer.encode(text, true).expect("encodes");
        assert_eq!(ids[0], 1);
        if text != "<s>" {
            assert_eq!(tokenizer.decode(&ids, true), text);
        }
    }
    assert_eq!(tokenizer.encode("abc", false).expect("encodes"), [tokenizer.id("▁abc").expect("there")]);
}

#[test]
fn pieces_arrive_as_whole_characters() {
    let tokenizer = sentence_piece();
    let ids = tokenizer.encode("€", false).expect("encodes");
    let mut detokenizer = Detokenizer::new(&tokenizer, true);
    let pushed: Vec<Option<String>> = ids.iter().map(|id| detokenizer.push(*id)).collect();
    assert_eq!(pushed.iter().flatten().cloned().collect::<String>(), "€");
    assert_eq!(pushed.iter().filter(|p| p.is_some()).count(), 1, "{pushed:?}");
    assert_eq!(detokenizer.finish(), "");
}

#[test]
fn detokenizing_step_by_step_equals_decoding_for_random_ids() {
    for name in ["smollm2_tokenizer.json", "mixtral-8x7b_tokenizer.json"] {
        let Some(json) = data(name) else { continue };
        let tokenizer = Tokenizer::from_json(&json, None).expect("builds");
        let mut state = 12345_u64;
        for _ in 0..200 {
            let ids: Vec<u32> = (0..30)
                .map(|_| {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 33) as u32 % tokenizer.vocab_size() as u32
                })
                .collect();
            let theirs = tokenizer.inner.tokenizer.decode(&ids, true).expect("decodes");
            let ours = tokenizer.decode(&ids, true);
            // Where bytes form no characters, implementations may put one or several U+FFFD.
            let squeeze = |text: &str| {
                text.split('\u{fffd}').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("?")
            };
            assert_eq!(squeeze(&ours), squeeze(&theirs), "{ids:?}");
        }
        for text in
            ["Hello, world!", "  zwei  Leerzeichen", "naïve café ½ 日本語 🎉\n\n\tx", "3RT2015-1BB41 16 A"]
        {
            let ids = tokenizer.encode(text, false).expect("encodes");
            assert_eq!(tokenizer.decode(&ids, true), text, "{name}");
        }
    }
}
