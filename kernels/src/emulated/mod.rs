//! A device that runs kernels on the host: what `kernels/emu` compiles to, behind a safe wrapper.
//!
//! [`Mode::Plain`] is for values. [`Mode::Checked`] also watches every access: out of bounds, never written, in a race,
//! before its asynchronous copy was waited for. Both find misaligned accesses, divergent barriers, lanes that a mask
//! names and that never come, and what was written past the end of a buffer. See docs/GPU.md.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Instant;

use crate::check::{CheckDevice, TimedDevice};
use crate::device::{Copier, Device, Launch, Ptr, READS, Reading, Use};
use crate::error::{KernelError, Result};

#[cfg(test)]
mod faults;
#[cfg(test)]
mod tests;

/// Which of the two builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Values only; threads in the order of their numbers.
    Plain,
    /// Values only; blocks and threads in reverse order, which brings missing barriers to light.
    Reversed,
    /// Every access watched.
    Checked,
}

impl Mode {
    fn build(self) -> &'static str {
        if self == Mode::Checked { "checked" } else { "plain" }
    }
}

/// Where the build script left the libraries.
fn built() -> &'static Path {
    Path::new(env!("TARN_EMULATOR"))
}

/// Puts a stand-in where the library that it stands for would be found, for as long as the process lives: `driver.so` for
/// the CUDA driver, then `blas.so` for cuBLASLt.
#[cfg(all(test, feature = "cuda"))]
pub(crate) fn load_stand_in(file: &str) -> Result<()> {
    let path = CString::new(built().join(file).into_os_string().into_encoded_bytes())
        .map_err(|_| failed("a library's path has a zero byte".into()))?;
    // SAFETY: the name ends in a zero. The library is our own, its initialisers only fill a list. It has the name of what
    // it stands for (libcuda.so, libcublasLt.so): whoever opens that afterwards gets it.
    let handle = unsafe { dlopen(path.as_ptr(), RTLD_NOW | RTLD_NODELETE) };
    NonNull::new(handle).map(|_| ()).ok_or_else(last_error)
}

/// Bytes at each address.
#[derive(Debug, Clone, Default)]
struct Buffers(BTreeMap<u64, usize>);

impl Buffers {
    /// `len` bytes of a buffer, from `offset` on.
    fn place(&self, buffer: Ptr, offset: usize, len: usize) -> Result<*mut u8> {
        match self.0.get(&buffer.0) {
            Some(bytes) if offset.checked_add(len).is_some_and(|end| end <= *bytes) => {
                Ok((buffer.0 as usize + offset) as *mut u8)
            }
            Some(bytes) => Err(failed(format!("a copy of {len} bytes at {offset} of a buffer of {bytes}"))),
            None => Err(failed("a copy to or from an address that is no buffer".into())),
        }
    }

    fn upload(&self, to: Ptr, offset: usize, bytes: &[u8]) -> Result<()> {
        let at = self.place(to, offset, bytes.len())?;
        // SAFETY: the place is in the memory of a machine that lives and has these bytes (`place`). Who copies there says
        // that nothing else looks at them meanwhile ([`Copier`]), or is the one thread that has the machine.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
        Ok(())
    }
}

/// The machine of a library, with its memory; deleted with the last who uses it.
#[derive(Debug)]
struct Machine {
    at: NonNull<c_void>,
    library: Arc<Library>,
}

impl Machine {
    fn new(library: &Arc<Library>, mode: Mode) -> Result<Arc<Machine>> {
        // SAFETY: `new` has no preconditions.
        let at = unsafe { (library.calls.new)(c_int::from(mode == Mode::Reversed)) };
        let at = NonNull::new(at).ok_or_else(|| failed("the emulator has no memory".into()))?;
        Ok(Arc::new(Machine { at, library: library.clone() }))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: it came from this library's `new`, which is still loaded, and is deleted once.
        unsafe { (self.library.calls.delete)(self.at.as_ptr()) };
    }
}

// SAFETY: what the machine does, and its fibers, belong to the one [`Emulator`] that has it and are reached through
// `&mut` of that; what a launch keeps in thread-local variables it sets at its start. Others only keep it alive.
unsafe impl Send for Machine {}
// SAFETY: as above; no method changes the value.
unsafe impl Sync for Machine {}

/// Copies to the memory of a machine.
struct MachineCopier {
    buffers: Buffers,
    /// Keeps the memory.
    _machine: Arc<Machine>,
}

