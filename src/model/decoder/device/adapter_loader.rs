//! Filling slots with adapters beside the steps.
//!
//! An adapter with experts is gigabytes: to convert and copy it in the step that first needs it would stop everybody's
//! answers for as long. So it goes to a free slot when it is read, on the thread that reads it and by a stream of its own.
//! A slot is free when nobody has its adapter any more, the plans of steps in flight included.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use tarn_kernels::device::Copier;

use super::super::super::error::{ModelError, Result};
use super::super::super::lora::LoraAdapter;
use super::adapters::LayerUpdates;
use super::shape::Extents;

/// Which adapter is in which slot.
#[derive(Debug)]
pub(super) struct SlotTable {
    state: Mutex<State>,
    /// A slot is no longer being filled.
    filled: Condvar,
}

#[derive(Debug)]
struct State {
    slots: Vec<Slot>,
    steps: u64,
}

#[derive(Debug)]
struct Slot {
    holds: Holds,
    /// The last step that had a part in it.
    last_used: u64,
}

// A weak reference keeps the address, by which an adapter is known, from being given away.
#[derive(Debug)]
enum Holds {
    Nothing,
    /// Being copied.
    Filling(Weak<LoraAdapter>),
    Adapter(Weak<LoraAdapter>),
}

impl Slot {
    fn is_of(&self, adapter: &Arc<LoraAdapter>) -> bool {
        let (Holds::Filling(held) | Holds::Adapter(held)) = &self.holds else { return false };
        held.as_ptr() == Arc::as_ptr(adapter)
    }

    fn is_filling(&self) -> bool {
        matches!(self.holds, Holds::Filling(_))
    }

    fn is_free(&self) -> bool {
        match &self.holds {
            Holds::Nothing => true,
            Holds::Filling(_) => false,
            Holds::Adapter(held) => held.strong_count() == 0,
        }
    }
}

/// The slot of an adapter in a step.
#[derive(Debug)]
pub(super) enum Place<'t> {
    /// It is there.
    Filled(usize),
    /// It is to be brought there.
    Empty(Filling<'t>),
}

impl SlotTable {
    pub(super) fn new(slots: usize) -> SlotTable {
        let slots = (0..slots).map(|_| Slot { holds: Holds::Nothing, last_used: 0 }).collect();
        SlotTable { state: Mutex::new(State { slots, steps: 0 }), filled: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where each of a step's adapters, which are distinct, is or is to be brought: for those that are nowhere the least
    /// recently used slots of others, which then hold nothing. Waits for those that are on their way.
    pub(super) fn places(&self, adapters: &[Arc<LoraAdapter>]) -> Result<Vec<Place<'_>>> {
        let mut state = self.lock();
        if adapters.len() > state.slots.len() {
            let what = format!("{} adapters, the device has {} slots", adapters.len(), state.slots.len());
            return Err(ModelError::Batch { what });
        }
        let own = |slot: &Slot| adapters.iter().any(|adapter| slot.is_of(adapter));
        // Without a slot for each that is not being filled it takes one that is.
        let wait = |state: &State| {
            let missing = adapters.iter().filter(|adapter| !state.slots.iter().any(|it| it.is_of(adapter)));
            let others = state.slots.iter().filter(|slot| !own(slot) && !slot.is_filling());
            state.slots.iter().any(|slot| own(slot) && slot.is_filling()) || missing.count() > others.count()
        };
        while wait(&state) {
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.steps += 1;
        let State { slots, steps } = &mut *state;
        for slot in slots.iter_mut().filter(|slot| own(slot)) {
            slot.last_used = *steps;
        }
        let mut place = |adapter: &Arc<LoraAdapter>| {
            if let Some(at) = slots.iter().position(|slot| slot.is_of(adapter)) {
                return Some(Place::Filled(at));
            }
            let others =
                (0..slots.len()).filter(|at| !slots[*at].is_filling() && slots[*at].last_used < *steps);
            let at = others.min_by_key(|at| slots[*at].last_used)?;
            slots[at] = Slot { holds: Holds::Filling(Arc::downgrade(adapter)), last_used: *steps };
            Some(Place::Empty(Filling { table: self, at }))
        };
        let places: Vec<_> = adapters.iter().map_while(&mut place).collect();
        // Before what gives slots back, should there be too few.
        drop(state);
        let places = Some(places).filter(|places| places.len() == adapters.len());
        places.ok_or_else(|| ModelError::Batch { what: "no slot for an adapter: this is a bug".to_owned() })
    }
}

/// A slot that is being filled; it holds nothing unless that ends well.
#[derive(Debug)]
pub(super) struct Filling<'t> {
    table: &'t SlotTable,
    pub(super) at: usize,
}

impl<'t> Filling<'t> {
    /// A free slot for an adapter, unless it has one or there is none.
    fn begin(table: &'t SlotTable, adapter: &Arc<LoraAdapter>) -> Option<Filling<'t>> {
        let mut state = table.lock();
        if state.slots.iter().any(|slot| slot.is_of(adapter)) {
            return None;
        }
        let at = state.slots.iter().position(Slot::is_free)?;
        state.slots[at].holds = Holds::Filling(Arc::downgrade(adapter));
        Some(Filling { table, at })
    }

    /// It was filled.
    pub(super) fn end(self, adapter: &Arc<LoraAdapter>) {
        self.table.lock().slots[self.at].holds = Holds::Adapter(Arc::downgrade(adapter));
    }
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        let slot = &mut self.table.lock().slots[self.at];
        if slot.is_filling() {
            slot.holds = Holds::Nothing;
        }
        self.table.filled.notify_all();
    }
}

/// Brings adapters to a decoder's slots from any thread, beside its steps.
pub struct AdapterLoader {
    copier: Mutex<Box<dyn Copier>>,
    extents: Extents,
    layers: Arc<[LayerUpdates]>,
    table: Arc<SlotTable>,
}

impl std::fmt::Debug for AdapterLoader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdapterLoader").field("table", &self.table).finish_non_exhaustive()
    }
}

