//! `tarn models`: get models from a hub, list what is here, say what is in one.
//!
//! Pulled models lie as plain folders, `<models-dir>/<owner>/<name>/`, which every command
//! takes by path or as `owner/name`. The hub's own cache layout (blobs and links by commit)
//! was rejected: a user finds a folder of files, and can copy it.

mod error;
mod hub;
mod inspect;
mod list;
mod manifest;
mod progress;
mod pull;
mod select;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

pub use error::PullError;
pub use manifest::{Manifest, manifests};
pub use pull::{PullEvent, PullRequest, Pulled, pull};

/// Get models, list them, look into them.
#[derive(Debug, Args)]
pub struct ModelsArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ModelsCommand,
}

/// What `tarn models` can do.
#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// Get a model from the hub; an interrupted pull goes on where it stopped.
    #[command(after_help = "Examples:\n  tarn models pull smollm2-135m-instruct\n  \
        tarn models pull intfloat/multilingual-e5-small@main\n  \
        tarn models pull owner/model-GGUF --include '*Q8_0.gguf'")]
    Pull(PullArgs),
    /// List the models that are here.
    #[command(after_help = "Example:\n  tarn models list")]
    List,
    /// Say what a model folder or a .gguf file holds.
    #[command(after_help = "Example:\n  tarn models inspect ./SmolLM2-135M-Instruct.Q8_0.gguf")]
    Inspect(InspectArgs),
}

/// What to pull.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// A repository of the hub, `owner/name` or `owner/name@revision`, or the name of a manifest.
    pub model: String,
    /// Only files that match: `*` stands for any characters. May be given several times.
    #[arg(long, value_name = "PATTERN")]
    pub include: Vec<String>,
}

/// What to look into.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A model folder, a .gguf file, or a pulled `owner/name`.
    pub path: PathBuf,
    /// As a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Where models come from and where they go.
#[derive(Debug, Clone)]
pub struct ModelsSettings {
    /// The folder of pulled models.
    pub models_dir: PathBuf,
    /// The hub's address.
    pub hub: String,
    /// A token for it.
    pub token: Option<String>,
}

impl ModelsSettings {
    /// Where a repository's files lie, once pulled.
    pub fn folder(&self, repository: &str) -> PathBuf {
        self.models_dir.join(repository)
    }
}

/// Runs `tarn models …`.
///
/// # Errors
/// What went wrong, in words for the user.
pub fn run(args: ModelsArgs, settings: &ModelsSettings) -> anyhow::Result<()> {
    match args.command {
        ModelsCommand::Pull(args) => {
            let request = PullRequest::of(&args)?;
            let mut progress = progress::Progress::new();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(pull(&request, settings, &mut |event| progress.on(&event)))?;
            Ok(())
        }
        ModelsCommand::List => list::print(&settings.models_dir),
        ModelsCommand::Inspect(args) => inspect::print(&local(&args.path, settings), args.json),
    }
}

/// The path itself, or the folder of a pulled repository of that name.
fn local(path: &Path, settings: &ModelsSettings) -> PathBuf {
    let pulled = settings.models_dir.join(path);
    if !path.exists() && pulled.exists() { pulled } else { path.to_owned() }
}
