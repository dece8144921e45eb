//! `tarn ingest`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::config::Settings;
use crate::ingest::{IngestError, IngestOutcome, Pipeline, SourceFile, files_below, source_uri};

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
    let (embed, _thread) = super::encoders::embedder(&settings, None, None)?;
    let pipeline = super::parts::pipeline(&settings, embed, super::parts::lakes(&settings)?)?;
    let terminal = std::io::stderr().is_terminal();
    let bar = if terminal { ProgressBar::new(files.len() as u64) } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::with_template("[{bar:30}] {pos}/{len} {msg}")?);
    let mut sources = Vec::with_capacity(files.len());
    for path in files {
        sources.push(SourceFile {
            source_uri: source_uri(&path)?,
            name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            path,
            collections: args.collection.clone(),
            acl: Vec::new(),
        });
    }
    let mut failed = 0;
    let mut tell = |name: &str, result: Result<&IngestOutcome, &IngestError>| {
        bar.inc(1);
        failed += usize::from(result.is_err());
        if terminal { tell_person(&bar, name, result) } else { tell_program(name, result) }
    };
    for group in Pipeline::groups(sources) {
        let names: Vec<String> = group.iter().map(|source| source.name.clone()).collect();
        let shown = match &names[..] {
            [name] => name.clone(),
            names => format!("{} files", names.len()),
        };
        let told = |what: &str| bar.set_message(format!("{shown}: {what}"));
        match runtime.block_on(pipeline.ingest(&args.customer, group, &told)) {
            Ok(results) => names.iter().zip(&results).for_each(|(name, result)| tell(name, result.as_ref())),
            // It kept all of them out.
            Err(error) => names.iter().for_each(|name| tell(name, Err(&error))),
        }
    }
    bar.finish_and_clear();
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

fn tell_person(bar: &ProgressBar, name: &str, result: Result<&IngestOutcome, &IngestError>) {
    match result {
        Ok(outcome) => {
            let state = if outcome.unchanged { "unchanged" } else { "ingested" };
            bar.println(format!(
                "{state:9} {name}: {} chunks, {} files inside",
                outcome.chunks, outcome.children
            ));
            outcome.warnings.iter().for_each(|warning| bar.println(format!("          {warning}")));
        }
        Err(error @ IngestError::Refused { .. }) => bar.println(format!("refused   {error}")),
        Err(error) => bar.println(format!("failed    {name}: {error}")),
    }
}

fn tell_program(name: &str, result: Result<&IngestOutcome, &IngestError>) {
    match result {
        Ok(outcome) => println!("{}", json!({"name": name, "outcome": outcome})),
        Err(error) => println!("{}", json!({"name": name, "error": error.to_string()})),
    }
}
