//! Times of the ops that a decode step and a prefill are made of.

fn main() {}
