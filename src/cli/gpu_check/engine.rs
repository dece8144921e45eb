//! The section `engine`: a whole engine over the device, with dummy weights of Mixtral 8x7B's shapes.

use tarn_kernels::gpu;

use super::super::device::Place;
use super::floors::{decode_seconds, experts_hit, prefill_seconds, wave_seconds};
use super::report::Report;
use super::row::{Experts, Found, Row, Rows, Unit};
use super::shapes::{mixtral_8x7b, small_mixture};
use super::traffic::{Size, Traffic, Wave};
use crate::model::{DeviceAdapters, DeviceFormat};

/// Bytes that are left to the driver: graphs, the copies' pinned memory, its own tables.
const RESERVE: u64 = 1 << 30;

/// What is measured.
#[derive(Debug)]
struct Plan {
    name: &'static str,
    size: Size,
    /// Tokens of context of the decode rows, in the mean.
    context: usize,
    /// Steps of a decode row.
    steps: usize,
    /// Sequences of the second decode row.
    batch: usize,
    waves: [Wave; 2],
    /// Each used by another request of the last wave.
    adapters: DeviceAdapters,
    /// Tokens of a prompt, and how many prompts.
    prompt: usize,
    prompts: usize,
    /// Context where only the experts are counted.
    short: usize,
}

impl Plan {
    fn mixtral() -> Plan {
        let wave = |requests, answer| Wave { requests, prompt: 512, answer };
        Plan {
            name: "Mixtral 8x7B",
            size: Size {
                config: mixtral_8x7b(),
                max_num_seqs: 64,
                max_num_batched_tokens: 2048,
                max_model_len: 4096,
                cached_tokens: 64 * (512 + 256 + 32),
            },
            context: 1024,
            steps: 128,
            batch: 8,
            waves: [wave(32, 128), wave(64, 256)],
            adapters: DeviceAdapters { slots: 8, max_rank: 64 },
            prompt: 2048,
            prompts: 9,
            short: 32,
        }
    }

    fn small() -> Plan {
        let wave = |requests, answer| Wave { requests, prompt: 12, answer };
        Plan {
            name: "a small mixture",
            size: Size {
                config: small_mixture(),
                max_num_seqs: 4,
                max_num_batched_tokens: 32,
                max_model_len: 64,
                cached_tokens: 4 * 64,
            },
            context: 20,
            steps: 3,
            batch: 2,
            waves: [wave(3, 3), wave(4, 4)],
            adapters: DeviceAdapters { slots: 2, max_rank: 8 },
            prompt: 30,
            prompts: 2,
            short: 4,
        }
    }
}

/// All rows; whether they could be measured.
pub(super) fn engine(place: &Place, report: &mut Report) -> anyhow::Result<bool> {
    let plan = if *place == Place::Emulated { Plan::small() } else { Plan::mixtral() };
    let Plan { name, size, steps, .. } = &plan;
    println!(
        "\nengine: {name}, dummy weights, at most {} tokens a step; medians of {steps} steps; no prefix cache, no prompt \
         lookup",
        size.max_num_batched_tokens
    );
    let mut rows = Rows::default();
    let measured = plan.plain(place, &mut rows).and_then(|()| plan.fp8(place, &mut rows));
    report.rows("engine", name, &rows);
    measured.map(|()| true)
}

impl Plan {
    /// The rows of bf16 weights: with room for the adapters, or without them where that is too much.
    fn plain(&self, place: &Place, rows: &mut Rows) -> anyhow::Result<()> {
        let plain = DeviceFormat::Plain;
        let mut room = Some(self.adapters);
        let mut fits = self.fits(place, plain, room)?;
        let adapted = fits.clone();
        if fits.is_err() {
            room = None;
            fits = self.fits(place, plain, room)?;
        }
        let mut traffic = match fits {
            Ok(()) => Ok(Traffic::start(place, &self.size, plain, room)?),
            Err(why) => Err(why),
        };
        rows.add(self.decode(&mut traffic, plain, [110.0, 150.0])?);
        rows.add(self.step(&mut traffic)?);
        let mut base = Err("without adapters nothing was measured".to_owned());
        for (wave, goals) in self.waves.iter().zip([[1000.0, 1200.0], [1900.0, 2400.0]]) {
            let row = self.wave(&mut traffic, *wave, goals)?;
            base = row.found.clone();
            rows.add(row);
        }
        rows.add(self.adapted(&mut traffic, base, adapted)?);
        rows.add(self.prefill(&mut traffic)?);
        Ok(())
    }

    /// The row of fp8 weights.
    fn fp8(&self, place: &Place, rows: &mut Rows) -> anyhow::Result<()> {
        let fp8 = DeviceFormat::Fp8;
        let mut traffic = match self.fits(place, fp8, None)? {
            Ok(()) => Ok(Traffic::start(place, &self.size, fp8, None)?),
            Err(why) => Err(why),
        };
        rows.add(self.decode(&mut traffic, fp8, [190.0, 280.0])?);
        Ok(())
    }

    /// Whether the engine fits into what is free of the device's memory, or by how much it does not.
    fn fits(
        &self,
        place: &Place,
        format: DeviceFormat,
        room: Option<DeviceAdapters>,
    ) -> anyhow::Result<Result<(), String>> {
        let needs = self.size.bytes(&self.size.options(format, room))?;
        let free = match place {
            Place::Gpu(gpu) => gpu::free_memory(gpu)?,
            _ => u64::MAX,
        };
        Ok(fits(needs, free))
    }

