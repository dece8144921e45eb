//! Uploads and their jobs.

use axum::Json;
use axum::extract::{Multipart, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::AppState;
use super::auth::Customer;
use super::error::{ApiError, Path};

/// Streams the files of the form's field `files` to disk; 202 once they and their job are synced.
pub(super) async fn upload(
    State(state): State<AppState>,
    Customer(customer): Customer,
    form: Result<Multipart, axum::extract::multipart::MultipartRejection>,
) -> Result<Response, ApiError> {
    let mut form =
        form.map_err(|error| ApiError::bad_request(format!("send multipart/form-data: {error}")))?;
    // Dropped on an error or with the connection, it takes with it what was received.
    let upload = state.jobs.prepare(&customer).await?;
    let files = receive(&state, &mut form, upload.folder()).await?;
    let job = state.jobs.submit(upload, files).await?;
    let body = json!({"job_id": job.id, "customer_id": job.customer, "status": job.status, "files": job.files,
        "status_url": format!("/api/jobs/{}", job.id)});
    Ok((StatusCode::ACCEPTED, Json(body)).into_response())
}

async fn receive(
    state: &AppState,
    form: &mut Multipart,
    folder: &std::path::Path,
) -> Result<Vec<String>, ApiError> {
    let failed = |error: std::io::Error| ApiError::internal(&error);
    let mut files: Vec<String> = Vec::new();
    let limit = state.max_upload_bytes;
    let broken = |error: axum::extract::multipart::MultipartError| {
        if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
            ApiError::too_large(format!("an upload may have at most {} MiB (--max-upload-mb)", limit >> 20))
        } else {
            ApiError::bad_request(format!("the form is not valid: {}", error.body_text()))
        }
    };
    while let Some(mut field) = form.next_field().await.map_err(broken)? {
        if !matches!(field.name(), Some("files" | "file" | "files[]")) {
            continue;
        }
        let name = field.file_name().unwrap_or("").rsplit(['/', '\\']).next().unwrap_or("").trim().to_owned();
        if name.is_empty() {
            return Err(ApiError::invalid("files", "every file needs a name"));
        }
        if files.contains(&name) {
            return Err(ApiError::invalid(
                "files",
                format!("two files are named `{name}`, and the name is the document's identity: rename one"),
            ));
        }
        let mut file = tokio::fs::File::create(folder.join(files.len().to_string())).await.map_err(failed)?;
        let mut size = 0;
        while let Some(bytes) = field.chunk().await.map_err(broken)? {
            size += bytes.len();
            file.write_all(&bytes).await.map_err(failed)?;
        }
        file.flush().await.map_err(failed)?;
        if size == 0 {
            return Err(ApiError::invalid("files", format!("`{name}` is empty")));
        }
        files.push(name);
    }
    if files.is_empty() {
        return Err(ApiError::invalid(
            "files",
            "the form has no file: send one or more in the field `files`",
        ));
    }
    Ok(files)
}

pub(super) async fn job(
    State(state): State<AppState>,
    Customer(customer): Customer,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let job = state
        .jobs
        .status(&customer, &id)
        .await
        .ok_or_else(|| ApiError::not_found(format!("there is no job `{id}`")))?;
    Ok(Json(json!(job)))
}
