//! Choices of completions, whole and in pieces.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::super::finish::{held_stop, stop_reason};
use super::super::logprobs;
use super::super::usage::StreamOptions;
use super::CompletionFields;
use crate::engine::Usage;
use crate::rag::{Choice, Finish, GenerateEvent, Generated, TokenText};

/// What every answer and event of a request repeats, and how its choices are written.
#[derive(Debug, Clone)]
pub(super) struct Rendering {
    pub(super) id: String,
    pub(super) created: i64,
    pub(super) model: String,
    /// Choices of a prompt.
    pub(super) n: u32,
    pub(super) fields: CompletionFields,
    pub(super) include_stop: bool,
}

impl Rendering {
    pub(super) fn chunk(&self, choices: Vec<Value>) -> Value {
        json!({"id": self.id, "object": "text_completion", "created": self.created, "model": self.model, "choices": choices})
    }

    fn choice(&self, index: u32, text: &str, logprobs: Value, finish: Option<&Finish>) -> Value {
        let stop = finish.map_or(Value::Null, stop_reason);
        json!({
            "index": index, "text": text, "logprobs": logprobs,
            "finish_reason": finish.map(Finish::as_openai), "stop_reason": stop,
        })
    }

    /// Those of `tokens`, where they were asked for.
    fn logprobs(&self, tokens: &[TokenText]) -> Value {
        self.fields.logprobs.map_or(Value::Null, |most| logprobs::completion(tokens, most, self.fields.names))
    }

    /// The choices of prompt number `at`: the `n` best of what was generated.
    pub(super) fn choices(&self, at: u32, generated: Generated) -> Vec<Value> {
        let Generated { prompt_token_ids, prompt_tokens, mut choices, .. } = generated;
        let echoed = if self.fields.echo { prompt_tokens.len() } else { 0 };
        if choices.len() > self.n as usize {
            choices.sort_by(|a, b| mean(b, echoed).total_cmp(&mean(a, echoed)));
            choices.truncate(self.n as usize);
        }
        let write = |(index, choice): (u32, Choice)| {
            let mut out =
                self.choice(index, &choice.text, self.logprobs(&choice.tokens), Some(&choice.finish));
            if let Some(most) = self.fields.prompt_logprobs {
                out["prompt_logprobs"] = logprobs::prompt(&prompt_tokens, most);
            }
            if self.fields.return_token_ids {
                let mut ids: Vec<u32> = choice.tokens[echoed..].iter().map(|token| token.id).collect();
                ids.extend(held_stop(&choice.finish, self.include_stop));
                out["prompt_token_ids"] = json!(prompt_token_ids);
                out["token_ids"] = json!(ids);
            }
            out
        };
        (at * self.n..).zip(choices).map(write).collect()
    }
}

/// OpenAI's rank of `best_of`: the mean log probability of an answer's tokens.
fn mean(choice: &Choice, echoed: usize) -> f32 {
    let own = &choice.tokens[echoed..];
    if own.is_empty() {
        // The end token is not among them: an answer without words has no rank of its own.
        return f32::NEG_INFINITY;
    }
    let sum: f32 = own.iter().filter_map(|token| token.logprob).sum();
    sum / own.len() as f32
}

/// How far one prompt's choices are.
#[derive(Debug, Default)]
struct Progress {
    prompt: Arc<[u32]>,
    /// Log probabilities of the prompt that begin the tokens of an echoing choice.
    echoed: usize,
    /// Tokens of each choice, once it has begun.
    tokens: HashMap<u32, u32>,
}

/// The choices of a stream.
#[derive(Debug)]
pub(super) struct StreamedChoices {
    rendering: Rendering,
    options: StreamOptions,
    prompts: HashMap<u32, Progress>,
}

impl StreamedChoices {
    pub(super) fn new(rendering: Rendering, options: StreamOptions) -> StreamedChoices {
        StreamedChoices { rendering, options, prompts: HashMap::new() }
    }

    /// The last chunk, where it was asked for.
    pub(super) fn last(&self, usage: &Usage) -> Option<Value> {
        self.options.last(self.rendering.chunk(Vec::new()), usage)
    }

    /// The chunk that an event of prompt number `at` becomes, if any.
    pub(super) fn take(&mut self, at: u32, event: GenerateEvent) -> Option<Value> {
        match event {
            GenerateEvent::Prompt { token_ids, tokens, .. } => {
                let echoed = if self.rendering.fields.echo { tokens.len() } else { 0 };
                self.prompts.insert(at, Progress { prompt: token_ids, echoed, ..Progress::default() });
                None
            }
            GenerateEvent::Delta { index, text, tokens } => {
                (!text.is_empty() || !tokens.is_empty()).then(|| self.chunk(at, index, &text, &tokens, None))
            }
            GenerateEvent::Finished { index, finish } => Some(self.chunk(at, index, "", &[], Some(&finish))),
            GenerateEvent::Done(_) => None,
        }
    }

