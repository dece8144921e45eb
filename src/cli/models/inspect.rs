//! `tarn models inspect`.

use std::path::Path;

/// Prints what the model at `path` is.
pub(super) fn print(path: &Path) -> anyhow::Result<()> {
    anyhow::bail!("{}: looking into models comes with the model loader", path.display())
}
