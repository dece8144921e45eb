//! What folders' configurations read as.

use serde_json::json;

use super::*;

fn folder(files: &[(&str, Value)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("dir");
    for (name, json) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("folder");
        std::fs::write(path, json.to_string()).expect("writes");
    }
    dir
}

fn with(base: Value, extra: Value) -> Value {
    let (Value::Object(mut base), Value::Object(extra)) = (base, extra) else { panic!("objects") };
    base.extend(extra);
    Value::Object(base)
}

fn llama(extra: Value) -> Result<DecoderConfig> {
    let base = json!({"architectures": ["MistralForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128, "max_position_embeddings": 64});
    let dir = folder(&[("config.json", with(base, extra))]);
    match read(dir.path())? {
        ModelConfig::Decoder(config) => Ok(config),
        ModelConfig::Encoder(_) => panic!("a decoder"),
    }
}

fn bert(architecture: &str, files: &[(&str, Value)]) -> Result<ModelConfig> {
    let base = json!({"architectures": [architecture], "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128, "max_position_embeddings": 64});
    let mut all = vec![("config.json", base)];
    all.extend_from_slice(files);
    read(folder(&all).path())
}

#[test]
fn a_window_of_0_is_none_and_scaled_positions_reach_further() {
    assert_eq!(llama(json!({"sliding_window": 0})).expect("reads").sliding_window, None);
    assert_eq!(llama(json!({"sliding_window": 8})).expect("reads").sliding_window, Some(8));
    let reach = |kind: &str| {
        llama(json!({"rope_scaling": {"rope_type": kind, "factor": 4.0}})).expect("reads").max_positions
    };
    assert_eq!((reach("linear"), reach("dynamic"), reach("default")), (256, 256, 64));
}

#[test]
fn what_no_code_computes_is_refused_by_name() {
    let refused = |extra| llama(extra).expect_err("refused").to_string();
    let message = refused(json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}));
    assert!(message.contains("quantization_config") && message.contains("gptq"), "{message}");
    for extra in [
        json!({"partial_rotary_factor": 0.5}),
        json!({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    ] {
        assert!(refused(extra).contains("partial_rotary_factor"));
    }
    assert!(llama(json!({"partial_rotary_factor": 1.0, "quantization_config": null})).is_ok());
}

#[test]
fn a_reranker_has_one_label_and_says_what_its_logit_means() {
    let head = |architecture: &str, extra: Value| -> Result<Option<ScoringHead>> {
        let base = json!({"architectures": [architecture], "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128,
            "max_position_embeddings": 64});
        match read(folder(&[("config.json", with(base, extra))]).path())? {
            ModelConfig::Encoder(config) => Ok(config.head),
            ModelConfig::Decoder(_) => panic!("an encoder"),
        }
    };
    let one = json!({"id2label": {"0": "LABEL_0"}});
    let expected = |style, scale| Some(ScoringHead { style, scale });
    assert_eq!(head("BertModel", one.clone()).expect("reads"), None);
    assert_eq!(
        head("BertForSequenceClassification", one.clone()).expect("reads"),
        expected(HeadStyle::Pooler, ScoreScale::Sigmoid)
    );
    let raw = json!({"id2label": {"0": "LABEL_0"},
        "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}});
    assert_eq!(
        head("XLMRobertaForSequenceClassification", raw).expect("reads"),
        expected(HeadStyle::Classifier, ScoreScale::Logit)
    );
    // Without a word of labels transformers has two.
    for refused in [json!({}), json!({"id2label": {"0": "a", "1": "b", "2": "c"}})] {
        let message = head("BertForSequenceClassification", refused).expect_err("refused").to_string();
        assert!(message.contains("one label"), "{message}");
    }
}

#[test]
fn an_embedder_of_other_modules_or_heads_is_refused() {
    let refused =
        |architecture, files: &[(&str, Value)]| bert(architecture, files).expect_err("refused").to_string();
    let module = |kind: &str| json!({"type": format!("sentence_transformers.models.{kind}")});
    let modules = json!([module("Transformer"), module("Pooling"), module("Dense")]);
    assert!(refused("BertModel", &[("modules.json", modules)]).contains("Dense"));
    let two = json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true});
    assert!(refused("BertModel", &[("1_Pooling/config.json", two)]).contains("pooling_mode_mean_tokens"));
    assert!(refused("BertForTokenClassification", &[]).contains("labels tokens"));
    let plain = json!([module("Transformer"), module("Pooling"), module("Normalize")]);
    assert!(bert("BertModel", &[("modules.json", plain)]).is_ok());
}
