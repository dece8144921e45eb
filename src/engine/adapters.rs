//! LoRA adapters by name.
//!
//! Loading reads, packs and brings to a device on the caller's thread; the engine only ever holds finished adapters, so
//! no load stalls a step. A request holds an [`AdapterLease`]; an adapter that was unloaded lives until its last lease ends. At most
//! `max_resident` adapters are in memory: the least recently used one that nobody holds and nobody pinned makes room,
//! stays known by its path, and is read again when it is next asked for. Adapters are read one at a time: who asks for an
//! evicted one waits for those before it, seconds on a slow disk; whoever asks for one in memory waits for nobody.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::model::{LoraAdapter, ModelError};

/// Why an adapter cannot be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AdapterError {
    /// The name is taken.
    #[error("an adapter named `{name}` is loaded already: unload it first, or choose another name")]
    Exists {
        /// The name.
        name: String,
    },
    /// No such name.
    #[error("there is no adapter named `{name}`")]
    Unknown {
        /// The name.
        name: String,
    },
    /// Its files cannot be used.
    #[error("the adapter `{name}` cannot be loaded: {source}")]
    Load {
        /// The name.
        name: String,
        /// What is wrong with them.
        source: Arc<ModelError>,
    },
    /// All places are held by running requests or pinned adapters.
    #[error(
        "all {max_resident} places for adapters are in use: try again, unload one, or start with a larger --max-loras"
    )]
    NoRoom {
        /// Places.
        max_resident: usize,
    },
}

/// What is known of an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterInfo {
    /// The model name that requests use.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// Never evicted.
    pub pinned: bool,
    /// Memory in bytes, where it is in memory.
    pub resident_bytes: Option<usize>,
    /// Requests that hold it.
    pub leases: usize,
}

/// An adapter in memory.
struct Resident {
    uid: u64,
    weights: Arc<LoraAdapter>,
    live: Arc<AtomicUsize>,
}

impl Drop for Resident {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Keeps an adapter in memory for a request.
#[derive(Clone)]
pub struct AdapterLease(Arc<Resident>);

impl std::fmt::Debug for AdapterLease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AdapterLease({})", self.0.uid)
    }
}

impl AdapterLease {
    /// Number of the load: no two loads share one, and none is 0.
    #[must_use]
    pub fn uid(&self) -> u64 {
        self.0.uid
    }

    /// The packed weights.
    #[must_use]
    pub fn weights(&self) -> &Arc<LoraAdapter> {
        &self.0.weights
    }
}

struct Entry {
    path: PathBuf,
    pinned: bool,
    resident: Option<Arc<Resident>>,
    last_used: u64,
}

#[derive(Default)]
struct State {
    by_name: HashMap<String, Entry>,
    clock: u64,
    uids: u64,
}

type Load = dyn Fn(&Path) -> Result<LoraAdapter, ModelError> + Send + Sync;
type Place = dyn Fn(&Arc<LoraAdapter>) -> Result<(), ModelError> + Send + Sync;

struct Inner {
    max_resident: usize,
    load: Box<Load>,
    /// Brings an adapter that was read to where steps use it.
    place: OnceLock<Box<Place>>,
    state: Mutex<State>,
    /// Held while files are read, so that adapters come in one at a time; never while `state` is.
    loading: Mutex<()>,
    /// Adapters in memory, those included that were unloaded and are still held.
    live: Arc<AtomicUsize>,
}

/// The adapters of one base model; cheap to clone.
#[derive(Clone)]
pub struct Adapters {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Adapters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Adapters").field(&self.list()).finish()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Adapters {
    /// No adapter yet; at most `max_resident` in memory, read by `load`.
    #[must_use]
    pub fn new(
        max_resident: usize,
        load: impl Fn(&Path) -> Result<LoraAdapter, ModelError> + Send + Sync + 'static,
    ) -> Adapters {
        Adapters {
            inner: Arc::new(Inner {
                max_resident,
                load: Box::new(load),
                place: OnceLock::new(),
                state: Mutex::new(State::default()),
                loading: Mutex::new(()),
                live: Arc::new(AtomicUsize::new(0)),
            }),
        }
    }

