//! What settings resolve to, and what is refused.

use super::*;

fn resolve(raw: RawSettings) -> Result<Settings, ConfigError> {
    Settings::resolve(RawSettings { models_dir: Some(PathBuf::from("/nonexistent")), ..raw })
}

#[test]
fn beyond_loopback_needs_a_key_or_insecure() {
    let open = |raw| resolve(RawSettings { listen: Some("0.0.0.0:9300".to_owned()), ..raw });
    assert!(matches!(open(RawSettings::default()), Err(ConfigError::OpenWithoutKey { .. })));
    assert!(open(RawSettings { api_key: Some("k".to_owned()), ..RawSettings::default() }).is_ok());
    assert!(open(RawSettings { insecure: Some(true), ..RawSettings::default() }).is_ok());
}

#[test]
fn a_model_that_is_nowhere_is_refused_with_the_command_that_gets_it() {
    let raw = RawSettings { model: Some("org/none".to_owned()), ..RawSettings::default() };
    let message = resolve(raw).expect_err("refused").to_string();
    assert!(message.contains("tarn models pull org/none"), "{message}");
}

#[test]
fn the_caches_size_is_given_once_in_bytes_or_mib() {
    let bytes = |bytes: Option<&str>, mb| {
        let bytes = bytes.map(|text| text.parse().expect("a size"));
        let raw = RawSettings { kv_cache_bytes: bytes, kv_cache_mb: mb, ..RawSettings::default() };
        resolve(raw).map(|settings| settings.engine.kv_cache_bytes)
    };
    assert_eq!(bytes(Some("1GiB"), None).expect("resolves"), Some(1 << 30));
    assert_eq!(bytes(None, Some(3)).expect("resolves"), Some(3 << 20));
    assert!(matches!(bytes(Some("1GiB"), Some(3)), Err(ConfigError::Both { .. })));
    assert!(bytes(Some("0"), None).is_err());
}

#[test]
fn a_template_for_pairs_names_both_texts() {
    assert_eq!(
        rerank_template(r"Query: {query}\nSentence: {document}").expect("valid"),
        "Query: {query}\nSentence: {document}"
    );
    assert!(rerank_template("{query}").is_err() && rerank_template("{query}{query}{document}").is_err());
}

#[test]
fn a_batch_smaller_than_the_running_sequences_is_refused() {
    let raw =
        RawSettings { max_num_seqs: Some(64), max_num_batched_tokens: Some(32), ..RawSettings::default() };
    assert!(matches!(resolve(raw), Err(ConfigError::OutOfRange { flag: "max-num-batched-tokens", .. })));
}
