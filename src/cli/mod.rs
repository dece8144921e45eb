//! The command line: one file a command. Builds the parts from [`crate::config`] and runs them.

mod adapters;
mod device;
mod doctor;
mod embed;
mod encoders;
mod engines;
mod generate;
mod gpu_check;
mod ingest;
mod machine_memory;
mod memory_plan;
pub mod models;
mod parts;
mod plan;
mod query;
mod serve;
mod tokenizers;
mod window;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{RawSettings, Settings};

/// Documents in, cited answers out: an LLM runtime, an OpenAI-compatible server and a lakehouse in one process.
#[derive(Debug, Parser)]
#[command(name = "tarn", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    settings: RawSettings,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the OpenAI API, RAG and the lake over HTTP.
    ///
    /// Example: tarn serve --model ./SmolLM2.gguf --embedder ./all-MiniLM-L6-v2 --lake ./lake
    Serve,
    /// Read documents into the lake.
    ///
    /// Example: tarn ingest --embedder ./all-MiniLM-L6-v2 --lake ./lake catalogue.pdf prices.xlsx folder/
    Ingest(ingest::IngestArgs),
    /// Ask the lake a question; the answer cites its sources.
    ///
    /// Example: tarn query --model ./SmolLM2.gguf --embedder ./all-MiniLM-L6-v2 "Which breakers are rated 16 A?"
    Query(query::QueryArgs),
    /// Complete a prompt, or answer it as a chat message.
    ///
    /// Example: tarn generate --model ./SmolLM2.gguf --chat "Name three uses of copper."
    Generate(generate::GenerateArgs),
    /// Embed texts; prints one JSON line a text.
    ///
    /// Example: tarn embed --embedder ./all-MiniLM-L6-v2 "first text" "second text"
    Embed(embed::EmbedArgs),
    /// Pull, list and inspect models.
    ///
    /// Example: tarn models pull sentence-transformers/all-MiniLM-L6-v2
    Models(models::ModelsArgs),
    /// Look at what would keep these settings from serving on this machine, and at the memory they take.
    ///
    /// Example: tarn doctor --model ./SmolLM2.gguf --embedder ./all-MiniLM-L6-v2 --lake ./lake
    Doctor(doctor::DoctorArgs),
    /// Run every device kernel on a GPU against its reference, and time ops and whole models there.
    ///
    /// Example: tarn gpu-check --json gpu.json
    GpuCheck(gpu_check::GpuCheckArgs),
    /// Parse one untrusted document (Tarn runs this itself).
    #[command(hide = true)]
    ParseWorker,
}

/// Parses the arguments, runs the command, prints an error with its causes.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if matches!(cli.command, Command::ParseWorker) {
        return crate::ingest::parse_worker_main();
    }
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let raw = cli.settings.with_file()?;
    // `models` works on repositories that are not there yet, so it must not resolve them.
    let raw = match &cli.command {
        Command::Models(_) => RawSettings { model: None, embedder: None, reranker: None, ..raw },
        _ => raw,
    };
    let settings = Settings::resolve(raw)?;
    crate::telemetry::init_logging(&settings.log, settings.log_json);
    match cli.command {
        Command::Serve => serve::run(settings),
        Command::Ingest(args) => ingest::run(settings, args),
        Command::Query(args) => query::run(settings, args),
        Command::Generate(args) => generate::run(settings, args),
        Command::Embed(args) => embed::run(settings, args),
        Command::GpuCheck(args) => gpu_check::run(settings, args),
        Command::Doctor(args) => doctor::run(settings, args),
        Command::Models(args) => {
            let (hub, token) = settings.hub;
            models::run(args, &models::ModelsSettings { models_dir: settings.models_dir, hub, token })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::ParseWorker => Ok(crate::ingest::parse_worker_main()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_and_every_command_shows_an_example() {
        let command = super::Cli::command();
        command.clone().debug_assert();
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            let about = sub.get_long_about().map(ToString::to_string).unwrap_or_default();
            assert!(about.contains("Example: tarn "), "{} has no example", sub.get_name());
        }
    }
}
