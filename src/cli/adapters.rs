//! The adapters of a command: how they are read, and those that are there from the start.

use anyhow::Context;

use crate::config::{LoraModule, LoraSettings};
use crate::engine::Adapters;
use crate::model::{DecoderConfig, LoraAdapter, LoraOptions};

/// Adapters for the base model `config`, with the modules of the settings in memory.
pub(super) fn adapters(settings: &LoraSettings, config: &DecoderConfig) -> anyhow::Result<Adapters> {
    let (config, options) = (config.clone(), LoraOptions { max_rank: settings.max_rank });
    let adapters = Adapters::new(settings.max_loras, move |path| LoraAdapter::load(path, &config, options));
    for module in &settings.modules {
        load(&adapters, module)?;
    }
    Ok(adapters)
}

fn load(adapters: &Adapters, module: &LoraModule) -> anyhow::Result<()> {
    adapters
        .load(&module.name, &module.path, module.pinned)
        .with_context(|| format!("--lora-modules {}={}", module.name, module.path.display()))
}

/// What `--adapter` means: the name of a module, or `NAME=PATH` (or a folder), which becomes one.
///
/// Returns the name.
pub(super) fn chosen(settings: &mut LoraSettings, typed: &str) -> anyhow::Result<String> {
    if settings.modules.iter().any(|module| module.name == typed) {
        return Ok(typed.to_owned());
    }
    let module = match typed.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => LoraModule::new(name, path),
        _ if std::path::Path::new(typed).is_dir() => LoraModule::new(typed, typed),
        _ => anyhow::bail!(
            "--adapter `{typed}` is neither a name of --lora-modules, nor NAME=PATH, nor an adapter's folder"
        ),
    };
    let name = module.name.clone();
    anyhow::ensure!(
        settings.modules.iter().all(|other| other.name != name),
        "--adapter {typed}: --lora-modules has `{name}` already"
    );
    settings.modules.push(module);
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_is_named_or_becomes_a_module() {
        let dir = tempfile::tempdir().expect("dir");
        let folder = dir.path().to_str().expect("text");
        let mut settings = LoraSettings {
            modules: vec![LoraModule::new("med", "/m")],
            max_loras: 8,
            max_rank: 64,
            dir: None,
        };
        assert_eq!(chosen(&mut settings, "med").expect("known"), "med");
        assert_eq!(settings.modules.len(), 1);
        assert_eq!(chosen(&mut settings, "law=/l").expect("new"), "law");
        assert_eq!(chosen(&mut settings, folder).expect("folder"), folder);
        assert_eq!(settings.modules[1], LoraModule::new("law", "/l"));
        for wrong in ["nobody", "=/x", "med=/other"] {
            assert!(chosen(&mut settings, wrong).is_err(), "{wrong}");
        }
    }
}
