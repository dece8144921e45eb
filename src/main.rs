//! The `tarn` program; [`tarn::cli`] is all of it.

fn main() -> std::process::ExitCode {
    tarn::cli::main()
}
