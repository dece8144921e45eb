//! cuBLASLt, loaded when the program runs: the products of many tokens, where they are nothing but products.
//!
//! Own tiles keep to what every GPU has that the kernels run on; the library has kernels for each. It is not linked, and
//! what it refuses the tiles compute.
//!
//! What a product needs is made when it is prepared, before any capture, and kept by its shape: descriptors, and the
//! algorithm that the library's heuristic names. Queueing it then neither allocates nor waits, so that a graph may contain
//! it, as the library's manual says ("CUDA Graphs Support"). One workspace is enough: products run in the order of one
//! stream.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;

use super::driver::{Context, Memory, Stream};
use crate::DType;
use crate::device::{Product, ProductShape};
use crate::error::{KernelError, Result};
use crate::gpu::{BlasVersion, Library, NoBlas, find_blas};

/// Bytes that algorithms may use besides: what the library's manual advises for Hopper, and more than for other GPUs.
const WORKSPACE: usize = 32 << 20;
/// Bytes that addresses are multiples of: no algorithm for halves wants more.
const ALIGNMENT: u32 = 16;
/// `CUBLAS_OP_T`.
const TRANSPOSED: i32 = 1;

type Lt<T> = std::result::Result<T, CublasError>;

/// The library of this machine, if it has one.
#[derive(Debug)]
pub(crate) struct LibcublasLt;

impl Library for LibcublasLt {
    fn present(&self) -> bool {
        // SAFETY: loading runs the library's initialisers: those of what the machine's administrator installed under this
        // name.
        unsafe { sys::is_culib_present() }
    }

    fn version(&self) -> std::result::Result<BlasVersion, String> {
        use sys::libraryPropertyType_t as Part;
        let number = |part: Part| {
            let mut value = 0;
            // SAFETY: `present` came first (the trait's order), the pointer is to a live int.
            unsafe { sys::cublasLtGetProperty(part, &raw mut value) }
                .result()
                .map(|()| value)
                .map_err(|error| error.to_string())
        };
        let (major, minor) = (number(Part::MAJOR_VERSION)?, number(Part::MINOR_VERSION)?);
        Ok(BlasVersion { major, minor, patch: number(Part::PATCH_LEVEL)? })
    }
}

/// The library at work on one device.
#[derive(Debug)]
pub(super) struct Blas {
    pub(super) version: BlasVersion,
    handle: Owned<sys::cublasLtHandle_t>,
    workspace: Memory,
    /// Of every shape that was prepared; `None`: the library refuses it.
    plans: HashMap<ProductShape, Option<Plan>>,
    context: Arc<Context>,
}

// SAFETY: the handle and the descriptors are the library's objects on the host, bound to no thread, and this value's alone.
unsafe impl Send for Blas {}

impl Blas {
    pub(super) fn open(context: &Arc<Context>) -> std::result::Result<Blas, NoBlas> {
        let version = find_blas()?;
        Blas::start(context, version).map_err(|error| NoBlas::Failed { what: error.to_string() })
    }

    fn start(context: &Arc<Context>, version: BlasVersion) -> Result<Blas> {
        context.enter()?;
        let raw = result::create_handle().map_err(|error| failed("opening it", error))?;
        let handle = Owned { raw, give_back: result::destroy_handle };
        let workspace = Memory::new(context, "cuBLASLt's workspace", WORKSPACE)?;
        Ok(Blas { version, handle, workspace, plans: HashMap::new(), context: context.clone() })
    }

    /// Makes the product's shape ready to be queued; whether the library takes it.
    pub(super) fn prepare(&mut self, product: &Product) -> Result<bool> {
        if !self.plans.contains_key(&product.shape) {
            self.context.enter()?;
            // Whatever the reason: nothing was begun, and our own kernel computes it.
            let plan = Plan::choose(&self.handle, &product.shape).ok();
            self.plans.insert(product.shape, plan);
        }
        Ok(self.plan(product).is_some())
    }

    /// Queues a product that was prepared; whether the library takes it.
    pub(super) fn queue(&self, product: &Product, stream: &Stream) -> Result<bool> {
        let Some(plan) = self.plan(product) else { return Ok(false) };
        self.context.enter()?;
        let [x, w, out] = [product.x, product.w, product.out].map(|at| at.0 as *mut c_void);
        // Read during the call, as the host's scalars are (also by a capture). The result takes nothing from `out`.
        let (one, zero) = (1.0_f32, 0.0_f32);
        // SAFETY: handle, descriptors and algorithm live and were made for each other (`Plan::choose`), the workspace is as
        // large as was said there, the stream is of the context that was entered. The addresses are multiples of
        // `ALIGNMENT` (`plan` looked) of matrices of the shape, which `Launch::product` says; what happens to them happens
        // in the device's memory.
        unsafe {
            result::matmul(
                self.handle.raw,
                plan.operation.raw,
                (&raw const one).cast(),
                (&raw const zero).cast(),
                w,
                plan.w.raw,
                x,
                plan.x.raw,
                out,
                plan.out.raw,
                out,
                plan.out.raw,
                &raw const plan.algorithm,
                self.workspace.at as *mut c_void,
                self.workspace.bytes,
                stream.handle.cast(),
            )
        }
        .map_err(|error| failed(&format!("{:?}", product.shape), error))?;
        Ok(true)
    }