impl AdapterLoader {
    pub(super) fn new(
        copier: Box<dyn Copier>,
        extents: Extents,
        layers: Arc<[LayerUpdates]>,
        table: Arc<SlotTable>,
    ) -> AdapterLoader {
        AdapterLoader { copier: Mutex::new(copier), extents, layers, table }
    }

    /// Brings an adapter to a free slot; when it returns, steps find it there. Where no slot is free, and where its weights
    /// are made on the device, the first step that needs it brings it. Takes as long as converting and copying it take.
    ///
    /// # Errors
    /// [`ModelError`] for an adapter that does not fit, or of the device.
    pub fn load(&self, adapter: &Arc<LoraAdapter>) -> Result<()> {
        if adapter.dummy().is_some() {
            return Ok(());
        }
        let mut copier = self.copier.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(filling) = Filling::begin(&self.table, adapter) else { return Ok(()) };
        let put = &mut |to, from, bytes: &[u8]| copier.upload(to, from, bytes);
        for (updates, layer) in self.layers.iter().zip(0..) {
            updates.fill(put, &self.extents, filling.at, adapter.layer(layer))?;
        }
        copier.synchronize()?;
        filling.end(adapter);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tiny_adapters;

    fn adapters() -> Vec<Arc<LoraAdapter>> {
        let adapters = tiny_adapters(4, &["a", "b", "c", "d"]);
        let weights = |name: &str| adapters.acquire(name).expect("in memory").weights().clone();
        ["a", "b", "c", "d"].map(weights).to_vec()
    }

    /// Where a step's adapters go, and whether they are there; afterwards they are.
    fn step(table: &SlotTable, adapters: &[&Arc<LoraAdapter>]) -> Vec<(bool, usize)> {
        let adapters: Vec<_> = adapters.iter().map(|adapter| Arc::clone(adapter)).collect();
        let places = table.places(&adapters).expect("slots").into_iter();
        let filled = places.zip(&adapters).map(|(place, adapter)| match place {
            Place::Filled(at) => (true, at),
            Place::Empty(filling) => {
                let at = filling.at;
                filling.end(adapter);
                (false, at)
            }
        });
        filled.collect()
    }

    #[test]
    fn the_least_recently_used_slot_makes_way() {
        let (table, all) = (SlotTable::new(2), adapters());
        let [a, b, c, d] = [&all[0], &all[1], &all[2], &all[3]];
        assert_eq!(step(&table, &[a, b]), [(false, 0), (false, 1)]);
        assert_eq!(step(&table, &[b, a]), [(true, 1), (true, 0)]);
        assert_eq!(step(&table, &[a]), [(true, 0)]);
        assert_eq!(step(&table, &[c, a]), [(false, 1), (true, 0)], "b was used before a");
        assert!(table.places(&all[..3]).is_err(), "more adapters than slots");
        assert!(Filling::begin(&table, a).is_none(), "it has a slot");
        assert!(Filling::begin(&table, d).is_none(), "others have all of them");
        drop(table.places(&all[3..]).expect("a slot"));
        assert_eq!(step(&table, &[d]), [(false, 1)], "what was not filled holds nothing");
    }

    #[test]
    fn a_loader_takes_a_slot_that_nobody_has_and_a_step_waits_for_it() {
        let (table, mut all) = (SlotTable::new(1), adapters());
        let last = all.pop().expect("four");
        let filling = Filling::begin(&table, &last).expect("free");
        std::thread::scope(|scope| {
            let own = scope.spawn(|| step(&table, &[&last]));
            filling.end(&last);
            assert_eq!(own.join().expect("no panic"), [(true, 0)]);
        });
        drop(last);
        let filling = Filling::begin(&table, &all[0]).expect("nobody has the adapter of the slot");
        std::thread::scope(|scope| {
            let other = scope.spawn(|| step(&table, &[&all[1]]));
            drop(filling);
            assert_eq!(other.join().expect("no panic"), [(false, 0)]);
        });
    }
}
