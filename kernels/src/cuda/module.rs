//! The kernels, compiled by `kernels/build.rs` and part of the program.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::driver::{Context, Stream, failed};
use crate::device::{Launch, MAX_ARGS};
use crate::error::{KernelError, Result};

/// Bytes that the driver reads in words.
#[repr(C)]
struct Image<B: ?Sized> {
    align: [u64; 0],
    bytes: B,
}

macro_rules! fatbin {
    ($path:literal) => {{
        static IMAGE: &Image<[u8]> = &Image { align: [], bytes: *include_bytes!($path) };
        &IMAGE.bytes
    }};
}

/// Each file of `kernels/cuda`, as the compiler left it.
const FATBINS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/fatbins/list.rs"));

/// The loaded modules, and the functions that were asked for.
#[derive(Debug)]
pub(super) struct Kernels {
    modules: Vec<sys::CUmodule>,
    functions: HashMap<&'static str, Function>,
    context: Arc<Context>,
}

// SAFETY: the handles are tokens that the driver looks up under its own locks; any thread may pass them.
unsafe impl Send for Kernels {}

#[derive(Debug)]
struct Function {
    handle: sys::CUfunction,
    /// Bytes of each parameter.
    parameters: Vec<usize>,
    /// Dynamic shared memory that it may be launched with.
    shared: usize,
}

impl Kernels {
    /// Loads all of them.
    pub(super) fn load(context: &Arc<Context>) -> Result<Kernels> {
        context.enter()?;
        let mut kernels =
            Kernels { modules: Vec::new(), functions: HashMap::new(), context: context.clone() };
        for (file, image) in FATBINS {
            // SAFETY: the image is a whole fatbin that nvcc wrote, aligned as a word, and lives as long as the program.
            let module = unsafe { result::module::load_data(image.as_ptr().cast()) }
                .map_err(|error| failed(&format!("loading the kernels of {file}.cu"), error))?;
            kernels.modules.push(module);
        }
        Ok(kernels)
    }

    /// Makes the kernel of a launch ready for it.
    pub(super) fn prepare(&mut self, launch: &Launch) -> Result<()> {
        self.context.enter()?;
        let name = launch.kernel;
        if !self.functions.contains_key(name) {
            let function = self.find(name)?;
            self.functions.insert(name, function);
        }
        let function = self.functions.get_mut(name).expect("it was put there");
        let sizes = launch.args().iter().map(|arg| arg.bytes as usize);
        if !function.parameters.iter().copied().eq(sizes.clone()) {
            let (found, expected) = (sizes.collect::<Vec<_>>(), &function.parameters);
            let what = format!("{name}: arguments of {found:?} bytes, and the kernel takes {expected:?}");
            return Err(KernelError::Device { what });
        }
        if launch.shared > function.shared {
            use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MOST;
            // SAFETY: the function is of a module that is loaded.
            unsafe { result::function::set_function_attribute(function.handle, MOST, launch.shared as i32) }
                .map_err(|error| {
                    failed(&format!("{name}: {} bytes of shared memory", launch.shared), error)
                })?;
            function.shared = launch.shared;
        }
        Ok(())
    }

    /// Queues a launch that was prepared.
    pub(super) fn queue(&self, launch: &Launch, stream: &Stream) -> Result<()> {
        let function = self.functions.get(launch.kernel).ok_or_else(|| KernelError::Device {
            what: format!("{} was not prepared: this is a bug", launch.kernel),
        })?;
        let mut words = [0_u64; MAX_ARGS];
        let mut pointers = [std::ptr::null_mut(); MAX_ARGS];
        for (at, arg) in launch.args().iter().enumerate() {
            words[at] = u64::from_ne_bytes(arg.word);
            pointers[at] = (&raw mut words[at]).cast();
        }
        let ([x, y, z], [bx, by, bz]) = (launch.grid, launch.block);
        let arguments = &mut pointers[..launch.args().len()];
        // SAFETY: the function is of a loaded module. The driver reads each argument, during this call, from a word that
        // has as many bytes as the kernel's parameter (`prepare` compared them). What the kernel does with the addresses
        // among them happens in the device's memory: its cases show under the emulator's checks that it stays inside.
        unsafe {
            result::launch_kernel(
                function.handle,
                (x, y, z),
                (bx, by, bz),
                launch.shared as u32,
                stream.handle,
                arguments,
            )
        }
        .map_err(|error| {
            failed(&format!("{}, grid {:?}, block {:?}", launch.kernel, launch.grid, launch.block), error)
        })
    }

    fn find(&self, name: &'static str) -> Result<Function> {
        let symbol =
            CString::new(name).map_err(|_| KernelError::Device { what: format!("{name:?} is no name") })?;
        for module in &self.modules {
            // SAFETY: the module is loaded.
            let handle = match unsafe { result::module::get_function(*module, symbol.clone()) } {
                Ok(handle) => handle,
                Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND)) => continue,
                Err(error) => return Err(failed(name, error)),
            };
            // SAFETY: the function is of a loaded module. Loading it now keeps that out of captures.
            unsafe { sys::cuFuncLoad(handle) }.result().map_err(|error| failed(name, error))?;
            use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MOST;
            // SAFETY: as above.
            let shared = unsafe { result::function::get_function_attribute(handle, MOST) }
                .map_err(|error| failed(name, error))?;
            return Ok(Function { handle, parameters: parameters(handle), shared: shared.max(0) as usize });
        }
        Err(KernelError::Device { what: format!("there is no kernel {name}") })
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            for module in &self.modules {
                // SAFETY: loaded once, unloaded once; a device waits for its stream before.
                let _ = unsafe { result::module::unload(*module) };
            }
        }
    }
}

/// Bytes of each parameter.
fn parameters(function: sys::CUfunction) -> Vec<usize> {
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function is of a loaded module, the pointers are to live numbers. The driver refuses the first
        // index that no parameter has.
        let found = unsafe { sys::cuFuncGetParamInfo(function, sizes.len(), &raw mut offset, &raw mut size) };
        if found.result().is_err() {
            return sizes;
        }
        sizes.push(size);
    }
}
