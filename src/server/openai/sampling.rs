//! Fields that completions and chat share, checked one by one.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::super::error::ApiError;
use super::fields::{Fields, Refused};
use super::usage::StreamOptions;
use crate::engine::{BitMask, Priority, SamplingParams};
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
    seed: Option<serde_json::Number>,
    n: Option<u32>,
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
    allowed_token_ids: Option<Vec<u32>>,
    truncate_prompt_tokens: Option<i64>,
    priority: Option<i64>,
}

/// What OpenAI or vLLM do and Tarn does not, with the values that ask for nothing.
const REFUSED: &[Refused] = &[
    ("suffix", &["\"\""]),
    ("best_of", &["1"]),
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
    ("prompt_logprobs", &[]),
    ("prompt_embeds", &[]),
    ("use_beam_search", &["false"]),
    ("length_penalty", &["1", "1.0"]),
    ("spaces_between_special_tokens", &["true"]),
    ("return_token_ids", &["false"]),
    ("return_tokens_as_token_ids", &["false"]),
    ("mm_processor_kwargs", &["{}"]),
    ("kv_transfer_params", &["{}"]),
    ("vllm_xargs", &["{}"]),
];

/// Tokens that `truncate_prompt_tokens: -1` leaves for an answer whose length is not said.
const ROOM_FOR_ANSWER: u32 = 16;

fn range(field: &str, value: Option<f32>, low: f32, high: f32) -> Result<(), ApiError> {
    match value {
        Some(x) if !(low..=high).contains(&x) => {
            Err(ApiError::invalid(field, format!("{field} is {x}, but must be {low} to {high}")))
        }
        _ => Ok(()),
    }
}

impl SamplingFields {
    /// Answers to a prompt.
    pub(super) fn n(&self) -> u32 {
        self.n.unwrap_or(1)
    }

    /// Whether what ended an answer is kept at its end.
    pub(super) fn includes_stop(&self) -> bool {
        self.include_stop_str_in_output.unwrap_or(false)
    }

    pub(super) fn stream_options(&self) -> StreamOptions {
        self.stream_options.unwrap_or_default()
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
            allowed_token_ids: fields.take("allowed_token_ids")?,
            truncate_prompt_tokens: fields.take("truncate_prompt_tokens")?,
            priority: fields.take("priority")?,
        };
        fields.refuse(REFUSED)?;
        taken.agree()?;
        Ok(taken)
    }

    /// Refuses values that contradict each other.
    fn agree(&self) -> Result<(), ApiError> {
        let n = self.n();
        if n == 0 || n > 128 {
            return Err(ApiError::invalid("n", format!("n is {n}, but must be 1 to 128")));
        }
        if let (Some(least), Some(most)) = (self.min_tokens, self.max_completion_tokens.or(self.max_tokens))
            && least > most
        {
            return Err(ApiError::invalid(
                "min_tokens",
                format!("min_tokens is {least}, but max_tokens {most}"),
            ));
        }
        if self.stream_options.is_some() && !self.streams() {
            return Err(ApiError::invalid("stream_options", "stream_options needs stream to be true"));
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
        let mut request = GenerateRequest::new(prompt, self.sampling(generator)?);
        let stop = match self.stop.clone() {
            None => Vec::new(),
            Some(OneOrMany::One(stop)) => vec![stop],
            Some(OneOrMany::Many(stops)) => stops,
        };
        request.stop = stop.into_iter().filter(|stop| !stop.is_empty()).collect();
        request.stop_token_ids = self.stop_token_ids.clone().unwrap_or_default();
        request.include_stop_str_in_output = self.includes_stop();
        request.ignore_eos = self.ignore_eos.unwrap_or(false);
        request.min_tokens = self.min_tokens.unwrap_or(0);
        request.skip_special_tokens = self.skip_special_tokens.unwrap_or(true);
        request.n = self.n();
        request.max_tokens = self.max_completion_tokens.or(self.max_tokens);
        request.keep_last = self.keep_last(generator.max_model_len())?;
        // vLLM: the lower, the sooner; 0 is the default.
        if self.priority.is_some_and(|priority| priority > 0) {
            request.priority = Priority::Batch;
        }
        request.customer = Arc::from(customer);
        request.cache_salt = self.cache_salt.as_deref().map(Arc::from);
        Ok(request)
    }

    /// How tokens are drawn; what is not said is as the model has it.
    fn sampling(&self, generator: &Generator) -> Result<SamplingParams, ApiError> {
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
        sampling.seed = self.seed()?;
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
        if let Some(allowed) = &self.allowed_token_ids {
            exclude_others(&mut sampling, allowed, vocab)?;
        }
        Ok(sampling)
    }

    /// Any whole number of 64 bits is a seed; -1 is none, as with vLLM.
    fn seed(&self) -> Result<Option<u64>, ApiError> {
        let Some(seed) = &self.seed else { return Ok(None) };
        match (seed.as_i64(), seed.as_u64()) {
            (Some(-1), _) => Ok(None),
            (Some(seed), _) => Ok(Some(seed as u64)),
            (None, Some(seed)) => Ok(Some(seed)),
            (None, None) => Err(ApiError::invalid(
                "seed",
                format!("seed is {seed}, but must be a whole number of 64 bits"),
            )),
        }
    }

    /// How many of the prompt's last tokens are kept; -1: as many as the window leaves beside the answer.
    fn keep_last(&self, max_model_len: usize) -> Result<Option<usize>, ApiError> {
        let Some(asked) = self.truncate_prompt_tokens else { return Ok(None) };
        if asked == -1 {
            let answer = self.max_completion_tokens.or(self.max_tokens).unwrap_or(ROOM_FOR_ANSWER) as usize;
            return Ok(Some(max_model_len.saturating_sub(answer).max(1)));
        }
        match usize::try_from(asked) {
            Ok(last) if (1..=max_model_len).contains(&last) => Ok(Some(last)),
            _ => Err(ApiError::invalid(
                "truncate_prompt_tokens",
                format!("truncate_prompt_tokens is {asked}, but must be -1 or 1 to {max_model_len}"),
            )),
        }
    }
}

/// Makes every token but `allowed` impossible.
fn exclude_others(sampling: &mut SamplingParams, allowed: &[u32], vocab: u32) -> Result<(), ApiError> {
    let wrong = |message: String| ApiError::invalid("allowed_token_ids", message);
    if allowed.is_empty() {
        return Err(wrong("allowed_token_ids must hold at least one id".to_owned()));
    }
    if let Some(id) = allowed.iter().find(|id| **id >= vocab) {
        return Err(wrong(format!("{id} is not a token id below {vocab}")));
    }
    let mut mask = BitMask::none(vocab as usize);
    allowed.iter().for_each(|id| mask.allow(*id));
    sampling.allowed = Some(Arc::new(mask));
    Ok(())
}
