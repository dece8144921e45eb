//! The sections, each on a device of its own: what one breaks does not reach the next.

use std::time::Instant;

use anyhow::Context;
use tarn_kernels::check::timing::{self, Ceilings, Encode, MIXTRAL_8X7B, Model, SMALL, Step};
use tarn_kernels::check::{TimedDevice, suites};

use super::super::device::Place;
use super::report::{Report, Suite};

/// Tokens in the cache of each sequence of a decode step.
const CONTEXT: usize = 1024;

/// Opens the device anew.
fn open(place: &Place) -> anyhow::Result<Box<dyn TimedDevice>> {
    match place {
        #[cfg(feature = "cuda")]
        Place::Gpu(gpu) => {
            let first = tarn_kernels::gpu::Priority::Foreground;
            Ok(Box::new(tarn_kernels::cuda::CudaDevice::open(gpu.clone(), first)?.one_by_one()))
        }
        #[cfg(feature = "emulator")]
        Place::Emulated => {
            Ok(Box::new(tarn_kernels::emulated::Emulator::new(tarn_kernels::emulated::Mode::Plain)?))
        }
        _ => anyhow::bail!("this program was built without what runs kernels there"),
    }
}

/// Every kernel's cases; whether all pass.
pub(super) fn cases(place: &Place, report: &mut Report) -> anyhow::Result<bool> {
    let emulated = *place == Place::Emulated;
    println!("cases");
    let mut results = Vec::new();
    for suite in suites() {
        let start = Instant::now();
        let ran = open(place)
            .map_err(|error| format!("{error:#}"))
            .and_then(|mut device| (suite.run)(&mut *device, emulated));
        let result = Suite { file: suite.file, ran, seconds: start.elapsed().as_secs_f64() };
        println!("{result}");
        results.push(result);
    }
    let well = results.iter().all(|result| result.ran.is_ok());
    report.cases(&results);
    Ok(well)
}

/// The ops of decode steps, and what adapters add to the largest.
pub(super) fn decode(place: &Place, report: &mut Report) -> anyhow::Result<bool> {
    let (model, batches, context, [adapters, rank]): (_, &[usize], _, _) = if *place == Place::Emulated {
        (SMALL, &[1, 3], 40, [2, 8])
    } else {
        (MIXTRAL_8X7B, &[1, 8, 32, 64], CONTEXT, [8, 64])
    };
    let steps = batches.iter().map(|sequences| Step::Decode { sequences: *sequences, context });
    let adapted = batches.last().map(|sequences| Step::Adapters { sequences: *sequences, adapters, rank });
    ops(place, "decode", &model, steps.chain(adapted).collect(), report)
}

/// The ops of a prompt.
pub(super) fn prefill(place: &Place, report: &mut Report) -> anyhow::Result<bool> {
    let (model, tokens) = if *place == Place::Emulated { (SMALL, 50) } else { (MIXTRAL_8X7B, 2048) };
    ops(place, "prefill", &model, vec![Step::Prefill { tokens }], report)
}

/// The ops of an encoder that a decoder does not have, and the search over a matrix.
pub(super) fn encoder_ops(place: &Place, report: &mut Report) -> anyhow::Result<bool> {
    let (model, encode, [rows, d, k]) = if *place == Place::Emulated {
        let of = Encode { passages: 2, tokens: 32, h: 64, inner: 96, heads: 4 };
        (Model { name: "a small encoder", ..SMALL }, of, [500, 64, 10])
    } else {
        let of = Encode { passages: 32, tokens: 512, h: 1024, inner: 4096, heads: 16 };
        (Model { name: "multilingual-e5-large", vocab: 250_002, ..MIXTRAL_8X7B }, of, [1_000_000, 1024, 100])
    };
    let steps = vec![Step::Encode(encode), Step::Search { rows, d, k }];
    ops(place, "encoder_ops", &model, steps, report)
}

fn ops(
    place: &Place,
    section: &'static str,
    model: &Model,
    steps: Vec<Step>,
    report: &mut Report,
) -> anyhow::Result<bool> {
    let mut device = open(place)?;
    let ceilings: Ceilings = timing::ceilings(&mut *device, model).context("measuring the ceilings")?;
    println!(
        "\n{section}: one layer of {}, bf16 or as said; a copy reaches {:.0} GB/s, a product of {} cubed {:.0} TFLOP/s",
        model.name,
        ceilings.bandwidth / 1e9,
        model.product,
        ceilings.arithmetic / 1e12,
    );
    let mut timings = Vec::new();
    for step in steps {
        timing::time_step(&mut *device, model, step, &mut |timing| {
            println!("{}", super::report::line(&timing, &ceilings));
            timings.push(timing);
        })
        .with_context(|| format!("timing {step:?}"))?;
    }
    report.ops(section, model.name, &ceilings, &timings);
    Ok(true)
}
