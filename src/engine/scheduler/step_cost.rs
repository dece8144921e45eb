//! What steps take, learned from those that ran.

use std::time::Duration;

/// How much of what was seen of steps of a size is kept with the next one of it.
const MEMORY: f64 = 0.9;

/// Sizes that are told apart: 1 row, 2 to 3, 4 to 7 and so on.
const SIZES: usize = 16;

/// A step's time by its number of rows: lines between what was seen of each size. What is known of small steps stays
/// while only large ones run, so that what somebody's work would take alone is still known in the middle of a flood.
#[derive(Debug, Clone, Copy, Default)]
pub(in super::super) struct StepCost {
    /// Mean rows and seconds of recent steps of each size; no rows: none was seen.
    seen: [(f64, f64); SIZES],
}

impl StepCost {
    /// Learns from a step.
    pub(in super::super) fn observe(&mut self, rows: usize, took: Duration) {
        let size = (rows.max(1).ilog2() as usize).min(SIZES - 1);
        let (mean_rows, mean_time) = &mut self.seen[size];
        let memory = if *mean_rows == 0.0 { 0.0 } else { MEMORY };
        *mean_rows = *mean_rows * memory + rows.max(1) as f64 * (1.0 - memory);
        *mean_time = *mean_time * memory + took.as_secs_f64() * (1.0 - memory);
    }

    /// What was seen, rising: a step of more rows is not believed to take less.
    fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        let seen = self.seen.into_iter().filter(|(rows, _)| *rows > 0.0);
        seen.scan(0.0_f64, |most, (rows, time)| {
            *most = most.max(time);
            Some((rows, *most))
        })
    }

    /// Seconds of a step of `rows`; 0 before the first.
    pub(super) fn seconds(&self, rows: usize) -> f64 {
        let rows = rows as f64;
        let mut before = (0.0, 0.0);
        for point in self.points() {
            if point.0 >= rows {
                return before.1 + (point.1 - before.1) * (rows - before.0) / (point.0 - before.0);
            }
            before = point;
        }
        if before.0 == 0.0 { 0.0 } else { before.1 * rows / before.0 }
    }

    /// The rows of a step of `seconds`, 1 to `most`; `most` before the first.
    pub(super) fn rows_within(&self, seconds: f64, most: usize) -> usize {
        // The time rises with the rows: the last number that fits is between one that does and one that does not.
        let (mut fits, mut too_many) = (1, most + 1);
        while too_many - fits > 1 {
            let middle = fits.midpoint(too_many);
            if self.seconds(middle) <= seconds {
                fits = middle;
            } else {
                too_many = middle;
            }
        }
        fits
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
    fn between_sizes_that_were_seen_time_grows_evenly() {
        let cost = learned(&[(1, 8.0), (65, 72.0), (512, 400.0)]);
        for (rows, ms) in [(1, 8.0), (33, 40.0), (65, 72.0), (512, 400.0), (1024, 800.0)] {
            assert!((cost.seconds(rows) - ms / 1e3).abs() < 1e-9, "{rows} rows: {}", cost.seconds(rows));
        }
        assert_eq!(cost.rows_within(0.0401, 512), 33);
        assert_eq!(cost.rows_within(0.001, 512), 1);
        assert_eq!(cost.rows_within(9.0, 512), 512);
    }

    #[test]
    fn what_is_not_known_limits_nothing() {
        assert_eq!(StepCost::default().rows_within(1e-3, 512), 512);
        assert_eq!(StepCost::default().seconds(5), 0.0);
    }

    #[test]
    fn small_steps_are_remembered_while_large_ones_run() {
        let mut cost = learned(&[(1, 8.0)]);
        (0..1000).for_each(|_| cost.observe(100, Duration::from_millis(100)));
        assert!((cost.seconds(1) - 8e-3).abs() < 1e-9);
    }

    #[test]
    fn a_slower_machine_is_noticed_and_more_rows_never_take_less() {
        let mut cost = learned(&[(1, 8.0), (64, 60.0)]);
        (0..60).for_each(|_| cost.observe(1, Duration::from_millis(16)));
        assert!((cost.seconds(1) - 16e-3).abs() < 1e-4);
        let cost = learned(&[(8, 30.0), (16, 20.0)]);
        assert_eq!(cost.seconds(16), cost.seconds(8));
    }
}
