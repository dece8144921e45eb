//! Places of the commit where tests stop a writer.

use super::error::{LakeError, Result};

/// A step of the commit protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailStep {
    /// The changes are there, nothing is locked.
    Prepared,
    /// The lock is held.
    Locked,
    /// Lance has the new rows.
    LanceAppended,
    /// Lance has lost the replaced rows.
    LanceDeleted,
    /// The chunks are committed.
    ChunksCommitted,
    /// The documents are committed: the commit point.
    DocumentsCommitted,
}

impl FailStep {
    /// All, in order.
    pub const ALL: [FailStep; 6] = [
        FailStep::Prepared,
        FailStep::Locked,
        FailStep::LanceAppended,
        FailStep::LanceDeleted,
        FailStep::ChunksCommitted,
        FailStep::DocumentsCommitted,
    ];
}

/// What happens there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailAction {
    /// The process dies at once, as by power loss.
    Abort,
    /// The commit returns an error.
    Error,
}

/// Where to stop, if anywhere.
#[derive(Debug, Clone, Copy, Default)]
pub struct Failpoints(pub Option<(FailStep, FailAction)>);

impl Failpoints {
    pub(super) fn at(self, step: FailStep) -> Result<()> {
        match self.0 {
            Some((at, FailAction::Abort)) if at == step => std::process::abort(),
            Some((at, FailAction::Error)) if at == step => Err(LakeError::Failpoint(step)),
            _ => Ok(()),
        }
    }
}