    fn decode(
        &self,
        traffic: &mut Result<Traffic, String>,
        format: DeviceFormat,
        [must, aim]: [f64; 2],
    ) -> anyhow::Result<Row> {
        let config = &self.size.config;
        let found = measured(traffic, |traffic| {
            let steps = traffic.steps(1, self.context, self.steps, 0)?;
            let floor = decode_seconds(config, format, 1, self.context as f64);
            Ok(Found {
                value: 1.0 / steps.seconds,
                floor: Some(1.0 / floor),
                experts: Some(Experts { hit: steps.experts, expected: experts_hit(config, 1) }),
            })
        })?;
        let stored = if format == DeviceFormat::Fp8 { "fp8" } else { "bf16" };
        let what = format!("decode, batch 1, context {}, {stored}", self.context);
        Ok(Row { what, unit: Unit::TokensPerSecond, must, aim, found })
    }

    fn step(&self, traffic: &mut Result<Traffic, String>) -> anyhow::Result<Row> {
        let (config, batch) = (&self.size.config, self.batch);
        let found = measured(traffic, |traffic| {
            let steps = traffic.steps(batch, self.context, self.steps, 0)?;
            let floor = decode_seconds(config, DeviceFormat::Plain, batch, self.context as f64);
            Ok(Found {
                value: steps.seconds * 1e3,
                floor: Some(floor * 1e3),
                experts: Some(Experts { hit: steps.experts, expected: experts_hit(config, batch) }),
            })
        })?;
        let what = format!("decode step, batch {batch}, context {}, bf16", self.context);
        Ok(Row { what, unit: Unit::Milliseconds, must: 27.0, aim: 22.0, found })
    }

    fn wave(
        &self,
        traffic: &mut Result<Traffic, String>,
        wave: Wave,
        [must, aim]: [f64; 2],
    ) -> anyhow::Result<Row> {
        let Wave { requests, prompt, answer } = wave;
        let config = &self.size.config;
        let found = measured(traffic, |traffic| {
            let hit = traffic.steps(requests, self.short, 0, 0)?.experts;
            let value = traffic.wave(wave, 0)?;
            let floor = wave_seconds(config, DeviceFormat::Plain, requests, prompt, answer);
            Ok(Found {
                value,
                floor: Some((requests * answer) as f64 / floor),
                experts: Some(Experts { hit, expected: experts_hit(config, requests) }),
            })
        })?;
        let what = format!("output, {requests} concurrent, {prompt} in, {answer} out, bf16");
        Ok(Row { what, unit: Unit::TokensPerSecond, must, aim, found })
    }

    /// The last wave again, some of whose requests have adapters, against `base` without.
    fn adapted(
        &self,
        traffic: &mut Result<Traffic, String>,
        base: Result<Found, String>,
        fits: Result<(), String>,
    ) -> anyhow::Result<Row> {
        let (wave, DeviceAdapters { slots, max_rank }) = (self.waves[1], self.adapters);
        let found = match fits.and(base) {
            Err(why) => Err(why),
            Ok(base) => measured(traffic, |traffic| {
                let hit = traffic.steps(wave.requests, self.short, 0, slots)?.experts;
                let value = (traffic.wave(wave, slots)? / base.value - 1.0) * 100.0;
                let expected = experts_hit(&self.size.config, wave.requests);
                Ok(Found { value, floor: None, experts: Some(Experts { hit, expected }) })
            })?,
        };
        let what = format!("the same with {slots} adapters of rank {max_rank} on {slots} of them");
        Ok(Row { what, unit: Unit::Percent, must: -20.0, aim: -10.0, found })
    }

    fn prefill(&self, traffic: &mut Result<Traffic, String>) -> anyhow::Result<Row> {
        let tokens = self.prompt;
        let found = measured(traffic, |traffic| {
            let value = tokens as f64 / traffic.prefill(tokens, self.prompts)?;
            let floor = tokens as f64 / prefill_seconds(&self.size.config, tokens);
            Ok(Found { value, floor: Some(floor), experts: None })
        })?;
        let what = format!("prefill of {tokens} tokens, bf16");
        Ok(Row { what, unit: Unit::TokensPerSecond, must: 12_000.0, aim: 20_000.0, found })
    }
}

/// What `measure` finds, where there is an engine; else why there is none.
fn measured(
    traffic: &mut Result<Traffic, String>,
    measure: impl FnOnce(&mut Traffic) -> anyhow::Result<Found>,
) -> anyhow::Result<Result<Found, String>> {
    match traffic {
        Ok(traffic) => measure(traffic).map(Ok),
        Err(why) => Ok(Err(why.clone())),
    }
}

fn fits(needs: u64, free: u64) -> Result<(), String> {
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    match needs.saturating_add(RESERVE) <= free {
        true => Ok(()),
        false => Err(format!(
            "it takes {:.1} GB of the device's memory, {:.1} are free",
            gigabytes(needs),
            gigabytes(free)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixtral_with_adapters_fits_an_h200_and_only_fp8_the_next_smaller() -> anyhow::Result<()> {
        let Plan { size, adapters, .. } = Plan::mixtral();
        let bytes = |format, room| size.bytes(&size.options(format, room));
        let adapted = bytes(DeviceFormat::Plain, Some(adapters))?;
        let (plain, fp8) = (bytes(DeviceFormat::Plain, None)?, bytes(DeviceFormat::Fp8, None)?);
        assert_eq!(fits(adapted, 139 << 30), Ok(()), "{adapted}");
        assert!((100..110).contains(&(plain / 1_000_000_000)), "{plain}");
        assert_eq!(fits(fp8, 80 << 30), Ok(()), "{fp8}");
        let why = fits(plain, 80 << 30).expect_err("an H100 has less");
        assert!(why.contains("GB of the device's memory, 85.9 are free"), "{why}");
        Ok(())
    }
}
