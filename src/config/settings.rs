//! What the typed settings resolve to.

mod engine;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{ConfigError, Device, LoraSettings, RawSettings};
use crate::lake::{FailAction, FailStep, Failpoints};
use crate::model::DtypeChoice;

pub use engine::EngineSettings;

/// Every setting with its default filled in and checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The generator, if one was named.
    pub model: Option<ModelSettings>,
    /// The embedder, if one was named.
    pub embedder: Option<EmbedSettings>,
    /// The model that scores pairs, if one was named.
    pub reranker: Option<RerankSettings>,
    /// Adapters.
    pub lora: LoraSettings,
    /// The part of the memory that this process may plan with.
    pub memory_utilization: f64,
    /// The lake's folder.
    pub lake: PathBuf,
    /// How long replaced and deleted versions stay.
    pub retention: Duration,
    /// Where a test wants the process to end.
    pub failpoints: Failpoints,
    /// Where models compute.
    pub device: Device,
    /// Threads that compute, for each owner thread's team.
    pub threads: usize,
    /// Element type of weights.
    pub dtype: DtypeChoice,
    /// The engine's limits.
    pub engine: EngineSettings,
    /// The server's limits.
    pub server: ServerSettings,
    /// Parsing and chunking.
    pub ingest: IngestSettings,
    /// Where pulled models are kept.
    pub models_dir: PathBuf,
    /// The hub's address and token.
    pub hub: (String, Option<String>),
    /// Log filter.
    pub log: String,
    /// Log lines as JSON.
    pub log_json: bool,
}

/// Where a model's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelLocation {
    /// A folder or a `.gguf` file that exists.
    pub path: PathBuf,
    /// The name that requests use.
    pub name: String,
}

/// The generator.
#[derive(Debug, Clone)]
pub struct ModelSettings {
    /// Files and name.
    pub location: ModelLocation,
    /// Random weights of the right shapes.
    pub dummy_weights: bool,
    /// The name of the way in which it writes calls of functions, if set.
    pub tool_call_parser: Option<String>,
}

/// The embedder.
#[derive(Debug, Clone)]
pub struct EmbedSettings {
    /// Files and name.
    pub location: ModelLocation,
    /// What stands before a query, if set.
    pub query_prefix: Option<String>,
    /// What stands before a passage, if set.
    pub passage_prefix: Option<String>,
}

/// The model that scores pairs.
#[derive(Debug, Clone)]
pub struct RerankSettings {
    /// Files and name.
    pub location: ModelLocation,
    /// How question and passage become one text; `None`: the tokenizer's own form of a pair.
    pub template: Option<String>,
}

/// The server's limits.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// Address.
    pub listen: SocketAddr,
    /// Keys, empty for none.
    pub api_keys: Vec<String>,
    /// Largest upload in bytes.
    pub max_upload_bytes: usize,
    /// Time to finish after SIGTERM.
    pub drain: Duration,
}

/// Parsing and chunking.
#[derive(Debug, Clone)]
pub struct IngestSettings {
    /// Wall time of one parse.
    pub parse_time: Duration,
    /// Memory of one parse in bytes.
    pub parse_bytes: u64,
    /// Tokens of one chunk.
    pub chunk_tokens: usize,
}

