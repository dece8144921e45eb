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
fn an_answer_keeps_the_space_that_begins_it() {
    let tokenizer = sentence_piece();
    let word = tokenizer.id("▁ab").expect("there");
    assert_eq!(Detokenizer::new(&tokenizer, true).push(word).as_deref(), Some("ab"));
    assert_eq!(Detokenizer::continuing(&tokenizer, true).push(word).as_deref(), Some(" ab"));
    // A control token that is shown is the beginning itself.
    assert_eq!(tokenizer.decode(&[1, word], false), "<s> ab");
    assert_eq!(tokenizer.decode(&[1, word], true), "ab");
}

#[test]
fn mixtrals_answers_and_control_tokens_read_as_hugging_face_reads_them() {
    let Some(json) = data("mixtral-8x7b_tokenizer.json") else { return };
    let tokenizer = Tokenizer::from_json(&json, None).expect("builds");
    let (prompt, whole) = ("The capital of France is", "The capital of France is Paris");
    let prompt = tokenizer.encode(prompt, true).expect("encodes");
    let whole = tokenizer.encode(whole, true).expect("encodes");
    let mut detokenizer = Detokenizer::continuing(&tokenizer, true);
    let answer: String = whole[prompt.len()..].iter().filter_map(|id| detokenizer.push(*id)).collect();
    assert_eq!(answer, " Paris");
    assert_eq!(tokenizer.decode(&[1, 22557], false), "<s> Hello");
    assert_eq!(tokenizer.decode(&[1, 28705, 22557], true), " Hello");
}

/// SmolLM2's vocabulary as its GGUF has it.
fn smollm2(pre: &str) -> Option<Vocab> {
    let json: Value = serde_json::from_slice(&data("smollm2_tokenizer.json")?).expect("json");
    let vocab = json["model"]["vocab"].as_object().expect("vocab");
    let mut tokens = vec![String::new(); vocab.len()];
    for (piece, id) in vocab {
        tokens[id.as_u64().expect("id") as usize].clone_from(piece);
    }
    let merges = json["model"]["merges"].as_array().expect("merges").iter();
    let pair = |merge: &Value| match merge {
        Value::String(text) => text.split_once(' ').map(|(l, r)| (l.to_owned(), r.to_owned())),
        pair => Some((pair[0].as_str()?.to_owned(), pair[1].as_str()?.to_owned())),
    };
    Some(Vocab {
        kind: VocabKind::ByteLevel,
        pre: pre.to_owned(),
        tokens,
        merges: merges.map(|merge| pair(merge).expect("a pair")).collect(),
        scores: Vec::new(),
        control: Vec::new(),
        user_defined: Vec::new(),
        bos: None,
        unk: None,
        space_prefix: false,
    })
}

#[test]
fn smollm_splits_digits_one_by_one() {
    let Some(vocab) = smollm2("smollm") else { return };
    let tokenizer = Tokenizer::from_vocab(&vocab, None, None).expect("builds");
    assert_eq!(tokenizer.encode("a   16 b", false).expect("encodes"), [81, 333, 33, 38, 278]);
}

/// A byte-level vocabulary whose `abc` no merge reaches.
fn unreachable_word(pre: &str) -> Tokenizer {
    let vocab = Vocab {
        kind: VocabKind::ByteLevel,
        pre: pre.to_owned(),
        tokens: ["a", "b", "c", "ab", "abc"].map(str::to_owned).to_vec(),
        merges: vec![("a".to_owned(), "b".to_owned())],
        scores: Vec::new(),
        control: Vec::new(),
        user_defined: Vec::new(),
        bos: None,
        unk: None,
        space_prefix: false,
    };
    Tokenizer::from_vocab(&vocab, None, None).expect("builds")
}

#[test]
fn llama_3_and_tekken_take_whole_words_before_they_merge() {
    for pre in ["llama-bpe", "llama3", "tekken"] {
        assert_eq!(unreachable_word(pre).encode("abc", false).expect("encodes"), [4], "{pre}");
        assert!(VocabKind::ByteLevel.begins(pre), "{pre}");
    }
    assert_eq!(unreachable_word("gpt-2").encode("abc", false).expect("encodes"), [3, 2]);
    assert!(!VocabKind::ByteLevel.begins("gpt-2") && VocabKind::SentencePiece.begins("default"));
}

#[test]
fn detokenizing_step_by_step_equals_decoding_for_random_ids() {
    for name in ["smollm2_tokenizer.json", "mixtral-8x7b_tokenizer.json"] {
        let Some(json) = data(name) else { continue };
        let tokenizer = Tokenizer::from_json(&json, None).expect("builds");
        let mut state = 12345_u64;
        for round in 0..200 {
            let ids: Vec<u32> = (0..30)
                .map(|_| {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 33) as u32 % tokenizer.vocab_size() as u32
                })
                .collect();
            let skip = round % 2 == 0;
            let theirs = tokenizer.inner.tokenizer.decode(&ids, skip).expect("decodes");
            let ours = tokenizer.decode(&ids, skip);
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
