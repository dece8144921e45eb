//! The models that Tarn knows by a short name: `models/*.toml`, built into the program.

use std::collections::BTreeMap;

use serde::Deserialize;

/// What is known about a model. Hashes are given only where somebody has seen the files.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The short name.
    pub name: String,
    /// Its repository on the hub.
    pub repository: String,
    /// Which revision.
    pub revision: String,
    /// What it does.
    pub kind: Kind,
    /// The element type of its weights as stored.
    pub dtype: String,
    /// The licence of its weights.
    pub licence: String,
    /// The files that Tarn needs of the repository.
    pub include: Vec<String>,
    /// What is special about its chat template or prefixes.
    pub note: String,
    /// SHA-256 of files, by path.
    #[serde(default)]
    pub sha256: BTreeMap<String, String>,
}

/// What a model does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It continues text.
    Generator,
    /// It turns text into vectors.
    Embedder,
}

const SOURCES: [&str; 7] = [
    include_str!("../../../models/all-minilm-l6-v2.toml"),
    include_str!("../../../models/mistral-7b-instruct.toml"),
    include_str!("../../../models/mixtral-8x7b-instruct.toml"),
    include_str!("../../../models/multilingual-e5-base.toml"),
    include_str!("../../../models/multilingual-e5-large.toml"),
    include_str!("../../../models/multilingual-e5-small.toml"),
    include_str!("../../../models/smollm2-135m-instruct.toml"),
];

/// All manifests by name.
///
/// # Errors
/// A manifest that does not parse, which a test excludes.
pub fn manifests() -> Result<Vec<Manifest>, toml::de::Error> {
    SOURCES.iter().map(|source| toml::from_str(source)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_manifest_of_the_folder_is_built_in_and_is_named_as_its_file() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
            .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        files.sort();
        let names: Vec<String> = manifests().unwrap().into_iter().map(|manifest| manifest.name).collect();
        assert_eq!(names, files);
    }

    #[test]
    fn hashes_are_sha256_in_hex() {
        for manifest in manifests().unwrap() {
            for (file, hash) in manifest.sha256 {
                assert!(hash.len() == 64 && hex::decode(&hash).is_ok(), "{}: {file}", manifest.name);
            }
        }
    }
}
