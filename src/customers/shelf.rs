//! Values kept by customer in bounded memory; what was used longest ago makes room.
//!
//! A customer finds only what is its own, and what it puts takes room from its own first: that other customers are
//! there shows in nothing that it can ask for before all of them together reach the common bounds.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;

/// What a shelf takes of memory for a value beside the value: its names and its places in the orders.
const PLACE: usize = 1024;

/// Most values, and most bytes of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Values.
    pub values: usize,
    /// Bytes that they and their places take.
    pub bytes: usize,
}

/// Names in the order of their last use, and what is held under them.
#[derive(Debug)]
struct Order<N> {
    by_use: BTreeMap<u64, N>,
    bytes: usize,
}

impl<N> Default for Order<N> {
    fn default() -> Order<N> {
        Order { by_use: BTreeMap::new(), bytes: 0 }
    }
}

impl<N> Order<N> {
    fn within(&self, bounds: Bounds) -> bool {
        self.by_use.len() <= bounds.values && self.bytes <= bounds.bytes
    }

    fn add(&mut self, used: u64, name: N, bytes: usize) {
        self.by_use.insert(used, name);
        self.bytes += bytes;
    }

    fn remove(&mut self, used: u64, bytes: usize) {
        if self.by_use.remove(&used).is_some() {
            self.bytes -= bytes;
        }
    }

    fn touch(&mut self, used: u64, now: u64) {
        if let Some(name) = self.by_use.remove(&used) {
            self.by_use.insert(now, name);
        }
    }
}

#[derive(Debug)]
struct Kept<V> {
    value: V,
    bytes: usize,
    used: u64,
}

/// Values by customer and key.
#[derive(Debug)]
pub struct Shelf<K, V> {
    a_customer: Bounds,
    all: Bounds,
    kept: HashMap<(Arc<str>, K), Kept<V>>,
    customers: HashMap<Arc<str>, Order<K>>,
    together: Order<(Arc<str>, K)>,
    /// Uses so far.
    now: u64,
}

impl<K: Clone + Eq + Hash, V> Shelf<K, V> {
    /// An empty shelf with the bounds of each customer and of all together.
    #[must_use]
    pub fn new(a_customer: Bounds, all: Bounds) -> Shelf<K, V> {
        let together = Order::default();
        Shelf { a_customer, all, kept: HashMap::new(), customers: HashMap::new(), together, now: 0 }
    }

    /// Keeps `value`, which takes `bytes`, in the place of what had its name. One that is larger than the bounds is
    /// not kept, and nothing makes room for it.
    pub fn put(&mut self, customer: &Arc<str>, key: K, value: V, bytes: usize) {
        let bytes = bytes.saturating_add(PLACE);
        let name = (customer.clone(), key);
        self.take(&name);
        if bytes > self.a_customer.bytes.min(self.all.bytes) {
            return;
        }
        self.now += 1;
        let used = self.now;
        self.customers.entry(customer.clone()).or_default().add(used, name.1.clone(), bytes);
        self.together.add(used, name.clone(), bytes);
        self.kept.insert(name, Kept { value, bytes, used });
        while let Some(key) = self.customers.get(customer).and_then(|own| oldest_beyond(own, self.a_customer))
        {
            self.take(&(customer.clone(), key));
        }
        while let Some(name) = oldest_beyond(&self.together, self.all) {
            self.take(&name);
        }
    }

    /// A customer's value, which is used now.
    pub fn get(&mut self, customer: &Arc<str>, key: &K) -> Option<&V> {
        let kept = self.kept.get_mut(&(customer.clone(), key.clone()))?;
        self.now += 1;
        let used = std::mem::replace(&mut kept.used, self.now);
        self.together.touch(used, self.now);
        if let Some(own) = self.customers.get_mut(customer) {
            own.touch(used, self.now);
        }
        Some(&kept.value)
    }

    /// Forgets a customer's value; whether there was one.
    pub fn remove(&mut self, customer: &Arc<str>, key: &K) -> bool {
        self.take(&(customer.clone(), key.clone()))
    }

    fn take(&mut self, name: &(Arc<str>, K)) -> bool {
        let Some(Kept { bytes, used, .. }) = self.kept.remove(name) else { return false };
        self.together.remove(used, bytes);
        if let Some(own) = self.customers.get_mut(&name.0) {
            own.remove(used, bytes);
            if own.by_use.is_empty() {
                self.customers.remove(&name.0);
            }
        }
        true
    }
}

