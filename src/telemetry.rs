//! Logging and metrics: every metric name in one place.

use std::fmt::Write as _;

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Starts logging to standard error. A filter that does not parse becomes `info`.
pub fn init_logging(filter: &str, json: bool) {
    let filter = tracing_subscriber::EnvFilter::try_new(filter).unwrap_or_else(|_| "info".into());
    let base = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second call (in tests) finds a logger in place, which is fine.
    let _ = if json { base.json().try_init() } else { base.try_init() };
}

/// A value of the engine, read when metrics are asked for.
#[derive(Debug, Clone, Copy)]
pub struct EngineSample {
    /// vLLM's name without its prefix.
    pub name: &'static str,
    /// `gauge` or `counter`.
    pub kind: &'static str,
    /// Now.
    pub value: f64,
}

/// What the server measures itself; cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    seconds: HistogramVec,
    first_token: HistogramVec,
    between_tokens: HistogramVec,
    end_to_end: HistogramVec,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// Empty metrics.
    ///
    /// # Panics
    /// Never: the names are valid and distinct.
    #[must_use]
    pub fn new() -> Metrics {
        let registry = Registry::new();
        let histogram = |name: &str, help: &str, labels: &[&str], buckets: &[f64]| {
            let histogram =
                HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)
                    .expect("a valid metric: this is a bug");
            registry.register(Box::new(histogram.clone())).expect("a distinct metric: this is a bug");
            histogram
        };
        let request = [0.01, 0.05, 0.1, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
        let first =
            [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
        let between = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];
        let model = ["model_name"];
        let requests = IntCounterVec::new(
            Opts::new("tarn_http_requests_total", "Requests answered, by route and status"),
            &["route", "status"],
        )
        .expect("a valid metric: this is a bug");
        registry.register(Box::new(requests.clone())).expect("a distinct metric: this is a bug");
        Metrics {
            requests,
            seconds: histogram(
                "tarn_http_request_seconds",
                "Seconds until the answer began",
                &["route"],
                &request,
            ),
            first_token: histogram(
                "tarn_time_to_first_token_seconds",
                "Seconds to the first token",
                &model,
                &first,
            ),
            between_tokens: histogram(
                "tarn_inter_token_latency_seconds",
                "Seconds between tokens",
                &model,
                &between,
            ),
            end_to_end: histogram(
                "tarn_e2e_request_latency_seconds",
                "Seconds of a generation",
                &model,
                &request,
            ),
            registry,
        }
    }

    /// A request was answered.
    pub fn answered(&self, route: &str, status: u16, seconds: f64) {
        self.requests.with_label_values(&[route, &status.to_string()]).inc();
        self.seconds.with_label_values(&[route]).observe(seconds);
    }

    /// A generation ended: seconds to its first token, for all of it, and the tokens of its longest answer.
    pub fn generated(&self, model: &str, first: f64, total: f64, tokens: u32) {
        self.first_token.with_label_values(&[model]).observe(first);
        self.end_to_end.with_label_values(&[model]).observe(total);
        if tokens > 1 {
            self.between_tokens.with_label_values(&[model]).observe((total - first) / f64::from(tokens - 1));
        }
    }

    /// What memory each part was planned, and the sum that there is to plan with, where that is known.
    ///
    /// # Panics
    /// When it is called a second time.
    pub fn planned(
        &self,
        memory: &str,
        parts: impl Iterator<Item = (&'static str, u64)>,
        budget: Option<u64>,
    ) {
        let opts = Opts::new(format!("tarn_{memory}_bytes"), "Bytes planned for each part of the memory");
        let gauges = IntGaugeVec::new(opts, &["part"]).expect("a valid metric: this is a bug");
        parts.for_each(|(part, bytes)| gauges.with_label_values(&[part]).set(bytes as i64));
        self.registry.register(Box::new(gauges)).expect("a distinct metric: this is a bug");
        if let Some(bytes) = budget {
            let gauge =
                IntGauge::new(format!("tarn_{memory}_budget_bytes"), "Bytes that there are to plan with")
                    .expect("a valid metric: this is a bug");
            gauge.set(bytes as i64);
            self.registry.register(Box::new(gauge)).expect("a distinct metric: this is a bug");
        }
    }

    /// All of it in Prometheus' text form; what vLLM measures also under its names.
    #[must_use]
    pub fn render(&self, model: &str, engine: &[EngineSample]) -> String {
        let mut bytes = Vec::new();
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut bytes);
        let own = String::from_utf8_lossy(&bytes).into_owned();
        let mut out = String::new();
        let model = model.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
        let only_ours = |line: &&str| {
            line.contains("tarn_http_")
                || line.contains("tarn_memory_")
                || line.contains("tarn_device_memory_")
        };
        for line in own.lines().filter(|line| !only_ours(line)) {
            let _ = writeln!(out, "{}", under_vllms_name(line));
        }
        for sample in engine {
            for prefix in ["vllm:", "tarn_"] {
                let EngineSample { name, kind, value } = sample;
                let _ = writeln!(
                    out,
                    "# TYPE {prefix}{name} {kind}\n{prefix}{name}{{model_name=\"{model}\"}} {value}"
                );
            }
        }
        own + &out
    }
}

/// A line of Prometheus' text with the metric's name as vLLM has it; values of labels stay as they are.
fn under_vllms_name(line: &str) -> String {
    let (comment, rest) = match ["# HELP ", "# TYPE "].iter().find(|start| line.starts_with(**start)) {
        Some(start) => line.split_at(start.len()),
        None => ("", line),
    };
    match rest.strip_prefix("tarn_") {
        Some(name) => format!("{comment}vllm:{name}"),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_change_and_labels_do_not() {
        let metrics = Metrics::new();
        metrics.generated("tarn_\"x\"", 0.5, 1.5, 3);
        let sample = EngineSample { name: "num_requests_running", kind: "gauge", value: 1.0 };
        let text = metrics.render("tarn_\"x\"\\", &[sample]);
        assert!(
            text.contains("vllm:e2e_request_latency_seconds_sum{model_name=\"tarn_\\\"x\\\"\"} 1.5"),
            "{text}"
        );
        assert!(text.contains("# TYPE vllm:time_to_first_token_seconds histogram"), "{text}");
        assert!(text.contains(r#"vllm:num_requests_running{model_name="tarn_\"x\"\\"} 1"#), "{text}");
        assert!(!text.contains("vllm:\\\"x"), "{text}");
    }

    #[test]
    fn planned_memory_is_told_by_part_and_only_under_our_name() {
        let metrics = Metrics::new();
        metrics.planned("memory", [("weights", 7), ("kv_cache", 5)].into_iter(), Some(20));
        metrics.planned("device_memory", [("weights", 9)].into_iter(), None);
        let text = metrics.render("m", &[]);
        for line in [
            "tarn_device_memory_bytes{part=\"weights\"} 9",
            "tarn_memory_bytes{part=\"kv_cache\"} 5",
            "tarn_memory_bytes{part=\"weights\"} 7",
            "tarn_memory_budget_bytes 20",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(!text.contains("vllm:memory") && !text.contains("vllm:device"), "{text}");
    }
}
