//! One or two texts as an encoder takes them: special tokens around, cut to a length, tokens marked by text.

use tokenizers::tokenizer::{Encoding, TruncationParams, TruncationStrategy, truncate_encodings};
use tokenizers::{PostProcessor, TruncationDirection};

use super::error::TextError;
use super::tokenizer::Tokenizer;

/// The input of an encoder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncoderInput {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Which text each token is of, as the tokenizer's template says: `token_type_ids`.
    pub types: Vec<u32>,
}

impl Tokenizer {
    /// `first`, or the pair of `first` and `second`, in the tokenizer's own template and of at most `max_tokens`
    /// tokens, special ones included: the longer text is cut first, at its end (`longest_first`).
    ///
    /// # Errors
    /// [`TextError::Encode`], also where `max_tokens` leaves no room beside the special tokens.
    pub fn encode_cut(
        &self,
        first: &str,
        second: Option<&str>,
        max_tokens: usize,
    ) -> Result<EncoderInput, TextError> {
        let tokenizer = self.inner();
        // What is past this is cut anyway and need not be tokenized.
        let longest = max_tokens.saturating_mul(self.longest_token());
        let one = |text: &str| -> Result<Encoding, TextError> {
            tokenizer
                .encode_fast(&text[..text.floor_char_boundary(longest)], false)
                .map_err(|err| failed(&err))
        };
        let (first, second) = (one(first)?, second.map(one).transpose()?);
        let added =
            tokenizer.get_post_processor().map_or(0, |template| template.added_tokens(second.is_some()));
        if max_tokens <= added {
            return Err(TextError::Encode {
                message: format!("{max_tokens} tokens leave no room beside {added} special ones"),
            });
        }
        let cut = TruncationParams {
            max_length: max_tokens - added,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
            direction: TruncationDirection::Right,
        };
        let (mut first, mut second) = truncate_encodings(first, second, &cut).map_err(|err| failed(&err))?;
        // What was cut off would be put into the template as well.
        first.take_overflowing();
        second.iter_mut().for_each(|second| drop(second.take_overflowing()));
        let whole = tokenizer.post_process(first, second, true).map_err(|err| failed(&err))?;
        Ok(EncoderInput { ids: whole.get_ids().to_vec(), types: whole.get_type_ids().to_vec() })
    }
}

fn failed(error: &(impl std::fmt::Display + ?Sized)) -> TextError {
    TextError::Encode { message: error.to_string() }
}
