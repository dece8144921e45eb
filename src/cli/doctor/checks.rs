//! The things that are looked at.

use std::net::TcpListener;
use std::path::Path;

use anyhow::Context;
use tarn_kernels::gpu;

use super::Check;
use crate::config::{ModelLocation, Settings};
use crate::model::{ModelConfig, ModelSource, level_name};
use crate::text::ChatTemplate;

use super::super::device::{NoPlace, Place, place, products};
use super::super::plan::{Planned, Roles, plan};
use super::super::tokenizers::tokenizer;
use super::super::{adapters, encoders};

/// Open files below which many connections and a large lake run out of them.
const OPEN_FILES: u64 = 4096;

/// All checks, and the memory plans where the models' files allow one.
pub(super) fn all(settings: &Settings) -> (Vec<Check>, Option<Planned>) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut checks = vec![cpu(level_name())];
    checks.extend(device(place(settings.device)));
    checks.extend([
        threads(settings.threads, cores),
        open_files(rustix::process::getrlimit(rustix::process::Resource::Nofile).current),
        lake(&settings.lake),
        port(settings),
    ]);
    match &settings.model {
        Some(model) => checks.extend(generator(settings, &model.location)),
        None => checks.push(Check::warn("model", "none: nothing generates; --model names one")),
    }
    match &settings.embedder {
        Some(embedder) => checks.push(encoder("embedder", &embedder.location)),
        None => checks.push(Check::fail("embedder", "none: tarn serve needs one, --embedder names it")),
    }
    if let Some(reranker) = &settings.reranker {
        checks.push(encoder("reranker", &reranker.location));
    }
    let roles = Roles { generator: settings.model.is_some(), embedder: true, reranker: true, serves: true };
    match plan(settings, roles) {
        Ok(planned) => {
            checks.push(Check::of(
                "memory",
                planned.check().map(|()| "enough".to_owned()).map_err(|_| {
                    anyhow::anyhow!(
                        "too little: make a part of the table smaller by its setting, or raise --memory-utilization"
                    )
                }),
            ));
            (checks, Some(planned))
        }
        // What kept the plan from being made is said of the model above.
        Err(error) => {
            checks.push(Check::fail("memory", format!("cannot be planned: {error:#}")));
            (checks, None)
        }
    }
}

fn cpu(level: &str) -> Check {
    match level {
        "portable" => {
            Check::warn("cpu", "no AVX2: products run several times slower; use a newer x86-64 machine")
        }
        level => Check::ok("cpu", level),
    }
}

/// A machine without a GPU is well: that is what `auto` is for.
fn device(place: Result<Place, NoPlace>) -> Vec<Check> {
    let on_gpu = matches!(place, Ok(Place::Gpu(_)));
    let mut checks =
        vec![Check::of("device", place.map(|place| place.to_string()).map_err(anyhow::Error::from))];
    if on_gpu {
        checks.push(Check::ok("products", products(gpu::find_blas())));
    }
    checks
}

fn threads(threads: usize, cores: usize) -> Check {
    match threads {
        many if many > cores => Check::warn(
            "threads",
            format!("{many} on {cores} cores: they wait for each other; set --threads to at most {cores}"),
        ),
        _ => Check::ok("threads", format!("{threads} of {cores} cores")),
    }
}

fn open_files(limit: Option<u64>) -> Check {
    match limit {
        Some(limit) if limit < OPEN_FILES => Check::warn(
            "files",
            format!(
                "{limit} may be open at once: raise it to {OPEN_FILES} or more (ulimit -n, LimitNOFILE=)"
            ),
        ),
        Some(limit) => Check::ok("files", format!("{limit} may be open at once")),
        None => Check::ok("files", "as many as are wanted may be open at once"),
    }
}

fn lake(dir: &Path) -> Check {
    let try_it = || -> anyhow::Result<String> {
        let shown = dir.display();
        if !dir.exists() {
            let parent = dir.ancestors().skip(1).find(|above| above.as_os_str().is_empty() || above.exists());
            let parent = parent.filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
            tempfile::NamedTempFile::new_in(parent).with_context(|| {
                format!("{shown} is not there and cannot be made: {} is not writable", parent.display())
            })?;
            return Ok(format!("{shown} is not there yet and will be made"));
        }
        let file = tempfile::NamedTempFile::new_in(dir).with_context(|| {
            format!("{shown} is not writable: change its owner or mode, or name another --lake")
        })?;
        file.as_file()
            .try_lock()
            .with_context(|| format!("files in {shown} cannot be locked: put the lake on a local disk"))?;
        Ok(format!("{shown} is writable and lockable"))
    };
    Check::of("lake", try_it())
}

fn port(settings: &Settings) -> Check {
    let address = settings.server.listen;
    let free = TcpListener::bind(address).map(|_| format!("{address} is free")).with_context(|| {
        format!("{address} cannot be listened on: stop what runs there, or set --listen to another port")
    });
    match Check::of("port", free) {
        well if well.health != super::Health::Ok || address.ip().is_loopback() => well,
        _ if settings.server.api_keys.is_empty() => Check::warn(
            "port",
            format!("{address} is free, but open to anyone who reaches it: set --api-key"),
        ),
        well => well,
    }
}

