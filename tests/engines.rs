//! A whole engine on a real decoder: what several subjects ask of it.

use std::path::Path;

use serde_json::{Value, json};
use tarn::engine::{
    AdapterLease, EngineConfig, EngineError, EngineHandle, EngineStats, EngineThread, Event, EventStream,
    ModelRunner, Priority, Request, RequestId, RunnerError, SampledToken, SamplingParams, StepOutput,
    StepPlan, StepRunner, Ticket, start,
};
use tarn::model::{Decoder, DtypeChoice, Exec, KvCache, LoadOptions, ModelSource};

/// Most tokens of a step.
pub(crate) const BATCHED: usize = 64;

/// Longest context.
pub(crate) const WINDOW: usize = 256;

/// A Mixtral or Llama of two layers with a window for answers of some length; its weights follow from their names.
pub(crate) fn tiny(family: &str) -> Value {
    let mut config = json!({
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 128, "max_position_embeddings": WINDOW,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 1e4, "bos_token_id": 1, "eos_token_id": 2,
        "tie_word_embeddings": false,
    });
    let (architecture, model_type) = match family {
        "mixtral" => ("MixtralForCausalLM", "mixtral"),
        _ => ("LlamaForCausalLM", "llama"),
    };
    config["architectures"] = json!([architecture]);
    config["model_type"] = json!(model_type);
    if family == "mixtral" {
        config["num_local_experts"] = json!(8);
        config["num_experts_per_tok"] = json!(2);
    }
    config
}

/// What an engine is built with.
pub(crate) struct Build {
    pub(crate) config: EngineConfig,
    pub(crate) blocks: usize,
    pub(crate) max_rank: usize,
    pub(crate) threads: usize,
    /// The step with copied blocks that fails.
    pub(crate) fails: Option<Fails>,
}

impl Default for Build {
    fn default() -> Build {
        let config =
            EngineConfig { max_num_seqs: 16, max_num_batched_tokens: BATCHED, ..EngineConfig::default() };
        Build { config, blocks: 256, max_rank: 0, threads: 2, fails: None }
    }
}

/// When a step that copies blocks fails, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fails {
    /// Nothing was copied.
    Before,
    /// All of the step was carried out.
    After,
}

/// A [`ModelRunner`] one of whose steps fails.
struct Runner {
    inner: ModelRunner,
    fails: Option<Fails>,
}

impl StepRunner for Runner {
    fn num_blocks(&self) -> usize {
        self.inner.num_blocks()
    }

    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    fn max_model_len(&self) -> usize {
        self.inner.max_model_len()
    }

    fn launch(&mut self, plan: &StepPlan) -> Result<Ticket, RunnerError> {
        self.inner.launch(plan)
    }

    fn collect(&mut self, plan: &mut StepPlan, ticket: Ticket) -> Result<StepOutput, RunnerError> {
        let Some(fails) = self.fails.filter(|_| !plan.copies.is_empty()) else {
            return self.inner.collect(plan, ticket);
        };
        self.fails = None;
        if fails == Fails::After {
            self.inner.collect(plan, ticket)?;
        }
        Err(RunnerError { message: "asked to fail".to_owned() })
    }
}

/// A running engine.
pub(crate) struct Engine {
    pub(crate) handle: EngineHandle,
    _thread: EngineThread,
}

impl Engine {
    pub(crate) fn start(path: &Path, build: Build) -> Engine {
        let source = ModelSource::open(path).expect("opens");
        let batched = build.config.max_num_batched_tokens;
        let (blocks, fails) = (build.blocks, build.fails);
        let make = move || {
            let options = LoadOptions {
                dtype: DtypeChoice::Auto,
                max_num_batched_tokens: batched,
                max_num_seqs: batched,
                dummy_weights: false,
                exec: Exec::simd(build.threads),
                progress: None,
            };
            let decoder = Decoder::load(&source, options).map_err(|error| error.to_string())?;
            let decoder = decoder.with_adapters(build.max_rank).map_err(|error| error.to_string())?;
            let kv = KvCache::new(decoder.kv_spec(), blocks).map_err(|error| error.to_string())?;
            Ok(Runner { inner: ModelRunner::new(decoder, kv, WINDOW), fails })
        };
        Engine::start_with(build.config, make)
    }

    /// An engine on the runner that `make` makes.
    pub(crate) fn start_with<R: StepRunner + 'static>(
        config: EngineConfig,
        make: impl FnOnce() -> Result<R, String> + Send + 'static,
    ) -> Engine {
        let (handle, thread) = start(config, make).expect("starts");
        Engine { handle, _thread: thread }
    }

    pub(crate) fn submit(&self, ask: &Ask) -> EventStream {
        self.handle.submit(ask.request()).expect("accepted")
    }

    /// The answers to a request.
    pub(crate) fn answers(&self, ask: &Ask) -> Result<Vec<Vec<SampledToken>>, EngineError> {
        answers(self.submit(ask), ask.n)
    }

    /// The only answer to a request.
    pub(crate) fn answer(&self, ask: &Ask) -> Vec<SampledToken> {
        self.answers(ask).expect("an answer").remove(0)
    }

    /// What it says of itself once nobody waits.
    pub(crate) fn idle(&self) -> EngineStats {
        for _ in 0..2000 {
            let stats = self.handle.stats();
            if self.handle.open_requests() == 0 && stats.running == 0 && stats.blocks_used == 0 {
                return stats;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        panic!("blocks are held for nobody: {:?}", self.handle.stats());
    }
}

/// What is asked.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) prompt: Vec<u32>,
    pub(crate) tokens: u32,
    pub(crate) sampling: SamplingParams,
    pub(crate) n: u32,
    pub(crate) adapter: Option<AdapterLease>,
}

impl Ask {
    pub(crate) fn new(prompt: &[u32], tokens: u32, sampling: SamplingParams) -> Ask {
        Ask { prompt: prompt.to_vec(), tokens, sampling, n: 1, adapter: None }
    }

    pub(crate) fn request(&self) -> Request {
        Request {
            id: RequestId::new(),
            customer: "somebody".into(),
            priority: Priority::Interactive,
            cache_salt: None,
            prompt: self.prompt.clone(),
            sampling: self.sampling.clone(),
            max_tokens: self.tokens,
            min_tokens: 0,
            stop_token_ids: Vec::new(),
            n: self.n,
            deadline: None,
            adapter: self.adapter.clone(),
            constraint: None,
        }
    }
}

/// Ways to draw: greedy, from a nucleus, and under every penalty; with log probabilities.
pub(crate) fn ways(seed: u64) -> [SamplingParams; 3] {
    let greedy = SamplingParams { logprobs: Some(3), seed: Some(seed), ..SamplingParams::greedy() };
    let nucleus = SamplingParams { temperature: 0.8, top_p: 0.9, ..greedy.clone() };
    let penalties = SamplingParams {
        presence_penalty: 0.2,
        frequency_penalty: 0.3,
        repetition_penalty: 1.1,
        ..nucleus.clone()
    };
    [greedy, nucleus, penalties]
}

/// Waits for a request's answers.
pub(crate) fn answers(mut stream: EventStream, n: u32) -> Result<Vec<Vec<SampledToken>>, EngineError> {
    let mut all = vec![Vec::new(); n as usize];
    loop {
        match stream.blocking_next().expect("a terminal event comes") {
            Event::Token { index, token } => all[index as usize].push(token),
            Event::Prompt { .. } | Event::Finished { .. } => {}
            Event::Done(_) => return Ok(all),
            Event::Failed(error) => return Err(error),
        }
    }
}
