//! `tarn doctor`: what would keep this machine and these settings from serving, and what to do about it.
//!
//! Nothing is loaded but adapters, and nothing is left behind.

mod checks;

use std::fmt;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::memory_plan::MemoryPlan;
use crate::config::Settings;

/// How to answer.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// One JSON object instead of tables.
    #[arg(long)]
    json: bool,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Ok,
    /// Serves, but not as well as it could.
    Warn,
    /// Does not serve.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Check {
    health: Health,
    /// What was looked at.
    name: &'static str,
    /// What was found and, unless it is well, what to do.
    found: String,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Check {
        Check { health: Health::Ok, name, found: found.into() }
    }

    fn warn(name: &'static str, found: impl Into<String>) -> Check {
        Check { health: Health::Warn, ..Check::ok(name, found) }
    }

    fn fail(name: &'static str, found: impl Into<String>) -> Check {
        Check { health: Health::Fail, ..Check::ok(name, found) }
    }

    /// What worked, or why it did not.
    fn of(name: &'static str, found: anyhow::Result<String>) -> Check {
        match found {
            Ok(found) => Check::ok(name, found),
            Err(error) => Check::fail(name, format!("{error:#}")),
        }
    }
}

impl Health {
    fn name(self) -> &'static str {
        match self {
            Health::Ok => "ok",
            Health::Warn => "warn",
            Health::Fail => "fail",
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What has several lines goes on under its first.
        write!(
            f,
            "{:<5} {:<10} {}",
            self.health.name(),
            self.name,
            self.found.replace('\n', "\n                 ")
        )
    }
}

pub(super) fn run(settings: Settings, args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let (checks, planned) = checks::all(&settings);
    let memory = planned.as_ref().map(|planned| &planned.memory);
    let device = planned.as_ref().and_then(|planned| planned.device.as_ref());
    let healthy = checks.iter().all(|check| check.health != Health::Fail);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report(&checks, memory, device))?);
    } else {
        checks.iter().for_each(|check| println!("{check}"));
        for (name, plan) in [("memory", memory), ("device memory", device)] {
            if let Some(plan) = plan {
                println!("\n{name}\n{plan}");
            }
        }
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report(checks: &[Check], memory: Option<&MemoryPlan>, device: Option<&MemoryPlan>) -> Value {
    let one =
        |check: &Check| json!({"name": check.name, "status": check.health.name(), "found": check.found});
    let healthy = checks.iter().all(|check| check.health != Health::Fail);
    let plan = |memory: &MemoryPlan| {
        let parts: serde_json::Map<String, Value> =
            memory.parts().map(|(part, bytes)| (part.to_owned(), json!(bytes))).collect();
        json!({
            "parts": parts,
            "planned_bytes": memory.total(),
            "budget_bytes": memory.budget.bytes(),
            "available_bytes": memory.budget.available,
            "utilization": memory.budget.utilization,
        })
    };
    json!({
        "ok": healthy,
        "checks": checks.iter().map(one).collect::<Vec<_>>(),
        "memory": memory.map(plan),
        "device_memory": device.map(plan),
    })
}

#[cfg(test)]
mod tests {
    use super::super::memory_plan::{Budget, Owner, Part};
    use super::*;

    #[test]
    fn a_report_is_ok_unless_something_fails_and_holds_the_plan() {
        let mut memory =
            MemoryPlan::new(Budget { owner: Owner::Machine, available: Some(100), utilization: 0.5 });
        memory.add(Part::KvCache, 40);
        let mut checks = vec![Check::ok("cpu", "fine"), Check::warn("files", "few")];
        let well = report(&checks, Some(&memory), None);
        assert_eq!((&well["ok"], &well["checks"][1]["status"]), (&json!(true), &json!("warn")));
        assert_eq!(well["memory"]["parts"], json!({"kv_cache": 40}));
        assert_eq!(well["memory"]["budget_bytes"], 50);
        assert_eq!(report(&checks, None, Some(&memory))["device_memory"]["available_bytes"], 100);
        checks.push(Check::of("lake", Err(anyhow::anyhow!("read-only").context("writing"))));
        let ill = report(&checks, None, None);
        assert_eq!((&ill["ok"], &ill["checks"][2]["found"]), (&json!(false), &json!("writing: read-only")));
        assert_eq!(ill["memory"], Value::Null);
    }
}