impl Settings {
    /// Fills in defaults and checks every value.
    ///
    /// # Errors
    /// The first setting that cannot be used, with what to do.
    pub fn resolve(raw: RawSettings) -> Result<Settings, ConfigError> {
        let models_dir = models_dir(&raw)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = in_range("threads", raw.threads.unwrap_or(cores), 1, 1024, "1 to 1024")?;
        let dtype = match raw.dtype.as_deref().unwrap_or("auto") {
            "auto" => DtypeChoice::Auto,
            "f32" => DtypeChoice::F32,
            "bf16" => DtypeChoice::BF16,
            "f16" => DtypeChoice::F16,
            "fp8" => DtypeChoice::Fp8,
            other => {
                return Err(ConfigError::OutOfRange {
                    flag: "dtype",
                    given: other.to_owned(),
                    expected: "auto, f32, bf16, f16 or fp8",
                });
            }
        };
        let model = match &raw.model {
            Some(given) => Some(ModelSettings {
                location: locate("model", given, raw.served_model_name.as_deref(), &models_dir)?,
                dummy_weights: raw.dummy_weights.unwrap_or(false),
                tool_call_parser: raw.tool_call_parser.clone(),
            }),
            None => None,
        };
        let embedder = match &raw.embedder {
            Some(given) => Some(EmbedSettings {
                location: locate("embedder", given, None, &models_dir)?,
                query_prefix: raw.query_prefix.clone(),
                passage_prefix: raw.passage_prefix.clone(),
            }),
            None => None,
        };
        let reranker = match &raw.reranker {
            Some(given) => Some(RerankSettings {
                location: locate("reranker", given, None, &models_dir)?,
                template: raw.rerank_template.as_deref().map(rerank_template).transpose()?,
            }),
            None => None,
        };
        let lora = LoraSettings::resolve(&raw)?;
        if let Some(model) = &model
            && let Some(module) = lora.modules.iter().find(|module| module.name == model.location.name)
        {
            return Err(ConfigError::LoraModule {
                given: module.name.clone(),
                message: "the base model has this name: choose another, or set --served-model-name"
                    .to_owned(),
            });
        }
        let memory_utilization = raw.memory_utilization.unwrap_or(0.9);
        if !(0.01..=1.0).contains(&memory_utilization) {
            return Err(ConfigError::OutOfRange {
                flag: "memory-utilization",
                given: memory_utilization.to_string(),
                expected: "a part of the memory, 0.01 to 1",
            });
        }
        Ok(Settings {
            model,
            embedder,
            reranker,
            lora,
            memory_utilization,
            lake: raw.lake.clone().unwrap_or_else(|| PathBuf::from("lake")),
            retention: Duration::from_secs(u64::from(raw.retention_days.unwrap_or(7)) * 86_400),
            failpoints: failpoints(raw.failpoint.as_deref())?,
            device: raw.device.unwrap_or_default(),
            threads,
            dtype,
            engine: EngineSettings::resolve(&raw)?,
            server: server(&raw)?,
            ingest: ingest(&raw)?,
            models_dir,
            hub: (raw.hub.unwrap_or_else(|| "https://huggingface.co".to_owned()), raw.hub_token),
            log: raw.log.unwrap_or_else(|| "info".to_owned()),
            log_json: match raw.log_format.as_deref().unwrap_or("text") {
                "text" => false,
                "json" => true,
                other => {
                    return Err(ConfigError::OutOfRange {
                        flag: "log-format",
                        given: other.to_owned(),
                        expected: "text or json",
                    });
                }
            },
        })
    }

    /// The generator, or an error that says how to name one.
    ///
    /// # Errors
    /// [`ConfigError::Missing`].
    pub fn need_model(&self) -> Result<&ModelSettings, ConfigError> {
        self.model.as_ref().ok_or(ConfigError::Missing { what: "model", flag: "model", env: "TARN_MODEL" })
    }

    /// The embedder, or an error that says how to name one.
    ///
    /// # Errors
    /// [`ConfigError::Missing`].
    pub fn need_embedder(&self) -> Result<&EmbedSettings, ConfigError> {
        self.embedder.as_ref().ok_or(ConfigError::Missing {
            what: "embedder",
            flag: "embedder",
            env: "TARN_EMBEDDER",
        })
    }
}

fn failpoints(given: Option<&str>) -> Result<Failpoints, ConfigError> {
    let Some(given) = given else { return Ok(Failpoints::default()) };
    let step = FailStep::ALL.into_iter().find(|step| format!("{step:?}") == given);
    let step = step.ok_or_else(|| ConfigError::OutOfRange {
        flag: "failpoint",
        given: given.to_owned(),
        expected: "a step of the commit, such as LanceAppended",
    })?;
    Ok(Failpoints(Some((step, FailAction::Abort))))
}

