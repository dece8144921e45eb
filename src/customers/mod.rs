//! Customers: reserved for the registry, keys and quotas. Today a customer is a name that `lake` checks.

mod shelf;

pub use shelf::{Bounds, Shelf};