fn generator(settings: &Settings, location: &ModelLocation) -> Vec<Check> {
    let source = match ModelSource::open(&location.path) {
        Ok(source) => source,
        Err(error) => return vec![Check::fail("model", error.to_string())],
    };
    let ModelConfig::Decoder(config) = source.config().clone() else {
        let path = location.path.display();
        return vec![Check::fail(
            "model",
            format!("{path} reads texts and does not generate: give it as --embedder or --reranker"),
        )];
    };
    let dummy = settings.model.as_ref().is_some_and(|model| model.dummy_weights);
    let weights = if dummy {
        Check::warn("model", "random weights, as --dummy-weights says: answers mean nothing")
    } else {
        Check::of(
            "model",
            source
                .inspect()
                .map(|summary| {
                    let (architecture, millions) = (&summary.architecture, summary.parameters / 1_000_000);
                    format!("{}: {architecture}, {millions} million parameters", location.name)
                })
                .map_err(anyhow::Error::from),
        )
    };
    let mut checks = vec![weights];
    let tokenizer = match tokenizer(&source) {
        Ok(tokenizer) => tokenizer,
        Err(error) => {
            checks.push(Check::fail("tokenizer", format!("{error:#}")));
            return checks;
        }
    };
    checks.push(Check::ok("tokenizer", format!("{} tokens", tokenizer.vocab_size())));
    checks.push(match source.chat_template() {
        Ok(None) => Check::warn(
            "template",
            "none: /v1/chat/completions refuses; use an instruction-tuned model, or /v1/completions",
        ),
        Ok(Some(template)) => Check::of(
            "template",
            ChatTemplate::compile(&template, tokenizer.bos(), tokenizer.eos())
                .map(|_| "compiles".to_owned())
                .map_err(anyhow::Error::from),
        ),
        Err(error) => Check::fail("template", error.to_string()),
    });
    if !settings.lora.modules.is_empty() {
        let loaded = adapters::adapters(&settings.lora, &config);
        checks.push(Check::of("adapters", loaded.map(|all| format!("{} load", all.list().len()))));
    }
    checks
}

fn encoder(role: &'static str, location: &ModelLocation) -> Check {
    let try_it = || -> anyhow::Result<String> {
        let (source, config) = encoders::open(location, role)?;
        source.inspect()?;
        tokenizer(&source)?;
        let (name, architecture) = (&location.name, &config.architecture);
        Ok(format!("{name}: {architecture}, texts of up to {} tokens", config.max_tokens))
    };
    Check::of(role, try_it())
}

#[cfg(test)]
mod tests {
    use super::super::Health;
    use super::*;
    use crate::config::RawSettings;

    fn settings(raw: RawSettings) -> Settings {
        Settings::resolve(RawSettings { models_dir: Some("/nonexistent".into()), ..raw }).expect("resolves")
    }

    #[test]
    fn machines_that_are_slow_or_short_are_warned_of() {
        assert_eq!(cpu("portable").health, Health::Warn);
        assert_eq!(cpu("AVX2 with FMA and F16C").health, Health::Ok);
        assert_eq!((threads(4, 4).health, threads(5, 4).health), (Health::Ok, Health::Warn));
        let health = |limit| open_files(limit).health;
        assert_eq!(
            (health(Some(1024)), health(Some(65_536)), health(None)),
            (Health::Warn, Health::Ok, Health::Ok)
        );
    }

    #[test]
    fn a_lake_is_tried_and_left_as_it_was() {
        let dir = tempfile::tempdir().expect("dir");
        assert_eq!(lake(dir.path()).health, Health::Ok);
        assert_eq!(lake(&dir.path().join("new/er")).health, Health::Ok);
        assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 0);
        let file = dir.path().join("file");
        std::fs::write(&file, "x").expect("writes");
        assert_eq!(lake(&file).health, Health::Fail);
        assert_eq!(lake(&file.join("below")).health, Health::Fail);
    }

    #[test]
    fn a_port_that_is_taken_fails_and_one_that_is_open_to_all_is_warned_of() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("listens");
        let at = taken.local_addr().expect("address").to_string();
        let listen = |at: &str| RawSettings { listen: Some(at.to_owned()), ..RawSettings::default() };
        let found = port(&settings(listen(&at)));
        assert!(found.health == Health::Fail && found.found.contains("--listen"), "{found:?}");
        drop(taken);
        assert_eq!(port(&settings(listen(&at))).health, Health::Ok);
        let open = RawSettings { insecure: Some(true), ..listen("0.0.0.0:0") };
        assert_eq!(port(&settings(open)).health, Health::Warn);
    }

    #[test]
    fn models_that_are_none_or_none_of_the_kind_fail_by_name() {
        let dir = tempfile::tempdir().expect("dir");
        let raw = RawSettings {
            model: Some(dir.path().to_string_lossy().into_owned()),
            lake: Some(dir.path().join("lake")),
            ..RawSettings::default()
        };
        let (checks, memory) = all(&settings(raw));
        let health = |name: &str| checks.iter().find(|check| check.name == name).map(|check| check.health);
        assert_eq!(health("model"), Some(Health::Fail));
        assert_eq!(health("embedder"), Some(Health::Fail));
        assert_eq!((health("memory"), memory.is_none()), (Some(Health::Fail), true));
        assert_eq!(health("reranker"), None);
    }
}
