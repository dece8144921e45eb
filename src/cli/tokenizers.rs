//! A model's tokenizer, from whichever file it has.

use crate::model::{GgufVocab, ModelSource, TokenizerSource};
use crate::text::{Tokenizer, Vocab, VocabKind};

/// The tokenizer of `source`.
pub(super) fn tokenizer(source: &ModelSource) -> anyhow::Result<Tokenizer> {
    match source.tokenizer()? {
        TokenizerSource::Json { tokenizer, config } => Ok(Tokenizer::from_json(&tokenizer, config.as_ref())?),
        TokenizerSource::Gguf(gguf) => Ok(Tokenizer::from_vocab(&vocab(&gguf)?, gguf.bos, gguf.eos)?),
    }
}

/// What a GGUF says of its vocabulary, with llama.cpp's defaults for what it does not say.
fn vocab(gguf: &GgufVocab) -> anyhow::Result<Vocab> {
    let of_type = |kind: u32| {
        let all = gguf.token_types.iter().zip(0_u32..).filter(move |(found, _)| **found == kind);
        all.map(|(_, id)| id).collect::<Vec<_>>()
    };
    let kind = match gguf.model.as_str() {
        "gpt2" => VocabKind::ByteLevel,
        "llama" => VocabKind::SentencePiece,
        other => anyhow::bail!(
            "the GGUF's tokenizer `{other}` is not supported: use the model's Hugging Face folder"
        ),
    };
    Ok(Vocab {
        kind,
        pre: gguf.pre.clone(),
        control: of_type(3),
        user_defined: of_type(4),
        bos: gguf.bos.filter(|_| gguf.add_bos.unwrap_or_else(|| kind.begins(&gguf.pre))),
        unk: gguf.unk,
        space_prefix: gguf.add_space_prefix.unwrap_or(true),
        tokens: gguf.tokens.clone(),
        merges: gguf.merges.clone(),
        scores: gguf.scores.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gguf_of_llama_3_begins_texts_where_it_does_not_say() {
        let gguf = |pre: &str, add_bos| GgufVocab {
            model: "gpt2".to_owned(),
            pre: pre.to_owned(),
            bos: Some(0),
            add_bos,
            ..GgufVocab::default()
        };
        assert_eq!(vocab(&gguf("llama-bpe", None)).expect("builds").bos, Some(0));
        assert_eq!(vocab(&gguf("llama-bpe", Some(false))).expect("builds").bos, None);
        assert_eq!(vocab(&gguf("smollm", None)).expect("builds").bos, None);
    }
}
