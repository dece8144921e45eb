//! Grammars that an answer follows: JSON schemas, regular expressions, Lark and EBNF grammars, choices.
//!
//! llguidance decides which tokens may come next. What is ours is around it: which tokens there are ([`token_env`]),
//! what a request may cost, and which layouts of JSON are open to the model. The sizes of schemas, automata and masks
//! are bounded, so that a hostile grammar ends in an error and not in a server that stands still.

mod ebnf;
mod matcher;
mod token_env;

use std::borrow::Cow;
use std::sync::Arc;

use llguidance::api::{GrammarWithLexer, ParserLimits, StopReason, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::tokenizer::Tokenizer;

pub use matcher::GrammarMatcher;

/// Most bytes of a grammar's source; OpenAI takes schemas of 120,000 characters.
const MAX_SOURCE: usize = 128 << 10;

/// Stack of the thread that compiles. The compiler recurses along references: as deep as [`MAX_SOURCE`] allows a chain
/// of them to be. Pages that are not used cost nothing.
const COMPILE_STACK: usize = 256 << 20;

/// Bytes that the compiled rules take for each of the source, at most.
const A_SOURCE_BYTE: usize = 64;

/// What an answer must follow.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema admits.
    JsonSchema {
        /// The schema.
        schema: Value,
        /// Whether keywords that cannot be enforced are refused; else they are ignored.
        strict: bool,
    },
    /// A text that a regular expression matches from beginning to end.
    Regex(String),
    /// A grammar in llguidance's Lark, or in EBNF (`root ::= ..`) as llama.cpp writes it.
    Context(String),
    /// One of several texts.
    Choice(Vec<String>),
}

/// Why a grammar cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// It is larger than what is compiled.
    #[error("the grammar is {bytes} bytes long, but at most {MAX_SOURCE} are taken")]
    TooLarge {
        /// Its bytes.
        bytes: usize,
    },
    /// It has no words, is malformed or asks for something that cannot be enforced.
    #[error("{message}")]
    Refused {
        /// What is wrong.
        message: String,
    },
    /// The compiler ended without an answer.
    #[error("the grammar could not be compiled")]
    Interrupted,
}

impl Grammar {
    /// What it was written as; the order of a schema's keys is that of the answer's, so it is kept.
    fn source(&self) -> Cow<'_, str> {
        match self {
            Grammar::JsonObject => Cow::Borrowed(""),
            Grammar::JsonSchema { schema, .. } => Cow::Owned(schema.to_string()),
            Grammar::Regex(text) | Grammar::Context(text) => Cow::Borrowed(text),
            Grammar::Choice(texts) => Cow::Owned(json!(texts).to_string()),
        }
    }

    /// SHA-256 of its kind and its source: two grammars share it only where they are the same, letter by letter.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let kind: u8 = match self {
            Grammar::JsonObject => 0,
            Grammar::JsonSchema { strict: false, .. } => 1,
            Grammar::JsonSchema { strict: true, .. } => 2,
            Grammar::Regex(_) => 3,
            Grammar::Context(_) => 4,
            Grammar::Choice(_) => 5,
        };
        Sha256::new().chain_update([kind]).chain_update(self.source().as_bytes()).finalize().into()
    }

    /// The schema, with its layout, of a grammar of JSON.
    pub(super) fn schema(&self) -> Option<Value> {
        match self {
            Grammar::JsonObject => Some(laid_out(&json!({"type": "object"}), true)),
            Grammar::JsonSchema { schema: schema @ (Value::Object(_) | Value::Bool(true)), strict } => {
                Some(laid_out(schema, *strict))
            }
            _ => None,
        }
    }

    fn parsed(&self) -> Result<GrammarWithLexer, GrammarError> {
        let refused = |message: &str| Err(GrammarError::Refused { message: message.to_owned() });
        Ok(match self {
            Grammar::JsonObject | Grammar::JsonSchema { .. } => match self.schema() {
                Some(schema) => GrammarWithLexer::from_json_schema(schema),
                None => return refused("a schema must be an object"),
            },
            Grammar::Regex(regex) => GrammarWithLexer::from_regex(regex),
            Grammar::Context(text) if ebnf::is_ebnf(text) => {
                GrammarWithLexer::from_lark(ebnf::to_lark(text)?)
            }
            Grammar::Context(text) => GrammarWithLexer::from_lark(text.clone()),
            Grammar::Choice(texts) if texts.is_empty() => return refused("there is nothing to choose from"),
            Grammar::Choice(texts) if texts.iter().any(String::is_empty) => {
                return refused("an empty text cannot be chosen");
            }
            Grammar::Choice(texts) => {
                let texts: Vec<String> =
                    texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
                GrammarWithLexer::from_lark(format!("start: {}", texts.join(" | ")))
            }
        })
    }
}

