//! Settings in two stages: what was typed, then what it resolves to.
//!
//! [`RawSettings`] is as close as possible to what the user typed: command-line
//! flags, `TARN_*` variables and `tarn.toml`, merged in that order of strength.
//! It touches nothing. [`Settings`] is the resolved form: every default filled in,
//! every combination checked; the command line builds the parts from it.
//!
//! Nothing else in Tarn reads the environment or a settings file.

mod byte_size;
mod device;
mod error;
mod lora;
mod raw;
mod settings;
mod speculation;

pub use byte_size::ByteSize;
pub use device::Device;
pub use error::ConfigError;
pub use lora::{LoraModule, LoraSettings};
pub use raw::RawSettings;
pub use settings::{
    EmbedSettings, EngineSettings, IngestSettings, ModelLocation, ModelSettings, RerankSettings,
    ServerSettings, Settings,
};
pub use speculation::Speculation;
