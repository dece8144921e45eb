//! With the feature `cuda`: compiles the device kernels for GPUs. With the feature `emulator`: compiles them and the
//! emulator for the host, twice.
//!
//! For GPUs a fatbin a kernel file goes to `OUT_DIR`, by the same script that `make kernels-check` uses, and a list of
//! them that `src/cuda/module.rs` includes.
//!
//! For the host a library per mode goes to `OUT_DIR`: `plain.so` compares values, `checked.so` also sees every access to memory
//! (the compiler's `-fsanitize=thread` calls, which `kernels/emu/tsan.cpp` answers; the sanitizer's library is not
//! linked). What compiled them is left beside them, so that the tests can compile a kernel with a fault in it. With both
//! features there are also `driver.so`, a stand-in for the CUDA driver on the emulator, and `blas.so`, one for cuBLASLt on
//! that driver.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    gpu::build();
    #[cfg(feature = "emulator")]
    emulator::build();
}

#[cfg(feature = "cuda")]
mod gpu {
    use std::path::PathBuf;
    use std::process::Command;
    use std::{env, fs};

    pub(super) fn build() {
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("fatbins");
        println!("cargo::rerun-if-changed=cuda");
        println!("cargo::rerun-if-env-changed=TARN_CUDA");
        let toolkit = env::var_os("TARN_CUDA").map_or_else(|| "../.cuda/nvidia/cu13".into(), PathBuf::from);
        let nvcc = toolkit.join("bin/nvcc");
        assert!(
            nvcc.exists(),
            "the feature `cuda` needs the CUDA compiler, and {} is not there: `make cuda-toolchain` installs it, or \
             TARN_CUDA names a CUDA 13.0 toolkit",
            nvcc.display()
        );
        let toolkit = fs::canonicalize(toolkit).expect("it is there");
        let mut script = Command::new("cuda/toolchain.sh");
        let status = script.arg("compile").arg(&out).env("TARN_CUDA", toolkit).status().expect("bash starts");
        assert!(status.success(), "the device kernels do not compile");
        let mut names: Vec<String> = fs::read_dir("cuda")
            .expect("the folder exists")
            .filter_map(|entry| {
                entry.ok()?.file_name().into_string().ok()?.strip_suffix(".cu").map(str::to_owned)
            })
            .collect();
        names.sort();
        let one = |name: &String| {
            format!("(\"{name}\", fatbin!(\"{}\")),\n", out.join(format!("{name}.fatbin")).display())
        };
        let list = format!("&[\n{}]\n", names.iter().map(one).collect::<String>());
        fs::write(out.join("list.rs"), list).expect("writes to OUT_DIR");
    }
}

#[cfg(feature = "emulator")]
mod emulator {
    use std::path::{Path, PathBuf};
    use std::{env, fs};

    const RUNTIME: [&str; 8] = ["fiber", "host", "machine", "memory", "shadow", "trap", "tsan", "warp"];

    pub(super) fn build() {
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        println!("cargo::rerun-if-changed=cuda");
        println!("cargo::rerun-if-changed=emu");
        println!("cargo::rerun-if-env-changed=CXX");
        println!("cargo::rerun-if-env-changed=CXXFLAGS");
        println!("cargo::rustc-env=TARN_EMULATOR={}", out.display());
        for mode in ["plain", "checked"] {
            library(&out, mode);
        }
    }

    fn library(out: &Path, mode: &str) {
        let checked = mode == "checked";
        let base = || {
            let mut build = cc::Build::new();
            build.cpp(true).std("c++17").cargo_metadata(false).pic(true).debug(false).warnings(true);
            build.flags([
                "-fvisibility=hidden",
                "-ffp-contract=off",
                "-Wno-unknown-pragmas",
                "-Iemu",
                "-Icuda",
            ]);
            build.out_dir(out.join(mode));
            if checked {
                build.define("EMU_CHECKED", None);
            }
            build
        };
        let mut runtime = base();
        runtime.opt_level(2).files(RUNTIME.map(|name| format!("emu/{name}.cpp")));
        let mut objects = runtime.compile_intermediates();
        fs::write(out.join(format!("{mode}.runtime")), lines(&objects)).expect("writes to OUT_DIR");

        let mut kernels = base();
        // Lightly optimised where accesses are watched: an access that the compiler removes is not seen.
        kernels.opt_level(if checked { 1 } else { 2 }).define("TARN_EMULATED", None).flags(["-x", "c++"]);
        if checked {
            kernels.flag("-fsanitize=thread");
        }
        kernels.files(sources("cuda")).files(sources("emu"));
        let tool = kernels.get_compiler();
        let command: Vec<PathBuf> =
            std::iter::once(tool.path().into()).chain(tool.args().iter().map(PathBuf::from)).collect();
        fs::write(out.join(format!("{mode}.command")), lines(&command)).expect("writes to OUT_DIR");
        objects.extend(kernels.compile_intermediates());
        link(tool.path(), &objects, &out.join(format!("{mode}.so")), &format!("{mode}.so"));
        if cfg!(feature = "cuda") && !checked {
            // Found where somebody opens the driver, once it is loaded.
            objects.extend(base().opt_level(2).file("emu/driver.cpp").compile_intermediates());
            let driver = out.join("driver.so");
            link(tool.path(), &objects, &driver, "libcuda.so");
            // The same for cuBLASLt. It needs the driver by its name, which is there by then.
            let mut blas = base().opt_level(2).file("emu/blas.cpp").compile_intermediates();
            blas.push(driver);
            link(tool.path(), &blas, &out.join("blas.so"), "libcublasLt.so");
        }
    }

    fn link(compiler: &Path, objects: &[PathBuf], library: &Path, name: &str) {
        let status = std::process::Command::new(compiler)
            .args(["-shared", &format!("-Wl,-soname,{name}"), "-o"])
            .arg(library)
            .args(objects)
            .status()
            .expect("the C++ compiler starts");
        assert!(status.success(), "linking {} failed", library.display());
    }

    fn sources(folder: &str) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = fs::read_dir(folder)
            .expect("the folder exists")
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
            .collect();
        found.sort();
        found
    }

    fn lines(paths: &[PathBuf]) -> String {
        paths.iter().map(|path| format!("{}\n", path.display())).collect()
    }
}
