//! A step: what it reads goes up, its launches are queued, what it yields comes down.

use std::collections::hash_map::Entry;

use tarn_kernels::device::sample::Sampling;
use tarn_kernels::device::{Device, Launch};
use tarn_kernels::{BLOCK, View};

use super::super::super::batch::{ForwardBatch, Logits, NO_ADAPTER};
use super::super::super::error::{ModelError, Result};
use super::super::check_adapters;
use super::DeviceDecoder;
use super::shape::{Shape, padded};

/// A step that was launched.
#[derive(Debug)]
pub(super) struct Pending {
    /// Rows wanted.
    rows: Vec<u32>,
    /// How many of them are queued.
    queued: usize,
    sampled: bool,
}

impl DeviceDecoder {
    /// Queues a step: blocks are copied first, `(from, to)` each, in order. Where `how` says how every row is drawn, the
    /// device draws: then [`DeviceDecoder::drawn`] is what the step yields, else [`DeviceDecoder::logits`].
    ///
    /// # Errors
    /// [`ModelError::Batch`] for a batch that does not fit the model or the cache, or what the device says; the cache
    /// then holds garbage in the batch's slots only.
    pub fn launch(
        &mut self,
        batch: &ForwardBatch<'_>,
        copies: &[(u32, u32)],
        how: Option<&[Sampling]>,
    ) -> Result<()> {
        let extents = self.parts.extents;
        self.pending = None;
        self.check(batch, copies, how)?;
        self.copy_blocks(copies)?;
        let adapted = self.upload_adapters(batch)?;
        let queries = batch.sequences.iter().map(|span| span.query_len as usize).max().unwrap_or(0);
        // Decoding has the tokens in the order of the sequences.
        let in_order = batch.sequences.iter().zip(0..).all(|(span, at)| span.query_start == at);
        let queries = if queries == 1 && !in_order { 2 } else { queries };
        let shape = extents.shape(batch.input_ids.len(), batch.sequences.len(), queries, adapted);
        self.upload_tokens(batch)?;
        self.upload_sequences(batch, shape)?;
        if shape.queries == 1 {
            let list = match self.decoding.entry(shape) {
                Entry::Occupied(list) => *list.get(),
                Entry::Vacant(place) => *place.insert(self.device.record(self.parts.layers(shape)?)?),
            };
            self.device.replay(list)?;
        } else {
            queue(&mut *self.device, &self.parts.layers(shape)?)?;
        }
        if let Some(how) = how {
            let bytes: Vec<u8> = how.iter().flat_map(Sampling::to_bytes).collect();
            self.device.upload(self.parts.inputs.how, 0, &bytes)?;
        }
        let mut pending = Pending { rows: batch.logits_rows.to_vec(), queued: 0, sampled: how.is_some() };
        self.queue_rows(&mut pending)?;
        self.pending = Some(pending);
        Ok(())
    }