/// A template names both texts; `\n`, which a shell's line can hardly hold otherwise, is a new line.
fn rerank_template(given: &str) -> Result<String, ConfigError> {
    if given.matches("{query}").count() == 1 && given.matches("{document}").count() == 1 {
        return Ok(given.replace("\\n", "\n"));
    }
    Err(ConfigError::OutOfRange {
        flag: "rerank-template",
        given: given.to_owned(),
        expected: "a text with {query} and {document}, each once",
    })
}

fn server(raw: &RawSettings) -> Result<ServerSettings, ConfigError> {
    let given = raw.listen.clone().unwrap_or_else(|| "127.0.0.1:9300".to_owned());
    let listen = resolve_address(&given).ok_or(ConfigError::Listen { given })?;
    let api_keys: Vec<String> = raw
        .api_key
        .as_deref()
        .unwrap_or("")
        .split(',')
        .map(str::trim)
        .filter(|key| !key.is_empty())
        .map(str::to_owned)
        .collect();
    if !listen.ip().is_loopback() && api_keys.is_empty() && !raw.insecure.unwrap_or(false) {
        return Err(ConfigError::OpenWithoutKey { listen });
    }
    Ok(ServerSettings {
        listen,
        api_keys,
        max_upload_bytes: in_range(
            "max-upload-mb",
            raw.max_upload_mb.unwrap_or(512),
            1,
            1 << 20,
            "1 to 1048576",
        )? << 20,
        drain: Duration::from_secs(raw.drain_seconds.unwrap_or(30)),
    })
}

fn ingest(raw: &RawSettings) -> Result<IngestSettings, ConfigError> {
    let parse_mb = in_range("parse-mb", raw.parse_mb.unwrap_or(2048), 256, 1 << 20, "256 to 1048576")?;
    Ok(IngestSettings {
        parse_time: Duration::from_secs(raw.parse_seconds.unwrap_or(120).max(1)),
        parse_bytes: (parse_mb as u64) << 20,
        chunk_tokens: in_range("chunk-tokens", raw.chunk_tokens.unwrap_or(200), 32, 8192, "32 to 8192")?,
    })
}

/// `HOST:PORT` to an address; `localhost` and bare names go through the system's resolver.
fn resolve_address(given: &str) -> Option<SocketAddr> {
    use std::net::ToSocketAddrs;
    given.parse().ok().or_else(|| given.to_socket_addrs().ok()?.next())
}

pub(super) fn in_range(
    flag: &'static str,
    given: usize,
    low: usize,
    high: usize,
    expected: &'static str,
) -> Result<usize, ConfigError> {
    if (low..=high).contains(&given) {
        Ok(given)
    } else {
        Err(ConfigError::OutOfRange { flag, given: given.to_string(), expected })
    }
}

fn models_dir(raw: &RawSettings) -> Result<PathBuf, ConfigError> {
    if let Some(dir) = &raw.models_dir {
        return Ok(dir.clone());
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .ok_or(ConfigError::NoModelsDir)?;
    Ok(cache.join("tarn").join("models"))
}

/// A path that exists, or a pulled repository `<models_dir>/<owner>/<name>`.
fn locate(
    what: &'static str,
    given: &str,
    served_as: Option<&str>,
    models_dir: &Path,
) -> Result<ModelLocation, ConfigError> {
    let typed = PathBuf::from(given);
    if typed.exists() {
        let path = typed.canonicalize().unwrap_or(typed);
        let stem = if path.is_dir() { path.file_name() } else { path.file_stem() };
        let name = served_as.map_or_else(
            || stem.map_or_else(|| given.to_owned(), |name| name.to_string_lossy().into_owned()),
            str::to_owned,
        );
        return Ok(ModelLocation { path, name });
    }
    let pulled = models_dir.join(given);
    if given.split('/').all(|part| !part.is_empty() && !part.starts_with('.')) && pulled.is_dir() {
        return Ok(ModelLocation { path: pulled, name: served_as.unwrap_or(given).to_owned() });
    }
    Err(ConfigError::NoSuchModel { what, given: given.to_owned(), looked: pulled })
}

#[cfg(test)]
mod tests;
