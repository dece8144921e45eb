//! vLLM's `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`.
//!
//! A path in a request would let whoever holds a key look around in the file system. So nothing is loaded unless the
//! server names a folder for it, only what lies in that folder is, and every other path gets the same refusal, whether
//! something is there or not.

use std::path::{Path, PathBuf};

use axum::extract::State;

use super::super::AppState;
use super::super::error::{ApiError, Body};
use super::fields::{Fields, Refused};
use super::models::is_base;
use crate::engine::Adapters;

/// Longest name of an adapter, in bytes.
const LONGEST_NAME: usize = 256;

/// What vLLM takes beside a name and a path.
const REFUSED: &[Refused] = &[("base_model_name", &[]), ("is_3d_lora_weight", &["false"])];

fn open(state: &AppState) -> Result<(Adapters, PathBuf), ApiError> {
    let closed = "adapters cannot be loaded over HTTP here: start the server with --lora-dir, the folder that they are in";
    let folder = state.adapters_dir.clone().ok_or_else(|| ApiError::forbidden(closed))?;
    let adapters = state.generator.as_ref().and_then(|generator| generator.adapters().cloned());
    let adapters =
        adapters.ok_or_else(|| ApiError::bad_request("no model is served here that takes adapters"))?;
    Ok((adapters, folder))
}

fn name(fields: &mut Fields) -> Result<String, ApiError> {
    let name: String = fields.need("lora_name")?;
    if name.trim().is_empty() || name.len() > LONGEST_NAME {
        let message = format!("lora_name must be a name of at most {LONGEST_NAME} bytes");
        return Err(ApiError::invalid("lora_name", message));
    }
    Ok(name)
}

pub(in crate::server) async fn load(
    State(state): State<AppState>,
    Body(mut fields): Body<Fields>,
) -> Result<String, ApiError> {
    let (adapters, folder) = open(&state)?;
    let name = name(&mut fields)?;
    let path: PathBuf = fields.need("lora_path")?;
    let in_place = fields.take("load_inplace")?.unwrap_or(false);
    let pinned: Option<bool> = fields.take("pinned")?;
    fields.refuse(REFUSED)?;
    if is_base(&state, &name) {
        return Err(ApiError::invalid(
            "lora_name",
            format!("`{name}` is the name of a model that is served"),
        ));
    }
    super::off_thread(move || {
        let path = inside(&folder, &path)?;
        if in_place && adapters.contains(&name) {
            adapters.replace(&name, &path, pinned)?;
        } else {
            adapters.load(&name, &path, pinned.unwrap_or(false))?;
        }
        tracing::info!(adapter = name, path = %path.display(), "loaded");
        Ok(format!("Success: LoRA adapter '{name}' added successfully."))
    })
    .await
}

/// `path`, relative to `folder` or not, with links resolved, if it is a folder inside `folder`.
fn inside(folder: &Path, path: &Path) -> Result<PathBuf, ApiError> {
    let refused = || {
        let message = format!("there is no adapter `{}` in the folder of --lora-dir", path.display());
        ApiError::not_found(message).about("lora_path")
    };
    let folder = folder.canonicalize().map_err(|error| ApiError::internal(&error))?;
    let found = folder.join(path).canonicalize().map_err(|_| refused())?;
    if found == folder || !found.starts_with(&folder) || !found.is_dir() {
        return Err(refused());
    }
    Ok(found)
}

pub(in crate::server) async fn unload(
    State(state): State<AppState>,
    Body(mut fields): Body<Fields>,
) -> Result<String, ApiError> {
    let (adapters, _) = open(&state)?;
    let name = name(&mut fields)?;
    adapters.unload(&name).map_err(|_| {
        let message = format!("there is no adapter named `{name}`; GET /v1/models lists all");
        ApiError::not_found(message).about("lora_name")
    })?;
    tracing::info!(adapter = name, "unloaded");
    Ok(format!("Success: LoRA adapter '{name}' removed successfully."))
}
