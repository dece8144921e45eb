//! A step: what it reads goes up, its launches are queued, what it yields comes down.

use std::collections::hash_map::Entry;

use tarn_kernels::device::sample::Sampling;
use tarn_kernels::device::{Device, Launch, Reading};
use tarn_kernels::{BLOCK, View};

use super::super::super::batch::{ForwardBatch, Logits, NO_ADAPTER};
use super::super::super::error::{ModelError, Result};
use super::super::check_adapters;
use super::DeviceDecoder;
use super::shape::{Shape, padded};

/// A step that was launched, for its decoder to say what it yields.
#[derive(Debug)]
#[must_use = "what a step yields is for somebody who waits for it"]
pub struct DeviceStep {
    /// How many were launched before.
    number: u64,
    yields: Yields,
}

#[derive(Debug)]
enum Yields {
    Logits(Wanted),
    /// The token of each row.
    Tokens(Reading),
}

/// Rows whose logits are wanted.
#[derive(Debug)]
struct Wanted {
    rows: Vec<u32>,
    /// How many of them are queued.
    queued: usize,
}

fn not_its_step<T>(what: &str) -> Result<T> {
    Err(ModelError::Batch { what: format!("{what} of a step that has none, or that another one followed") })
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
    ) -> Result<DeviceStep> {
        self.drawn = 0;
        self.check(batch, copies, how)?;
        self.copy_blocks(copies)?;
        self.device.upload(self.parts.inputs.ids, 0, &words(batch.input_ids.iter().copied()))?;
        self.queue_step(batch, how)
    }

    /// Queues a step behind the last one, which need not have been waited for and draws: of one token a sequence, token `i`
    /// being what row `i` of the last step draws. Its input ids only count.
    ///
    /// # Errors
    /// As [`DeviceDecoder::launch`], also where the last step draws another number of tokens.
    pub fn follow(&mut self, batch: &ForwardBatch<'_>, how: &[Sampling]) -> Result<DeviceStep> {
        let drawn = std::mem::take(&mut self.drawn);
        self.check(batch, &[], Some(how))?;
        if batch.input_ids.len() != drawn {
            let what = format!("{} tokens behind a step that draws {drawn}", batch.input_ids.len());
            return Err(ModelError::Batch { what });
        }
        self.queue_step(batch, Some(how))
    }

    /// All of a step but its ids and what comes before it.
    fn queue_step(&mut self, batch: &ForwardBatch<'_>, how: Option<&[Sampling]>) -> Result<DeviceStep> {
        let extents = self.parts.extents;
        let adapted = self.upload_adapters(batch)?;
        let queries = batch.sequences.iter().map(|span| span.query_len as usize).max().unwrap_or(0);
        // Decoding has the tokens in the order of the sequences.
        let in_order = batch.sequences.iter().zip(0..).all(|(span, at)| span.query_start == at);
        let queries = if queries == 1 && !in_order { 2 } else { queries };
        let shape = extents.shape(batch.input_ids.len(), batch.sequences.len(), queries, adapted);
        self.upload_tokens(batch)?;
        self.upload_sequences(batch, shape)?;
        if !self.run_probed(shape, batch.sequences.len())? {
            self.queue_layers(shape)?;
        }
        let yields = match how {
            None => {
                let mut wanted = Wanted { rows: batch.logits_rows.to_vec(), queued: 0 };
                self.queue_logits(&mut wanted)?;
                Yields::Logits(wanted)
            }
            Some(how) => {
                let bytes: Vec<u8> = how.iter().flat_map(Sampling::to_bytes).collect();
                self.device.upload(self.parts.inputs.how, 0, &bytes)?;
                self.queue_head(batch.logits_rows, true)?;
                self.drawn = how.len();
                Yields::Tokens(self.device.read(self.parts.inputs.ids, 0, how.len() * 4)?)
            }
        };
        self.launched += 1;
        Ok(DeviceStep { number: self.launched, yields })
    }

    /// Queues the layers: as they were recorded where they come again.
    fn queue_layers(&mut self, shape: Shape) -> Result<()> {
        if shape.queries > 1 {
            return queue(&mut *self.device, &self.parts.layers(shape)?);
        }
        let list = match self.decoding.entry(shape) {
            Entry::Occupied(list) => *list.get(),
            Entry::Vacant(place) => *place.insert(self.device.record(self.parts.layers(shape)?)?),
        };
        Ok(self.device.replay(list)?)
    }

    /// Waits for a step: the logits of its rows. No other may have been launched behind it.
    ///
    /// # Errors
    /// [`ModelError::Batch`] for a step that draws or was followed, or what the device says.
    pub fn logits(&mut self, step: DeviceStep) -> Result<Logits<'_>> {
        let mut wanted = match step.yields {
            Yields::Logits(wanted) if step.number == self.launched => wanted,
            _ => return not_its_step("logits"),
        };
        let (rows, vocab) = (wanted.rows.len(), self.config.vocab);
        self.logits.resize(rows * vocab, 0.0);
        let mut bytes = Vec::new();
        let mut done = 0;
        while done < rows {
            bytes.resize((wanted.queued - done) * vocab * 4, 0);
            self.device.download(self.parts.activations.logits, 0, &mut bytes)?;
            let to = &mut self.logits[done * vocab..wanted.queued * vocab];
            to.iter_mut()
                .zip(bytes.as_chunks::<4>().0)
                .for_each(|(to, from)| *to = f32::from_le_bytes(*from));
            done = wanted.queued;
            self.queue_logits(&mut wanted)?;
        }
        if rows == 0 {
            self.device.synchronize()?;
        }
        Ok(Logits { view: View::new(&self.logits, rows, vocab)? })
    }

    /// Waits for a step, not for one behind it: the token of each row, `None` where none can be drawn.
    ///
    /// # Errors
    /// [`ModelError::Batch`] for a step that does not draw, or what the device says.
    pub fn drawn(&mut self, step: DeviceStep) -> Result<Vec<Option<u32>>> {
        let Yields::Tokens(reading) = step.yields else { return not_its_step("tokens") };
        let bytes = self.device.finish(reading)?;
        let ids = bytes.as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id));
        Ok(ids.map(|id| (id != u32::MAX).then_some(id)).collect())
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

    /// Where each token goes.
    fn upload_tokens(&mut self, batch: &ForwardBatch<'_>) -> Result<()> {
        let inputs = &self.parts.inputs;
        for (to, values) in [(inputs.positions, batch.positions), (inputs.slots, batch.slot_mapping)] {
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
    fn queue_logits(&mut self, wanted: &mut Wanted) -> Result<()> {
        let count = (wanted.rows.len() - wanted.queued).min(self.parts.extents.sequences);
        if count > 0 {
            self.queue_head(&wanted.rows[wanted.queued..][..count], false)?;
            wanted.queued += count;
        }
        Ok(())
    }

    /// Queues the head over `rows`, and the draw where they are `sampled`.
    fn queue_head(&mut self, rows: &[u32], sampled: bool) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        self.device.upload(self.parts.inputs.wanted, 0, &words(rows.iter().copied()))?;
        self.device.upload(self.parts.inputs.rows, 0, &words([rows.len() as u32]))?;
        let rows = padded(rows.len(), self.parts.extents.sequences);
        let list = match self.heads.entry((rows, sampled)) {
            Entry::Occupied(list) => *list.get(),
            Entry::Vacant(place) => *place.insert(self.device.record(self.parts.head(rows, sampled)?)?),
        };
        self.device.replay(list)?;
        Ok(())
    }
}

fn queue(device: &mut dyn Device, list: &[Launch]) -> Result<()> {
    list.iter().try_for_each(|launch| device.launch(launch)).map_err(ModelError::from)
}

fn words(values: impl IntoIterator<Item = u32>) -> Vec<u8> {
    values.into_iter().flat_map(u32::to_le_bytes).collect()
}