    fn plan(&self, product: &Product) -> Option<&Plan> {
        let aligned =
            [product.x, product.w, product.out].iter().all(|at| at.0.is_multiple_of(u64::from(ALIGNMENT)));
        self.plans.get(&product.shape)?.as_ref().filter(|_| aligned)
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // The handle goes away after this, in its context. Where that cannot be entered an error has been said before.
        let _ = self.context.enter();
    }
}

fn failed(what: &str, error: CublasError) -> KernelError {
    KernelError::Device { what: format!("cuBLASLt, {what}: {error}") }
}

/// An object of the library.
#[derive(Debug)]
struct Owned<T: Copy> {
    raw: T,
    give_back: unsafe fn(T) -> Lt<()>,
}

impl<T: Copy> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: the library made it for this value, which names the function for its kind and calls it once. A failure
        // leaves an object that ends with the process.
        let _ = unsafe { (self.give_back)(self.raw) };
    }
}

/// How products of one shape are computed.
#[derive(Debug)]
struct Plan {
    operation: Owned<sys::cublasLtMatmulDesc_t>,
    w: Owned<sys::cublasLtMatrixLayout_t>,
    x: Owned<sys::cublasLtMatrixLayout_t>,
    out: Owned<sys::cublasLtMatrixLayout_t>,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Plan {
    /// The library's matrices are column-major, `D [m, n] = op(A) [m, k] · op(B) [k, n]`. A row-major matrix is the same
    /// memory as the column-major one of swapped extents, its transpose, whose leading dimension is the row's length:
    ///
    /// | ours, row-major | the library's, column-major | leading dimension | as |
    /// |---|---|---|---|
    /// | `w [n, k]` | `[k, n]` | k | A, transposed: `[n, k]` |
    /// | `x [rows, k]` | `[k, rows]` | k | B, as it is |
    /// | `out [rows, n]` | `[n, rows]` | n | D = C |
    ///
    /// So its m is our n, its n our rows; `outᵀ = w · xᵀ`. Every leading dimension is the number of the library's rows.
    ///
    /// Sums are f32, also between the parts of a k that is split.
    fn choose(handle: &Owned<sys::cublasLtHandle_t>, shape: &ProductShape) -> Lt<Plan> {
        let ProductShape { rows, n, k, dtype, out_dtype } = *shape;
        let (inputs, output) = (data_type(dtype)?, data_type(out_dtype)?);
        let layout = |of, rows: usize, columns: usize| -> Lt<Owned<sys::cublasLtMatrixLayout_t>> {
            let raw = result::create_matrix_layout(of, rows as u64, columns as u64, rows as i64)?;
            Ok(Owned { raw, give_back: result::destroy_matrix_layout })
        };
        let (w, x, out) = (layout(inputs, k, n)?, layout(inputs, k, rows)?, layout(output, n, rows)?);
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let raw = result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F)?;
        let operation = Owned { raw, give_back: result::destroy_matmul_desc };
        let transposed = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        let (value, bytes) = attribute(&TRANSPOSED);
        // SAFETY: the descriptor lives, and the attribute is an int32, which lives, too.
        unsafe { result::set_matmul_desc_attribute(operation.raw, transposed, value, bytes) }?;
        let preference = preference()?;
        // SAFETY: all of them live.
        let found = unsafe {
            result::get_matmul_algo_heuristic(
                handle.raw,
                operation.raw,
                w.raw,
                x.raw,
                out.raw,
                out.raw,
                preference.raw,
            )
        }?;
        Ok(Plan { operation, w, x, out, algorithm: found.algo })
    }
}

/// What an algorithm may use and must keep to.
fn preference() -> Lt<Owned<sys::cublasLtMatmulPreference_t>> {
    use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
    let preference = Owned { raw: result::create_matmul_pref()?, give_back: result::destroy_matmul_pref };
    let workspace = WORKSPACE as u64;
    // Not by parts that were rounded to the type of `out`.
    let reductions = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
    for (which, (value, bytes)) in [
        (Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, attribute(&workspace)),
        (Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, attribute(&reductions)),
        (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, attribute(&ALIGNMENT)),
        (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, attribute(&ALIGNMENT)),
        (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, attribute(&ALIGNMENT)),
        (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, attribute(&ALIGNMENT)),
    ] {
        // SAFETY: the preference lives; the attributes are a uint64 and uint32s, which live, too.
        unsafe { result::set_matmul_pref_attribute(preference.raw, which, value, bytes) }?;
    }
    Ok(preference)
}

/// A value as the library reads it, and its bytes.
fn attribute<T>(value: &T) -> (*const c_void, usize) {
    ((&raw const *value).cast(), size_of::<T>())
}

fn data_type(dtype: DType) -> Lt<sys::cudaDataType_t> {
    match dtype {
        DType::BF16 => Ok(sys::cudaDataType_t::CUDA_R_16BF),
        DType::F16 => Ok(sys::cudaDataType_t::CUDA_R_16F),
        DType::F32 => Ok(sys::cudaDataType_t::CUDA_R_32F),
        DType::U32 | DType::U8 => Err(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)),
    }
}
