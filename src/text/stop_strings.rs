//! Texts that end an answer, found across the borders of tokens.

/// What may be handed on after a piece of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that is certain not to belong to a stop.
    pub emit: String,
    /// Which stop text was met; nothing follows it.
    pub stopped: Option<usize>,
}

/// Watches a growing text for the first of several stops. Text that may be the beginning of one is held back.
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Vec<String>,
    include: bool,
    held: String,
}

impl StopStrings {
    /// Watches for `stops` (empty ones are ignored); with `include` the stop itself is part of the text.
    #[must_use]
    pub fn new(stops: Vec<String>, include: bool) -> StopStrings {
        StopStrings { stops, include, held: String::new() }
    }

    /// Takes more text.
    pub fn push(&mut self, text: &str) -> StopOutcome {
        self.held.push_str(text);
        let first = self
            .stops
            .iter()
            .enumerate()
            .filter(|(_, stop)| !stop.is_empty())
            .filter_map(|(which, stop)| self.held.find(stop.as_str()).map(|at| (at, which)))
            .min();
        if let Some((at, which)) = first {
            let end = at + if self.include { self.stops[which].len() } else { 0 };
            let emit = self.held[..end].to_owned();
            self.held.clear();
            return StopOutcome { emit, stopped: Some(which) };
        }
        let keep = self.possible_beginning();
        let emit = self.held[..self.held.len() - keep].to_owned();
        self.held.drain(..self.held.len() - keep);
        StopOutcome { emit, stopped: None }
    }

    /// What was held back, now that nothing follows.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of the held text that may begin a stop.
    fn possible_beginning(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0).saturating_sub(1);
        let from = self.held.len().saturating_sub(longest);
        (from..self.held.len())
            .filter(|at| self.held.is_char_boundary(*at))
            .find(|at| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..])))
            .map_or(0, |at| self.held.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(pieces: &[&str], stops: &[&str], include: bool) -> (String, Option<usize>) {
        let mut stop = StopStrings::new(stops.iter().map(|s| (*s).to_owned()).collect(), include);
        let mut text = String::new();
        for piece in pieces {
            let outcome = stop.push(piece);
            text.push_str(&outcome.emit);
            if outcome.stopped.is_some() {
                return (text, outcome.stopped);
            }
        }
        text.push_str(&stop.finish());
        (text, None)
    }

    #[test]
    fn a_stop_is_found_across_pieces_and_the_first_one_wins() {
        assert_eq!(run(&["ab", "c d", "ef"], &["d e", "cd", "de"], false), ("abc ".to_owned(), Some(2)));
        assert_eq!(run(&["x\n", "\ny"], &["\n\n"], true), ("x\n\n".to_owned(), Some(0)));
        assert_eq!(run(&["x\n", "y"], &["\n\n"], false), ("x\ny".to_owned(), None));
        assert_eq!(run(&["aa", "ab"], &["aab"], false), ("a".to_owned(), Some(0)));
        assert_eq!(run(&["é", "è"], &["èx", ""], false), ("éè".to_owned(), None));
    }

    #[test]
    fn certain_text_is_not_held_back() {
        let mut stop = StopStrings::new(vec!["END".to_owned()], false);
        assert_eq!(stop.push("hello E").emit, "hello ");
        assert_eq!(stop.push("x").emit, "Ex");
    }
}
