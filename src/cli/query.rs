//! `tarn query`.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

use crate::config::Settings;
use crate::rag::{AnswerEvent, Mode, RagConfig, RagRequest, RagService};

use super::plan::Roles;

/// What to ask.
#[derive(Debug, Args)]
pub(super) struct QueryArgs {
    /// The question.
    question: String,
    /// Whose lake.
    #[arg(long, default_value = "default")]
    customer: String,
    /// How many passages.
    #[arg(long, default_value_t = 5)]
    top_k: usize,
    /// vector, text or hybrid.
    #[arg(long, default_value = "hybrid")]
    mode: String,
    /// Let --reranker order what was found.
    #[arg(long)]
    rerank: bool,
    /// Find passages only; needs no --model.
    #[arg(long)]
    no_answer: bool,
    /// Print the whole reply as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(settings: Settings, args: QueryArgs) -> anyhow::Result<ExitCode> {
    let mode: Mode = serde_json::from_value(serde_json::Value::String(args.mode.clone()))
        .map_err(|_| anyhow::anyhow!("--mode is `{}`, but must be vector, text or hybrid", args.mode))?;
    let runtime = super::parts::runtime()?;
    let reranker = settings.reranker.as_ref().filter(|_| args.rerank);
    let roles = Roles { generator: true, embedder: true, reranker: reranker.is_some(), serves: false };
    let window = (!args.no_answer).then(|| super::plan::window(&settings, roles)).transpose()?;
    let (embed, _embed_thread) = super::encoders::embedder(&settings, None, reranker)?;
    let (generator, _engine) = match window {
        None => (None, None),
        Some(window) => {
            let (generator, thread) = super::parts::generator(&settings, window, None)?;
            (Some(generator), Some(thread))
        }
    };
    let rag = RagService::new(super::parts::lakes(&settings)?, embed, generator, RagConfig::default());
    let mut request = RagRequest::new(args.customer, args.question);
    request.retrieve.top_k = args.top_k;
    request.retrieve.mode = mode;
    request.retrieve.rerank = args.rerank;
    request.generate = !args.no_answer;
    runtime.block_on(async {
        let mut stream = rag.answer(request).await?;
        while let Some(event) = stream.next().await {
            match event? {
                AnswerEvent::Delta { text } if !args.json => {
                    print!("{text}");
                    std::io::stdout().flush()?;
                }
                AnswerEvent::Done(answer) if args.json => {
                    println!("{}", serde_json::to_string_pretty(&answer)?)
                }
                AnswerEvent::Done(answer) => {
                    println!();
                    for citation in answer.citations {
                        let quote: String = citation.quote.split_whitespace().collect::<Vec<_>>().join(" ");
                        let place = citation.place.to_string();
                        let comma = if place.is_empty() { "" } else { ", " };
                        println!("[{}] {}{comma}{place}: \"{quote}\"", citation.marker, citation.name);
                    }
                    answer.warnings.iter().for_each(|warning| eprintln!("note: {warning}"));
                }
                _ => {}
            }
        }
        anyhow::Ok(ExitCode::SUCCESS)
    })
}