    /// From now on an adapter that was read is brought by `place` to where steps use it, before anybody gets it; those that
    /// are in memory at once. To be said once.
    ///
    /// # Errors
    /// [`AdapterError::Load`] of one that is in memory.
    pub fn placed_by(
        &self,
        place: impl Fn(&Arc<LoraAdapter>) -> Result<(), ModelError> + Send + Sync + 'static,
    ) -> Result<(), AdapterError> {
        let _loading = lock(&self.inner.loading);
        let place = self.inner.place.get_or_init(|| Box::new(place));
        let known: Vec<_> = lock(&self.inner.state)
            .by_name
            .iter()
            .filter_map(|(name, entry)| Some((name.clone(), entry.resident.as_ref()?.weights.clone())))
            .collect();
        for (name, weights) in known {
            place(&weights).map_err(|source| AdapterError::Load { name, source: Arc::new(source) })?;
        }
        Ok(())
    }

    /// Reads the PEFT folder `path` and makes it known as `name`. Takes as long as reading and packing take: not for
    /// an async thread.
    ///
    /// # Errors
    /// [`AdapterError`]; nothing is then known under `name`.
    pub fn load(&self, name: &str, path: &Path, pinned: bool) -> Result<(), AdapterError> {
        let _loading = lock(&self.inner.loading);
        if self.contains(name) {
            return Err(AdapterError::Exists { name: name.to_owned() });
        }
        let resident = self.read(name, path, false)?;
        let mut state = lock(&self.inner.state);
        state.clock += 1;
        let entry = Entry { path: path.to_owned(), pinned, resident: Some(resident), last_used: state.clock };
        state.by_name.insert(name.to_owned(), entry);
        Ok(())
    }

    /// Reads the PEFT folder `path` in place of what is known as `name`, `pinned` as before where that is not said. The
    /// name is known all the time: requests that come meanwhile get the old weights or wait for the new ones; those that
    /// hold the old ones keep them. Not for an async thread.
    ///
    /// # Errors
    /// [`AdapterError`]; the old one then stays.
    pub fn replace(&self, name: &str, path: &Path, pinned: Option<bool>) -> Result<(), AdapterError> {
        let _loading = lock(&self.inner.loading);
        let unknown = || AdapterError::Unknown { name: name.to_owned() };
        if !self.contains(name) {
            return Err(unknown());
        }
        let resident = self.read(name, path, true)?;
        let mut state = lock(&self.inner.state);
        state.clock += 1;
        let now = state.clock;
        // Somebody may have unloaded it meanwhile, and meant it.
        let entry = state.by_name.get_mut(name).ok_or_else(unknown)?;
        let pinned = pinned.unwrap_or(entry.pinned);
        *entry = Entry { path: path.to_owned(), pinned, resident: Some(resident), last_used: now };
        Ok(())
    }

    /// Forgets `name`. Requests that hold it go on; its memory is freed with the last of them.
    ///
    /// # Errors
    /// [`AdapterError::Unknown`].
    pub fn unload(&self, name: &str) -> Result<(), AdapterError> {
        let entry = lock(&self.inner.state).by_name.remove(name);
        entry.map(drop).ok_or_else(|| AdapterError::Unknown { name: name.to_owned() })
    }

