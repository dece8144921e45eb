//! Separated values: a row keeps its header.

use crate::ingest::document::{BlockKind, Document, Place};

pub(super) fn parse(text: &str) -> Document {
    let mut document = Document::default();
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter(text))
        .has_headers(false)
        .flexible(true)
        .from_reader(text.as_bytes());
    let mut header: Option<Vec<String>> = None;
    let mut broken = 0;
    for (number, record) in (1_u32..).zip(reader.records()) {
        let Ok(record) = record else {
            broken += 1;
            continue;
        };
        let cells: Vec<String> = record.iter().map(|cell| cell.trim().to_owned()).collect();
        let filled = cells.iter().filter(|cell| !cell.is_empty()).count();
        if filled == 0 {
            continue;
        }
        if header.is_none() {
            if filled < 2 && cells.len() > 1 {
                document.push(BlockKind::Text, &[], None, &cells.join(" "), row_place(number, cells.len()));
            } else {
                header = Some(cells);
            }
            continue;
        }
        let names = header.as_deref().unwrap_or_default();
        let place = row_place(number, cells.len());
        document.push(BlockKind::Table, &[], Some(&names.join(" | ")), &row_text(names, &cells), place);
    }
    if let (Some(header), true) = (header, document.blocks.is_empty()) {
        document.push(BlockKind::Text, &[], None, &header.join(" | "), row_place(1, header.len()));
    }
    if broken > 0 {
        document.warnings.push(format!("{broken} lines are no records and were left out"));
    }
    document
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
            Some(name) => format!("{name}: {cell}"),
            None => cell.clone(),
        }
    });
    pairs.collect::<Vec<_>>().join("; ")
}

/// The separator that gives the most columns, evenly over the first lines.
fn delimiter(text: &str) -> u8 {
    let score = |delimiter: u8| {
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .has_headers(false)
            .flexible(true)
            .from_reader(text.as_bytes());
        let widths: Vec<usize> = reader.records().take(20).flatten().map(|record| record.len()).collect();
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
}
