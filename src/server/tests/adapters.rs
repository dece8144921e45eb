//! Adapters over HTTP.

use std::path::{Path, PathBuf};

use super::*;
use crate::engine::Adapters;
use crate::model::{LoraAdapter, LoraOptions, ModelConfig, ModelError, ModelSource};
use crate::testing::tiny_adapters;

/// A server that loads adapters from `folder` by `load`.
fn serving(
    folder: &Path,
    load: impl Fn(&Path) -> Result<LoraAdapter, ModelError> + Send + Sync + 'static,
) -> Fixture {
    let mut fixture = fixture(&[]);
    let generator = fixture.state.generator.take().expect("generator");
    fixture.state.generator = Some(generator.with_adapters(Adapters::new(4, load)));
    fixture.state.adapters_dir = Some(folder.to_owned());
    fixture
}

fn unreadable(path: &Path) -> Result<LoraAdapter, ModelError> {
    Err(ModelError::NotAModel { path: path.to_owned(), found: "nothing".to_owned() })
}

async fn load(fixture: &Fixture, name: &str, path: &str) -> (StatusCode, String) {
    post(&fixture.state, "/v1/load_lora_adapter", json!({"lora_name": name, "lora_path": path})).await
}

#[tokio::test]
async fn nothing_is_loaded_where_no_folder_is_set() {
    let fixture = fixture(&[]);
    let (status, refusal) = load(&fixture, "a", "/tmp").await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(refusal.contains("--lora-dir"), "{refusal}");
    let unload = post(&fixture.state, "/v1/unload_lora_adapter", json!({"lora_name": "a"})).await;
    assert_eq!(unload.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn paths_outside_the_folder_are_refused_alike() {
    let dir = tempfile::tempdir().expect("dir");
    let folder = dir.path().join("adapters");
    std::fs::create_dir_all(folder.join("inside")).expect("folder");
    std::fs::create_dir(dir.path().join("beside")).expect("folder");
    std::os::unix::fs::symlink(dir.path().join("beside"), folder.join("link")).expect("link");
    std::fs::write(folder.join("file"), "x").expect("file");
    let fixture = serving(&folder, unreadable);
    for path in
        ["/etc", "/nowhere", "../beside", "../nowhere", "link", "file", ".", "", "inside/../..", "none"]
    {
        let (status, refusal) = load(&fixture, "a", path).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}: {refusal}");
        let refusal: Value = serde_json::from_str(&refusal).expect("json");
        let expected = format!("there is no adapter `{path}` in the folder of --lora-dir");
        assert_eq!(refusal["error"]["message"], expected);
    }
    let (status, refusal) = load(&fixture, "a", "inside").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "it was read: {refusal}");
    assert!(refusal.contains("\"param\":\"lora_path\""), "{refusal}");
}

#[tokio::test]
async fn names_of_adapters_are_checked() {
    let dir = tempfile::tempdir().expect("dir");
    std::fs::create_dir(dir.path().join("a")).expect("folder");
    let fixture = serving(dir.path(), unreadable);
    for name in ["", " ", "fake"] {
        let (status, refusal) = load(&fixture, name, "a").await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{name}");
        assert!(refusal.contains("\"param\":\"lora_name\""), "{refusal}");
    }
    for body in [
        json!({}),
        json!({"lora_name": "a"}),
        json!({"lora_path": "a"}),
        json!({"lora_name": 1, "lora_path": "a"}),
    ] {
        assert_eq!(post(&fixture.state, "/v1/load_lora_adapter", body).await.0, StatusCode::BAD_REQUEST);
    }
    let unknown = json!({"lora_name": "nobody", "lora_int_id": 7});
    let (status, refusal) = post(&fixture.state, "/v1/unload_lora_adapter", unknown).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{refusal}");
}

