//! What a model is, whatever file said so.

use super::error::{ModelError, Result};

/// A generator or an embedder.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelConfig {
    /// Generates tokens.
    Decoder(DecoderConfig),
    /// Embeds or scores.
    Encoder(EncoderConfig),
}

/// A Llama, Mistral or Mixtral.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// The architecture's name as the files give it.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside an MLP (of one expert).
    pub intermediate: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Longest context that the model was trained for.
    pub max_positions: usize,
    /// Epsilon of the norms.
    pub eps: f32,
    /// Positions.
    pub rope: RopeConfig,
    /// Keys that a query sees, itself included.
    pub sliding_window: Option<usize>,
    /// Whether the output head is the embedding table.
    pub tied: bool,
    /// Whether q, k, v (and o) have biases.
    pub attention_bias: bool,
    /// Experts, for Mixtral.
    pub moe: Option<MoeConfig>,
}

/// Experts of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MoeConfig {
    /// Experts.
    pub experts: usize,
    /// Experts a token.
    pub top_k: usize,
}

/// Rotary positions.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// How a longer context was reached.
    pub scaling: RopeScaling,
}

/// The scaling variants of rotary positions, with the names of Hugging Face's `rope_scaling`.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// Positions divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// NTK-aware base for contexts beyond the original; static here, at what `transformers` computes for the longest
    /// context (as vLLM has it): a base that grew with the text would make cached keys wrong.
    Dynamic {
        /// Growth over `original`.
        factor: f64,
        /// Positions of the original training.
        original: usize,
    },
    /// Llama 3: low frequencies divided, high ones kept, smooth between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths longer than `original / low` are divided.
        low: f64,
        /// Wavelengths shorter than `original / high` are kept.
        high: f64,
        /// Positions of the original training.
        original: usize,
    },
    /// YaRN (Peng et al. 2023).
    Yarn {
        /// The divisor.
        factor: f64,
        /// Positions of the original training.
        original: usize,
        /// Rotations below which a dimension is interpolated wholly.
        beta_slow: f64,
        /// Rotations above which a dimension is kept.
        beta_fast: f64,
        /// Multiplies cosines and sines; derived from the factor when absent.
        attention_factor: Option<f64>,
    },
    /// A divisor for each frequency (GGUF's `rope_freqs.weight`).
    Factors(Vec<f32>),
}

/// How an encoder counts positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PositionStyle {
    /// From 0 (BERT).
    Absolute,
    /// From `padding_idx + 1` (RoBERTa, XLM-R).
    Offset(usize),
}

/// The activation of an encoder's MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// By the error function.
    GeluErf,
    /// The tanh approximation.
    GeluTanh,
    /// Rectified.
    Relu,
}

/// What scores a text, above the token states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadStyle {
    /// BERT: the pooler (dense, tanh) on the first token, then `classifier`.
    Pooler,
    /// RoBERTa and XLM-R: `classifier.dense`, tanh, `classifier.out_proj`, on the first token.
    Classifier,
}

/// How a logit becomes a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoreScale {
    /// Between 0 and 1.
    Sigmoid,
    /// As it is.
    Logit,
}

/// A head of one label: a cross-encoder's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScoringHead {
    /// Its layers.
    pub style: HeadStyle,
    /// What sentence-transformers, and vLLM with it, make of its logit.
    pub scale: ScoreScale,
}

/// A BERT or XLM-R.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    /// The architecture's name as the files give it.
    pub architecture: String,
    /// Width.
    pub hidden: usize,
    /// Width inside the MLP.
    pub intermediate: usize,
    /// Layers.
    pub layers: usize,
    /// Heads.
    pub heads: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Rows of the position table.
    pub position_rows: usize,
    /// Rows of the token-type table (0: none).
    pub type_rows: usize,
    /// Epsilon of the norms.
    pub eps: f32,
    /// Activation.
    pub activation: Activation,
    /// Where positions start.
    pub positions: PositionStyle,
    /// Longest input in tokens, special tokens included.
    pub max_tokens: usize,
    /// How token states become one vector.
    pub pooling: tarn_kernels::Pooling,
    /// Whether vectors are brought to norm 1.
    pub normalize: bool,
    /// What scores pairs; `None` for an embedder.
    pub head: Option<ScoringHead>,
}

impl Activation {
    /// As the kernels name it.
    pub(super) fn kind(self) -> tarn_kernels::GeluKind {
        match self {
            Activation::GeluErf => tarn_kernels::GeluKind::Erf,
            Activation::GeluTanh => tarn_kernels::GeluKind::Tanh,
            Activation::Relu => tarn_kernels::GeluKind::Relu,
        }
    }
}

impl ScoreScale {
    /// The score that `logit` means.
    #[must_use]
    pub fn of(self, logit: f32) -> f32 {
        match self {
            ScoreScale::Sigmoid => 1.0 / (1.0 + (-logit).exp()),
            ScoreScale::Logit => logit,
        }
    }
}

impl DecoderConfig {
    /// Checks what the code relies on.
    ///
    /// # Errors
    /// [`ModelError::UnsupportedConfig`].
    pub fn check(self) -> Result<DecoderConfig> {
        let refuse = |field, value: usize, expected: &str| {
            Err(ModelError::UnsupportedConfig {
                field,
                value: value.to_string(),
                expected: expected.to_owned(),
            })
        };
        for (field, value) in [
            ("hidden_size", self.hidden),
            ("intermediate_size", self.intermediate),
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("vocab_size", self.vocab),
            ("max_position_embeddings", self.max_positions),
        ] {
            if value == 0 || value > 1 << 24 {
                return refuse(field, value, "a number from 1 to 16777216");
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) || self.heads / self.kv_heads > 24 {
            return refuse(
                "num_key_value_heads",
                self.kv_heads,
                "a divisor of num_attention_heads, at most 24 to one",
            );
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) || self.head_dim > 256 {
            return refuse("head_dim", self.head_dim, "an even number up to 256");
        }
        if let Some(moe) = self.moe
            && (moe.experts == 0 || moe.top_k == 0 || moe.top_k > moe.experts || moe.experts > 1024)
        {
            return refuse("num_experts_per_tok", moe.top_k, "at least 1 and at most num_local_experts");
        }
        Ok(self)
    }
}

impl EncoderConfig {
    /// Checks what the code relies on.
    ///
    /// # Errors
    /// [`ModelError::UnsupportedConfig`].
    pub fn check(self) -> Result<EncoderConfig> {
        if self.hidden == 0
            || self.heads == 0
            || !self.hidden.is_multiple_of(self.heads)
            || self.hidden / self.heads > 256
        {
            return Err(ModelError::UnsupportedConfig {
                field: "num_attention_heads",
                value: self.heads.to_string(),
                expected: "a divisor of hidden_size, with heads of at most 256".to_owned(),
            });
        }
        if self.max_tokens == 0 || self.vocab == 0 || self.layers == 0 || self.intermediate == 0 {
            return Err(ModelError::MissingField { field: "max_position_embeddings".to_owned() });
        }
        Ok(self)
    }
}
