//! How many experts the steps of a measurement hit: what a step with few tokens reads follows from that.
//!
//! A probe that looks makes decoding steps run launch by launch, and waits after each layer's experts to read where the
//! pairs of each begin: of every layer, of the tokens that the step has. Such a step is no step to take the time of. One that
//! does not look costs a glance at a flag. Rejected: counting on the device, which every step would pay for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::super::super::error::Result;
use super::DeviceDecoder;
use super::shape::Shape;

/// Experts hit, by the sequences of a step; looked at from another thread than the decoder's.
#[derive(Debug, Default)]
pub struct ExpertProbe {
    looks: AtomicBool,
    seen: Mutex<BTreeMap<usize, Seen>>,
}

/// Layers of steps, and the experts that they hit together.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    layers: usize,
    experts: usize,
}

impl ExpertProbe {
    /// Looks at the steps that are launched from now on, or no longer.
    pub fn look(&self, looks: bool) {
        self.looks.store(looks, Ordering::SeqCst);
    }

    /// Distinct experts that a layer of the decoding steps of `sequences` sequences hit, in the mean; `None` where none was
    /// seen. What was seen is then forgotten.
    #[must_use]
    pub fn take(&self, sequences: usize) -> Option<f64> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let found = std::mem::take(&mut *seen).remove(&sequences)?;
        Some(found.experts as f64 / found.layers as f64)
    }

    fn add(&self, sequences: usize, experts: usize) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let of = seen.entry(sequences).or_default();
        of.layers += 1;
        of.experts += experts;
    }
}

impl DeviceDecoder {
    /// Lets `probe` look at its steps.
    #[must_use]
    pub fn probed(mut self, probe: Arc<ExpertProbe>) -> DeviceDecoder {
        self.probe = Some(probe);
        self
    }

    /// Carries the layers out under the eyes of the probe, if there is one that looks at such steps.
    pub(super) fn run_probed(&mut self, shape: Shape, sequences: usize) -> Result<bool> {
        let routed_decoding = shape.queries == 1 && self.parts.extents.routed;
        let looks = |probe: &&Arc<ExpertProbe>| routed_decoding && probe.looks.load(Ordering::SeqCst);
        let Some(probe) = self.probe.as_ref().filter(looks) else { return Ok(false) };
        let mut starts = vec![0; (self.parts.extents.experts + 1) * 4];
        for launch in self.parts.layers(shape)? {
            self.device.launch(&launch)?;
            // One a layer; the offsets stay until the next layer sorts its pairs.
            if launch.kernel.starts_with("expert_combine") {
                self.device.download(self.parts.activations.offsets, 0, &mut starts)?;
                let starts = starts.as_chunks::<4>().0;
                probe.add(sequences, starts.windows(2).filter(|pair| pair[0] != pair[1]).count());
            }
        }
        Ok(true)
    }
}
