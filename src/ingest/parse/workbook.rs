//! Workbooks: every sheet, messy ones too.
//!
//! A sheet's header is the first row with at least two filled cells that is followed by a row at least half as full;
//! rows above it are titles. Cells may hold HTML.

use std::io::Cursor;

use calamine::{Data, Reader, open_workbook_auto_from_rs};

use super::csv::row_text;
use crate::ingest::document::{BlockKind, Document, Place};

/// Cells of one sheet beyond which the rest is left out with a warning.
const MAX_CELLS: usize = 20_000_000;

pub(super) fn parse(bytes: Vec<u8>) -> Result<Document, String> {
    let mut workbook = open_workbook_auto_from_rs(Cursor::new(bytes)).map_err(|error| {
        let said = error.to_string();
        if said.to_lowercase().contains("password") || said.to_lowercase().contains("encrypt") {
            "the workbook is encrypted: remove the password and upload it again".to_owned()
        } else {
            format!("the workbook cannot be read: {said}")
        }
    })?;
    let mut document = Document::default();
    let names = workbook.sheet_names();
    document.page_count = Some(names.len() as i32);
    for name in names {
        match workbook.worksheet_range(&name) {
            Ok(range) => {
                let (first_row, first_column) = range.start().unwrap_or((0, 0));
                if range.height().saturating_mul(range.width()) > MAX_CELLS {
                    document
                        .warnings
                        .push(format!("sheet `{name}` has more than {MAX_CELLS} cells; it was left out"));
                    continue;
                }
                let rows: Vec<Vec<String>> =
                    range.rows().map(|row| row.iter().map(cell_text).collect()).collect();
                sheet(&mut document, &name, &rows, first_row, first_column);
            }
            Err(error) => document.warnings.push(format!("sheet `{name}` cannot be read: {error}")),
        }
    }
    Ok(document)
}

fn cell_text(cell: &Data) -> String {
    let text = match cell {
        Data::Empty => String::new(),
        Data::Float(x) if x.fract() == 0.0 && x.abs() < 1e15 => format!("{x:.0}"),
        Data::DateTime(at) => at.as_datetime().map_or_else(|| at.to_string(), |time| time.to_string()),
        Data::Error(error) => format!("{error:?}"),
        other => other.to_string(),
    };
    let text = if text.contains('<') && text.contains('>') && text.contains("</") {
        scraper::Html::parse_fragment(&text).root_element().text().collect::<Vec<_>>().join(" ")
    } else {
        text
    };
    super::html::squeeze(&text)
}

fn sheet(document: &mut Document, name: &str, rows: &[Vec<String>], first_row: u32, first_column: u32) {
    let filled = |row: &[String]| row.iter().filter(|cell| !cell.is_empty()).count();
    let header_at = (0..rows.len()).find(|at| {
        let here = filled(&rows[*at]);
        let next = rows[at + 1..].iter().map(|row| filled(row)).find(|count| *count > 0);
        here >= 2 && next.is_some_and(|next| next * 2 >= here || next >= 2)
    });
    let path = [name.to_owned()];
    for (at, row) in rows.iter().enumerate() {
        if filled(row) == 0 || Some(at) == header_at {
            continue;
        }
        let number = first_row + at as u32 + 1;
        let used = |cell: &&(usize, &String)| !cell.1.is_empty();
        let columns: Vec<usize> =
            row.iter().enumerate().filter(|c| used(&c)).map(|(column, _)| column).collect();
        let (from, to) =
            (columns.first().copied().unwrap_or(0) as u32, columns.last().copied().unwrap_or(0) as u32);
        let place = Place {
            sheet: Some(name.to_owned()),
            rows: Some((number, number)),
            columns: Some((first_column + from, first_column + to)),
            ..Place::default()
        };
        match header_at.filter(|header| at > *header) {
            Some(header) => {
                let names = &rows[header];
                let shown: Vec<&str> = names.iter().filter(|n| !n.is_empty()).map(String::as_str).collect();
                document.push(
                    BlockKind::Table,
                    &path,
                    Some(&shown.join(" | ")),
                    &row_text(names, row),
                    place,
                );
            }
            None => document.push(BlockKind::Text, &path, None, &row_text(&[], row), place),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_row_is_not_the_header() {
        let row = |cells: &[&str]| cells.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>();
        let rows = [
            row(&["Price list 2026", "", ""]),
            row(&["", "", ""]),
            row(&["Type", "Poles", "EUR"]),
            row(&["NV-1", "3", "9.50"]),
        ];
        let mut document = Document::default();
        sheet(&mut document, "Prices", &rows, 0, 1);
        assert_eq!(document.blocks[0].text, "Price list 2026");
        assert_eq!(document.blocks[1].text, "Type: NV-1; Poles: 3; EUR: 9.50");
        assert_eq!(document.blocks[1].place.rows, Some((4, 4)));
        assert_eq!(document.blocks[1].place.columns, Some((1, 3)));
    }
}