/// The name used longest ago, where there is more than `bounds` allow.
fn oldest_beyond<N: Clone>(order: &Order<N>, bounds: Bounds) -> Option<N> {
    if order.within(bounds) {
        return None;
    }
    order.by_use.first_key_value().map(|(_, name)| name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shelf(own: (usize, usize), all: (usize, usize)) -> Shelf<u32, u32> {
        let bounds = |(values, bytes): (usize, usize)| Bounds { values, bytes: bytes + values * PLACE };
        Shelf::new(bounds(own), bounds(all))
    }

    fn name(customer: &str) -> Arc<str> {
        Arc::from(customer)
    }

    /// The keys of a customer in the order of their use.
    fn keys(shelf: &Shelf<u32, u32>, customer: &str) -> Vec<u32> {
        shelf.customers.get(customer).map(|own| own.by_use.values().copied().collect()).unwrap_or_default()
    }

    /// What is counted is what is there.
    fn check(shelf: &Shelf<u32, u32>) {
        let sum: usize = shelf.kept.values().map(|kept| kept.bytes).sum();
        let own = || shelf.customers.values();
        assert_eq!((shelf.together.bytes, own().map(|own| own.bytes).sum::<usize>()), (sum, sum));
        let count = own().map(|own| own.by_use.len()).sum::<usize>();
        assert_eq!((shelf.together.by_use.len(), count), (shelf.kept.len(), shelf.kept.len()));
        assert!(own().all(|own| !own.by_use.is_empty() && own.within(shelf.a_customer)));
        assert!(shelf.together.within(shelf.all));
    }

    #[test]
    fn what_a_customer_used_longest_ago_makes_room_for_its_own() {
        let mut shelf = shelf((2, 100), (4, 1000));
        for key in 0..2 {
            shelf.put(&name("a"), key, key, 10);
            shelf.put(&name("b"), key, key + 10, 10);
        }
        assert_eq!(shelf.get(&name("a"), &0), Some(&0));
        shelf.put(&name("a"), 2, 2, 10);
        assert_eq!(
            (keys(&shelf, "a"), keys(&shelf, "b")),
            (vec![0, 2], vec![0, 1]),
            "1 was used longest ago"
        );
        assert_eq!(shelf.get(&name("b"), &2), None, "by customer");
        shelf.put(&name("a"), 3, 3, 95);
        assert_eq!(keys(&shelf, "a"), [3], "bytes count");
        shelf.put(&name("a"), 3, 33, 20);
        assert_eq!(shelf.get(&name("a"), &3), Some(&33), "in the other's place");
        check(&shelf);
        assert!(shelf.remove(&name("a"), &3) && !shelf.remove(&name("a"), &3));
        assert_eq!(shelf.customers.len(), 1);
        check(&shelf);
    }

    #[test]
    fn all_customers_together_hold_no_more_than_the_common_bounds() {
        let mut shelf = shelf((2, 100), (3, 120));
        for (at, customer) in ["a", "b", "c", "d"].into_iter().enumerate() {
            shelf.put(&name(customer), 0, at as u32, 10);
            check(&shelf);
        }
        assert_eq!((shelf.kept.len(), keys(&shelf, "a")), (3, vec![]));
        shelf.get(&name("b"), &0);
        shelf.put(&name("d"), 1, 1, 90);
        assert_eq!((keys(&shelf, "b"), keys(&shelf, "c"), keys(&shelf, "d")), (vec![0], vec![], vec![0, 1]));
        check(&shelf);
    }

    #[test]
    fn what_no_room_could_hold_drives_nothing_out() {
        let mut shelf = shelf((2, 100), (4, 1000));
        shelf.put(&name("a"), 0, 0, 10);
        shelf.put(&name("a"), 1, 1, usize::MAX);
        shelf.put(&name("a"), 2, 2, 100 + 2 * PLACE);
        assert_eq!(keys(&shelf, "a"), [0]);
        shelf.put(&name("a"), 0, 9, 100 + 2 * PLACE);
        assert_eq!(keys(&shelf, "a"), [0; 0], "what it had is gone: it is not what was put last");
        check(&shelf);
    }
}
