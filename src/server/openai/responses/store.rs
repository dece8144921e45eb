//! Responses in memory, by customer.
//!
//! They end with the process: they are what a conversation goes on from, not an archive. They are kept as the JSON that
//! they are sent as, which is a fraction of what it takes in parsed form, and whose length is what it takes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::customers::{Bounds, Shelf};

const A_CUSTOMER: Bounds = Bounds { values: 1 << 12, bytes: 32 << 20 };
const ALL: Bounds = Bounds { values: 1 << 16, bytes: 128 << 20 };

/// Most bytes that kept responses take.
pub const RESPONSE_BYTES: usize = ALL.bytes;

/// A response and the messages up to and with its own, as JSON.
#[derive(Debug)]
struct Kept {
    response: Box<str>,
    conversation: Box<str>,
}

/// What `/v1/responses` answered; cheap to clone.
#[derive(Debug, Clone)]
pub struct ResponseStore(Arc<Mutex<Shelf<Arc<str>, Arc<Kept>>>>);

impl Default for ResponseStore {
    fn default() -> ResponseStore {
        ResponseStore(Arc::new(Mutex::new(Shelf::new(A_CUSTOMER, ALL))))
    }
}

impl ResponseStore {
    fn shelf(&self) -> MutexGuard<'_, Shelf<Arc<str>, Arc<Kept>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a response with the messages up to and with its own.
    pub(super) fn put(&self, customer: &Arc<str>, response: &Value, conversation: Vec<Value>) {
        let Some(id) = response["id"].as_str() else { return };
        let response = response.to_string().into_boxed_str();
        let conversation = Value::Array(conversation).to_string().into_boxed_str();
        let bytes = response.len() + conversation.len();
        self.shelf().put(customer, Arc::from(id), Arc::new(Kept { response, conversation }), bytes);
    }

    fn find(&self, customer: &Arc<str>, id: &str) -> Option<Arc<Kept>> {
        self.shelf().get(customer, &Arc::from(id)).cloned()
    }

    /// A customer's response, as JSON.
    pub(super) fn get(&self, customer: &Arc<str>, id: &str) -> Option<String> {
        self.find(customer, id).map(|kept| kept.response.to_string())
    }

    /// The messages up to and with a customer's response.
    pub(super) fn conversation(&self, customer: &Arc<str>, id: &str) -> Option<Vec<Value>> {
        let kept = self.find(customer, id)?;
        Some(serde_json::from_str(&kept.conversation).expect("it was written as a list: this is a bug"))
    }

    /// Forgets a customer's response; whether there was one.
    pub(super) fn delete(&self, customer: &Arc<str>, id: &str) -> bool {
        self.shelf().remove(customer, &Arc::from(id))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_kept_is_found_as_it_was_put_and_within_its_bound() {
        let (store, customer) = (ResponseStore::default(), Arc::from("a"));
        let say = |text: &str| vec![json!({"role": "assistant", "content": text})];
        let put = |at: usize, text: &str| {
            store.put(&customer, &json!({"id": at.to_string(), "z": 1, "a": 0.7}), say(text))
        };
        put(0, "well");
        assert_eq!(store.get(&customer, "0").as_deref(), Some(r#"{"id":"0","z":1,"a":0.7}"#));
        assert_eq!(store.conversation(&customer, "0"), Some(say("well")));
        // Together they take more than a customer's part.
        let long = "x".repeat(A_CUSTOMER.bytes / 4);
        (1..=4).for_each(|at| put(at, &long));
        let kept = (0..=4).filter(|at| store.get(&customer, &at.to_string()).is_some());
        assert_eq!(kept.collect::<Vec<_>>(), [2, 3, 4]);
    }
}
