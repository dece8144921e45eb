//! Who asks, and for which customer.

use axum::extract::{FromRequestParts, Query, Request, State};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest, Sha256};

use super::AppState;
use super::error::ApiError;

/// Refuses requests without a valid key, where keys are set.
pub(super) async fn check(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if !state.api_keys.is_empty() {
        let given =
            request.headers().get("authorization").and_then(|value| value.to_str().ok()).unwrap_or("");
        let given = Sha256::digest(given.strip_prefix("Bearer ").unwrap_or("").as_bytes());
        // Digests have one length and all keys are compared, so the time says nothing about a key.
        let known = state.api_keys.iter().fold(false, |known, key| {
            let difference =
                Sha256::digest(key.as_bytes()).iter().zip(given.iter()).fold(0, |d, (a, b)| d | (a ^ b));
            known | (difference == 0)
        });
        if !known {
            return Err(ApiError::unauthorized());
        }
    }
    Ok(next.run(request).await)
}

/// The customer that a request is for: `customer_id` in the query, `X-Customer-Id`, or `default`.
#[derive(Debug, Clone)]
pub(super) struct Customer(pub(super) String);

#[derive(serde::Deserialize)]
struct Named {
    customer_id: Option<String>,
}

impl FromRequestParts<AppState> for Customer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Customer, ApiError> {
        // A query that cannot be read must not fall back to another customer.
        let named = Query::<Named>::try_from_uri(&parts.uri)
            .map_err(|error| ApiError::invalid("customer_id", error.body_text()))?
            .0
            .customer_id;
        let header =
            parts.headers.get("x-customer-id").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let customer = named.or(header).unwrap_or_else(|| "default".to_owned());
        state.lakes.customer(&customer)?;
        Ok(Customer(customer))
    }
}
