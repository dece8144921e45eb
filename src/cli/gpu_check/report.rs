//! What was found, as lines and as JSON.

use std::fmt;
use std::path::PathBuf;

use anyhow::Context;
use serde_json::{Map, Value, json};
use tarn_kernels::check::timing::{Ceilings, Timing};

use super::super::device::Place;
use super::model::{Agreement, Parting};
use super::row::{Row, Rows};

/// The cases of one file of kernels.
#[derive(Debug)]
pub(super) struct Suite {
    pub(super) file: &'static str,
    /// How many, or which failed and how.
    pub(super) ran: Result<usize, String>,
    pub(super) seconds: f64,
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.ran {
            Ok(ran) => write!(f, "ok    {:<18} {ran:>4} cases  {:>6.2} s", self.file, self.seconds),
            Err(error) => write!(f, "FAIL  {:<18} {error}", self.file),
        }
    }
}

/// A line of the table.
pub(super) fn line(timing: &Timing, of: &Ceilings) -> String {
    let (rate, unit) = if timing.computes(of) {
        (timing.flops / timing.seconds / 1e12, "TFLOP/s")
    } else {
        (timing.bytes / timing.seconds / 1e9, "GB/s")
    };
    format!(
        "{:<18} {:<44} {:>10.1} µs {:>9.1} {unit:<7} {:>4.0} %",
        timing.op,
        timing.shape,
        timing.seconds * 1e6,
        rate,
        timing.share(of) * 100.0
    )
}

/// The results of this run, over those of earlier ones.
#[derive(Debug)]
pub(super) struct Report {
    file: Option<PathBuf>,
    all: Map<String, Value>,
}

impl Report {
    /// For `device`; what the file says of another device or program is left behind.
    pub(super) fn of(device: &Place, file: Option<PathBuf>) -> anyhow::Result<Report> {
        let device = match device {
            Place::Gpu(gpu) => json!({
                "name": gpu.name,
                "capability": format!("{}.{}", gpu.capability.0, gpu.capability.1),
                "memory_bytes": gpu.memory,
            }),
            _ => json!({"name": "emulated"}),
        };
        let mut all = match &file {
            Some(file) if file.exists() => {
                let text =
                    std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
                serde_json::from_str(&text).with_context(|| format!("{} is no report", file.display()))?
            }
            _ => Map::new(),
        };
        let program = json!(env!("CARGO_PKG_VERSION"));
        if all.get("device") != Some(&device) || all.get("version") != Some(&program) {
            all = Map::from_iter([("version".to_owned(), program), ("device".to_owned(), device)]);
        }
        Ok(Report { file, all })
    }

    /// What the section `cases` found.
    pub(super) fn cases(&mut self, suites: &[Suite]) {
        let one = |suite: &Suite| {
            let (ran, error) = (suite.ran.as_ref().ok(), suite.ran.as_ref().err());
            json!({"file": suite.file, "ran": ran, "error": error, "seconds": suite.seconds})
        };
        self.all.insert("cases".to_owned(), suites.iter().map(one).collect());
    }

    /// What a section of times found.
    pub(super) fn ops(&mut self, section: &str, model: &str, of: &Ceilings, timings: &[Timing]) {
        let one = |timing: &Timing| {
            json!({
                "op": timing.op,
                "shape": timing.shape,
                "seconds": timing.seconds,
                "bytes": timing.bytes,
                "flops": timing.flops,
                "share": timing.share(of),
            })
        };
        let ceilings = json!({"bytes_per_second": of.bandwidth, "flops_per_second": of.arithmetic});
        let ops: Value = timings.iter().map(one).collect();
        self.all.insert(section.to_owned(), json!({"model": model, "ceilings": ceilings, "ops": ops}));
    }

    /// What a section of the end-to-end table found.
    pub(super) fn rows(&mut self, section: &str, model: &str, rows: &Rows) {
        let rows: Value = rows.0.iter().map(Row::json).collect();
        self.all.insert(section.to_owned(), json!({"model": model, "rows": rows}));
    }

    /// What the section `model` found.
    pub(super) fn agreement(&mut self, model: &str, agreement: &Agreement) {
        let one = |parting: &Parting| {
            let Parting { prompt, after, cpu, device, gap } = *parting;
            json!({"prompt": prompt, "after": after, "cpu": cpu, "device": device, "gap": gap})
        };
        let partings: Value = agreement.partings.iter().map(one).collect();
        let (compared, holds) = (agreement.compared, agreement.holds());
        let found = json!({"model": model, "compared": compared, "partings": partings, "holds": holds});
        self.all.insert("model".to_owned(), found);
    }

    /// A section begins: what an earlier run found in it is forgotten.
    pub(super) fn begins(&mut self, section: &str) {
        self.all.shift_remove(section);
    }

    /// How a section ended: how long it took, and what went wrong, if something did.
    pub(super) fn ended(&mut self, section: &str, seconds: f64, error: Option<&str>) {
        let all = self.all.entry("sections").or_insert_with(|| json!({}));
        all[section] = json!({"seconds": seconds, "error": error});
    }

    /// Writes the file, if one was asked for.
    pub(super) fn write(&self) -> anyhow::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        std::fs::write(file, serde_json::to_string_pretty(&self.all)?)
            .with_context(|| format!("writing {}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_that_runs_again_leaves_the_others_and_another_device_leaves_nothing() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("report.json");
        let of = Ceilings { bandwidth: 4e9, arithmetic: 1e12 };
        let timing =
            Timing { op: "rms_norm", shape: "1 × 64".to_owned(), seconds: 0.5, bytes: 1e9, flops: 0.0 };
        let suite = |ran| Suite { file: "lora", ran, seconds: 1.0 };
        let mut first = Report::of(&Place::Emulated, Some(file.clone())).expect("starts");
        first.cases(&[suite(Ok(3)), suite(Err("off by one".to_owned()))]);
        first.ops("decode", "small", &of, std::slice::from_ref(&timing));
        first.ended("decode", 2.0, Some("lost"));
        first.write().expect("writes");
        let mut second = Report::of(&Place::Emulated, Some(file.clone())).expect("starts");
        second.cases(&[suite(Ok(5))]);
        assert_eq!(second.all["cases"], json!([{"file": "lora", "ran": 5, "error": null, "seconds": 1.0}]));
        assert_eq!(second.all["decode"]["ops"][0]["share"], 0.5);
        second.begins("decode");
        assert_eq!(second.all.get("decode"), None);
        second.ended("cases", 1.0, None);
        assert_eq!(second.all["sections"]["decode"]["error"], "lost");
        assert_eq!(second.all["sections"]["cases"], json!({"seconds": 1.0, "error": null}));
        let gpu =
            tarn_kernels::gpu::Gpu { ordinal: 0, name: "Test".to_owned(), capability: (9, 0), memory: 1 };
        let other = Report::of(&Place::Gpu(gpu), Some(file)).expect("starts");
        assert_eq!((other.all.get("cases"), &other.all["device"]["capability"]), (None, &json!("9.0")));
        assert!(line(&timing, &of).contains("2.0 GB/s      50 %"), "{}", line(&timing, &of));
        let computes = Timing { flops: 4e12, ..timing };
        assert!(line(&computes, &of).contains("8.0 TFLOP/s  800 %"), "{}", line(&computes, &of));
    }
}
