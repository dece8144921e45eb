//! `tarn generate`.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use crate::config::Settings;
use crate::rag::{GenerateEvent, GenerateRequest, Prompt};

use super::plan::Roles;

/// What to continue.
#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    /// The prompt.
    prompt: String,
    /// Take the prompt as a chat message.
    #[arg(long)]
    chat: bool,
    /// Most tokens.
    #[arg(long, default_value_t = 256)]
    max_tokens: u32,
    /// 0 is greedy.
    #[arg(long)]
    temperature: Option<f32>,
    /// The same seed gives the same tokens.
    #[arg(long)]
    seed: Option<u64>,
    /// The adapter that answers: a name of --lora-modules, NAME=PATH, or an adapter's folder.
    #[arg(long, value_name = "NAME|NAME=PATH|DIR")]
    adapter: Option<String>,
}

pub(super) fn run(mut settings: Settings, args: GenerateArgs) -> anyhow::Result<ExitCode> {
    let adapter = match &args.adapter {
        Some(typed) => Some(super::adapters::chosen(&mut settings.lora, typed)?),
        None => None,
    };
    let runtime = super::parts::runtime()?;
    let alone = Roles { generator: true, embedder: false, reranker: false, serves: false };
    let window = super::plan::window(&settings, alone)?;
    let (generator, _engine) = super::parts::generator(&settings, window, None)?;
    let prompt = match args.chat {
        true => Prompt::chat(vec![json!({"role": "user", "content": args.prompt})], None),
        false => Prompt::Text(args.prompt),
    };
    let mut sampling = generator.default_sampling();
    sampling.temperature = args.temperature.unwrap_or(sampling.temperature);
    sampling.seed = args.seed;
    let request = GenerateRequest {
        max_tokens: Some(args.max_tokens),
        adapter: adapter.map(Arc::from),
        ..GenerateRequest::new(prompt, sampling)
    };
    runtime.block_on(async {
        let mut stream = generator.generate(request).await?;
        while let Some(event) = stream.next().await {
            if let GenerateEvent::Delta { text, .. } = event? {
                print!("{text}");
                std::io::stdout().flush()?;
            }
        }
        println!();
        anyhow::Ok(ExitCode::SUCCESS)
    })
}