    /// Whether `name` is known.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        lock(&self.inner.state).by_name.contains_key(name)
    }

    /// A lease of `name` if it is in memory; reads nothing.
    #[must_use]
    pub fn resident(&self, name: &str) -> Option<AdapterLease> {
        let mut state = lock(&self.inner.state);
        state.clock += 1;
        let now = state.clock;
        let entry = state.by_name.get_mut(name)?;
        entry.last_used = now;
        entry.resident.clone().map(AdapterLease)
    }

    /// A lease of `name`, read again from its folder where it was evicted: not for an async thread.
    ///
    /// # Errors
    /// [`AdapterError`].
    pub fn acquire(&self, name: &str) -> Result<AdapterLease, AdapterError> {
        if let Some(lease) = self.resident(name) {
            return Ok(lease);
        }
        let _loading = lock(&self.inner.loading);
        // Somebody else may have brought it in while this one waited.
        if let Some(lease) = self.resident(name) {
            return Ok(lease);
        }
        let unknown = || AdapterError::Unknown { name: name.to_owned() };
        let path = lock(&self.inner.state).by_name.get(name).map(|entry| entry.path.clone());
        let resident = self.read(name, &path.ok_or_else(unknown)?, false)?;
        let mut state = lock(&self.inner.state);
        let entry = state.by_name.get_mut(name).ok_or_else(unknown)?;
        entry.resident = Some(resident.clone());
        Ok(AdapterLease(resident))
    }

    /// All known adapters by name.
    #[must_use]
    pub fn list(&self) -> Vec<AdapterInfo> {
        let state = lock(&self.inner.state);
        let info = |(name, entry): (&String, &Entry)| AdapterInfo {
            name: name.clone(),
            path: entry.path.clone(),
            pinned: entry.pinned,
            resident_bytes: entry.resident.as_ref().map(|resident| resident.weights.bytes()),
            leases: entry.resident.as_ref().map_or(0, |resident| Arc::strong_count(resident) - 1),
        };
        let mut all: Vec<AdapterInfo> = state.by_name.iter().map(info).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Makes room and reads; the caller holds `loading`. What is read in the `place_of` the one known as `name` takes
    /// its room first, be it pinned: should reading fail, it is read again when it is next asked for.
    fn read(&self, name: &str, path: &Path, place_of: bool) -> Result<Arc<Resident>, AdapterError> {
        let inner = &self.inner;
        // The room is taken before the files are read: memory never holds more than `max_resident`.
        while inner.live.load(Ordering::SeqCst) >= inner.max_resident {
            let mut state = lock(&inner.state);
            let idle = |(other, entry): &(&String, &mut Entry)| {
                (!entry.pinned || (place_of && *other == name))
                    && entry.resident.as_ref().is_some_and(|resident| Arc::strong_count(resident) == 1)
            };
            let all = state.by_name.iter_mut().filter(idle);
            match all.min_by_key(|(other, entry)| (!place_of || *other != name, entry.last_used)) {
                Some((_, entry)) => drop(entry.resident.take()),
                None => return Err(AdapterError::NoRoom { max_resident: inner.max_resident }),
            }
        }
        let failed =
            |source: ModelError| AdapterError::Load { name: name.to_owned(), source: Arc::new(source) };
        let weights = Arc::new((inner.load)(path).map_err(failed)?);
        if let Some(place) = inner.place.get() {
            place(&weights).map_err(failed)?;
        }
        inner.live.fetch_add(1, Ordering::SeqCst);
        let mut state = lock(&inner.state);
        state.uids += 1;
        Ok(Arc::new(Resident { uid: state.uids, weights, live: inner.live.clone() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tiny_adapters;

    fn resident(adapters: &Adapters) -> Vec<String> {
        let all = adapters.list().into_iter().filter(|info| info.resident_bytes.is_some());
        all.map(|info| info.name).collect()
    }

    #[test]
    fn the_least_recently_used_idle_adapter_makes_room() {
        let adapters = tiny_adapters(2, &["a", "b", "c"]);
        assert_eq!(resident(&adapters), ["b", "c"]);
        let held = adapters.acquire("b").expect("in memory");
        let again = adapters.acquire("a").expect("read again");
        assert_eq!(resident(&adapters), ["a", "b"], "c was not held");
        assert!(matches!(adapters.acquire("c"), Err(AdapterError::NoRoom { max_resident: 2 })));
        drop(again);
        let reread = adapters.acquire("c").expect("a makes room");
        assert_ne!(reread.uid(), held.uid());
        assert!(matches!(adapters.acquire("d"), Err(AdapterError::Unknown { .. })));
    }

    #[test]
    fn an_unloaded_adapter_lives_as_long_as_it_is_held_and_takes_a_place() {
        let adapters = tiny_adapters(1, &["a"]);
        let path = adapters.list()[0].path.clone();
        let held = adapters.acquire("a").expect("in memory");
        adapters.unload("a").expect("known");
        assert!(adapters.unload("a").is_err());
        assert!(matches!(adapters.load("a", &path, false), Err(AdapterError::NoRoom { .. })));
        let uid = held.uid();
        drop(held);
        adapters.load("a", &path, true).expect("there is room");
        assert!(matches!(adapters.load("a", &path, false), Err(AdapterError::Exists { .. })));
        assert_ne!(adapters.acquire("a").expect("in memory").uid(), uid, "another load, another number");
        assert!(matches!(adapters.load("b", &path, false), Err(AdapterError::NoRoom { .. })), "a is pinned");
    }

    #[test]
    fn a_replaced_adapter_is_known_all_the_time_and_stays_where_the_other_cannot_be_read() {
        for (places, pinned) in [(2, false), (1, false), (1, true)] {
            let adapters = tiny_adapters(places, &["a"]);
            let path = adapters.list()[0].path.clone();
            assert!(matches!(adapters.replace("b", &path, None), Err(AdapterError::Unknown { .. })));
            adapters.replace("a", &path, Some(pinned)).expect("replaced");
            let old = adapters.acquire("a").expect("in memory").uid();
            let done = std::sync::atomic::AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(Ordering::SeqCst) {
                        // A lease that is held takes the only place: the name is known all the same.
                        assert!(adapters.contains("a") && adapters.list().len() == 1);
                    }
                });
                for _ in 0..50 {
                    adapters.replace("a", &path, None).expect("replaced");
                    assert!(adapters.replace("a", Path::new("/nowhere"), None).is_err());
                }
                done.store(true, Ordering::SeqCst);
            });
            let held = adapters.acquire("a").expect("read again");
            assert!(held.uid() > old, "other weights have another number");
            assert_eq!((adapters.list()[0].pinned, &adapters.list()[0].path), (pinned, &path));
            match adapters.replace("a", &path, None) {
                Ok(()) => {
                    assert!(places == 2 && adapters.acquire("a").expect("in memory").uid() > held.uid())
                }
                Err(error) => assert!(matches!(error, AdapterError::NoRoom { .. }) && places == 1),
            }
        }
    }

    #[test]
    fn an_adapter_is_in_its_place_before_anybody_gets_it() {
        let adapters = tiny_adapters(2, &["a"]);
        let path = adapters.list()[0].path.clone();
        let (placed, refuses) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let (to, refused) = (placed.clone(), refuses.clone());
        let place = move |adapter: &Arc<LoraAdapter>| match refused.load(Ordering::SeqCst) {
            0 => {
                lock(&to).push(Arc::as_ptr(adapter) as usize);
                Ok(())
            }
            _ => Err(ModelError::Batch { what: "no room".to_owned() }),
        };
        adapters.placed_by(place).expect("places a");
        adapters.load("b", &path, false).expect("places b");
        let own = |name: &str| Arc::as_ptr(adapters.acquire(name).expect("in memory").weights()) as usize;
        assert_eq!(*lock(&placed), [own("a"), own("b")]);
        refuses.store(1, Ordering::SeqCst);
        adapters.unload("b").expect("known");
        let error = adapters.load("b", &path, false).expect_err("not placed");
        assert!(matches!(error, AdapterError::Load { .. }) && !adapters.contains("b"), "{error}");
    }

    #[test]
    fn threads_never_have_more_in_memory_than_there_are_places() {
        let names = ["a", "b", "c", "d"];
        let adapters = tiny_adapters(2, &names);
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let adapters = &adapters;
                scope.spawn(move || {
                    for at in 0..200 {
                        match adapters.acquire(names[(worker * 7 + at) % 4]) {
                            Ok(lease) => {
                                assert!(adapters.inner.live.load(Ordering::SeqCst) <= 2, "{lease:?}")
                            }
                            Err(error) => assert!(matches!(error, AdapterError::NoRoom { .. }), "{error}"),
                        }
                    }
                });
            }
        });
        assert!(adapters.list().iter().all(|info| info.leases == 0));
        assert_eq!(adapters.inner.live.load(Ordering::SeqCst), resident(&adapters).len());
    }
}
