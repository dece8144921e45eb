//! `tarn models list`.

use std::fs;
use std::path::Path;

use anyhow::Context;

/// One model that is here.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Local {
    /// `owner/name`.
    pub(super) name: String,
    /// Bytes of its whole files.
    pub(super) bytes: u64,
    /// Whether a pull of it was interrupted.
    pub(super) incomplete: bool,
}

/// Prints name and size of every pulled model.
pub(super) fn print(models_dir: &Path) -> anyhow::Result<()> {
    let models = list(models_dir)?;
    if models.is_empty() {
        println!(
            "no models in {}; get one with `tarn models pull smollm2-135m-instruct`",
            models_dir.display()
        );
    }
    for model in models {
        let note = if model.incomplete { "  (incomplete: pull again)" } else { "" };
        println!("{:<56} {:>12}{note}", model.name, indicatif::HumanBytes(model.bytes).to_string());
    }
    Ok(())
}

/// The models below `models_dir`, `<owner>/<name>/`, by name.
pub(super) fn list(models_dir: &Path) -> anyhow::Result<Vec<Local>> {
    let mut found = Vec::new();
    for owner in folders(models_dir)? {
        for name in folders(&models_dir.join(&owner))? {
            let mut model = Local { name: format!("{owner}/{name}"), bytes: 0, incomplete: false };
            measure(&models_dir.join(&model.name), &mut model)?;
            if model.bytes > 0 || model.incomplete {
                found.push(model);
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn measure(folder: &Path, model: &mut Local) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let metadata = fs::metadata(entry.path())?;
        match metadata.is_dir() {
            true => measure(&entry.path(), model)?,
            false if entry.path().extension().is_some_and(|extension| extension == "part") => {
                model.incomplete = true
            }
            false => model.bytes += metadata.len(),
        }
    }
    Ok(())
}

fn folders(inside: &Path) -> anyhow::Result<Vec<String>> {
    if !inside.exists() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(inside).with_context(|| inside.display().to_string())? {
        let entry = entry?;
        if entry.path().is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_listed_by_owner_and_name_with_their_sizes() {
        let dir = tempfile::tempdir().unwrap();
        let whole = dir.path().join("intfloat/e5");
        fs::create_dir_all(whole.join("1_Pooling")).unwrap();
        fs::write(whole.join("config.json"), b"{}").unwrap();
        fs::write(whole.join("1_Pooling/config.json"), b"{ }").unwrap();
        let half = dir.path().join("acme/half");
        fs::create_dir_all(&half).unwrap();
        fs::write(half.join("model.gguf.abc.part"), b"GGUF").unwrap();
        fs::create_dir_all(dir.path().join("acme/empty")).unwrap();
        let expected = [
            Local { name: "acme/half".to_owned(), bytes: 0, incomplete: true },
            Local { name: "intfloat/e5".to_owned(), bytes: 5, incomplete: false },
        ];
        assert_eq!(list(dir.path()).unwrap(), expected);
        assert_eq!(list(&dir.path().join("nowhere")).unwrap(), []);
    }
}
