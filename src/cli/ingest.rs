//! `tarn ingest`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::config::Settings;
use crate::ingest::{SourceFile, files_below};

/// What to ingest.
#[derive(Debug, Args)]
pub(super) struct IngestArgs {
    /// Files and folders.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Whose lake.
    #[arg(long, default_value = "default")]
    customer: String,
    /// A collection that the documents belong to; may be given several times.
    #[arg(long)]
    collection: Vec<String>,
}

pub(super) fn run(settings: Settings, args: IngestArgs) -> anyhow::Result<ExitCode> {
    let files = files_below(&args.files)?;
    let runtime = super::parts::runtime()?;
    let (embed, _thread) = super::parts::embedder(&settings)?;
    let pipeline = super::parts::pipeline(&settings, embed, super::parts::lakes(&settings)?)?;
    let terminal = std::io::stderr().is_terminal();
    let bar = if terminal { ProgressBar::new(files.len() as u64) } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::with_template("[{bar:30}] {pos}/{len} {msg}")?);
    let mut refused = 0;
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let source = SourceFile {
            source_uri: path.to_string_lossy().into_owned(),
            name: name.clone(),
            path,
            collections: args.collection.clone(),
            acl: Vec::new(),
        };
        let told = |what: &str| bar.set_message(format!("{name}: {what}"));
        let result = runtime.block_on(pipeline.ingest(&args.customer, source, &told));
        bar.inc(1);
        match result {
            Ok(outcome) if terminal => {
                let state = if outcome.unchanged { "unchanged" } else { "ingested" };
                bar.println(format!(
                    "{state:9} {name}: {} chunks, {} files inside",
                    outcome.chunks, outcome.children
                ));
                outcome.warnings.iter().for_each(|warning| bar.println(format!("          {warning}")));
            }
            Ok(outcome) => println!("{}", json!({"name": name, "outcome": outcome})),
            Err(error) => {
                refused += 1;
                if terminal {
                    bar.println(format!("refused   {error}"));
                } else {
                    println!("{}", json!({"name": name, "error": error.to_string()}));
                }
            }
        }
    }
    bar.finish_and_clear();
    Ok(if refused == 0 { ExitCode::SUCCESS } else { ExitCode::from(2) })
}
