//! Responses in memory, by customer.
//!
//! They end with the process: they are what a conversation goes on from, not an archive. A customer's oldest make room
//! for its own newer ones, and the oldest of all for anybody's, so that customers without number hold no more memory
//! than one does.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

/// Most responses, and most bytes of them, that are kept.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    responses: usize,
    bytes: usize,
}

const A_CUSTOMER: Bounds = Bounds { responses: 1 << 12, bytes: 32 << 20 };
const ALL: Bounds = Bounds { responses: 1 << 16, bytes: 256 << 20 };

#[derive(Debug)]
struct Entry {
    customer: String,
    id: String,
    response: Value,
    conversation: Vec<Value>,
    bytes: usize,
}

#[derive(Debug, Default, Clone, Copy)]
struct Held {
    responses: usize,
    bytes: usize,
}

impl Held {
    fn within(self, bounds: Bounds) -> bool {
        self.responses <= bounds.responses && self.bytes <= bounds.bytes
    }

    fn add(&mut self, bytes: usize) {
        self.responses += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.responses -= 1;
        self.bytes -= bytes;
    }
}

#[derive(Debug, Default)]
struct Shelf {
    /// By age, oldest first.
    entries: BTreeMap<u64, Entry>,
    ages: HashMap<(String, String), u64>,
    customers: HashMap<String, Held>,
    all: Held,
    next: u64,
}

impl Shelf {
    fn remove(&mut self, age: u64) {
        let Some(entry) = self.entries.remove(&age) else { return };
        self.all.remove(entry.bytes);
        if let Some(held) = self.customers.get_mut(&entry.customer) {
            held.remove(entry.bytes);
            if held.responses == 0 {
                self.customers.remove(&entry.customer);
            }
        }
        self.ages.remove(&(entry.customer, entry.id));
    }

    fn put(&mut self, entry: Entry, own: Bounds, all: Bounds) {
        let (customer, age) = (entry.customer.clone(), self.next);
        self.next += 1;
        self.customers.entry(customer.clone()).or_default().add(entry.bytes);
        self.all.add(entry.bytes);
        self.ages.insert((customer.clone(), entry.id.clone()), age);
        self.entries.insert(age, entry);
        while self.customers.get(&customer).is_some_and(|held| !held.within(own)) {
            let oldest =
                self.entries.iter().find(|(_, entry)| entry.customer == customer).map(|(age, _)| *age);
            oldest.into_iter().for_each(|age| self.remove(age));
        }
        while !self.all.within(all) {
            let oldest = self.entries.keys().next().copied();
            oldest.into_iter().for_each(|age| self.remove(age));
        }
    }

    fn find(&self, customer: &str, id: &str) -> Option<&Entry> {
        self.entries.get(self.ages.get(&(customer.to_owned(), id.to_owned()))?)
    }
}

/// What `/v1/responses` answered; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ResponseStore(Arc<Mutex<Shelf>>);

impl ResponseStore {
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a response with the messages up to and with its own.
    pub(super) fn put(&self, customer: &str, response: Value, conversation: Vec<Value>) {
        let Some(id) = response["id"].as_str().map(str::to_owned) else { return };
        let bytes =
            response.to_string().len() + conversation.iter().map(|one| one.to_string().len()).sum::<usize>();
        let entry = Entry { customer: customer.to_owned(), id, response, conversation, bytes };
        self.shelf().put(entry, A_CUSTOMER, ALL);
    }

    /// A customer's response.
    pub(super) fn get(&self, customer: &str, id: &str) -> Option<Value> {
        self.shelf().find(customer, id).map(|entry| entry.response.clone())
    }

    /// The messages up to and with a customer's response.
    pub(super) fn conversation(&self, customer: &str, id: &str) -> Option<Vec<Value>> {
        self.shelf().find(customer, id).map(|entry| entry.conversation.clone())
    }

    /// Forgets a customer's response; whether there was one.
    pub(super) fn delete(&self, customer: &str, id: &str) -> bool {
        let mut shelf = self.shelf();
        let age = shelf.ages.get(&(customer.to_owned(), id.to_owned())).copied();
        age.into_iter().for_each(|age| shelf.remove(age));
        age.is_some()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(customer: &str, id: usize, bytes: usize) -> Entry {
        Entry {
            customer: customer.to_owned(),
            id: id.to_string(),
            response: json!(id),
            conversation: vec![],
            bytes,
        }
    }

    #[test]
    fn the_oldest_of_a_customer_make_room_for_its_own() {
        let mut shelf = Shelf::default();
        let (own, all) = (Bounds { responses: 2, bytes: 100 }, Bounds { responses: 4, bytes: 1000 });
        for id in 0..3 {
            shelf.put(entry("a", id, 10), own, all);
            shelf.put(entry("b", id + 10, 10), own, all);
        }
        let held = |shelf: &Shelf, customer: &str, id: usize| shelf.find(customer, &id.to_string()).is_some();
        assert!(
            !held(&shelf, "a", 0) && held(&shelf, "a", 1) && held(&shelf, "a", 2) && held(&shelf, "b", 12)
        );
        assert!(!held(&shelf, "b", 2), "never across customers");
        shelf.put(entry("a", 3, 95), own, all);
        assert!(held(&shelf, "a", 3) && !held(&shelf, "a", 2), "bytes count");
        shelf.put(entry("c", 4, 1), own, all);
        shelf.put(entry("c", 5, 1), own, all);
        assert!(!held(&shelf, "b", 11), "the oldest of all");
        assert_eq!((shelf.all.responses, shelf.ages.len(), shelf.entries.len()), (4, 4, 4));
        shelf.put(entry("d", 6, 2000), own, all);
        assert!(!held(&shelf, "d", 6), "what no shelf holds is not kept");
        assert_eq!(shelf.all.bytes, shelf.entries.values().map(|entry| entry.bytes).sum::<usize>());
    }
}
