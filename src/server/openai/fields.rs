//! The fields of a request, taken one by one, so that a refusal names the field.
//!
//! A struct with `#[serde(flatten)]` for what endpoints share was rejected: serde buffers flattened fields, and its
//! errors no longer say where they come from. What is left in the map afterwards is what no code honours.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::super::error::ApiError;

/// A JSON object whose fields were not looked at yet.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(in crate::server) struct Fields(Map<String, Value>);

/// A field that Tarn knows and does not do, with the values (as JSON) that ask for nothing.
pub(super) type Refused = (&'static str, &'static [&'static str]);

impl Fields {
    /// The value of `field`; `None` where it is missing or null.
    pub(super) fn take<T: DeserializeOwned>(&mut self, field: &str) -> Result<Option<T>, ApiError> {
        match self.0.remove(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|error| ApiError::invalid(field, format!("{field} is not valid: {error}"))),
        }
    }

    /// The value of `field`, which stays.
    pub(super) fn peek(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    /// Puts a value in the place of what `field` had.
    pub(super) fn put(&mut self, field: &str, value: Value) {
        self.0.insert(field.to_owned(), value);
    }

    /// The value of `field`, which must be there.
    pub(super) fn need<T: DeserializeOwned>(&mut self, field: &str) -> Result<T, ApiError> {
        self.take(field)?.ok_or_else(|| ApiError::invalid(field, format!("{field} is missing")))
    }

    /// Refuses what is left and listed in `refused`. What nobody knows is let pass, as OpenAI's clients expect.
    pub(super) fn refuse(&self, refused: &[Refused]) -> Result<(), ApiError> {
        for (field, neutral) in refused {
            let Some(value) = self.0.get(*field).filter(|value| !value.is_null()) else { continue };
            if !neutral.contains(&value.to_string().as_str()) {
                return Err(ApiError::invalid(*field, format!("{field} is not supported: leave it out")));
            }
        }
        Ok(())
    }
}
