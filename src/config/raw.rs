//! What the user typed: flags over `TARN_*` variables over `tarn.toml`.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;

use super::{ByteSize, ConfigError, Device, Speculation};

macro_rules! raw_settings {
    ($( $(#[doc = $doc:literal])+ $(#[arg($($arg:tt)*)])? $name:ident : $ty:ty ),+ $(,)?) => {
        /// Every setting as typed; `None` means nobody said anything.
        ///
        /// The same names are flags (`--kv-cache-mb`), variables (`TARN_KV_CACHE_MB`)
        /// and keys of `tarn.toml` (`kv-cache-mb`).
        #[derive(Debug, Clone, Default, Args, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        pub struct RawSettings {
            /// The settings file; `tarn.toml` in the current folder is read if it exists.
            #[arg(long, env = "TARN_CONFIG", value_name = "FILE", global = true)]
            #[serde(skip)]
            pub config: Option<PathBuf>,
            $( $(#[doc = $doc])+ $(#[arg($($arg)*)])? pub $name: Option<$ty>, )+
        }

        impl RawSettings {
            /// `self` where it says something, else `weaker`.
            fn over(self, weaker: RawSettings) -> RawSettings {
                RawSettings { config: self.config.or(weaker.config), $( $name: self.$name.or(weaker.$name), )+ }
            }
        }
    };
}

raw_settings! {
    /// The model that generates: a Hugging Face folder, a .gguf file, or a pulled repository.
    #[arg(long, env = "TARN_MODEL", value_name = "PATH_OR_REPO", global = true)]
    model: String,
    /// The name under which the model is served (default: its folder or file name).
    #[arg(long, env = "TARN_SERVED_MODEL_NAME", value_name = "NAME", global = true)]
    served_model_name: String,
    /// How the model writes calls of functions: hermes, mistral, mistral_args or llama3_json (default: what its chat
    /// template shows).
    #[arg(long, env = "TARN_TOOL_CALL_PARSER", value_name = "NAME", global = true)]
    tool_call_parser: String,
    /// The model that embeds: a BERT or XLM-R folder, or a pulled repository.
    #[arg(long, env = "TARN_EMBEDDER", value_name = "PATH_OR_REPO", global = true)]
    embedder: String,
    /// What stands before a query when it is embedded (default: e5's `query: ` for e5 models, else nothing).
    #[arg(long, env = "TARN_QUERY_PREFIX", value_name = "TEXT", global = true)]
    query_prefix: String,
    /// What stands before a passage when it is embedded (default: e5's `passage: ` for e5 models, else nothing).
    #[arg(long, env = "TARN_PASSAGE_PREFIX", value_name = "TEXT", global = true)]
    passage_prefix: String,
    /// The model that scores pairs of question and passage: a BERT or XLM-R cross-encoder's folder, or a pulled
    /// repository.
    #[arg(long, env = "TARN_RERANKER", value_name = "PATH_OR_REPO", global = true)]
    reranker: String,
    /// How question and passage become one text, with {query} and {document}, `\n` for a new line (default: the
    /// tokenizer's own form of a pair).
    #[arg(long, env = "TARN_RERANK_TEMPLATE", value_name = "TEXT", global = true)]
    rerank_template: String,
    /// The folder that holds the lake (default: ./lake).
    #[arg(long, env = "TARN_LAKE", value_name = "DIR", global = true)]
    lake: PathBuf,
    /// The address to listen on (default: 127.0.0.1:9300).
    #[arg(long, env = "TARN_LISTEN", value_name = "ADDR", global = true)]
    listen: String,
    /// The element type of weights: auto (as stored), f32, bf16, f16, or fp8 (e4m3 with a scale a row, in the layers of
    /// the generator).
    #[arg(long, env = "TARN_DTYPE", value_name = "auto|f32|bf16|f16|fp8", global = true)]
    dtype: String,
    /// Where models compute: auto (a GPU that can be used, else the CPU), cpu, or one GPU (default: auto).
    #[arg(long, env = "TARN_DEVICE", value_name = "auto|cpu|cuda:N", global = true)]
    device: Device,
    /// Worker threads that compute (default: all cores).
    #[arg(long, env = "TARN_THREADS", value_name = "N", global = true)]
    threads: usize,
    /// Random weights of the model's shapes instead of the files (for measuring).
    #[arg(long, env = "TARN_DUMMY_WEIGHTS", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", global = true)]
    dummy_weights: bool,
    /// The longest prompt plus answer, in tokens (default: the model's own, at most 8192).
    #[arg(long, env = "TARN_MAX_MODEL_LEN", value_name = "TOKENS", global = true)]
    max_model_len: usize,
    /// Memory for the KV cache, in bytes or such as 4GiB (default: 8 sequences of full length, at most 512 MiB or one
    /// of them, and at most what is left).
    #[arg(long, env = "TARN_KV_CACHE_BYTES", value_name = "SIZE", global = true)]
    kv_cache_bytes: ByteSize,
    /// The same in MiB.
    #[arg(long, env = "TARN_KV_CACHE_MB", value_name = "MIB", global = true)]
    kv_cache_mb: usize,
    /// The part of the machine's (or its control group's) memory, and of a GPU's, that this process may
    /// plan with (default: 0.9).
    #[arg(long, env = "TARN_MEMORY_UTILIZATION", value_name = "PART", global = true)]
    memory_utilization: f64,
    /// Adapters to load at start: NAME=PATH, `,pinned` keeps one in memory; several with blanks or commas, or vLLM's
    /// JSON `{"name": …, "path": …}`.
    #[arg(long, env = "TARN_LORA_MODULES", value_name = "NAME=PATH", num_args = 1.., global = true)]
    lora_modules: Vec<String>,
    /// Most adapters in memory; the least recently used makes room (default: 8).
    #[arg(long, env = "TARN_MAX_LORAS", value_name = "N", global = true)]
    max_loras: usize,
    /// The largest rank of an adapter (default: 64).
    #[arg(long, env = "TARN_MAX_LORA_RANK", value_name = "R", global = true)]
    max_lora_rank: usize,
    /// The folder from inside which adapters may be loaded while the server runs (default: none may).
    #[arg(long, env = "TARN_LORA_DIR", value_name = "DIR", global = true)]
    lora_dir: PathBuf,
    /// Most sequences in one engine step (default: 64).
    #[arg(long, env = "TARN_MAX_NUM_SEQS", value_name = "N", global = true)]
    max_num_seqs: usize,
    /// Most tokens in one engine step (default: 512).
    #[arg(long, env = "TARN_MAX_NUM_BATCHED_TOKENS", value_name = "TOKENS", global = true)]
    max_num_batched_tokens: usize,
    /// Most requests that wait; one more is answered 429 (default: 1024).
    #[arg(long, env = "TARN_MAX_WAITING", value_name = "N", global = true)]
    max_waiting: usize,
    /// Reuse the KV blocks of equal prompt beginnings (default: true).
    #[arg(long, env = "TARN_PREFIX_CACHE", value_name = "BOOL", global = true)]
    prefix_cache: bool,
    /// Guess tokens that a text repeats and check several in one step: auto, off, or the most guesses of a sequence in a
    /// step; answers are the same (default: auto).
    #[arg(long, env = "TARN_SPECULATION", value_name = "auto|off|N", global = true)]
    speculation: Speculation,
    /// A key that requests must carry as `Authorization: Bearer`; several with commas.
    #[arg(long, env = "TARN_API_KEY", value_name = "KEY[,KEY]", hide_env_values = true, global = true)]
    api_key: String,
    /// Listen beyond loopback without a key.
    #[arg(long, env = "TARN_INSECURE", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", global = true)]
    insecure: bool,
    /// The largest upload in MiB (default: 512).
    #[arg(long, env = "TARN_MAX_UPLOAD_MB", value_name = "MIB", global = true)]
    max_upload_mb: usize,
    /// Seconds that running requests get to finish after SIGTERM (default: 30).
    #[arg(long, env = "TARN_DRAIN_SECONDS", value_name = "S", global = true)]
    drain_seconds: u64,
    /// Seconds that one document may take to parse (default: 120).
    #[arg(long, env = "TARN_PARSE_SECONDS", value_name = "S", global = true)]
    parse_seconds: u64,
    /// MiB of memory that parsing one document may take (default: 2048).
    #[arg(long, env = "TARN_PARSE_MB", value_name = "MIB", global = true)]
    parse_mb: usize,
    /// The length of a chunk in tokens of the embedder (default: 200).
    #[arg(long, env = "TARN_CHUNK_TOKENS", value_name = "TOKENS", global = true)]
    chunk_tokens: usize,
    /// Days that replaced and deleted versions are kept (default: 7). Nothing removes older ones yet.
    #[arg(long, env = "TARN_RETENTION_DAYS", value_name = "DAYS", global = true)]
    retention_days: u32,
    /// End the process at this step of a commit, as a crash would (for tests of recovery).
    #[arg(long, env = "TARN_FAILPOINT", value_name = "STEP", hide = true, global = true)]
    failpoint: String,
    /// Where pulled models are kept (default: ~/.cache/tarn/models).
    #[arg(long, env = "TARN_MODELS_DIR", value_name = "DIR", global = true)]
    models_dir: PathBuf,
    /// The model hub's address (default: `https://huggingface.co`; `HF_ENDPOINT` is honoured).
    #[arg(long, env = "TARN_HUB", value_name = "URL", global = true)]
    hub: String,
    /// A token for the model hub (`HF_TOKEN` is honoured).
    #[arg(long, env = "TARN_HUB_TOKEN", value_name = "TOKEN", hide_env_values = true, global = true)]
    hub_token: String,
    /// What to log: error, warn, info, debug, trace, or a filter such as `tarn=debug` (default: info).
    #[arg(long, env = "TARN_LOG", value_name = "FILTER", global = true)]
    log: String,
    /// The form of log lines: text or json (default: text).
    #[arg(long, env = "TARN_LOG_FORMAT", value_name = "text|json", global = true)]
    log_format: String,
}

impl RawSettings {
    /// Completes flags and variables (which clap has merged) with the settings file and
    /// the two variables that the hub's own tools use.
    ///
    /// # Errors
    /// [`ConfigError::Read`] and [`ConfigError::Parse`] for the file; a file that was
    /// not asked for by name may be absent.
    pub fn with_file(self) -> Result<RawSettings, ConfigError> {
        let file = match &self.config {
            Some(path) => Self::from_file(path)?,
            None if Path::new("tarn.toml").exists() => Self::from_file(Path::new("tarn.toml"))?,
            None => RawSettings::default(),
        };
        let hub = RawSettings {
            hub: std::env::var("HF_ENDPOINT").ok(),
            hub_token: std::env::var("HF_TOKEN").ok(),
            ..RawSettings::default()
        };
        Ok(self.over(file).over(hub))
    }

    fn from_file(path: &Path) -> Result<RawSettings, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        toml::from_str(&text)
            .map_err(|err| ConfigError::Parse { path: path.to_owned(), message: err.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_is_stronger_than_the_file() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("t.toml");
        std::fs::write(&path, "threads = 7\nlisten = \"127.0.0.1:1\"\n").expect("write");
        let typed = RawSettings { config: Some(path), threads: Some(3), ..RawSettings::default() };
        let merged = typed.with_file().expect("merges");
        assert_eq!(merged.threads, Some(3));
        assert_eq!(merged.listen.as_deref(), Some("127.0.0.1:1"));
    }

    #[test]
    fn sizes_and_lists_are_written_in_the_file_as_toml_has_them() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("t.toml");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("write");
            RawSettings { config: Some(path.clone()), ..RawSettings::default() }.with_file()
        };
        for size in ["4294967296", "\"4GiB\""] {
            let merged =
                read(&format!("kv-cache-bytes = {size}\nlora-modules = [\"a=/x\", \"b=/y,pinned\"]"));
            let merged = merged.expect("merges");
            assert_eq!(merged.kv_cache_bytes, Some(ByteSize(1 << 32)));
            assert_eq!(merged.lora_modules, Some(vec!["a=/x".to_owned(), "b=/y,pinned".to_owned()]));
        }
        for (written, wanted) in [("3", Speculation::AtMost(3)), ("\"off\"", Speculation::Off)] {
            let merged = read(&format!("speculation = {written}")).expect("merges");
            assert_eq!(merged.speculation, Some(wanted));
        }
        assert_eq!(read("device = \"cuda:1\"").expect("merges").device, Some(Device::Cuda(1)));
        let message = read("kv-cache-bytes = \"4 apples\"").expect_err("refused").to_string();
        assert!(message.contains("4 apples"), "{message}");
    }

    #[test]
    fn an_unknown_key_in_the_file_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("t.toml");
        std::fs::write(&path, "treads = 7\n").expect("write");
        let typed = RawSettings { config: Some(path), ..RawSettings::default() };
        let message = typed.with_file().expect_err("refused").to_string();
        assert!(message.contains("treads"), "{message}");
    }
}
