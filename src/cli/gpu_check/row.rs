//! A line of the end-to-end table: what was measured, beside what must be reached and what is aimed at.
//!
//! Goals and floors are those of one H200, whatever the device is.

use std::fmt;

use serde_json::{Value, json};

/// How far the experts that were hit may be from what random routing hits, for a row to count.
const SPREAD: f64 = 0.05;

/// What is measured, with its goals.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    /// What, with its context.
    pub(super) what: String,
    pub(super) unit: Unit,
    /// What must be reached.
    pub(super) must: f64,
    /// What is aimed at.
    pub(super) aim: f64,
    /// What was found, or why it was not measured.
    pub(super) found: Result<Found, String>,
}

/// Rows as they come: each is printed at once, and all go into the report.
#[derive(Debug, Default)]
pub(super) struct Rows(pub(super) Vec<Row>);

impl Rows {
    pub(super) fn add(&mut self, row: Row) {
        println!("{row}");
        self.0.push(row);
    }
}

/// What a row found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Found {
    pub(super) value: f64,
    /// What the nominal bandwidth and arithmetic would allow, in the row's unit.
    pub(super) floor: Option<f64>,
    /// Of rows of decoding.
    pub(super) experts: Option<Experts>,
}

/// Distinct experts that a layer of a step hits, in the mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Experts {
    pub(super) hit: f64,
    /// By random routing.
    pub(super) expected: f64,
}

/// What a row counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    TokensPerSecond,
    Milliseconds,
    GigabytesPerSecond,
    /// More or less than without, in percent.
    Percent,
}

/// What a row's value means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Aim,
    Must,
    Missed,
    /// Experts were not hit as random routing hits them.
    Uncounted,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Unit::TokensPerSecond => "tok/s",
            Unit::Milliseconds => "ms",
            Unit::GigabytesPerSecond => "GB/s",
            Unit::Percent => "%",
        }
    }

    /// How many times as good `value` is as `goal`, where both are more than nothing.
    fn ratio(self, value: f64, goal: f64) -> f64 {
        if self == Unit::Milliseconds { goal / value } else { value / goal }
    }

    fn reaches(self, value: f64, goal: f64) -> bool {
        if self == Unit::Milliseconds { value <= goal } else { value >= goal }
    }

    /// With as many digits as say something.
    fn write(self, value: f64) -> String {
        let digits = if self != Unit::TokensPerSecond && value.abs() < 1000.0 { 1 } else { 0 };
        let sign = if self == Unit::Percent && value > 0.0 { "+" } else { "" };
        format!("{sign}{value:.digits$} {}", self.name())
    }
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Verdict::Aim => "aim reached",
            Verdict::Must => "reached",
            Verdict::Missed => "missed",
            Verdict::Uncounted => "does not count: routing does not spread",
        }
    }
}

impl Row {
    fn verdict(&self, found: &Found) -> Verdict {
        if found.experts.is_some_and(|experts| (experts.hit / experts.expected - 1.0).abs() > SPREAD) {
            return Verdict::Uncounted;
        }
        match (self.unit.reaches(found.value, self.aim), self.unit.reaches(found.value, self.must)) {
            (true, _) => Verdict::Aim,
            (_, true) => Verdict::Must,
            _ => Verdict::Missed,
        }
    }

    /// As the report has it.
    pub(super) fn json(&self) -> Value {
        let Row { what, unit, must, aim, found } = self;
        let mut json = json!({"what": what, "unit": unit.name(), "must": must, "aim": aim});
        match found {
            Err(why) => json["not_measured"] = json!(why),
            Ok(found) => {
                json["value"] = json!(found.value);
                json["verdict"] = json!(self.verdict(found).name());
                if let Some(floor) = found.floor {
                    json["floor"] = json!(floor);
                    json["share_of_floor"] = json!(unit.ratio(found.value, floor));
                }
                if let Some(Experts { hit, expected }) = found.experts {
                    json["experts_a_layer"] = json!({"hit": hit, "expected": expected});
                }
            }
        }
        json
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { what, unit, must, aim, found } = self;
        let found = match found {
            Err(why) => return write!(f, "{what:<58} not measured: {why}"),
            Ok(found) => found,
        };
        write!(f, "{what:<58} {:>14}", unit.write(found.value))?;
        write!(f, "  must {:>12}, aim {:>12}", unit.write(*must), unit.write(*aim))?;
        match found.floor {
            Some(floor) => write!(f, "  {:>3.0} % of the floor", unit.ratio(found.value, floor) * 100.0)?,
            None => write!(f, "  {:18}", "")?,
        }
        if let Some(Experts { hit, expected }) = found.experts {
            write!(f, "  {hit:.2} experts a layer ({expected:.2})")?;
        }
        write!(f, "  {}", self.verdict(found).name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(unit: Unit, [must, aim]: [f64; 2], value: f64, hit: f64) -> Row {
        let experts = Some(Experts { hit, expected: 4.0 });
        let found = Ok(Found { value, floor: Some(2.0), experts });
        Row { what: "decode".to_owned(), unit, must, aim, found }
    }

    #[test]
    fn a_row_says_what_it_reaches_and_counts_only_where_routing_spreads() {
        for (unit, goals, value, hit, said) in [
            (Unit::TokensPerSecond, [110.0, 150.0], 150.0, 4.0, "aim reached"),
            (Unit::TokensPerSecond, [110.0, 150.0], 149.0, 4.19, "reached"),
            (Unit::TokensPerSecond, [110.0, 150.0], 109.0, 4.0, "missed"),
            (Unit::Milliseconds, [27.0, 22.0], 21.0, 4.0, "aim reached"),
            (Unit::Milliseconds, [27.0, 22.0], 28.0, 4.0, "missed"),
            (Unit::Percent, [-20.0, -10.0], -15.0, 4.0, "reached"),
            (Unit::TokensPerSecond, [110.0, 150.0], 400.0, 3.7, "does not count: routing does not spread"),
        ] {
            let row = row(unit, goals, value, hit);
            assert_eq!(row.json()["verdict"], said, "{row}");
            assert!(row.to_string().ends_with(said), "{row}");
        }
        // A floor of 2 ms is half of 4 ms; of 2 tok/s one is the half.
        for (unit, value) in [(Unit::Milliseconds, 4.0), (Unit::TokensPerSecond, 1.0)] {
            let row = row(unit, [1.0, 1.0], value, 4.0);
            assert_eq!(row.json()["share_of_floor"], 0.5);
            assert!(row.to_string().contains(" 50 % of the floor"), "{row}");
        }
        let without =
            Row { found: Err("too little memory".to_owned()), ..row(Unit::Percent, [0.0; 2], 0.0, 4.0) };
        assert_eq!(without.json()["not_measured"], "too little memory");
        assert_eq!(without.json().get("value"), None);
        assert!(without.to_string().ends_with("not measured: too little memory"), "{without}");
    }
}
