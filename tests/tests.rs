//! The one integration binary: each file below is a subject.

mod architecture;
mod models;
