//! What steps take, learned from those that ran.

use std::time::Duration;

/// How much of what was seen is kept with each step.
const MEMORY: f64 = 0.98;

/// A step's time as a constant (the weights are read once) and a part for each row.
///
/// A line through the recent steps, fitted to times a row: errors count in proportion, so that steps of few rows say as
/// much as steps of many.
#[derive(Debug, Clone, Copy, Default)]
pub(in super::super) struct StepCost {
    steps: f64,
    /// Sums of 1 / rows, of seconds / rows, of the first squared and of their product, fading.
    inverse: f64,
    time: f64,
    inverse_squared: f64,
    inverse_time: f64,
    base: f64,
    row: f64,
}

impl StepCost {
    /// Learns from a step.
    pub(in super::super) fn observe(&mut self, rows: usize, took: Duration) {
        let inverse = 1.0 / rows.max(1) as f64;
        let time = took.as_secs_f64() * inverse;
        let fade = |sum: &mut f64, value: f64| *sum = *sum * MEMORY + value;
        fade(&mut self.steps, 1.0);
        fade(&mut self.inverse, inverse);
        fade(&mut self.time, time);
        fade(&mut self.inverse_squared, inverse * inverse);
        fade(&mut self.inverse_time, inverse * time);
        let (mean, mean_time) = (self.inverse / self.steps, self.time / self.steps);
        let variance = self.inverse_squared / self.steps - mean * mean;
        // Steps of one size do not tell the constant from the rows: what was known of it stays.
        if variance > 1e-3 * mean * mean {
            self.base = (self.inverse_time / self.steps - mean * mean_time) / variance;
        }
        self.base = self.base.clamp(0.0, mean_time / mean);
        self.row = (mean_time - self.base * mean).max(0.0);
    }

    /// Seconds of a step of `rows`; 0 before the first.
    pub(super) fn seconds(&self, rows: usize) -> f64 {
        self.base + self.row * rows as f64
    }

    /// The rows of a step of `seconds`, 1 to `most`; `most` before the first.
    pub(super) fn rows_within(&self, seconds: f64, most: usize) -> usize {
        let rows = (seconds - self.base) / self.row;
        if rows.is_nan() { most } else { (rows.max(1.0) as usize).min(most) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learned(steps: &[(usize, f64)]) -> StepCost {
        let mut cost = StepCost::default();
        steps.iter().for_each(|(rows, ms)| cost.observe(*rows, Duration::from_secs_f64(ms / 1e3)));
        cost
    }

    #[test]
    fn the_constant_and_the_rows_are_told_apart() {
        // 7 ms and 0.8 ms a row, with a tenth of noise.
        let line = |rows: usize, off: f64| (rows, (7.0 + 0.8 * rows as f64) * off);
        let cost = learned(&[
            line(1, 1.1),
            line(64, 0.9),
            line(512, 1.1),
            line(1, 0.9),
            line(64, 1.1),
            line(512, 0.9),
        ]);
        assert!((cost.seconds(1) - 7.8e-3).abs() < 1e-3, "{cost:?}");
        assert!((cost.seconds(512) - 416.6e-3).abs() < 45e-3, "{cost:?}");
        let rows = cost.rows_within(2.0 * cost.seconds(1), 512);
        assert!((8..=12).contains(&rows), "{rows}");
    }

    #[test]
    fn what_is_not_known_limits_nothing_and_steps_of_one_size_predict_themselves() {
        assert_eq!(StepCost::default().rows_within(1e-3, 512), 512);
        let cost = learned(&[(512, 400.0); 9]);
        assert_eq!(cost.rows_within(0.1, 512), 128);
        let mut cost = learned(&[(1, 8.0), (512, 416.0)]);
        (0..1000).for_each(|_| cost.observe(9, Duration::from_millis(14)));
        assert!((cost.seconds(9) - 14e-3).abs() < 1e-5);
        assert!(cost.base > 5e-3, "it still knows the constant: {cost:?}");
    }

    #[test]
    fn a_slower_machine_is_noticed() {
        let mut cost = learned(&[(1, 8.0), (64, 60.0)]);
        (0..200).for_each(|at| cost.observe([1, 64][at % 2], Duration::from_millis([16, 120][at % 2])));
        assert!((cost.seconds(64) - 0.12).abs() < 2e-3);
    }
}
