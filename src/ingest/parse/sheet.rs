//! A sheet of a workbook: which rows are titles, which the header, and what the others say.
//!
//! The header is the first row with at least two filled cells that is followed by a row at least half as full, or with
//! two; rows above it are titles. A merged cell counts for all of its rows and columns, and a second row of names
//! below (or above) merged ones joins them: `Dimensions / Width`.

use std::collections::BTreeMap;

use calamine::Dimensions;

use super::csv::{names_rows, row_text, shown};
use crate::ingest::document::{BlockKind, Document, Place};

/// Bytes of text that merged cells may repeat in one sheet.
const MAX_COPIED: usize = 16 << 20;
/// Columns of a merged cell beyond which it is a line across the sheet, not a name of columns.
const MAX_ACROSS: u32 = 1024;

/// Rows by their number, cells by their column, both from 0; only filled ones.
pub(super) type Rows = BTreeMap<u32, Row>;
type Row = BTreeMap<u32, Cell>;

/// A filled cell.
#[derive(Debug)]
pub(super) struct Cell {
    text: String,
    origin: Origin,
}

/// Where the text of a cell stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// In the cell.
    Own,
    /// In a cell above, merged with this one.
    Down,
    /// In a cell to the left (or there and above), merged with this one.
    Across,
}

impl From<String> for Cell {
    fn from(text: String) -> Cell {
        Cell { text, origin: Origin::Own }
    }
}

/// Puts the rows of the sheet `name` into `document`.
pub(super) fn push(document: &mut Document, name: &str, mut rows: Rows, merged: &[Dimensions]) {
    fill(&mut rows, merged);
    let rows: Vec<(u32, Row)> = rows.into_iter().collect();
    let header = header(&rows);
    let mut names: BTreeMap<u32, String> = BTreeMap::new();
    for (_, row) in &rows[header.clone()] {
        for (column, cell) in row {
            let name = names.entry(*column).or_default();
            if name.is_empty() {
                name.clone_from(&cell.text);
            } else if *name != cell.text {
                *name = format!("{name} / {}", cell.text);
            }
        }
    }
    let whole = shown(&names.values().cloned().collect::<Vec<_>>(), &[]);
    let path = [name.to_owned()];
    for (at, (number, row)) in rows.iter().enumerate() {
        let (Some((from, _)), Some((to, _))) = (row.first_key_value(), row.last_key_value()) else {
            continue;
        };
        let place = Place {
            sheet: Some(name.to_owned()),
            rows: Some((number + 1, number + 1)),
            columns: Some((*from, *to)),
            ..Place::default()
        };
        if header.contains(&at) {
            continue;
        }
        if header.is_empty() || at < header.start || is_line(row) {
            let cells = row.values().filter(|cell| cell.origin == Origin::Own).map(|cell| cell.text.clone());
            document.push(BlockKind::Text, &path, None, &row_text(&[], &cells.collect::<Vec<_>>()), place);
        } else {
            let (mut row_names, mut cells): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
            for (column, cell) in row {
                let name = names.get(column).cloned().unwrap_or_default();
                // A value merged below a merged name is one value.
                if cell.origin == Origin::Own || row_names.last() != Some(&name) {
                    row_names.push(name);
                    cells.push(cell.text.clone());
                }
            }
            let header = whole.clone().or_else(|| shown(&row_names, &cells));
            document.push(BlockKind::Table, &path, header.as_deref(), &row_text(&row_names, &cells), place);
        }
    }
}

/// Gives merged cells the text of their first one. Rows of which nothing else is filled stay empty.
fn fill(rows: &mut Rows, merged: &[Dimensions]) {
    let mut left = MAX_COPIED;
    for region in merged {
        let ((top, first), (bottom, last)) = (region.start, region.end);
        if top > bottom || first > last {
            continue;
        }
        let Some(text) = rows.get(&top).and_then(|row| row.get(&first)).map(|cell| cell.text.clone()) else {
            continue;
        };
        let last = last.min(first.saturating_add(MAX_ACROSS));
        for (number, row) in rows.range_mut(top..=bottom) {
            for column in first..=last {
                if (*number, column) == (top, first) {
                    continue;
                }
                if left < text.len() + 1 {
                    return;
                }
                left -= text.len() + 1;
                let origin = if column == first { Origin::Down } else { Origin::Across };
                row.entry(column).or_insert_with(|| Cell { text: text.clone(), origin });
            }
        }
    }
}

fn own(row: &Row) -> usize {
    row.values().filter(|cell| cell.origin == Origin::Own).count()
}

/// Whether a row is one merged cell.
fn is_line(row: &Row) -> bool {
    own(row) == 1 && row.values().any(|cell| cell.origin == Origin::Across)
}