impl Copier for MachineCopier {
    fn upload(&mut self, to: Ptr, offset: usize, bytes: &[u8]) -> Result<()> {
        self.buffers.upload(to, offset, bytes)
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Device memory and the kernels of one library.
#[derive(Debug)]
pub struct Emulator {
    library: Arc<Library>,
    machine: Arc<Machine>,
    mode: Mode,
    buffers: Buffers,
    recorded: Vec<Vec<Launch>>,
    /// What was read and not waited for, by number.
    reads: VecDeque<(usize, Vec<u8>)>,
    read: usize,
}

impl Emulator {
    /// All kernels, in `mode`.
    ///
    /// # Errors
    /// What the dynamic linker says.
    pub fn new(mode: Mode) -> Result<Emulator> {
        Emulator::open(&built().join(format!("{}.so", mode.build())), mode)
    }

    fn open(library: &Path, mode: Mode) -> Result<Emulator> {
        let library = Arc::new(Library::open(library)?);
        let machine = Machine::new(&library, mode)?;
        Ok(Emulator {
            library,
            machine,
            mode,
            buffers: Buffers::default(),
            recorded: Vec::new(),
            reads: VecDeque::new(),
            read: 0,
        })
    }

    #[cfg(test)]
    fn round(&self, kind: c_int, values: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; values.len()];
        // SAFETY: both slices have the length given.
        unsafe { (self.library.calls.round)(kind, values.as_ptr(), out.as_mut_ptr(), values.len()) };
        out
    }
}

impl CheckDevice for Emulator {
    fn clear(&mut self) {
        self.buffers.0.clear();
        self.machine = Machine::new(&self.library, self.mode).expect("the emulator has memory");
    }

