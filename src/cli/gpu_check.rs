//! `tarn gpu-check`: whether every kernel computes what it should on this GPU, and how close it comes to what the GPU can.
//!
//! It needs no model and builds nothing. Sections stand for themselves: what was measured before stays in the JSON file
//! when another section runs.

#[cfg(any(feature = "cuda", feature = "emulator"))]
mod report;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod sections;

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
    /// The ops of decode steps of Mixtral 8x7B: 1, 8, 32 and 64 sequences of 1,024 tokens.
    Decode,
    /// The ops of a prompt of 2,048 tokens of Mixtral 8x7B.
    Prefill,
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
    check(device, if only.is_empty() { Section::value_variants() } else { &only }, json)
}

#[cfg(any(feature = "cuda", feature = "emulator"))]
fn check(device: Place, chosen: &[Section], json: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let mut report = report::Report::of(&device, json)?;
    println!("{device}");
    let mut well = true;
    for section in chosen {
        well &= match section {
            Section::Cases => sections::cases(&device, &mut report)?,
            Section::Decode => sections::decode(&device, &mut report)?,
            Section::Prefill => sections::prefill(&device, &mut report)?,
        };
        report.write()?;
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(not(any(feature = "cuda", feature = "emulator")))]
fn check(_device: Place, _chosen: &[Section], _json: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    anyhow::bail!("this program was built without kernels to check: build it with `make cuda`")
}
