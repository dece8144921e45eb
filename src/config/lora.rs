//! Adapters as vLLM's users name them.

use std::path::PathBuf;

use serde::Deserialize;

use super::{ConfigError, RawSettings};

/// An adapter to load at start.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraModule {
    /// The model name that requests use.
    pub name: String,
    /// Its PEFT folder.
    pub path: PathBuf,
    /// Never evicted.
    #[serde(default)]
    pub pinned: bool,
    /// vLLM's field; there is one base model, so it says nothing new.
    #[serde(default, rename = "base_model_name")]
    _base_model_name: Option<String>,
}

/// Adapters and their bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraSettings {
    /// Loaded at start.
    pub modules: Vec<LoraModule>,
    /// Adapters in memory.
    pub max_loras: usize,
    /// The largest rank.
    pub max_rank: usize,
    /// Where adapters may be loaded from while the server runs; `None`: from nowhere.
    pub dir: Option<PathBuf>,
}

impl LoraModule {
    /// The adapter in the folder `path`, as `name`.
    pub fn new(name: impl Into<String>, path: impl Into<PathBuf>) -> LoraModule {
        LoraModule { name: name.into(), path: path.into(), pinned: false, _base_model_name: None }
    }
}

impl LoraSettings {
    /// Whether there can be an adapter at all.
    pub fn possible(&self) -> bool {
        !self.modules.is_empty() || self.dir.is_some()
    }

    /// The adapter part of the settings.
    pub(super) fn resolve(raw: &RawSettings) -> Result<LoraSettings, ConfigError> {
        let mut modules = Vec::new();
        for typed in raw.lora_modules.iter().flatten() {
            read_modules(typed, &mut modules)?;
        }
        let max_loras =
            super::settings::in_range("max-loras", raw.max_loras.unwrap_or(8), 1, 4096, "1 to 4096")?;
        let max_rank = super::settings::in_range(
            "max-lora-rank",
            raw.max_lora_rank.unwrap_or(64),
            1,
            1024,
            "1 to 1024",
        )?;
        let mut names: Vec<&str> = modules.iter().map(|module| module.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(ConfigError::LoraModule {
                given: twice[0].to_owned(),
                message: "this name is given twice".to_owned(),
            });
        }
        let pinned = modules.iter().filter(|module| module.pinned).count();
        if pinned > max_loras {
            return Err(ConfigError::OutOfRange {
                flag: "max-loras",
                given: max_loras.to_string(),
                expected: "at least the number of pinned adapters",
            });
        }
        let dir = raw.lora_dir.clone();
        if let Some(dir) = dir.as_ref().filter(|dir| !dir.is_dir()) {
            return Err(ConfigError::NoFolder { flag: "lora-dir", given: dir.clone() });
        }
        Ok(LoraSettings { modules, max_loras, max_rank, dir })
    }
}

/// Adds what one value names: `NAME=PATH[,pinned]`, several with commas or blanks between them, or JSON.
fn read_modules(typed: &str, modules: &mut Vec<LoraModule>) -> Result<(), ConfigError> {
    let refuse = |given: &str, message: &str| {
        Err(ConfigError::LoraModule { given: given.to_owned(), message: message.to_owned() })
    };
    let first = modules.len();
    if typed.trim_start().starts_with(['{', '[']) {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Json {
            One(LoraModule),
            Several(Vec<LoraModule>),
        }
        match serde_json::from_str(typed) {
            Ok(Json::One(module)) => modules.push(module),
            Ok(Json::Several(several)) => modules.extend(several),
            Err(_) => {
                return refuse(
                    typed,
                    r#"as JSON it must be {"name": …, "path": …} with at most "pinned": true"#,
                );
            }
        }
    } else {
        for part in typed.split([',', ' ', '\t', '\n']).filter(|part| !part.is_empty()) {
            match (part.split_once('='), modules.last_mut()) {
                (Some((name, path)), _) => modules.push(LoraModule::new(name, path)),
                (None, Some(last)) if part == "pinned" => last.pinned = true,
                _ => {
                    return refuse(
                        part,
                        "it must be NAME=PATH; where other arguments follow, put them before it",
                    );
                }
            }
        }
    }
    match modules[first..].iter().find(|module| module.name.is_empty() || module.path.as_os_str().is_empty())
    {
        Some(_) => refuse(typed, "neither the name nor the path may be empty"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(typed: &[&str]) -> Result<LoraSettings, ConfigError> {
        let typed = typed.iter().map(|one| (*one).to_owned()).collect();
        LoraSettings::resolve(&RawSettings { lora_modules: Some(typed), ..RawSettings::default() })
    }

    #[test]
    fn modules_are_read_in_vllms_spellings() {
        let (plain, pinned) =
            (LoraModule::new("a", "/x"), LoraModule { pinned: true, ..LoraModule::new("b", "/y=z") });
        for typed in [
            &["a=/x", "b=/y=z,pinned"][..],
            &["a=/x b=/y=z,pinned"],
            &["a=/x,b=/y=z,pinned"],
            &[r#"{"name": "a", "path": "/x", "base_model_name": "m"}"#, "b=/y=z pinned"],
            &[r#"[{"name": "a", "path": "/x"}, {"name": "b", "path": "/y=z", "pinned": true}]"#],
        ] {
            let modules = resolve(typed).expect("resolves").modules;
            let seen: Vec<_> = modules.iter().map(|m| (m.name.as_str(), &m.path, m.pinned)).collect();
            let expected = [("a", &plain.path, false), ("b", &pinned.path, true)];
            assert_eq!(seen, expected, "{typed:?}");
        }
    }

    #[test]
    fn a_module_that_cannot_be_meant_is_refused_by_what_was_typed() {
        for (typed, said) in [
            (&["a=/x", "prompt"][..], "prompt"),
            (&["=/x"], "empty"),
            (&["pinned"], "pinned"),
            (&["a=/x", "a=/y"], "twice"),
            (&[r#"{"name": "a"}"#], "path"),
        ] {
            let message = resolve(typed).expect_err("refused").to_string();
            assert!(message.contains(said), "{typed:?}: {message}");
        }
        let raw = RawSettings {
            lora_modules: Some(vec!["a=/x,pinned".to_owned(), "b=/y,pinned".to_owned()]),
            max_loras: Some(1),
            ..RawSettings::default()
        };
        assert!(matches!(
            LoraSettings::resolve(&raw),
            Err(ConfigError::OutOfRange { flag: "max-loras", .. })
        ));
    }
}