    fn chunk(
        &mut self,
        at: u32,
        index: u32,
        text: &str,
        tokens: &[TokenText],
        finish: Option<&Finish>,
    ) -> Value {
        let Rendering { n, fields, include_stop, .. } = self.rendering;
        let logprobs = if tokens.is_empty() { Value::Null } else { self.rendering.logprobs(tokens) };
        let mut choice = self.rendering.choice(at * n + index, text, logprobs, finish);
        let progress = self.prompts.entry(at).or_default();
        let begun = progress.tokens.contains_key(&index);
        // With echo, the first tokens of a choice are the prompt's.
        let own = if fields.echo && !begun { progress.echoed } else { 0 };
        let mut ids: Vec<u32> = tokens[own.min(tokens.len())..].iter().map(|token| token.id).collect();
        ids.extend(finish.and_then(|finish| held_stop(finish, include_stop)));
        let count = progress.tokens.entry(index).or_default();
        *count += ids.len() as u32;
        let (prompt_tokens, completion_tokens) = (progress.prompt.len() as u32, *count);
        if fields.return_token_ids {
            choice["token_ids"] = json!(ids);
            if !begun {
                choice["prompt_token_ids"] = json!(progress.prompt);
            }
        }
        self.options.count(self.rendering.chunk(vec![choice]), prompt_tokens, completion_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::FinishReason;
    use crate::rag::TopToken;
    use crate::server::openai::logprobs::TokenNames;

    fn token(id: u32, logprob: f32) -> TokenText {
        let top = TopToken { id: 9, text: "t9".to_owned(), bytes: vec![9], logprob: -0.5 };
        TokenText {
            id,
            text: format!("t{id}"),
            bytes: vec![],
            offset: 0,
            logprob: Some(logprob),
            top: vec![top],
        }
    }

    fn generated(answers: &[&[f32]], echoed: &[f32]) -> Generated {
        let finish = Finish { reason: FinishReason::Stop(Some(7)), stop: None };
        let prompt_tokens: Vec<TokenText> = echoed.iter().map(|x| token(1, *x)).collect();
        let choice = |(index, logprobs): (u32, &&[f32])| {
            let own = logprobs.iter().map(|x| token(2, *x));
            let tokens = prompt_tokens.iter().cloned().chain(own).collect();
            Choice { index, text: index.to_string(), tokens, finish: finish.clone() }
        };
        let choices = (0..).zip(answers).map(choice).collect();
        Generated { prompt_token_ids: Arc::from([1]), prompt_tokens, choices, usage: Usage::default() }
    }

    fn rendering(n: u32, echo: bool) -> Rendering {
        let fields = CompletionFields {
            logprobs: None,
            prompt_logprobs: Some(1),
            echo,
            best_of: None,
            add_special_tokens: true,
            return_token_ids: true,
            names: TokenNames::Text,
        };
        Rendering { id: String::new(), created: 0, model: String::new(), n, fields, include_stop: false }
    }

    #[test]
    fn the_best_answers_are_the_likeliest_by_token() {
        // The sum of the third is the lowest and its mean the highest; what is echoed does not count, and an answer
        // without words is not the best.
        let answers: &[&[f32]] = &[&[-1.0], &[-0.7, -0.9], &[-0.5, -0.5, -0.5], &[-3.0], &[]];
        for echo in [false, true] {
            let echoed: &[f32] = if echo { &[-50.0] } else { &[] };
            let found = rendering(2, echo).choices(3, generated(answers, echoed));
            let texts: Vec<&str> = found.iter().filter_map(|choice| choice["text"].as_str()).collect();
            assert_eq!(texts, ["2", "1"]);
            assert_eq!((&found[0]["index"], &found[1]["index"]), (&json!(6), &json!(7)));
            assert_eq!(found[1]["token_ids"], json!([2, 2, 7]), "with the token that ended it");
        }
        let all = rendering(5, false).choices(0, generated(answers, &[]));
        assert_eq!(all[0]["text"], "0", "n of n are in order");
    }

    #[test]
    fn prompt_logprobs_have_the_prompts_own_token_first() {
        let found = rendering(1, false).choices(0, generated(&[&[-1.0]], &[-2.0]));
        let place = json!({"1": {"logprob": -2.0, "rank": null, "decoded_token": "t1"},
            "9": {"logprob": -0.5, "rank": 1, "decoded_token": "t9"}});
        assert_eq!(found[0]["prompt_logprobs"], json!([place]));
        assert_eq!(
            found[0]["prompt_logprobs"][0].as_object().expect("place").keys().next().expect("key"),
            "1"
        );
    }
}
