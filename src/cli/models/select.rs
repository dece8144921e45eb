//! Which files of a repository a pull gets.

use std::path::{Component, Path};

use super::error::PullError;
use super::hub::RemoteFile;
use super::pull::PullRequest;

/// The files of a repository that were asked for, or that a model needs.
pub(super) fn choose(request: &PullRequest, files: Vec<RemoteFile>) -> Result<Vec<RemoteFile>, PullError> {
    let repository = &request.repository;
    let all =
        |files: &[RemoteFile]| files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(file) = files.iter().find(|file| !stays_inside(&file.path)) {
        return Err(PullError::UnsafePath { path: file.path.clone() });
    }
    let chosen: Vec<RemoteFile> = match request.include.is_empty() {
        false => {
            let wanted = |path: &str| request.include.iter().any(|pattern| matches(pattern, path));
            files.iter().filter(|file| wanted(&file.path)).cloned().collect()
        }
        true => {
            let ggufs: Vec<&RemoteFile> = files.iter().filter(|file| file.path.ends_with(".gguf")).collect();
            let safetensors = files.iter().any(|file| file.path.ends_with(".safetensors"));
            if let (false, [first, _, ..]) = (safetensors, ggufs.as_slice()) {
                let first = first.path.clone();
                let files = ggufs.iter().map(|file| file.path.as_str()).collect::<Vec<_>>().join(", ");
                return Err(PullError::WhichGguf { repository: repository.clone(), first, files });
            }
            files.iter().filter(|file| a_model_needs(&file.path)).cloned().collect()
        }
    };
    if chosen.is_empty() {
        let patterns = match request.include.is_empty() {
            true => "what a model needs (*.safetensors, *.gguf, *.json)".to_owned(),
            false => request.include.join(", "),
        };
        return Err(PullError::NothingMatches {
            repository: repository.clone(),
            patterns,
            files: all(&files),
        });
    }
    Ok(chosen)
}

/// Weights in a format that Tarn reads, and what lies beside them; no other frameworks' copies.
fn a_model_needs(path: &str) -> bool {
    let elsewhere =
        ["onnx/", "openvino/", "coreml/", "original/", "."].iter().any(|folder| path.starts_with(folder));
    let kinds = [".safetensors", ".gguf", ".json", ".txt", ".model", ".jinja", "README.md", "LICENSE"];
    !elsewhere && !path.starts_with("consolidated") && kinds.iter().any(|kind| path.ends_with(kind))
}

/// Shell-like: `*` is any characters (also `/`), `?` one; all else is itself.
fn matches(pattern: &str, path: &str) -> bool {
    let mut rest = pattern.chars();
    match rest.next() {
        None => path.is_empty(),
        Some('*') => {
            let rest = rest.as_str();
            std::iter::once(path.len())
                .chain(path.char_indices().map(|(at, _)| at))
                .any(|at| matches(rest, &path[at..]))
        }
        Some(c) => {
            let mut chars = path.chars();
            chars.next().is_some_and(|first| c == '?' || c == first) && matches(rest.as_str(), chars.as_str())
        }
    }
}

fn stays_inside(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_are_shell_like_over_the_whole_path() {
        assert!(matches("*Q8_0.gguf", "sub/tiny.Q8_0.gguf"));
        assert!(matches("model-0000?-of-*.safetensors", "model-00001-of-00002.safetensors"));
        assert!(matches("config.json", "config.json") && !matches("config.json", "onnx/config.json"));
        assert!(!matches("*.json", "config.json.bak"));
    }
}
