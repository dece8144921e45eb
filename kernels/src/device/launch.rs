//! One launch of a kernel, as data.

use super::Product;

/// An address in device memory; 0 is "none" where an operand is optional.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ptr(pub u64);

impl Ptr {
    /// No operand.
    pub const NONE: Ptr = Ptr(0);

    /// `bytes` further on in the same buffer.
    #[must_use]
    pub fn offset(self, bytes: usize) -> Ptr {
        Ptr(self.0 + bytes as u64)
    }
}

/// An argument of a kernel: its bytes at the start of a word, as the driver reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arg {
    /// The value, little-endian.
    pub word: [u8; 8],
    /// How many of the bytes are the value.
    pub bytes: u32,
}

/// Most arguments of a kernel.
pub(crate) const MAX_ARGS: usize = 16;

/// A kernel with its grid, block, dynamic shared memory and arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The entry's name.
    pub kernel: &'static str,
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads along x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: usize,
    /// The product of whole matrices that the kernel computes, where it computes one: a device with a library for them
    /// may take that instead.
    pub product: Option<Product>,
    args: [Arg; MAX_ARGS],
    count: usize,
}

impl Launch {
    pub(crate) fn new(kernel: &'static str, grid: [u32; 3], threads: usize, shared: usize) -> Launch {
        let empty = Arg { word: [0; 8], bytes: 0 };
        Launch {
            kernel,
            grid,
            block: [threads as u32, 1, 1],
            shared,
            product: None,
            args: [empty; MAX_ARGS],
            count: 0,
        }
    }

    /// With what it computes as a product, if it is one.
    pub(crate) fn or(self, product: Option<Product>) -> Launch {
        Launch { product, ..self }
    }

    /// The same, and always by the kernel.
    #[must_use]
    pub fn by_kernel(self) -> Launch {
        Launch { product: None, ..self }
    }

    /// The arguments, in order.
    #[must_use]
    pub fn args(&self) -> &[Arg] {
        &self.args[..self.count]
    }

    fn push(mut self, bytes: &[u8]) -> Launch {
        let arg = &mut self.args[self.count];
        arg.word[..bytes.len()].copy_from_slice(bytes);
        arg.bytes = bytes.len() as u32;
        self.count += 1;
        self
    }

    pub(crate) fn ptr(self, value: Ptr) -> Launch {
        self.push(&value.0.to_le_bytes())
    }

    pub(crate) fn ptrs(self, values: &[Ptr]) -> Launch {
        values.iter().fold(self, |launch, value| launch.ptr(*value))
    }

    pub(crate) fn int(self, value: i32) -> Launch {
        self.push(&value.to_le_bytes())
    }

    pub(crate) fn ints(self, values: &[i32]) -> Launch {
        values.iter().fold(self, |launch, value| launch.int(*value))
    }

    pub(crate) fn wide(self, value: u64) -> Launch {
        self.push(&value.to_le_bytes())
    }

    pub(crate) fn float(self, value: f32) -> Launch {
        self.push(&value.to_le_bytes())
    }
}