    fn has_library(&self) -> bool {
        false
    }
}

impl TimedDevice for Emulator {
    /// Of the host: they mean nothing.
    fn time(&mut self, launches: &[Launch]) -> Result<f64> {
        let start = Instant::now();
        launches.iter().try_for_each(|launch| self.launch(launch))?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn time_copy(&mut self, from: Ptr, to: Ptr, bytes: usize) -> Result<f64> {
        let start = Instant::now();
        let mut between = vec![0; bytes];
        self.download(from, 0, &mut between)?;
        self.upload(to, 0, &between)?;
        Ok(start.elapsed().as_secs_f64())
    }
}

impl Device for Emulator {
    fn alloc(&mut self, name: &str, bytes: usize, r#use: Use) -> Result<Ptr> {
        let name = CString::new(name).unwrap_or_default();
        // SAFETY: the machine lives, the name ends in a zero.
        let at = unsafe {
            (self.library.calls.alloc)(self.machine.at.as_ptr(), name.as_ptr(), bytes, r#use as c_int)
        };
        self.buffers.0.insert(at as u64, bytes);
        Ok(Ptr(at as u64))
    }

    fn upload(&mut self, to: Ptr, offset: usize, bytes: &[u8]) -> Result<()> {
        self.buffers.upload(to, offset, bytes)
    }

    fn download(&mut self, from: Ptr, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let at = self.buffers.place(from, offset, bytes.len())?;
        // SAFETY: as in `Buffers::upload`; every byte of a buffer was set when it was made.
        unsafe { std::ptr::copy_nonoverlapping(at, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn read(&mut self, from: Ptr, offset: usize, bytes: usize) -> Result<Reading> {
        let reading = Reading::new(self.read, bytes)?;
        let mut read = vec![0; bytes];
        self.download(from, offset, &mut read)?;
        self.reads.retain(|(number, _)| number + READS > self.read);
        self.reads.push_back((self.read, read));
        self.read += 1;
        Ok(reading)
    }

    fn finish(&mut self, reading: Reading) -> Result<Vec<u8>> {
        let at = self.reads.iter().position(|(number, _)| *number == reading.number);
        let found = at.and_then(|at| self.reads.remove(at));
        reading.still(found).map(|(_, bytes)| bytes)
    }

    fn launch(&mut self, launch: &Launch) -> Result<()> {
        let mut words: Vec<[u8; 8]> = launch.args().iter().map(|arg| arg.word).collect();
        let sizes: Vec<u32> = launch.args().iter().map(|arg| arg.bytes).collect();
        let mut pointers: Vec<*mut c_void> = words.iter_mut().map(|word| word.as_mut_ptr().cast()).collect();
        let kernel = CString::new(launch.kernel).unwrap_or_default();
        let mut error = vec![0_u8; 1024];
        // SAFETY: every pointer is to as much as its length says and outlives the call. What the kernel does with the
        // addresses among its arguments is what the emulator checks. The plain build does not look at scalar accesses:
        // a faulty kernel's stray write is found in a red zone or by the processor, or is not found; only tests run it.
        let status = unsafe {
            (self.library.calls.launch)(
                self.machine.at.as_ptr(),
                kernel.as_ptr(),
                launch.grid.as_ptr(),
                launch.block.as_ptr(),
                launch.shared,
                pointers.as_mut_ptr(),
                sizes.as_ptr(),
                sizes.len() as c_int,
                error.as_mut_ptr().cast(),
                error.len(),
            )
        };
        if status == 0 {
            return Ok(());
        }
        let text = CStr::from_bytes_until_nul(&error).map_or_else(|_| "?".into(), CStr::to_string_lossy);
        Err(failed(text.into_owned()))
    }

    fn record(&mut self, launches: Vec<Launch>) -> Result<usize> {
        self.recorded.push(launches);
        Ok(self.recorded.len() - 1)
    }

    fn replay(&mut self, list: usize) -> Result<()> {
        let launches =
            self.recorded.get(list).ok_or_else(|| failed(format!("no list {list} was recorded")))?.clone();
        launches.iter().try_for_each(|launch| self.launch(launch))
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }

    fn copier(&self) -> Result<Box<dyn Copier>> {
        Ok(Box::new(MachineCopier { buffers: self.buffers.clone(), _machine: self.machine.clone() }))
    }
}

type New = unsafe extern "C" fn(c_int) -> *mut c_void;
type Delete = unsafe extern "C" fn(*mut c_void);
type Alloc = unsafe extern "C" fn(*mut c_void, *const c_char, usize, c_int) -> *mut c_void;
type Run = unsafe extern "C" fn(
    *mut c_void,
    *const c_char,
    *const u32,
    *const u32,
    usize,
    *mut *mut c_void,
    *const u32,
    c_int,
    *mut c_char,
    usize,
) -> c_int;
#[cfg(test)]
type Round = unsafe extern "C" fn(c_int, *const f32, *mut f32, usize);

/// The functions of a library, see `kernels/emu/host.cpp`.
#[derive(Debug, Clone, Copy)]
struct Calls {
    new: New,
    delete: Delete,
    alloc: Alloc,
    launch: Run,
    #[cfg(test)]
    round: Round,
}

/// A loaded library; closed when dropped, after what it made.
#[derive(Debug)]
struct Library {
    handle: NonNull<c_void>,
    calls: Calls,
}

// SAFETY: the handle is a token that the dynamic linker looks up under its own locks; what the functions do is for those
// who call them.
unsafe impl Send for Library {}
// SAFETY: as above; no method changes the value.
unsafe impl Sync for Library {}

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlclose(handle: *mut c_void) -> c_int;
    fn dlerror() -> *const c_char;
}

/// Resolve everything at once; RTLD_LOCAL is 0, so that libraries with the same kernels do not meet.
const RTLD_NOW: c_int = 2;
/// Closing leaves it in memory: its signal handler stays installed.
const RTLD_NODELETE: c_int = 0x1000;

impl Library {
    fn open(path: &Path) -> Result<Library> {
        let name = CString::new(PathBuf::from(path).into_os_string().into_encoded_bytes())
            .map_err(|_| failed("a library's path has a zero byte".into()))?;
        // SAFETY: the name ends in a zero. The library is our own, its initialisers only fill a list.
        let handle = unsafe { dlopen(name.as_ptr(), RTLD_NOW | RTLD_NODELETE) };
        let handle = NonNull::new(handle).ok_or_else(last_error)?;
        let symbol = |name: &CStr| {
            // SAFETY: the handle is open, the name ends in a zero.
            NonNull::new(unsafe { dlsym(handle.as_ptr(), name.as_ptr()) }).ok_or_else(last_error)
        };
        // SAFETY: the library is built with this crate from kernels/emu, where each of these functions has exactly
        // this signature; they stay valid until `dlclose`, which `drop` calls last.
        let calls = unsafe {
            Calls {
                new: std::mem::transmute::<NonNull<c_void>, New>(symbol(c"emu_new")?),
                delete: std::mem::transmute::<NonNull<c_void>, Delete>(symbol(c"emu_delete")?),
                alloc: std::mem::transmute::<NonNull<c_void>, Alloc>(symbol(c"emu_alloc")?),
                launch: std::mem::transmute::<NonNull<c_void>, Run>(symbol(c"emu_launch")?),
                #[cfg(test)]
                round: std::mem::transmute::<NonNull<c_void>, Round>(symbol(c"emu_round")?),
            }
        };
        Ok(Library { handle, calls })
    }
}

fn failed(what: String) -> KernelError {
    KernelError::Device { what }
}

fn last_error() -> KernelError {
    // SAFETY: dlerror returns null or a string that lives until the next call on this thread; it is copied at once.
    let text = unsafe {
        let text = dlerror();
        if text.is_null() {
            "unknown error".into()
        } else {
            CStr::from_ptr(text).to_string_lossy().into_owned()
        }
    };
    failed(text)
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: the handle is open and closed once; a machine holds its library.
        unsafe { dlclose(self.handle.as_ptr()) };
    }
}
