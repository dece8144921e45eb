//! One step: what to compute, and what came out. Host integers only.

use std::sync::Arc;
use std::time::Duration;

use crate::model::{ForwardBatch, LoraAdapter, SeqSpan};

use super::constraint::Grammar;
use super::request::{SampleError, SampledToken, SamplingParams, TokenLogprobs};
use super::token_counts::TokenCounts;

/// What the next step computes.
#[derive(Debug, Default)]
pub struct StepPlan {
    /// Token ids, `[tokens]`; of no meaning where they come from the step before.
    pub input_ids: Vec<u32>,
    /// Whether they are known.
    pub ids: InputIds,
    /// Position of each token in its sequence.
    pub positions: Vec<u32>,
    /// Where each token's key and value go: block * 16 + offset.
    pub slot_mapping: Vec<u32>,
    /// Which tokens belong to which sequence.
    pub sequences: Vec<SeqSpan>,
    /// All sequences' block tables.
    pub block_tables: Vec<u32>,
    /// The adapters of this step, each once.
    pub adapters: Vec<Arc<LoraAdapter>>,
    /// Index into `adapters` of each token's adapter, `NO_ADAPTER` for the base model; empty where `adapters` is.
    pub adapter_of: Vec<u32>,
    /// Tokens to draw.
    pub samples: Vec<SampleSpec>,
    /// Grammars that samples follow, lent for the step: the runner fills them before it draws.
    pub grammars: Vec<Grammar>,
    /// Blocks to copy before anything is computed, `(from, to)` each, in order: answers that part from one prompt.
    pub copies: Vec<(u32, u32)>,
    /// Prompt positions whose log probabilities are wanted: `(row, the token that follows, how many of the likeliest)`.
    pub prompt_logprobs: Vec<(u32, u32, u8)>,
}

/// Where a step's token ids come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InputIds {
    /// The plan.
    #[default]
    Known,
    /// What the step before draws, which may not be known yet: token `i` is its sample `i`.
    Drawn,
}

impl StepPlan {
    /// Number of tokens.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// What the model is fed, with the logits of `rows` wanted.
    pub(super) fn batch<'a>(&'a self, rows: &'a [u32]) -> ForwardBatch<'a> {
        ForwardBatch {
            input_ids: &self.input_ids,
            positions: &self.positions,
            slot_mapping: &self.slot_mapping,
            sequences: &self.sequences,
            block_tables: &self.block_tables,
            logits_rows: rows,
            adapters: &self.adapters,
            adapter_of: &self.adapter_of,
        }
    }

    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.input_ids.clear();
        self.ids = InputIds::Known;
        self.positions.clear();
        self.slot_mapping.clear();
        self.sequences.clear();
        self.block_tables.clear();
        self.adapters.clear();
        self.adapter_of.clear();
        self.samples.clear();
        self.grammars.clear();
        self.copies.clear();
        self.prompt_logprobs.clear();
    }
}

/// A token to draw, and as many more as drafts turn out right.
#[derive(Debug, Clone)]
pub struct SampleSpec {
    /// The input row whose logits it is drawn from. Answers to one prompt draw their first tokens from the same row.
    pub row: u32,
    /// Guesses at the tokens that follow: the inputs of the rows after `row`. While a drawn token is its guess, the
    /// next row counts as well.
    pub drafts: Vec<u32>,
    /// How.
    pub params: Arc<SamplingParams>,
    /// Key of the random numbers.
    pub seed: u64,
    /// Counter of the random numbers: the token's position in its sequence.
    pub position: u32,
    /// Tokens of prompt and answer so far, where penalties need them.
    pub history: Option<Arc<TokenCounts>>,
    /// Stops that must not be drawn yet.
    pub banned: Option<Banned>,
    /// Index into the plan's grammars (never together with drafts).
    pub grammar: Option<u32>,
}

impl SampleSpec {
    /// Whether anything but the model and a grammar decides the logits.
    pub(super) fn adjusts(&self) -> bool {
        self.params.allowed.is_some()
            || self.banned().is_some()
            || self.history.is_some()
            || !self.params.logit_bias.is_empty()
    }

    /// Whether nothing but the model, the temperature and truncation decides its token, and nothing else is wanted of it:
    /// then the same is true of the token after it.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        let nothing_wanted = self.params.logprobs.is_none() && self.drafts.is_empty();
        nothing_wanted && self.grammar.is_none() && !self.adjusts()
    }

    /// What must not be drawn at its position.
    pub(super) fn banned(&self) -> Option<&[u32]> {
        self.banned.as_ref().filter(|banned| self.position < banned.before).map(|banned| &*banned.ids)
    }
}

/// Tokens that must not be drawn before a position.
#[derive(Debug, Clone)]
pub struct Banned {
    /// The tokens.
    pub ids: Arc<[u32]>,
    /// The first position at which they may be drawn.
    pub before: u32,
}

/// A step that was launched.
#[derive(Debug)]
#[must_use = "a launched step must be collected"]
pub struct Ticket(pub u64);

/// What a step yielded.
#[derive(Debug, Default)]
pub struct StepOutput {
    /// One a `StepPlan::samples`, in order: the drawn token and those that follow right drafts.
    pub samples: Vec<Result<Vec<SampledToken>, SampleError>>,
    /// One a `StepPlan::prompt_logprobs`, in order.
    pub prompt_logprobs: Vec<TokenLogprobs>,
    /// How long the device was busy with it: what the scheduler plans the next steps by.
    pub took: Duration,
}
