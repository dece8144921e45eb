//! Fields that completions and chat share, checked one by one.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::super::error::ApiError;
use super::fields::{Fields, Refused};
use crate::rag::{GenerateRequest, Generator, Prompt};

/// One text or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "it must be a text or a list of texts")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// OpenAI's fields and vLLM's additions that completions and chat share.
#[derive(Debug, Clone, Default)]
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
    best_of: Option<u32>,
    stop: Option<OneOrMany>,
    stop_token_ids: Option<Vec<u32>>,
    include_stop_str_in_output: Option<bool>,
    ignore_eos: Option<bool>,
    min_tokens: Option<u32>,
    skip_special_tokens: Option<bool>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    cache_salt: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct StreamOptions {
    include_usage: Option<bool>,
    continuous_usage_stats: Option<bool>,
}

/// What OpenAI or vLLM do and Tarn does not, with the values that ask for nothing.
const REFUSED: &[Refused] = &[
    ("suffix", &["\"\""]),
    ("tools", &["[]"]),
    ("tool_choice", &["\"none\"", "\"auto\""]),
    ("functions", &["[]"]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("modalities", &[r#"["text"]"#]),
    ("audio", &[]),
    ("prediction", &[]),
    ("web_search_options", &[]),
    ("reasoning_effort", &["\"none\""]),
    ("verbosity", &["\"medium\""]),
    ("service_tier", &["\"auto\"", "\"default\""]),
    ("store", &["false"]),
    ("continue_final_message", &["false"]),
    ("chat_template", &[]),
    ("documents", &["[]"]),
    ("retrieval", &[]),
    ("guided_whitespace_pattern", &[]),
    ("structural_tag", &[]),
    ("logits_processors", &["[]"]),
    ("bad_words", &["[]"]),
    ("allowed_token_ids", &[]),
    ("prompt_logprobs", &[]),
    ("prompt_embeds", &[]),
    ("priority", &["0"]),
    ("use_beam_search", &["false"]),
    ("length_penalty", &["1", "1.0"]),
    ("spaces_between_special_tokens", &["true"]),
    ("truncate_prompt_tokens", &[]),
    ("return_token_ids", &["false"]),
    ("return_tokens_as_token_ids", &["false"]),
    ("mm_processor_kwargs", &["{}"]),
    ("kv_transfer_params", &["{}"]),
    ("vllm_xargs", &["{}"]),
];

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

    /// Takes them out of a request, and refuses what is left of it and known.
    pub(in crate::server) fn take(fields: &mut Fields) -> Result<SamplingFields, ApiError> {
        let taken = SamplingFields {
            temperature: fields.take("temperature")?,
            top_p: fields.take("top_p")?,
            top_k: fields.take("top_k")?,
            min_p: fields.take("min_p")?,
            presence_penalty: fields.take("presence_penalty")?,
            frequency_penalty: fields.take("frequency_penalty")?,
            repetition_penalty: fields.take("repetition_penalty")?,
            logit_bias: fields.take("logit_bias")?,
            seed: fields.take("seed")?,
            n: fields.take("n")?,
            best_of: fields.take("best_of")?,
            stop: fields.take("stop")?,
            stop_token_ids: fields.take("stop_token_ids")?,
            include_stop_str_in_output: fields.take("include_stop_str_in_output")?,
            ignore_eos: fields.take("ignore_eos")?,
            min_tokens: fields.take("min_tokens")?,
            skip_special_tokens: fields.take("skip_special_tokens")?,
            max_tokens: fields.take("max_tokens")?,
            max_completion_tokens: fields.take("max_completion_tokens")?,
            stream: fields.take("stream")?,
            stream_options: fields.take("stream_options")?,
            cache_salt: fields.take("cache_salt")?,
        };
        fields.refuse(REFUSED)?;
        taken.agree()?;
        Ok(taken)
    }

    /// Refuses values that contradict each other.
    fn agree(&self) -> Result<(), ApiError> {
        let n = self.n.unwrap_or(1);
        if n == 0 || n > 128 {
            return Err(ApiError::invalid("n", format!("n is {n}, but must be 1 to 128")));
        }
        match self.best_of {
            Some(best) if best < n => {
                return Err(ApiError::invalid(
                    "best_of",
                    format!("best_of is {best}, but must be at least n, {n}"),
                ));
            }
            Some(best) if best > n => {
                return Err(ApiError::invalid(
                    "best_of",
                    "best_of is not supported: leave it out, or set it to n",
                ));
            }
            _ => {}
        }
        if let (Some(least), Some(most)) = (self.min_tokens, self.max_completion_tokens.or(self.max_tokens))
            && least > most
        {
            return Err(ApiError::invalid(
                "min_tokens",
                format!("min_tokens is {least}, but max_tokens {most}"),
            ));
        }
        if let Some(options) = &self.stream_options {
            if !self.streams() {
                return Err(ApiError::invalid("stream_options", "stream_options needs stream to be true"));
            }
            if options.continuous_usage_stats == Some(true) {
                return Err(ApiError::invalid(
                    "stream_options",
                    "continuous_usage_stats is not supported: leave it out",
                ));
            }
        }
        Ok(())
    }

    /// The generation of `prompt` that these fields ask for.
    pub(in crate::server) fn request(
        &self,
        generator: &Generator,
        prompt: Prompt,
        customer: &str,
    ) -> Result<GenerateRequest, ApiError> {
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
        sampling.repetition_penalty = self.repetition_penalty.unwrap_or(sampling.repetition_penalty);
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
        request.max_tokens = self.max_completion_tokens.or(self.max_tokens);
        request.customer = Arc::from(customer);
        request.cache_salt = self.cache_salt.as_deref().map(Arc::from);
        Ok(request)
    }
}
