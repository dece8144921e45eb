//! Compiled grammars of one model, kept for the requests that ask for them again.
//!
//! Clients of structured output send the same schema with every request, and compiling one takes milliseconds.
//! Grammars are kept by customer: how soon an answer comes must not say that another customer asks for the same.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::Semaphore;

use crate::customers::{Bounds, Shelf};
use crate::text::{Grammar, GrammarCompiler, GrammarError, GrammarMatcher, Tokenizer};

/// Grammars that are compiled at once.
const COMPILING: usize = 4;

const A_CUSTOMER: Bounds = Bounds { values: 64, bytes: 16 << 20 };
const ALL: Bounds = Bounds { values: 1024, bytes: 64 << 20 };

/// Most bytes that kept grammars take.
pub const GRAMMAR_BYTES: usize = ALL.bytes;

/// Compiles grammars over one model's tokens, each once while it is kept.
#[derive(Debug)]
pub(super) struct Grammars {
    tokenizer: Tokenizer,
    vocab_size: usize,
    eos: Vec<u32>,
    /// Built by the first grammar.
    compiler: OnceLock<Result<GrammarCompiler, GrammarError>>,
    /// Grammars that may be compiled at once: each takes a core and, at worst, a deep stack.
    compiling: Arc<Semaphore>,
    /// By their digests. What is kept is never advanced: answers follow forks of it.
    kept: Mutex<Shelf<[u8; 32], Arc<GrammarMatcher>>>,
    compiled: AtomicU64,
    reused: AtomicU64,
}

/// How often grammars were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrammarStats {
    /// Compiled, or refused by the compiler.
    pub compiled: u64,
    /// Found where they were kept.
    pub reused: u64,
}

impl Grammars {
    /// For a model with `vocab_size` logits, whose answers end with a token of `eos`.
    pub(super) fn new(tokenizer: Tokenizer, vocab_size: usize, eos: Vec<u32>) -> Grammars {
        Grammars {
            tokenizer,
            vocab_size,
            eos,
            compiler: OnceLock::new(),
            compiling: Arc::new(Semaphore::new(COMPILING)),
            kept: Mutex::new(Shelf::new(A_CUSTOMER, ALL)),
            compiled: AtomicU64::new(0),
            reused: AtomicU64::new(0),
        }
    }

    pub(super) fn stats(&self) -> GrammarStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        GrammarStats { compiled: read(&self.compiled), reused: read(&self.reused) }
    }

    /// The beginning of `grammar`, to be forked.
    pub(super) async fn matcher(
        self: &Arc<Self>,
        customer: &Arc<str>,
        grammar: &Grammar,
    ) -> Result<Arc<GrammarMatcher>, GrammarError> {
        let key = grammar.digest();
        if let Some(found) = self.find(customer, &key) {
            return Ok(found);
        }
        let permit = self.compiling.clone().acquire_owned().await;
        let permit = permit.map_err(|_| GrammarError::Interrupted)?;
        // Whoever waited beside another with the same grammar finds it now.
        if let Some(found) = self.find(customer, &key) {
            return Ok(found);
        }
        let (this, customer, grammar) = (self.clone(), customer.clone(), grammar.clone());
        let compiled = tokio::task::spawn_blocking(move || {
            // Held by the work and not by who waits for it: one that goes away does not make room.
            let _permit = permit;
            let matcher = Arc::new(this.compile(&grammar)?);
            let mut kept = this.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.put(&customer, key, matcher.clone(), matcher.bytes());
            Ok(matcher)
        });
        compiled.await.map_err(|_| GrammarError::Interrupted)?
    }

    fn find(&self, customer: &Arc<str>, key: &[u8; 32]) -> Option<Arc<GrammarMatcher>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.get(customer, key).cloned()?;
        self.reused.fetch_add(1, Ordering::Relaxed);
        Some(found)
    }

    fn compile(&self, grammar: &Grammar) -> Result<GrammarMatcher, GrammarError> {
        self.compiled.fetch_add(1, Ordering::Relaxed);
        let compiler =
            self.compiler.get_or_init(|| GrammarCompiler::new(&self.tokenizer, self.vocab_size, &self.eos));
        compiler.as_ref().map_err(Clone::clone)?.compile(grammar)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fake_embedder;

    fn grammars() -> Arc<Grammars> {
        let (embed, _thread) = fake_embedder(8);
        Arc::new(Grammars::new(embed.tokenizer().clone(), 256, vec![0]))
    }

    fn digits(at: usize) -> Grammar {
        Grammar::Regex(format!("[0-9]{{{}}}", at + 1))
    }

    #[tokio::test]
    async fn what_a_customer_asked_for_longest_ago_makes_room_for_its_own() {
        let (grammars, a, b) = (grammars(), Arc::from("a"), Arc::from("b"));
        grammars.matcher(&b, &digits(0)).await.expect("compiles");
        for at in 0..=A_CUSTOMER.values {
            grammars.matcher(&a, &digits(at)).await.expect("compiles");
        }
        let before = grammars.stats();
        assert_eq!(before, GrammarStats { compiled: A_CUSTOMER.values as u64 + 2, reused: 0 });
        for (customer, at, compiled) in [(&a, 1, 0), (&b, 0, 0), (&a, 0, 1)] {
            grammars.matcher(customer, &digits(at)).await.expect("compiles");
            assert_eq!(grammars.stats().compiled - before.compiled, compiled);
        }
    }

    #[tokio::test]
    async fn one_grammar_asked_for_by_many_at_once_is_compiled_by_few() {
        let (grammars, customer) = (grammars(), Arc::from("a"));
        let asked = (0..64).map(|_| grammars.matcher(&customer, &Grammar::JsonObject));
        futures::future::try_join_all(asked.collect::<Vec<_>>()).await.expect("compiles");
        assert!(grammars.stats().compiled <= COMPILING as u64, "{:?}", grammars.stats());
    }
}