    /// Waits for the step that was launched: the logits of its rows.
    ///
    /// # Errors
    /// [`ModelError::Batch`] without a step, or what the device says.
    pub fn logits(&mut self) -> Result<Logits<'_>> {
        let mut pending = self.take_pending(false)?;
        let (rows, vocab) = (pending.rows.len(), self.config.vocab);
        self.logits.resize(rows * vocab, 0.0);
        let mut bytes = Vec::new();
        let mut done = 0;
        while done < rows {
            bytes.resize((pending.queued - done) * vocab * 4, 0);
            self.device.download(self.parts.activations.logits, 0, &mut bytes)?;
            let to = &mut self.logits[done * vocab..pending.queued * vocab];
            to.iter_mut()
                .zip(bytes.as_chunks::<4>().0)
                .for_each(|(to, from)| *to = f32::from_le_bytes(*from));
            done = pending.queued;
            self.queue_rows(&mut pending)?;
        }
        if rows == 0 {
            self.device.synchronize()?;
        }
        Ok(Logits { view: View::new(&self.logits, rows, vocab)? })
    }

    /// Waits for the step that was launched: the token of each row, `None` where none can be drawn.
    ///
    /// # Errors
    /// As [`DeviceDecoder::logits`].
    pub fn drawn(&mut self) -> Result<Vec<Option<u32>>> {
        let pending = self.take_pending(true)?;
        let mut bytes = vec![0; pending.rows.len() * 4];
        self.device.download(self.parts.activations.drawn, 0, &mut bytes)?;
        let ids = bytes.as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id));
        Ok(ids.map(|id| (id != u32::MAX).then_some(id)).collect())
    }

    fn take_pending(&mut self, sampled: bool) -> Result<Pending> {
        let pending = self.pending.take().filter(|pending| pending.sampled == sampled);
        pending.ok_or_else(|| ModelError::Batch { what: "no such step was launched".to_owned() })
    }

    fn check(&self, batch: &ForwardBatch<'_>, copies: &[(u32, u32)], how: Option<&[Sampling]>) -> Result<()> {
        let extents = &self.parts.extents;
        let wrong = |what: String| Err(ModelError::Batch { what });
        batch.check(extents.tokens, if how.is_some() { extents.sequences } else { usize::MAX })?;
        batch.check_indices(extents.positions, self.blocks)?;
        check_adapters(&self.config, extents.max_rank, batch)?;
        if batch.sequences.len() > extents.sequences {
            return wrong(format!(
                "{} sequences, the decoder was sized for {}",
                batch.sequences.len(),
                extents.sequences
            ));
        }
        let longest = batch.sequences.iter().map(|span| span.context_len as usize).max().unwrap_or(0);
        if longest > extents.table_width * BLOCK {
            return wrong(format!(
                "a context of {longest} tokens, the decoder was sized for {}",
                extents.table_width * BLOCK
            ));
        }
        if let Some((from, to)) = copies.iter().find(|(from, to)| *from.max(to) as usize >= self.blocks) {
            return wrong(format!("a copy of block {from} to {to} of {}", self.blocks));
        }
        match how.filter(|how| how.len() != batch.logits_rows.len()) {
            Some(how) => wrong(format!("{} rows drawn in {} ways", batch.logits_rows.len(), how.len())),
            None => Ok(()),
        }
    }

    /// Copies blocks in rounds in which no copy reads or writes what another one writes.
    fn copy_blocks(&mut self, mut copies: &[(u32, u32)]) -> Result<()> {
        while !copies.is_empty() {
            let most = copies.len().min(self.parts.extents.sequences);
            let meets = |at: &usize| {
                let (from, to) = copies[*at];
                copies[..*at].iter().any(|(read, written)| *written == from || *written == to || *read == to)
            };
            let (round, rest) = copies.split_at((1..most).find(meets).unwrap_or(most));
            let pairs = words(round.iter().flat_map(|(from, to)| [*from, *to]));
            self.device.upload(self.parts.inputs.pairs, 0, &pairs)?;
            self.device.upload(self.parts.inputs.copies, 0, &words([round.len() as u32]))?;
            queue(&mut *self.device, &self.parts.copies(padded(round.len(), self.parts.extents.sequences))?)?;
            copies = rest;
        }
        Ok(())
    }

    /// Whether a token has an adapter; the adapters are then in their slots.
    fn upload_adapters(&mut self, batch: &ForwardBatch<'_>) -> Result<bool> {
        let Some(adapters) = self.parts.adapters.as_mut().filter(|_| !batch.adapters.is_empty()) else {
            return Ok(false);
        };
        let slots = adapters.bring(&mut *self.device, &self.parts.extents, batch.adapters)?;
        let of = |adapter: &u32| slots.get(*adapter as usize).copied().unwrap_or(NO_ADAPTER);
        self.device.upload(self.parts.inputs.adapters, 0, &words(batch.adapter_of.iter().map(of)))?;
        Ok(true)
    }

    fn upload_tokens(&mut self, batch: &ForwardBatch<'_>) -> Result<()> {
        let inputs = &self.parts.inputs;
        for (to, values) in [
            (inputs.ids, batch.input_ids),
            (inputs.positions, batch.positions),
            (inputs.slots, batch.slot_mapping),
        ] {
            self.device.upload(to, 0, &words(values.iter().copied()))?;
        }
        self.device.upload(inputs.tokens, 0, &words([batch.input_ids.len() as u32]))?;
        Ok(())
    }

    /// Tables in rows of one width, and what the attention of the shape reads of each sequence.
    fn upload_sequences(&mut self, batch: &ForwardBatch<'_>, shape: Shape) -> Result<()> {
        let (inputs, width) = (&self.parts.inputs, self.parts.extents.table_width);
        let mut tables = vec![0; batch.sequences.len() * width];
        for (row, span) in tables.chunks_exact_mut(width).zip(batch.sequences) {
            let blocks = (span.context_len as usize).div_ceil(BLOCK);
            row[..blocks].copy_from_slice(&batch.block_tables[span.table_start as usize..][..blocks]);
        }
        self.device.upload(inputs.tables, 0, &words(tables))?;
        if shape.queries == 1 {
            let contexts = batch.sequences.iter().map(|span| span.context_len);
            let padding = std::iter::repeat_n(0, shape.sequences - batch.sequences.len());
            self.device.upload(inputs.contexts, 0, &words(contexts.chain(padding)))?;
        } else {
            let spans = batch.sequences.iter().zip(0..).flat_map(|(span, at): (_, u32)| {
                [span.query_start, span.query_len, span.context_len, at * width as u32]
            });
            let padding = std::iter::repeat_n(0, 4 * (shape.sequences - batch.sequences.len()));
            self.device.upload(inputs.spans, 0, &words(spans.chain(padding)))?;
        }
        Ok(())
    }

    /// Queues the head over the rows that come next, as many as there is room for.
    fn queue_rows(&mut self, pending: &mut Pending) -> Result<()> {
        let most = self.parts.extents.sequences;
        let count = (pending.rows.len() - pending.queued).min(most);
        if count == 0 {
            return Ok(());
        }
        let rows = pending.rows[pending.queued..][..count].iter().copied();
        self.device.upload(self.parts.inputs.wanted, 0, &words(rows))?;
        self.device.upload(self.parts.inputs.rows, 0, &words([count as u32]))?;
        let rows = padded(count, most);
        let list = match self.heads.entry((rows, pending.sampled)) {
            Entry::Occupied(list) => *list.get(),
            Entry::Vacant(place) => {
                *place.insert(self.device.record(self.parts.head(rows, pending.sampled)?)?)
            }
        };
        self.device.replay(list)?;
        pending.queued += count;
        Ok(())
    }
}

fn queue(device: &mut dyn Device, list: &[Launch]) -> Result<()> {
    list.iter().try_for_each(|launch| device.launch(launch)).map_err(ModelError::from)
}

fn words(values: impl IntoIterator<Item = u32>) -> Vec<u8> {
    values.into_iter().flat_map(u32::to_le_bytes).collect()
}
