//! What can be wrong with a model.

use std::path::PathBuf;

/// Why a model cannot be opened, loaded or run. Each names the file or tensor and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Neither a model folder nor a GGUF file.
    #[error(
        "{} is not a model: expected a .gguf file, a folder with config.json and *.safetensors, or a folder with \
         exactly one .gguf file ({found})", path.display()
    )]
    NotAModel {
        /// What was opened.
        path: PathBuf,
        /// What was found there.
        found: String,
    },
    /// A JSON file is not what it should be.
    #[error("{} is not valid: {message}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A GGUF file is damaged or uses something that Tarn does not know.
    #[error("{}: {message}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong, by name.
        message: String,
    },
    /// An architecture that no code here computes.
    #[error(
        "architecture `{architecture}` is not supported; Tarn runs Llama, Mistral and Mixtral (generation), BERT and \
         XLM-RoBERTa (embedding)"
    )]
    UnknownArchitecture {
        /// Its name.
        architecture: String,
    },
    /// A setting of the model that no code here computes.
    #[error("the model's `{field}` is {value}, which Tarn does not support: {expected}")]
    UnsupportedConfig {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is supported.
        expected: String,
    },
    /// A field of the configuration is missing.
    #[error("the model's configuration has no `{field}`: the download may be incomplete")]
    MissingField {
        /// The field.
        field: String,
    },
    /// A tensor is missing.
    #[error("tensor `{name}` is missing in {}: the download may be incomplete, or the model is of another kind", path.display())]
    MissingTensor {
        /// Its name.
        name: String,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor `{name}` has shape {found:?}, but the configuration asks for {expected:?}")]
    TensorShape {
        /// Its name.
        name: String,
        /// What it has.
        found: Vec<usize>,
        /// What it must have.
        expected: Vec<usize>,
    },
    /// A tensor's type cannot be used.
    #[error("tensor `{name}` has type {found}, which Tarn does not read; it reads {expected}")]
    TensorType {
        /// Its name.
        name: String,
        /// Its type.
        found: String,
        /// What would work.
        expected: &'static str,
    },
    /// Another kind of model than the role needs.
    #[error("{name} is {found}, but {needed} is needed here")]
    WrongKind {
        /// The model.
        name: String,
        /// What it is.
        found: &'static str,
        /// What is needed.
        needed: &'static str,
    },
    /// An adapter that cannot be served.
    #[error("{}: {message}", path.display())]
    Adapter {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        message: String,
    },
    /// A tensor of an adapter that does not fit the base model.
    #[error(
        "{}: tensor `{name}` has shape {found:?}, but the base model and the adapter's rank ask for {expected:?}: it \
         was trained for another model", path.display()
    )]
    AdapterShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What it has.
        found: Vec<usize>,
        /// What it must have.
        expected: Vec<usize>,
    },
    /// A batch that does not fit the model or the cache (a bug of the caller).
    #[error("invalid batch: {what}")]
    Batch {
        /// What is wrong.
        what: String,
    },
    /// Something that the device's kernels have no room for.
    #[error("{what}")]
    DeviceLimit {
        /// What, and what to do.
        what: String,
    },
    /// An op refused its arguments.
    #[error(transparent)]
    Kernel(#[from] tarn_kernels::KernelError),
}

/// Result of this module.
pub(super) type Result<T> = std::result::Result<T, ModelError>;
