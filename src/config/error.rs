//! What can be wrong with settings.

use std::net::SocketAddr;
use std::path::PathBuf;

/// A setting that cannot be used, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The settings file could not be read.
    #[error("cannot read the settings file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The settings file is not valid.
    #[error("the settings file {} is not valid: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what, as the TOML reader says it.
        message: String,
    },
    /// A command needs a setting that nobody gave.
    #[error("no {what} given: pass --{flag} PATH_OR_REPO, set {env}, or `{flag} = …` in tarn.toml")]
    Missing {
        /// What is missing, in words.
        what: &'static str,
        /// The flag that gives it.
        flag: &'static str,
        /// The variable that gives it.
        env: &'static str,
    },
    /// A model was named that is neither a path nor a pulled repository.
    #[error(
        "{what} `{given}` is neither a folder, nor a .gguf file, nor a pulled model ({} does not exist): \
         check the path, or run `tarn models pull {given}` first",
        looked.display()
    )]
    NoSuchModel {
        /// Which role the model has.
        what: &'static str,
        /// What was typed.
        given: String,
        /// Where a pulled copy would be.
        looked: PathBuf,
    },
    /// A number is outside of what works.
    #[error("--{flag} is {given}, but must be {expected}")]
    OutOfRange {
        /// The flag.
        flag: &'static str,
        /// What was typed.
        given: String,
        /// What would be accepted.
        expected: &'static str,
    },
    /// An adapter was named in a way that means nothing.
    #[error("--lora-modules `{given}`: {message}")]
    LoraModule {
        /// What was typed.
        given: String,
        /// What is wrong with it.
        message: String,
    },
    /// A folder that must exist does not.
    #[error("--{flag} `{}` is not a folder: create it, or name another", given.display())]
    NoFolder {
        /// The flag.
        flag: &'static str,
        /// What was typed.
        given: PathBuf,
    },
    /// Two settings say the same in different ways.
    #[error("--{one} and --{other} say the same: leave one out")]
    Both {
        /// A flag.
        one: &'static str,
        /// Another.
        other: &'static str,
    },
    /// Beyond loopback without a key.
    #[error(
        "refusing to listen on {listen} without an API key: anyone who can reach this address could read every \
         document. Set an API key (--api-key or TARN_API_KEY), listen on 127.0.0.1, or pass --insecure"
    )]
    OpenWithoutKey {
        /// The address.
        listen: SocketAddr,
    },
    /// The listen address is not one.
    #[error("--listen `{given}` is not an address: use HOST:PORT, e.g. 127.0.0.1:9300 or [::1]:9300")]
    Listen {
        /// What was typed.
        given: String,
    },
    /// No home folder to keep pulled models in.
    #[error(
        "no folder for models: set --models-dir or TARN_MODELS_DIR (neither XDG_CACHE_HOME nor HOME is set)"
    )]
    NoModelsDir,
}