#[tokio::test]
async fn the_adapter_that_a_request_names_answers() {
    let mut fixture = fixture_with(&[], Some(lines()));
    let generator = fixture.state.generator.take().expect("generator");
    fixture.state.generator = Some(generator.with_adapters(tiny_adapters(2, &["mine"])));
    let chat = json!([{"role": "user", "content": "x"}]);
    for (path, ask) in [
        ("/v1/completions", json!({"prompt": "x", "max_tokens": 8, "temperature": 0})),
        ("/v1/chat/completions", json!({"messages": chat, "max_tokens": 8, "temperature": 0})),
        ("/v1/responses", json!({"input": "x", "max_output_tokens": 16, "temperature": 0})),
    ] {
        let mut said = Vec::new();
        for model in ["fake", "mine"] {
            let mut ask = ask.clone();
            ask["model"] = json!(model);
            let answer = parsed(&post(&fixture.state, path, ask).await);
            assert_eq!(answer["model"], model, "{path}");
            let choice = &answer["choices"][0];
            said.push([
                choice["text"].clone(),
                choice["message"].clone(),
                answer["output"][0]["content"].clone(),
            ]);
        }
        assert_ne!(said[0], said[1], "{path}: the fake runner answers otherwise with an adapter");
        assert!(said[0].iter().any(|text| !text.is_null()), "{path}");
    }
}

/// The folder of test models with an adapter in it, where there is one.
fn models() -> Option<PathBuf> {
    let dir = std::env::var_os("TARN_TEST_MODELS").map(PathBuf::from);
    let found = dir.filter(|dir| dir.join("random-mixtral-lora-1").exists());
    if found.is_none() {
        println!("not run: no models");
    }
    found
}

#[tokio::test]
async fn an_adapter_is_a_model_until_it_is_unloaded() {
    let Some(models) = models() else { return };
    let source = ModelSource::open(&models.join("random-mixtral")).expect("a model");
    let ModelConfig::Decoder(config) = source.config().clone() else { panic!("a decoder") };
    let fixture =
        serving(&models, move |path| LoraAdapter::load(path, &config, LoraOptions { max_rank: 64 }));
    let loaded = load(&fixture, "mine", "random-mixtral-lora-1").await;
    assert_eq!(loaded, (StatusCode::OK, "Success: LoRA adapter 'mine' added successfully.".to_owned()));
    let (status, refusal) = load(&fixture, "mine", "random-mixtral-lora-1").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{refusal}");
    let (_, card) = get(&fixture.state, "/v1/models/mine").await;
    let root = models.join("random-mixtral-lora-1").canonicalize().expect("path");
    assert_eq!((&card["parent"], &card["root"]), (&json!("fake"), &json!(root)));
    let ask = json!({"model": "mine", "prompt": "x", "max_tokens": 1});
    assert_eq!(parsed(&post(&fixture.state, "/v1/completions", ask.clone()).await)["model"], "mine");

    let mut again = json!({"lora_name": "mine", "lora_path": "random-mixtral", "load_inplace": true});
    let replaced = post(&fixture.state, "/v1/load_lora_adapter", again.clone()).await;
    assert_eq!(replaced.0, StatusCode::BAD_REQUEST, "no adapter is there");
    let (_, card) = get(&fixture.state, "/v1/models/mine").await;
    assert_eq!(card["root"], json!(root), "what was to be replaced stays");
    again["lora_path"] = json!("random-mixtral-lora-2");
    assert_eq!(post(&fixture.state, "/v1/load_lora_adapter", again).await.0, StatusCode::OK);
    let (_, card) = get(&fixture.state, "/v1/models/mine").await;
    assert!(card["root"].as_str().expect("root").ends_with("random-mixtral-lora-2"), "{card}");

    let unloaded = post(&fixture.state, "/v1/unload_lora_adapter", json!({"lora_name": "mine"})).await;
    assert_eq!(unloaded, (StatusCode::OK, "Success: LoRA adapter 'mine' removed successfully.".to_owned()));
    assert_eq!(post(&fixture.state, "/v1/completions", ask).await.0, StatusCode::NOT_FOUND);
    assert_eq!(get(&fixture.state, "/v1/models/mine").await.0, StatusCode::NOT_FOUND);
}
