//! Whether to guess tokens, as people write it.

use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use crate::engine::SpeculationConfig;

/// Most guesses of a sequence in a step that can be asked for.
const MOST: usize = 64;

/// `auto`, `off`, or the most guesses of a sequence in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Speculation {
    /// On, as far as it pays on this engine.
    #[default]
    Auto,
    /// Never.
    Off,
    /// On, with at most this many guesses.
    AtMost(usize),
}

impl Speculation {
    /// What the engine is told; `None` is off.
    #[must_use]
    pub fn config(self) -> Option<SpeculationConfig> {
        let auto = SpeculationConfig::default();
        match self {
            Speculation::Auto => Some(auto),
            Speculation::Off | Speculation::AtMost(0) => None,
            // As many rows as are asked for: a step of one sequence must have room for them.
            Speculation::AtMost(max_drafts) => {
                Some(SpeculationConfig { max_drafts, max_rows: auto.max_rows.max(max_drafts + 1), ..auto })
            }
        }
    }
}

impl FromStr for Speculation {
    type Err = String;

    fn from_str(text: &str) -> Result<Speculation, String> {
        match text.trim() {
            "auto" => Ok(Speculation::Auto),
            "off" => Ok(Speculation::Off),
            number => match number.parse() {
                Ok(most) if most <= MOST => Ok(Speculation::AtMost(most)),
                _ => Err(format!("`{text}` is not auto, off or a number of tokens from 0 to {MOST}")),
            },
        }
    }
}

impl<'de> Deserialize<'de> for Speculation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Speculation, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "it must be \"auto\", \"off\" or a number of tokens")]
        enum Written {
            Number(u64),
            Text(String),
        }
        let text = match Written::deserialize(deserializer)? {
            Written::Number(number) => number.to_string(),
            Written::Text(text) => text,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_on_unless_it_is_switched_off_and_a_number_bounds_the_guesses() {
        let read = |text: &str| text.parse::<Speculation>().map(Speculation::config);
        assert_eq!(read("auto"), Ok(Some(SpeculationConfig::default())));
        assert_eq!((read("off"), read("0")), (Ok(None), Ok(None)));
        let drafts =
            |text: &str| read(text).ok().flatten().map(|config| (config.max_drafts, config.max_rows));
        assert_eq!((drafts("3"), drafts("32")), (Some((3, 12)), Some((32, 33))));
        for wrong in ["", "on", "-1", "65", "2.5"] {
            let said = read(wrong).expect_err("refused");
            assert!(said.contains("auto, off or a number"), "{said}");
        }
    }
}
