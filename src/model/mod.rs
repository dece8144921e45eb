//! Weights and forward passes: one decoder (Llama, Mistral, Mixtral), one encoder (BERT, XLM-R).
//!
//! [`ModelSource`] opens a Hugging Face folder or a GGUF file; [`Decoder::load`] and [`Encoder::load`] bring the
//! weights into the kernels' one layout. A step's input is a [`ForwardBatch`] over a [`KvCache`]; both are defined
//! here and filled by `engine::runner`. Nothing here knows the engine, text or HTTP.

mod batch;
mod config;
mod decoder;
mod encoder;
mod error;
mod footprint;
mod gguf;
mod gguf_value;
mod hf_config;
mod lora;
mod rope_scaling;
mod source;
mod upload;
mod weights;

pub use batch::{ForwardBatch, KvCache, KvSpec, Logits, NO_ADAPTER};
pub use config::{
    Activation, DecoderConfig, EncoderConfig, HeadStyle, ModelConfig, MoeConfig, PositionStyle, RopeConfig,
    RopeScaling, ScoreScale, ScoringHead,
};
pub use decoder::{
    AdapterLoader, Decoder, DeviceAdapters, DeviceDecoder, DeviceFootprint, DeviceFormat, DeviceOptions,
    DeviceStep, ExpertProbe,
};
pub use encoder::{DeviceEncoder, DeviceEncoderOptions, Encoder};
pub use error::ModelError;
pub use footprint::Footprint;
pub use lora::{LoraAdapter, LoraOptions};
pub use source::{GenerationConfig, GgufVocab, ModelSource, ModelSummary, TokenizerSource};
pub use tarn_kernels::{Exec, Gate, Pooling, SeqSpan, Team, level_name};
pub use weights::{DtypeChoice, LoadOptions, LoadProgress};
