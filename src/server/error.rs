//! Errors as OpenAI's clients expect them. The one place that maps errors to HTTP.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::embed::EmbedError;
use crate::engine::{AdapterError, EngineError, SampleError, SubmitError};
use crate::ingest::IngestError;
use crate::lake::LakeError;
use crate::rag::{GenerateError, RagError};

/// An error answer: `{"error": {"message", "type", "param", "code"}}`.
#[derive(Debug, Clone)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    retry_after: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError { status, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// 400: a field of the request is wrong.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError { param: Some(param.into()), ..ApiError::new(StatusCode::BAD_REQUEST, message) }
    }

    /// 400 without a field.
    pub fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// 400: more tokens than the model takes.
    pub fn context_length(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError { code: Some("context_length_exceeded"), ..ApiError::invalid(param, message) }
    }

    /// 401.
    pub fn unauthorized() -> ApiError {
        ApiError {
            code: Some("invalid_api_key"),
            ..ApiError::new(StatusCode::UNAUTHORIZED, "a valid API key is needed: Authorization: Bearer KEY")
        }
    }

    /// 403: the server's settings do not allow it.
    pub fn forbidden(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, message)
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, message)
    }

    /// 404 for a model that is not served.
    pub fn no_model(name: &str) -> ApiError {
        ApiError {
            param: Some("model".to_owned()),
            code: Some("model_not_found"),
            ..ApiError::not_found(format!(
                "the model `{name}` does not exist; GET /v1/models lists those that do"
            ))
        }
    }

    /// 405.
    pub fn method_not_allowed() -> ApiError {
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
    }

    /// 413.
    pub fn too_large(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// 500: the cause is logged, the client is told nothing of it.
    pub fn internal(cause: &(impl std::fmt::Display + ?Sized)) -> ApiError {
        tracing::error!(%cause, "request failed");
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the server failed on this request; its log says why",
        )
    }

    /// The same, naming the field that it is about.
    pub(super) fn about(self, param: impl Into<String>) -> ApiError {
        ApiError { param: Some(param.into()), ..self }
    }

    /// The body, also for an event of a stream.
    pub fn body(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<GenerateError> for ApiError {
    fn from(error: GenerateError) -> ApiError {
        let message = error.to_string();
        match error {
            GenerateError::TooLong { .. } | GenerateError::TooManyBytes { .. } => {
                ApiError { code: Some("context_length_exceeded"), ..ApiError::bad_request(message) }
            }
            GenerateError::EmptyPrompt => ApiError::invalid("prompt", message),
            GenerateError::UnknownToken { .. } => ApiError::invalid("prompt", message),
            GenerateError::NoChatTemplate { .. } => ApiError::invalid("messages", message),
            GenerateError::Invalid { field, .. } => ApiError::invalid(field, message),
            GenerateError::Text(_) => ApiError::bad_request(message),
            GenerateError::Adapter(error) => error.into(),
            GenerateError::Submit(error) => error.into(),
            // Bias and bans of the request left nothing.
            GenerateError::Engine(EngineError::Sample(SampleError::NothingAllowed)) => {
                ApiError::bad_request(message)
            }
            GenerateError::Engine(error) => ApiError::internal(&error),
            GenerateError::Interrupted => ApiError::unavailable(message),
        }
    }
}

impl From<AdapterError> for ApiError {
    fn from(error: AdapterError) -> ApiError {
        let message = error.to_string();
        match error {
            AdapterError::Exists { .. } => ApiError::invalid("lora_name", message),
            AdapterError::Unknown { name } => ApiError::no_model(&name),
            AdapterError::Load { .. } => ApiError::invalid("lora_path", message),
            AdapterError::NoRoom { .. } => {
                ApiError { retry_after: Some(1), ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, message) }
            }
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> ApiError {
        let message = error.to_string();
        match error {
            SubmitError::QueueFull { retry_after, .. } => ApiError {
                retry_after: Some(retry_after.as_secs().max(1)),
                ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, message)
            },
            SubmitError::TooLong { .. } => {
                ApiError { code: Some("context_length_exceeded"), ..ApiError::bad_request(message) }
            }
            SubmitError::NeverFits { .. } | SubmitError::Invalid { .. } => ApiError::bad_request(message),
            SubmitError::Stopped => ApiError::unavailable(message),
        }
    }
}

impl From<EmbedError> for ApiError {
    fn from(error: EmbedError) -> ApiError {
        match error {
            EmbedError::Text(error) => ApiError::invalid("input", error.to_string()),
            EmbedError::NoReranker => ApiError::invalid("model", error.to_string()),
            EmbedError::Stopped => ApiError::unavailable(error.to_string()),
            error => ApiError::internal(&error),
        }
    }
}

impl From<LakeError> for ApiError {
    fn from(error: LakeError) -> ApiError {
        let message = error.to_string();
        match error {
            LakeError::Customer(_) => ApiError::invalid("customer_id", message),
            LakeError::Expired { .. } => {
                ApiError { param: Some("as_of".to_owned()), ..ApiError::new(StatusCode::GONE, message) }
            }
            LakeError::NoVersion { .. } => {
                ApiError { param: Some("as_of".to_owned()), ..ApiError::not_found(message) }
            }
            LakeError::NoTable(_) | LakeError::NoDataset(_) => ApiError::not_found(message),
            LakeError::Query(_) => ApiError::bad_request(message),
            LakeError::Dimension { .. } | LakeError::Embedder { .. } => {
                ApiError::new(StatusCode::CONFLICT, message)
            }
            error => ApiError::internal(&error),
        }
    }
}

impl From<RagError> for ApiError {
    fn from(error: RagError) -> ApiError {
        let message = error.to_string();
        match error {
            RagError::EmptyQuery => ApiError::invalid("query", message),
            RagError::EmbedderMismatch { .. } => ApiError::new(StatusCode::CONFLICT, message),
            RagError::NoGenerator => ApiError::invalid("generate", message),
            RagError::NoReranker => ApiError::invalid("rerank", message),
            RagError::NoRoom { .. } => {
                ApiError { code: Some("context_length_exceeded"), ..ApiError::bad_request(message) }
            }
            RagError::Lake(error) => error.into(),
            RagError::Embed(error) => error.into(),
            RagError::Generate(error) => error.into(),
        }
    }
}

impl From<IngestError> for ApiError {
    fn from(error: IngestError) -> ApiError {
        match error {
            IngestError::Refused { .. } => ApiError::bad_request(error.to_string()),
            IngestError::Embed(error) => error.into(),
            IngestError::Lake(error) => error.into(),
            error => ApiError::internal(&error),
        }
    }
}

/// A JSON body whose refusals have OpenAI's shape and name the field.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Body<T>, ApiError> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(body)) => Ok(Body(body)),
            Err(JsonRejection::MissingJsonContentType(_)) => Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the body must be JSON: send `Content-Type: application/json`",
            )),
            Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Err(ApiError::too_large("the body is too large"))
            }
            Err(rejection) => {
                let said = rejection.body_text();
                let said = said.rsplit_once("target type: ").map_or(said.as_str(), |(_, rest)| rest);
                // serde_path_to_error puts the path before the first colon.
                let param = said.split_once(": ").map(|(path, _)| path).filter(|path| !path.contains(' '));
                Err(ApiError {
                    param: param.map(str::to_owned),
                    ..ApiError::bad_request(format!("the body is not valid: {said}"))
                })
            }
        }
    }
}

/// The query's parameters; refusals have OpenAI's shape and name the parameter where that is known.
#[derive(Debug)]
pub(super) struct Query<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Query<T>, ApiError> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(query)) => Ok(Query(query)),
            Err(rejection) => Err(named("the query is not valid", &rejection.body_text())),
        }
    }
}

/// The path's parameters, refused in OpenAI's shape.
#[derive(Debug)]
pub(super) struct Path<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Path<T>, ApiError> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(path)) => Ok(Path(path)),
            Err(rejection) => Err(named("the path is not valid", &rejection.body_text())),
        }
    }
}

/// A 400 from what axum said; `serde_path_to_error` puts the field before a colon.
fn named(what: &str, said: &str) -> ApiError {
    let said = said.rsplit_once("query string: ").map_or(said, |(_, rest)| rest);
    let param = said.split_once(": ").map(|(path, _)| path).filter(|path| !path.contains(' '));
    ApiError { param: param.map(str::to_owned), ..ApiError::bad_request(format!("{what}: {said}")) }
}
