//! Separated values: a row keeps its header.
//!
//! As in a workbook, the header is the first record with at least two filled cells that is followed by one at least
//! half as full, or with two; records above it are titles.

use crate::ingest::document::{BlockKind, Document, Place, clip};

/// Bytes of a header that each of its rows shows whole; of a wider one, a row shows the names of its own values.
const WIDE: usize = 400;
/// Bytes of a name: each value below it repeats it.
const MAX_NAME: usize = 200;

pub(super) fn parse(text: &str) -> Document {
    let mut document = Document::default();
    let mut records = Records::new(text, delimiter(text)).peekable();
    let mut header: Option<(u32, Vec<String>)> = None;
    while let Some((line, cells)) = records.next() {
        let place = row_place(line, cells.len());
        match &header {
            Some((_, names)) => {
                let shown = shown(names, &cells);
                document.push(BlockKind::Table, &[], shown.as_deref(), &row_text(names, &cells), place);
            }
            None => {
                let next = records.peek().map_or(0, |(_, next)| filled(next));
                let one_column = cells.len() == 1 && records.peek().is_none_or(|(_, next)| next.len() == 1);
                if one_column || names_rows(filled(&cells), next) {
                    header = Some((line, cells));
                } else {
                    document.push(BlockKind::Text, &[], None, &row_text(&[], &cells), place);
                }
            }
        }
    }
    if let (Some((line, header)), true) = (header, document.blocks.is_empty()) {
        document.push(BlockKind::Text, &[], None, &header.join(" | "), row_place(line, header.len()));
    }
    document
}

fn filled(cells: &[String]) -> usize {
    cells.iter().filter(|cell| !cell.is_empty()).count()
}

/// Whether a row with `here` filled cells above one with `next` of them is a header.
pub(super) fn names_rows(here: usize, next: usize) -> bool {
    here >= 2 && next > 0 && (next * 2 >= here || next >= 2)
}

/// The records that are not empty, with the lines (from 1) where they begin.
struct Records<'a> {
    text: &'a str,
    reader: csv::Reader<&'a [u8]>,
    record: csv::StringRecord,
}

impl<'a> Records<'a> {
    fn new(text: &'a str, delimiter: u8) -> Records<'a> {
        let reader = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .has_headers(false)
            .flexible(true)
            .from_reader(text.as_bytes());
        Records { text, reader, record: csv::StringRecord::new() }
    }
}

impl Iterator for Records<'_> {
    type Item = (u32, Vec<String>);

    fn next(&mut self) -> Option<(u32, Vec<String>)> {
        // The text is UTF-8 and records may have any length, so no record is an error.
        while self.reader.read_record(&mut self.record).ok()? {
            let cells: Vec<String> = self.record.iter().map(|cell| cell.trim().to_owned()).collect();
            if filled(&cells) == 0 {
                continue;
            }
            // The reader's position is before the blank lines that it skips.
            let (line, byte) = self.record.position().map_or((1, 0), |at| (at.line(), at.byte() as usize));
            let blank = self.text.as_bytes()[byte.min(self.text.len())..]
                .iter()
                .take_while(|byte| matches!(byte, b'\r' | b'\n'))
                .filter(|byte| **byte == b'\n')
                .count();
            return Some((line as u32 + blank as u32, cells));
        }
        None
    }
}

fn row_place(row: u32, columns: usize) -> Place {
    Place {
        sheet: Some("csv".to_owned()),
        rows: Some((row, row)),
        columns: Some((0, columns.saturating_sub(1) as u32)),
        ..Place::default()
    }
}

/// `name: value` of the cells that are not empty, so that a row says itself what its values are.
pub(super) fn row_text(names: &[String], cells: &[String]) -> String {
    let pairs = cells.iter().enumerate().filter(|(_, cell)| !cell.is_empty()).map(|(at, cell)| {
        match names.get(at).filter(|name| !name.is_empty()) {
            Some(name) => format!("{}: {cell}", clip(name, MAX_NAME)),
            None => cell.clone(),
        }
    });
    pairs.collect::<Vec<_>>().join("; ")
}

/// The header that a row of `cells` shows: all names, or of a wide table those of its filled columns.
pub(super) fn shown(names: &[String], cells: &[String]) -> Option<String> {
    let wide = names.iter().map(|name| name.len() + 3).sum::<usize>() > WIDE;
    let mut header = String::new();
    for (at, name) in names.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
        if !wide || cells.get(at).is_some_and(|cell| !cell.is_empty()) {
            header.push_str(if header.is_empty() { "" } else { " | " });
            header.push_str(name);
        }
    }
    Some(header).filter(|header| !header.is_empty())
}

/// The separator that gives the most columns, evenly over the first lines.
fn delimiter(text: &str) -> u8 {
    let score = |delimiter: u8| {
        let widths: Vec<usize> =
            Records::new(text, delimiter).take(20).map(|(_, cells)| cells.len()).collect();
        let widest = widths.iter().copied().max().unwrap_or(1);
        let even = widths.iter().filter(|width| **width == widest).count();
        if widest < 2 { 0 } else { even * 100 + widest }
    };
    [b',', b';', b'\t', b'|']
        .into_iter()
        .max_by_key(|delimiter| (score(*delimiter), *delimiter == b','))
        .unwrap_or(b',')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_keeps_its_header_whatever_the_separator() {
        for separator in [",", ";", "\t", "|"] {
            let document = parse(
                &["Type", "Rated current", "\nNV-1", "16 A", "\nNV-2", "25 A"]
                    .join(separator)
                    .replace(&format!("{separator}\n"), "\n"),
            );
            assert_eq!(document.blocks[1].text, "Type: NV-2; Rated current: 25 A", "{separator:?}");
            assert_eq!(document.blocks[1].place.rows, Some((3, 3)));
        }
    }

    #[test]
    fn rows_are_counted_by_lines() {
        let document = parse("A;B\n\n1;\"two\nlines\"\n\r\n\n3;4\n");
        let rows: Vec<_> = document.blocks.iter().filter_map(|b| b.place.rows).collect();
        assert_eq!(rows, [(3, 3), (7, 7)]);
    }

    #[test]
    fn a_title_is_not_the_header() {
        for title in ["Price list", "Price list;;"] {
            let document = parse(&format!("{title}\nType;A;V\nNV-1;16;400\n"));
            let texts: Vec<_> = document.blocks.iter().map(|b| b.text.as_str()).collect();
            assert_eq!(texts, ["Price list", "Type: NV-1; A: 16; V: 400"]);
        }
        let document = parse("Word\nalpha\nbeta\n");
        assert_eq!(document.blocks[1].text, "Word: beta");
    }

    #[test]
    fn a_row_of_a_wide_table_shows_only_its_own_names() {
        let names: Vec<String> = (0..400).map(|at| format!("Property {at}")).collect();
        let row = format!("{}16;{}7", ";".repeat(3), ";".repeat(200));
        let document = parse(&format!("{}\n{row}\n", names.join(";")));
        assert_eq!(document.blocks[0].header.as_deref(), Some("Property 3 | Property 204"));
    }
}