/// `schema` with the compiler's options, which no schema may set for itself.
///
/// JSON is written on one line, as Python writes it. Free whitespace, the compiler's default, is where small models lose
/// themselves, and it leaves no text forced: of 108 answers SmolLM2 ended 103 with bounded whitespace and 106 with this
/// layout, in a third fewer tokens.
pub(super) fn laid_out(schema: &Value, strict: bool) -> Value {
    let mut schema = match schema {
        Value::Object(schema) => schema.clone(),
        _ => Map::new(),
    };
    let options = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ", "lenient": !strict});
    schema.insert("x-guidance".to_owned(), options);
    Value::Object(schema)
}

/// Turns grammars into matchers over the tokens of one model. Cheap to clone.
#[derive(Clone)]
pub struct GrammarCompiler {
    factory: Arc<ParserFactory>,
}

impl std::fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GrammarCompiler")
    }
}

impl GrammarCompiler {
    /// For a model with `vocab_size` logits, whose answers end with a token of `eos`. Takes a second for large
    /// vocabularies.
    ///
    /// # Errors
    /// [`GrammarError::Refused`] when the vocabulary cannot be used.
    pub fn new(
        tokenizer: &Tokenizer,
        vocab_size: usize,
        eos: &[u32],
    ) -> Result<GrammarCompiler, GrammarError> {
        let env = token_env::token_env(tokenizer, vocab_size, eos);
        let mut factory = ParserFactory::new_simple(&env).map_err(|error| refused(&error))?;
        *factory.limits_mut() = ParserLimits {
            // 1-2 KiB each: what a hostile expression may hold of memory.
            max_lexer_states: 20_000,
            max_grammar_size: 200_000,
            // A mask takes 15 ms at most on one core, and the engine waits for it.
            step_lexer_fuel: 200_000,
            step_max_items: 50_000,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        factory.quiet();
        Ok(GrammarCompiler { factory: Arc::new(factory) })
    }

    /// Compiles a grammar. Computes for milliseconds: not for async threads.
    ///
    /// # Errors
    /// [`GrammarError`], with what is wrong or unsupported.
    pub fn compile(&self, grammar: &Grammar) -> Result<GrammarMatcher, GrammarError> {
        let bytes = grammar.source().len();
        if bytes > MAX_SOURCE {
            return Err(GrammarError::TooLarge { bytes });
        }
        let parsed = TopLevelGrammar::from_grammar(grammar.parsed()?);
        let factory = &self.factory;
        let vocab_size = factory.tok_env().tok_trie().vocab_size();
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("tarn-grammar".to_owned())
                .stack_size(COMPILE_STACK)
                .spawn_scoped(scope, || {
                    let parser = factory.create_parser(parsed).map_err(|error| refused(&error))?;
                    let lexer = parser.clone();
                    let mut matcher = Matcher::new(Ok(parser));
                    // A grammar that admits nothing, or whose first mask is beyond the limits, is found here.
                    if !matcher.is_stopped() {
                        matcher.compute_mask().map_err(|error| refused(&error))?;
                    }
                    // A clone shares the lexer, which grew with the mask.
                    let bytes = bytes * A_SOURCE_BYTE + lexer.parser.lexer_stats().num_bytes + vocab_size / 8;
                    Ok(GrammarMatcher::new(matcher, bytes))
                })
                .map_err(|_| GrammarError::Interrupted)?
                .join()
                .map_err(|_| GrammarError::Interrupted)?
        })
    }
}

/// What the compiler said, without what it adds for its developers.
fn refused(error: &dyn std::fmt::Display) -> GrammarError {
    let text = error.to_string();
    let text = text.split("\n<").next().unwrap_or_default().trim();
    if text == StopReason::NoExtensionBias.to_string() {
        return GrammarError::Refused { message: "the grammar admits no text".to_owned() };
    }
    let message: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    GrammarError::Refused { message: message.join("; ").chars().take(600).collect() }
}

#[cfg(test)]
pub(super) mod tests;
