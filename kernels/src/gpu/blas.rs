//! cuBLASLt, which computes large products where it is installed, or in words why it does not.
//!
//! It is no part of the driver: a machine has it with CUDA's runtime libraries, or has it not, and then our own tiles
//! compute them.

use std::fmt;

/// The toolkit's major version, whose attributes are those that we set.
const MAJOR: i32 = 13;

/// Which cuBLASLt it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlasVersion {
    /// That of the CUDA it belongs to.
    pub major: i32,
    /// As the library counts.
    pub minor: i32,
    /// As the library counts.
    pub patch: i32,
}

impl fmt::Display for BlasVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cuBLASLt {}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Why it computes nothing, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoBlas {
    /// The feature `cuda` was not built in.
    #[error("this program was built without GPU support: build it with `make cuda`")]
    NotBuilt,
    /// No libcublasLt.
    #[error(
        "libcublasLt.so.{} was not found. Install CUDA's runtime libraries (the package libcublas-13-0; or \
         nvidia-cublas of PyPI, with its folder in LD_LIBRARY_PATH)",
        MAJOR
    )]
    NoLibrary,
    /// One of before the toolkit.
    #[error(
        "{found} was found first, and that of CUDA {} is needed: let its folder come first in LD_LIBRARY_PATH",
        MAJOR
    )]
    OldLibrary {
        /// What it is.
        found: BlasVersion,
    },
    /// It is there and does not work.
    #[error("cuBLASLt does not start: {what}")]
    Failed {
        /// As the library or the driver says it.
        what: String,
    },
}

/// What the library is asked, in this order.
pub(crate) trait Library {
    /// Whether it can be loaded. Nothing else may be asked where it cannot.
    fn present(&self) -> bool;
    /// Which it is. Needs no GPU.
    fn version(&self) -> Result<BlasVersion, String>;
}

/// The cuBLASLt of this machine, if a GPU's products can be given to it.
///
/// # Errors
/// [`NoBlas`] with what is missing.
pub fn find_blas() -> Result<BlasVersion, NoBlas> {
    #[cfg(feature = "cuda")]
    return ask(&crate::cuda::LibcublasLt);
    #[cfg(not(feature = "cuda"))]
    Err(NoBlas::NotBuilt)
}

#[cfg_attr(not(any(test, feature = "cuda")), expect(dead_code, reason = "nobody to ask"))]
fn ask(library: &dyn Library) -> Result<BlasVersion, NoBlas> {
    if !library.present() {
        return Err(NoBlas::NoLibrary);
    }
    let found = library.version().map_err(|what| NoBlas::Failed { what })?;
    if found.major < MAJOR { Err(NoBlas::OldLibrary { found }) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine as told: whether there is a library, and which.
    struct Told(bool, Result<i32, &'static str>);

    impl Library for Told {
        fn present(&self) -> bool {
            self.0
        }

        fn version(&self) -> Result<BlasVersion, String> {
            assert!(self.0, "nothing is asked of a library that is not there");
            self.1.map(|major| BlasVersion { major, minor: 2, patch: 1 }).map_err(str::to_owned)
        }
    }

    #[test]
    fn a_library_of_the_toolkits_version_or_newer_is_taken() {
        for major in [MAJOR, MAJOR + 1] {
            assert_eq!(ask(&Told(true, Ok(major))).expect("found").major, major);
        }
        assert_eq!(BlasVersion { major: 13, minor: 0, patch: 2 }.to_string(), "cuBLASLt 13.0.2");
    }

    #[test]
    fn what_is_missing_is_said_with_what_to_do() {
        for (told, words) in [
            (Told(false, Ok(13)), &["libcublasLt.so.13 was not found", "nvidia-cublas"][..]),
            (Told(true, Ok(12)), &["cuBLASLt 12.2.1 was found first", "that of CUDA 13", "LD_LIBRARY_PATH"]),
            (Told(true, Err("no such symbol")), &["does not start", "no such symbol"]),
        ] {
            let said = ask(&told).expect_err("none").to_string();
            for part in words {
                assert!(said.contains(part), "`{part}` is not in: {said}");
            }
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_program_without_gpu_support_says_how_to_build_it() {
        assert!(find_blas().expect_err("none").to_string().contains("make cuda"));
    }
}
