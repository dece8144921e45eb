//! Fields that completions and chat share, checked one by one.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::super::error::ApiError;
use crate::rag::{GenerateRequest, Generator, Prompt};

/// One text or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(in crate::server) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// OpenAI's fields and vLLM's additions. What is known and not there yet is refused by name.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(in crate::server) struct SamplingFields {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    repetition_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    seed: Option<i64>,
    n: Option<u32>,
    stop: Option<OneOrMany>,
    stop_token_ids: Option<Vec<u32>>,
    include_stop_str_in_output: Option<bool>,
    ignore_eos: Option<bool>,
    min_tokens: Option<u32>,
    skip_special_tokens: Option<bool>,
    pub(in crate::server) max_tokens: Option<u32>,
    pub(in crate::server) max_completion_tokens: Option<u32>,
    pub(in crate::server) stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    cache_salt: Option<String>,
    // Known, and refused unless they say nothing.
    best_of: Option<u32>,
    suffix: Option<String>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    response_format: Option<Value>,
    guided_json: Option<Value>,
    guided_regex: Option<Value>,
    guided_choice: Option<Value>,
    guided_grammar: Option<Value>,
    structured_outputs: Option<Value>,
    truncate_prompt_tokens: Option<i64>,
    use_beam_search: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct StreamOptions {
    include_usage: Option<bool>,
}

fn range(field: &str, value: Option<f32>, low: f32, high: f32) -> Result<(), ApiError> {
    match value {
        Some(x) if !(low..=high).contains(&x) => {
            Err(ApiError::invalid(field, format!("{field} is {x}, but must be {low} to {high}")))
        }
        _ => Ok(()),
    }
}

impl SamplingFields {
    pub(in crate::server) fn include_usage(&self) -> bool {
        self.stream_options.as_ref().and_then(|options| options.include_usage).unwrap_or(false)
    }

    pub(in crate::server) fn streams(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    fn refuse_what_is_not_there(&self) -> Result<(), ApiError> {
        let plain_text = |format: &Value| format.get("type").and_then(Value::as_str) == Some("text");
        let none = |choice: &Value| choice.as_str().is_some_and(|choice| matches!(choice, "none" | "auto"));
        let refused = [
            ("best_of", self.best_of.is_some_and(|best| best > self.n.unwrap_or(1))),
            ("suffix", self.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty())),
            ("tools", self.tools.as_ref().is_some_and(|tools| !tools.is_empty())),
            ("tool_choice", self.tool_choice.as_ref().is_some_and(|choice| !none(choice))),
            ("response_format", self.response_format.as_ref().is_some_and(|format| !plain_text(format))),
            ("guided_json", self.guided_json.is_some()),
            ("guided_regex", self.guided_regex.is_some()),
            ("guided_choice", self.guided_choice.is_some()),
            ("guided_grammar", self.guided_grammar.is_some()),
            ("structured_outputs", self.structured_outputs.is_some()),
            ("truncate_prompt_tokens", self.truncate_prompt_tokens.is_some()),
            ("use_beam_search", self.use_beam_search == Some(true)),
        ];
        match refused.iter().find(|(_, used)| *used) {
            Some((field, _)) => {
                Err(ApiError::invalid(*field, format!("{field} is not supported yet: leave it out")))
            }
            None => Ok(()),
        }
    }

    /// The generation of `prompt` that these fields ask for.
    pub(in crate::server) fn request(
        &self,
        generator: &Generator,
        prompt: Prompt,
        customer: &str,
    ) -> Result<GenerateRequest, ApiError> {
        self.refuse_what_is_not_there()?;
        range("temperature", self.temperature, 0.0, 2.0)?;
        range("top_p", self.top_p, f32::MIN_POSITIVE, 1.0)?;
        range("min_p", self.min_p, 0.0, 1.0)?;
        range("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        range("repetition_penalty", self.repetition_penalty, f32::MIN_POSITIVE, 10.0)?;
        let mut sampling = generator.default_sampling();
        sampling.temperature = self.temperature.unwrap_or(sampling.temperature);
        sampling.top_p = self.top_p.unwrap_or(sampling.top_p);
        sampling.min_p = self.min_p.unwrap_or(sampling.min_p);
        match self.top_k {
            Some(-1 | 0) => sampling.top_k = None,
            Some(k @ 1..=4_294_967_295) => sampling.top_k = Some(k as u32),
            Some(k) => {
                return Err(ApiError::invalid(
                    "top_k",
                    format!("top_k is {k}, but must be -1 or at least 1"),
                ));
            }
            None => {}
        }
        sampling.presence_penalty = self.presence_penalty.unwrap_or(0.0);
        sampling.frequency_penalty = self.frequency_penalty.unwrap_or(0.0);
        sampling.repetition_penalty = self.repetition_penalty.unwrap_or(1.0);
        sampling.seed = self.seed.map(|seed| seed as u64);
        let vocab = generator.engine().limits().vocab_size;
        for (id, bias) in self.logit_bias.iter().flatten() {
            let valid = id.parse::<u32>().ok().filter(|id| *id < vocab);
            let Some(id) = valid else {
                return Err(ApiError::invalid(
                    "logit_bias",
                    format!("`{id}` is not a token id below {vocab}"),
                ));
            };
            range("logit_bias", Some(*bias), -100.0, 100.0)?;
            sampling.logit_bias.push((id, *bias));
        }
        let mut request = GenerateRequest::new(prompt, sampling);
        let stop = match self.stop.clone() {
            None => Vec::new(),
            Some(OneOrMany::One(stop)) => vec![stop],
            Some(OneOrMany::Many(stops)) => stops,
        };
        request.stop = stop.into_iter().filter(|stop| !stop.is_empty()).collect();
        request.stop_token_ids = self.stop_token_ids.clone().unwrap_or_default();
        request.include_stop_str_in_output = self.include_stop_str_in_output.unwrap_or(false);
        request.ignore_eos = self.ignore_eos.unwrap_or(false);
        request.min_tokens = self.min_tokens.unwrap_or(0);
        request.skip_special_tokens = self.skip_special_tokens.unwrap_or(true);
        request.n = self.n.unwrap_or(1);
        if request.n == 0 || request.n > 128 {
            return Err(ApiError::invalid("n", format!("n is {}, but must be 1 to 128", request.n)));
        }
        request.max_tokens = self.max_completion_tokens.or(self.max_tokens);
        request.customer = Arc::from(customer);
        request.cache_salt = self.cache_salt.as_deref().map(Arc::from);
        Ok(request)
    }
}