/// The rows that name the columns; empty if none do.
fn header(rows: &[(u32, Row)]) -> std::ops::Range<usize> {
    let next =
        |at: usize| rows[at + 1..].iter().find(|(_, row)| !is_line(row)).map_or(0, |(_, row)| own(row));
    // Only a row with two cells is worth a look at the next; between two such rows each line is looked at once.
    let found = rows.iter().enumerate().position(|(at, (_, row))| {
        let here = own(row);
        here >= 2 && names_rows(here, next(at))
    });
    let Some(at) = found else { return 0..0 };
    let adjacent = |above: usize| rows[above].0 + 1 == rows[above + 1].0;
    let from = if at > 0 && adjacent(at - 1) && is_above(&rows[at - 1].1, &rows[at].1) { at - 1 } else { at };
    let two = at + 2 < rows.len() && adjacent(at) && is_below(&rows[at + 1].1, &rows[at].1);
    from..at + 1 + usize::from(two)
}

/// Whether a row that is no header itself has names above some, but not all, columns of the header below.
fn is_above(row: &Row, header: &Row) -> bool {
    row.values().any(|cell| cell.origin == Origin::Across)
        && header.keys().any(|column| !row.contains_key(column))
}

/// Whether all cells of a row are names below merged names of the header.
fn is_below(row: &Row, header: &Row) -> bool {
    let is_merged = |column: u32| {
        let across = |column: u32| header.get(&column).is_some_and(|cell| cell.origin == Origin::Across);
        across(column) || header.contains_key(&column) && across(column + 1)
    };
    row.iter()
        .filter(|(_, cell)| cell.origin == Origin::Own)
        .all(|(column, cell)| is_merged(*column) && cell.text.replace(',', ".").parse::<f64>().is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[&[&str]]) -> Rows {
        let filled = rows.iter().zip(0..).map(|(row, number)| {
            let cells = row.iter().zip(0..).filter(|(text, _)| !text.is_empty());
            (number, cells.map(|(text, column)| (column, Cell::from((*text).to_owned()))).collect::<Row>())
        });
        filled.filter(|(_, row)| !row.is_empty()).collect()
    }

    /// Each region is its first and last row, and its first and last column.
    fn texts(sheet: Rows, merged: &[[u32; 4]]) -> Vec<String> {
        let merged =
            merged.iter().map(|[top, bottom, first, last]| Dimensions::new((*top, *first), (*bottom, *last)));
        let mut document = Document::default();
        push(&mut document, "S", sheet, &merged.collect::<Vec<_>>());
        document.blocks.into_iter().map(|block| block.text).collect()
    }

    #[test]
    fn a_title_row_is_not_the_header() {
        let mut document = Document::default();
        let sheet = rows(&[
            &["", "Price list 2026", "", ""],
            &[],
            &["", "Type", "Poles", "EUR"],
            &["", "NV-1", "3", "9.50"],
        ]);
        push(&mut document, "Prices", sheet, &[Dimensions::new((0, 1), (0, 3))]);
        assert_eq!(document.blocks[0].text, "Price list 2026");
        assert_eq!(document.blocks[1].text, "Type: NV-1; Poles: 3; EUR: 9.50");
        assert_eq!(document.blocks[1].header.as_deref(), Some("Type | Poles | EUR"));
        assert_eq!(document.blocks[1].place.rows, Some((4, 4)));
        assert_eq!(document.blocks[1].place.columns, Some((1, 3)));
    }

    #[test]
    fn merged_names_join_the_names_below_them() {
        let expected = ["Type: NV-1; Dimensions / Width: 18; Dimensions / Height: 85"];
        let below = rows(&[&["Type", "Dimensions", ""], &["", "Width", "Height"], &["NV-1", "18", "85"]]);
        assert_eq!(texts(below, &[[0, 1, 0, 0], [0, 0, 1, 2]]), expected);
        let above = rows(&[&["", "Dimensions", ""], &["Type", "Width", "Height"], &["NV-1", "18", "85"]]);
        let upper = ["Type: NV-1; Dimensions / Width: 18; Dimensions / Height: 85"];
        assert_eq!(texts(above, &[[0, 0, 1, 2]]), upper);
        let data = rows(&[&["Type", "Range", ""], &["NV-1", "1", "2"], &["NV-2", "3", "4"]]);
        assert_eq!(
            texts(data, &[[0, 0, 1, 2]]),
            ["Type: NV-1; Range: 1; Range: 2", "Type: NV-2; Range: 3; Range: 4"]
        );
    }

    #[test]
    fn a_merged_value_is_in_all_of_its_rows_and_a_merged_line_is_text() {
        let sheet = rows(&[
            &["Series", "Type", "A"],
            &["Breakers", "", ""],
            &["NV", "NV-1", "16"],
            &["", "NV-2", "25"],
        ]);
        assert_eq!(
            texts(sheet, &[[1, 1, 0, 2], [2, 3, 0, 0]]),
            ["Breakers", "Series: NV; Type: NV-1; A: 16", "Series: NV; Type: NV-2; A: 25"]
        );
    }

    #[test]
    fn a_merged_cell_as_large_as_the_sheet_is_harmless() {
        let long = "x".repeat(1 << 20);
        let sheet = rows(&[&[&long], &["b"], &["c"]]);
        assert_eq!(texts(sheet, &[[0, u32::MAX, 0, u32::MAX], [9, 1, 9, 1]]).len(), 3);
    }
}
