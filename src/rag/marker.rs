//! The `[n]` markers by which a model names its sources, found while the text streams.
//!
//! A marker may name only what stood in the context: numbers that did not are removed, and
//! a marker with none left goes together with the blank before it. To know, the filter
//! holds text back from a blank or a `[` until it is clear what it becomes.

/// The longest text that can still become a marker, in bytes.
const LONGEST: usize = 48;

/// Passes an answer's text on without the markers that name no source of the context.
#[derive(Debug)]
pub struct MarkerFilter {
    sources: u32,
    /// Blanks, then possibly the beginning of a marker.
    held: String,
}

impl MarkerFilter {
    /// A filter for a context of `sources` sources, numbered from 1.
    pub fn new(sources: u32) -> MarkerFilter {
        MarkerFilter { sources, held: String::new() }
    }

    /// Takes more of the text; returns what is certain.
    pub fn push(&mut self, text: &str) -> String {
        let mut out = String::new();
        for c in text.chars() {
            self.take(c, &mut out);
        }
        out
    }

    /// The end of the text: what was held back, without an unfinished marker.
    pub fn finish(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        match held.find('[') {
            Some(at) if held[at + 1..].trim_start().starts_with(|c: char| c.is_ascii_digit()) => {
                held[..at].trim_end().to_owned()
            }
            _ => held,
        }
    }

    fn take(&mut self, c: char, out: &mut String) {
        let inside = self.held.contains('[');
        match c {
            ']' if inside => {
                self.held.push(']');
                let held = std::mem::take(&mut self.held);
                let at = held.find('[').unwrap_or(0);
                match numbers(&held[at..]) {
                    None => out.push_str(&held),
                    Some(named) => {
                        let real: Vec<u32> =
                            named.into_iter().filter(|n| (1..=self.sources).contains(n)).collect();
                        if !real.is_empty() {
                            out.push_str(&held[..at]);
                            out.push_str(&shown(&real));
                        }
                    }
                }
            }
            '[' => {
                if inside {
                    out.push_str(&std::mem::take(&mut self.held));
                }
                self.held.push('[');
            }
            c if inside && may_continue(c) && self.held.len() < LONGEST => self.held.push(c),
            ' ' if !inside => self.held.push(' '),
            c => {
                out.push_str(&std::mem::take(&mut self.held));
                match c {
                    ' ' => self.held.push(' '),
                    c => out.push(c),
                }
            }
        }
    }
}

/// The markers of a text in their order: byte position and the numbers named there.
pub fn markers(text: &str) -> Vec<(usize, Vec<u32>)> {
    let mut found = Vec::new();
    let mut open = None;
    for (at, c) in text.char_indices() {
        match (c, open) {
            ('[', _) => open = Some(at),
            (']', Some(start)) => {
                found.extend(numbers(&text[start..=at]).map(|named| (start, named)));
                open = None;
            }
            _ => {}
        }
    }
    found
}

/// The numbers of a marker `[2]`, `[1, 3]`, `[1-3]`, `[Source 2]`; `None` for any other text.
fn numbers(marker: &str) -> Option<Vec<u32>> {
    let inner = marker.strip_prefix('[')?.strip_suffix(']')?.trim().to_ascii_lowercase();
    let inner =
        ["sources", "source"].iter().find_map(|word| inner.strip_prefix(word)).unwrap_or(&inner).trim();
    let mut named = Vec::new();
    for part in inner.split([',', ';']) {
        let mut ends = part.split(['-', '–']).map(|end| end.trim().parse::<u32>());
        match (ends.next(), ends.next(), ends.next()) {
            (Some(Ok(one)), None, _) => named.push(one),
            (Some(Ok(first)), Some(Ok(last)), None) if first <= last && last - first < 32 => {
                named.extend(first..=last);
            }
            _ => return None,
        }
    }
    Some(named)
}

fn may_continue(c: char) -> bool {
    c.is_ascii_digit() || matches!(c, ' ' | ',' | ';' | '-' | '–') || "sourceSOURCE".contains(c)
}

fn shown(numbers: &[u32]) -> String {
    format!("[{}]", numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(text: &str, sources: u32, piece: usize) -> String {
        let mut filter = MarkerFilter::new(sources);
        let chars: Vec<char> = text.chars().collect();
        let mut out: String =
            chars.chunks(piece).map(|piece| filter.push(&piece.iter().collect::<String>())).collect();
        out.push_str(&filter.finish());
        out
    }

    #[test]
    fn markers_outside_the_context_are_removed_however_the_text_is_cut() {
        let cases = [
            ("It carries 16 A [1]. It is grey [7].", "It carries 16 A [1]. It is grey."),
            ("Both [1, 9] and [3][4].", "Both [1] and [3]."),
            ("See [Source 2] and [source 8]!", "See [2] and!"),
            ("All [1-3].", "All [1, 2, 3]."),
            ("An array[12] of x[i] and [see below].", "An array of x[i] and [see below]."),
            ("Zero [0]", "Zero"),
            ("Two  spaces [and [2] brackets", "Two  spaces [and [2] brackets"),
            ("ends in the middle [1", "ends in the middle"),
            ("ends in a bracket [", "ends in a bracket ["),
            ("no markers at all ", "no markers at all "),
        ];
        for (text, expected) in cases {
            for piece in [1, 2, 3, 100] {
                assert_eq!(filtered(text, 3, piece), expected, "in pieces of {piece}");
            }
        }
    }

    #[test]
    fn text_that_cannot_become_a_marker_is_not_held_back() {
        let mut filter = MarkerFilter::new(2);
        assert_eq!(filter.push("Plain"), "Plain");
        assert_eq!(filter.push(" words ["), " words");
        assert_eq!(filter.push("x"), " [x");
    }

    #[test]
    fn markers_are_found_with_their_places() {
        assert_eq!(markers("a [1] b [x] [2, 3]"), [(2, vec![1]), (12, vec![2, 3])]);
    }
}
