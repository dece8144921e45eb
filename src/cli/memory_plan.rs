//! What of the memory each part gets: arithmetic only.
//!
//! A server that starts must not die later of what it could have known at its start. So every part is counted as if it
//! were full: all activations, all logits, all places for adapters. What is left bounds the KV cache.

use std::fmt;

use crate::config::ByteSize;

/// A part of the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The generator's weights.
    Weights,
    /// Adapters.
    Adapters,
    /// The embedder, its activations included.
    Embedder,
    /// The reranker, its activations included.
    Reranker,
    /// The generator's activations, logits and scratch, and the program itself.
    Workspace,
    /// Responses and compiled grammars that later requests may ask for.
    Kept,
    /// Keys and values.
    KvCache,
}

impl Part {
    /// Its label in metrics and JSON.
    pub(super) fn name(self) -> &'static str {
        match self {
            Part::Weights => "weights",
            Part::Adapters => "adapters",
            Part::Embedder => "embedder",
            Part::Reranker => "reranker",
            Part::Workspace => "workspace",
            Part::Kept => "kept",
            Part::KvCache => "kv_cache",
        }
    }

    /// What changes it.
    fn setting(self) -> &'static str {
        match self {
            Part::Weights => "--model, --dtype",
            Part::Adapters => "--max-loras, --max-lora-rank",
            Part::Embedder => "--embedder",
            Part::Reranker => "--reranker",
            Part::Workspace => "--max-num-batched-tokens",
            Part::Kept => "fixed",
            Part::KvCache => "--kv-cache-bytes, --max-model-len",
        }
    }
}

/// Where memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// In the machine, or what its control group allows of it.
    Machine,
    /// In a GPU, as much as is free.
    Gpu,
}

impl Owner {
    fn memory(self) -> &'static str {
        match self {
            Owner::Machine => "memory",
            Owner::Gpu => "GPU memory",
        }
    }
}

/// Memory that the process may plan with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Budget {
    pub(super) owner: Owner,
    /// What there is; `None` where nobody says.
    pub(super) available: Option<u64>,
    /// The part of it.
    pub(super) utilization: f64,
}

impl Budget {
    /// Bytes; `None`: without bound.
    pub(super) fn bytes(self) -> Option<u64> {
        self.available.map(|available| (available as f64 * self.utilization) as u64)
    }
}

/// Bytes of each part.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct MemoryPlan {
    pub(super) budget: Budget,
    parts: Vec<(Part, u64)>,
}

/// More is planned than there is.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error(
    "the {} that this takes is more than the {} there are to plan with:\n{plan}\n\
     make a part smaller by its setting, or raise --memory-utilization (now {})",
    plan.budget.owner.memory(), ByteSize(plan.budget.bytes().unwrap_or(0)), plan.budget.utilization
)]
pub(super) struct TooLittle {
    plan: MemoryPlan,
}

impl MemoryPlan {
    pub(super) fn new(budget: Budget) -> MemoryPlan {
        MemoryPlan { budget, parts: Vec::new() }
    }

    /// Plans `bytes` for `part`; nothing is not mentioned.
    pub(super) fn add(&mut self, part: Part, bytes: u64) {
        if bytes > 0 {
            self.parts.push((part, bytes));
        }
    }

    pub(super) fn parts(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.parts.iter().map(|(part, bytes)| (part.name(), *bytes))
    }

    /// All of it in one line.
    pub(super) fn line(&self) -> String {
        let parts: Vec<String> =
            self.parts().map(|(part, bytes)| format!("{part} {}", ByteSize(bytes))).collect();
        let of = self.budget.bytes().map_or(String::new(), |budget| format!(" of {}", ByteSize(budget)));
        format!("{}; all {}{of}", parts.join(", "), ByteSize(self.total()))
    }

    pub(super) fn total(&self) -> u64 {
        self.parts.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// Bytes that nothing is planned for; `None`: without bound.
    pub(super) fn left(&self) -> Option<u64> {
        self.budget.bytes().map(|budget| budget.saturating_sub(self.total()))
    }

    /// Whether all parts fit.
    ///
    /// # Errors
    /// [`TooLittle`] with the table.
    pub(super) fn check(&self) -> Result<(), TooLittle> {
        match self.budget.bytes() {
            Some(budget) if self.total() > budget => Err(TooLittle { plan: self.clone() }),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for MemoryPlan {
    /// A line a part, its bytes and the settings that change them, then the sum.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (part, bytes) in &self.parts {
            writeln!(f, "  {:<10} {:>10}   {}", part.name(), ByteSize(*bytes).to_string(), part.setting())?;
        }
        write!(f, "  {:<10} {:>10}", "all", ByteSize(self.total()).to_string())?;
        match (self.budget.bytes(), self.budget.available) {
            (Some(budget), Some(available)) => write!(
                f,
                "   of {}, which is {} of {}",
                ByteSize(budget),
                self.budget.utilization,
                ByteSize(available)
            ),
            _ => write!(f, "   (how much memory there is could not be found out)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(available: Option<u64>, parts: &[(Part, u64)]) -> MemoryPlan {
        let mut plan = MemoryPlan::new(Budget { owner: Owner::Machine, available, utilization: 0.5 });
        parts.iter().for_each(|(part, bytes)| plan.add(*part, *bytes));
        plan
    }

    #[test]
    fn what_fits_leaves_the_rest_and_what_does_not_is_refused_with_the_table() {
        let fits =
            plan(Some(8 << 30), &[(Part::Weights, 1 << 30), (Part::Reranker, 0), (Part::KvCache, 3 << 30)]);
        assert_eq!((fits.total(), fits.left(), fits.check()), (4 << 30, Some(0), Ok(())));
        assert_eq!(fits.parts().map(|(name, _)| name).collect::<Vec<_>>(), ["weights", "kv_cache"]);
        assert_eq!(fits.line(), "weights 1 GiB, kv_cache 3 GiB; all 4 GiB of 4 GiB");
        let mut over = fits;
        over.add(Part::Adapters, 1);
        let said = over.check().expect_err("too little").to_string();
        for words in
            ["4 GiB there are", "--memory-utilization (now 0.5)", "weights", "1 GiB", "--max-lora-rank"]
        {
            assert!(said.contains(words), "`{words}` is not in:\n{said}");
        }
    }

    #[test]
    fn what_is_too_much_for_a_gpu_is_said_of_it() {
        let budget = Budget { owner: Owner::Gpu, available: Some(80 << 30), utilization: 0.5 };
        let mut over = MemoryPlan::new(budget);
        over.add(Part::Weights, 93 << 30);
        let said = over.check().expect_err("too little").to_string();
        assert!(said.contains("the GPU memory that this takes is more than the 40 GiB"), "{said}");
    }

    #[test]
    fn without_a_known_size_everything_fits() {
        let plan = plan(None, &[(Part::Weights, u64::MAX), (Part::KvCache, 1 << 40)]);
        assert_eq!((plan.left(), plan.check(), plan.total()), (None, Ok(()), u64::MAX));
    }
}
