//! `tarn gpu-check`: whether every kernel computes what it should on this GPU, how close ops come to what the GPU can, and
//! what whole models reach there.
//!
//! It needs no model and builds nothing. Sections stand for themselves: what was measured before stays in the JSON file
//! when another section runs, and what breaks one does not keep the next from running.
//!
//! | file | what |
//! |---|---|
//! | `sections` | cases, and tables of ops |
//! | `engine`, `encoder`, `weights` | rows of the end-to-end table (`row`), against `floors` |
//! | `shapes`, `traffic`, `checkpoint` | what these measure: models, requests, files |
//! | `model` | a real model's answers beside the CPU's |

#[cfg(any(feature = "cuda", feature = "emulator"))]
mod checkpoint;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod encoder;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod engine;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod floors;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod model;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod report;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod row;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod sections;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod shapes;
#[cfg(all(test, feature = "emulator"))]
mod tests;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod traffic;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod weights;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::device::{Place, place};
use crate::config::{Device, Settings};

/// What to look at.
#[derive(Debug, Args)]
pub(super) struct GpuCheckArgs {
    /// Only this section; may be given several times.
    #[arg(long, value_name = "SECTION")]
    only: Vec<Section>,
    /// Also write the results to this file; sections that do not run keep what it says of them.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A part of the check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Every case of every kernel, against the plain reference.
    Cases,
    /// The ops of decode steps of Mixtral 8x7B: 1, 8, 32 and 64 sequences of 1,024 tokens; those of adapters.
    Decode,
    /// The ops of a prompt of 2,048 tokens of Mixtral 8x7B.
    Prefill,
    /// A whole engine with dummy weights of Mixtral 8x7B's shapes.
    Engine,
    /// Passages through dummy weights of multilingual-e5-large's shapes.
    Encoder,
    /// A checkpoint that is written on the spot, from the page cache to the device.
    Weights,
    /// The answers of the model that --model names, beside the CPU's.
    Model,
}

pub(super) fn run(settings: Settings, args: GpuCheckArgs) -> anyhow::Result<ExitCode> {
    // Here `auto` means a GPU: there is nothing to check on a CPU.
    let asked = if settings.device == Device::Auto { Device::Cuda(0) } else { settings.device };
    let device = place(asked).map_err(|no_place| anyhow::anyhow!("--device {asked}: {}", no_place.why))?;
    anyhow::ensure!(
        !matches!(device, Place::Cpu(_)),
        "there is nothing to check on a CPU: name a GPU with --device cuda:N"
    );
    let GpuCheckArgs { only, json } = args;
    let named = |section: &&Section| **section != Section::Model || settings.model.is_some();
    let chosen: Vec<Section> = match only.is_empty() {
        true => Section::value_variants().iter().filter(named).copied().collect(),
        false => only,
    };
    if chosen.contains(&Section::Model) {
        settings.need_model()?;
    }
    check(&settings, &device, &chosen, json)
}

#[cfg(any(feature = "cuda", feature = "emulator"))]
fn check(
    settings: &Settings,
    device: &Place,
    chosen: &[Section],
    json: Option<PathBuf>,
) -> anyhow::Result<ExitCode> {
    super::parts::compute_threads(settings);
    let mut report = report::Report::of(device, json)?;
    println!("{device}");
    if let Place::Gpu(_) = device {
        println!("{}", super::device::products(tarn_kernels::gpu::find_blas()));
    }
    let mut well = true;
    for section in chosen {
        let name = section.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        let since = std::time::Instant::now();
        report.begins(&name);
        let result = match section {
            Section::Cases => sections::cases(device, &mut report),
            Section::Decode => sections::decode(device, &mut report),
            Section::Prefill => sections::prefill(device, &mut report),
            Section::Engine => engine::engine(device, &mut report),
            Section::Encoder => {
                sections::encoder_ops(device, &mut report).and_then(|_| encoder::encoder(device, &mut report))
            }
            Section::Weights => weights::weights(device, &mut report),
            Section::Model => model::model(device, settings, &mut report),
        };
        let error = result.as_ref().err().map(|error| format!("{error:#}"));
        if let Some(error) = &error {
            println!("FAIL  {name}: {error}");
        }
        let seconds = since.elapsed().as_secs_f64();
        println!("{name}: {seconds:.1} s");
        well &= result.unwrap_or(false);
        report.ended(&name, seconds, error.as_deref());
        report.write()?;
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(not(any(feature = "cuda", feature = "emulator")))]
fn check(
    _settings: &Settings,
    _device: &Place,
    _chosen: &[Section],
    _json: Option<PathBuf>,
) -> anyhow::Result<ExitCode> {
    anyhow::bail!("this program was built without kernels to check: build it with `make cuda`")
}
