//! `tarn embed`.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::config::Settings;
use crate::embed::{InputKind, Priority};

/// What to embed.
#[derive(Debug, Args)]
pub(super) struct EmbedArgs {
    /// The texts.
    #[arg(required = true)]
    texts: Vec<String>,
    /// Put the model's words for a query before each text.
    #[arg(long, conflicts_with = "passage")]
    query: bool,
    /// Put the model's words for a passage before each text.
    #[arg(long)]
    passage: bool,
}

pub(super) fn run(settings: Settings, args: EmbedArgs) -> anyhow::Result<ExitCode> {
    let runtime = super::parts::runtime()?;
    let (embed, _thread) = super::encoders::embedder(&settings, None, None)?;
    let kind = match (args.query, args.passage) {
        (true, _) => InputKind::Query,
        (_, true) => InputKind::Passage,
        _ => InputKind::Raw,
    };
    let vectors = runtime.block_on(embed.embed(kind, args.texts.clone(), Priority::Bulk))?;
    for (text, vector) in args.texts.iter().zip(vectors) {
        println!("{}", json!({"text": text, "embedding": vector}));
    }
    Ok(ExitCode::SUCCESS)
}
