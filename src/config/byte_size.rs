//! Sizes as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// A number of bytes: `4294967296`, `4GiB`, `512MiB`, `4GB` (thousands).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// Units, longest spelling first.
const UNITS: [(&str, u64); 9] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("b", 1),
];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<ByteSize, String> {
        let wrong =
            || format!("`{text}` is not a size: use bytes or a unit, such as 4294967296, 512MiB or 4GiB");
        let lower = text.trim().to_ascii_lowercase();
        let unit = UNITS.iter().find_map(|(unit, bytes)| Some((lower.strip_suffix(unit)?, *bytes)));
        let (number, unit) = unit.unwrap_or((&lower, 1));
        let number = number.trim_end();
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(unit).map(ByteSize).ok_or_else(wrong);
        }
        // A part of a byte means nothing, a part of a GiB does.
        let part: f64 = number.parse().map_err(|_| wrong())?;
        let bytes = part * unit as f64;
        let sensible = unit > 1 && number.starts_with(|c: char| c.is_ascii_digit()) && bytes < 1e18;
        if sensible { Ok(ByteSize(bytes as u64)) } else { Err(wrong()) }
    }
}

impl fmt::Display for ByteSize {
    /// The largest unit that leaves a number of at least 1, with one decimal where that says more.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("TiB", 1_u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match units.into_iter().find(|(_, unit)| self.0 >= *unit) {
            Some((name, unit)) if self.0.is_multiple_of(unit) => write!(f, "{} {name}", self.0 / unit),
            Some((name, unit)) => write!(f, "{:.1} {name}", self.0 as f64 / unit as f64),
            None => write!(f, "{} B", self.0),
        }
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "it must be a number of bytes or a text such as \"4GiB\"")]
        enum Written {
            Bytes(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Bytes(bytes) => Ok(ByteSize(bytes)),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units_and_written_back() {
        let read = |text: &str| text.parse::<ByteSize>().map(|size| size.0);
        assert_eq!(read("4294967296"), Ok(1 << 32));
        assert_eq!(read("4GiB"), Ok(1 << 32));
        assert_eq!(read("1.5 gib"), Ok(3 << 29));
        assert_eq!(read("2MB"), Ok(2_000_000));
        for wrong in ["", "GiB", "-1GiB", "4 apples", "0.5", "nan", "99999999999TiB", "infGiB"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        for (bytes, shown) in [(17, "17 B"), (1 << 30, "1 GiB"), (3 << 29, "1.5 GiB"), (1 << 20, "1 MiB")] {
            assert_eq!(ByteSize(bytes).to_string(), shown);
        }
    }
}
