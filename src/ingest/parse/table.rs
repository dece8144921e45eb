//! A table of HTML or Word: its cells under their columns, its values under their names.
//!
//! Rejected: the first row is always the header. A table of one row then has no text at all, and a list of names and
//! values makes names of its first pair. The header is what the file marks as one; an unmarked first row is taken
//! only if rows follow and all of its cells are as short as names are.

use super::csv::{row_text, shown};
use crate::ingest::document::{BlockKind, Document, Place};

/// Columns beyond which a span is not believed.
const MAX_COLUMNS: usize = 1024;
/// Bytes that cells over several columns or rows may repeat in one table.
const MAX_COPIED: usize = 16 << 20;
/// Characters of a cell beyond which an unmarked row is no header.
const MAX_NAME: usize = 80;

/// A cell.
#[derive(Debug, Default)]
pub(super) struct Cell {
    pub(super) text: String,
    /// Columns that it covers.
    pub(super) columns: usize,
    /// Rows that it covers.
    pub(super) rows: usize,
}

/// A row.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) cells: Vec<Cell>,
    /// What the file says about it.
    pub(super) mark: Mark,
    pub(super) place: Place,
}

/// What a file says about a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// It is a header.
    Header,
    /// It is none: it begins with a header of its own, or belongs to the body.
    Data,
    /// Nothing.
    Unmarked,
}

/// Puts the rows of one table into `document`.
pub(super) fn push(document: &mut Document, headings: &[String], rows: Vec<Row>) {
    let filled = |row: &Row| row.cells.iter().filter(|cell| !cell.text.is_empty()).count();
    let is_title = |row: &&Row| filled(row) < 2 && (row.mark != Mark::Header || row.cells.len() < 2);
    let titles = rows.iter().take_while(is_title).count();
    // A table of one column has no titles, it has rows.
    let titles = if titles == rows.len() { 0 } else { titles };
    let marked = rows[titles..].iter().take_while(|row| row.mark == Mark::Header).count();
    let pairs = marked == 0 && are_pairs(&rows[titles..]);
    let guessed = rows.get(titles).is_some_and(|row| {
        row.mark == Mark::Unmarked
            && !pairs
            && filled(row) >= 2
            && row.cells.iter().all(|cell| cell.text.chars().count() <= MAX_NAME)
    });
    let names_end = titles + if marked == 0 { usize::from(guessed) } else { marked };
    // What would be the header of nothing is text.
    let names_end = if rows[names_end..].iter().any(|row| filled(row) > 0) { names_end } else { titles };
    let mut grid = Grid::default();
    let mut names: Vec<String> = Vec::new();
    for (at, row) in rows.into_iter().enumerate() {
        let is_name = (titles..names_end).contains(&at);
        let cells = grid.row(row.cells, is_name);
        if is_name {
            join_names(&mut names, &cells);
        } else if at < titles {
            document.push(BlockKind::Text, headings, None, &row_text(&[], &cells), row.place);
        } else {
            let header = shown(&names, &cells);
            let text = match &cells[..] {
                [name, value] if pairs && !name.is_empty() && !value.is_empty() => format!("{name}: {value}"),
                cells => row_text(&names, cells),
            };
            document.push(BlockKind::Table, headings, header.as_deref(), &text, row.place);
        }
    }
}

/// Whether each row is a name and its value: it is marked so, or the first value is a number and its name is none.
fn are_pairs(rows: &[Row]) -> bool {
    let begins = |cell: &Cell, with: fn(char) -> bool| cell.text.starts_with(with);
    rows.iter().all(|row| row.cells.len() == 2)
        && (rows.iter().all(|row| row.mark == Mark::Data)
            || rows.first().is_some_and(|row| {
                begins(&row.cells[0], char::is_alphabetic) && begins(&row.cells[1], char::is_numeric)
            }))
}

/// Adds a second row of names below the first: `Dimensions` over `Width` is `Dimensions / Width`.
fn join_names(names: &mut Vec<String>, below: &[String]) {
    names.resize(names.len().max(below.len()), String::new());
    for (name, below) in names.iter_mut().zip(below) {
        if name.is_empty() {
            name.clone_from(below);
        } else if !below.is_empty() && name != below {
            *name = format!("{name} / {below}");
        }
    }
}

/// Where the cells of the next row stand, below cells that cover several rows.
#[derive(Default)]
struct Grid {
    /// Of each column, the rows that its cell still covers, and the text.
    covered: Vec<(usize, String)>,
    /// Bytes that were repeated.
    copied: usize,
}

impl Grid {
    /// The texts of a row by column. A name stands for all columns of its cell, a value is said once.
    fn row(&mut self, cells: Vec<Cell>, is_name: bool) -> Vec<String> {
        let mut out: Vec<String> = Vec::new();
        for cell in cells {
            self.above(&mut out);
            for at in 0..cell.columns.clamp(1, MAX_COLUMNS) {
                let far = out.len() >= MAX_COLUMNS;
                if far && at > 0 {
                    break;
                }
                let text = match at {
                    0 => cell.text.clone(),
                    _ if is_name => self.copy(&cell.text),
                    _ => String::new(),
                };
                if cell.rows > 1 && !far {
                    self.covered.resize(self.covered.len().max(out.len() + 1), (0, String::new()));
                    self.covered[out.len()] = (cell.rows - 1, text.clone());
                }
                out.push(text);
            }
        }
        while out.len() < self.covered.len() {
            if !self.above(&mut out) {
                out.push(String::new());
            }
        }
        out
    }

    /// The text again, or nothing once too much was repeated.
    fn copy(&mut self, text: &str) -> String {
        self.copied += text.len();
        if self.copied > MAX_COPIED { String::new() } else { text.to_owned() }
    }

    /// Fills the next columns from cells above that cover them.
    fn above(&mut self, out: &mut Vec<String>) -> bool {
        let before = out.len();
        while let Some((rows, text)) = self.covered.get_mut(out.len()).filter(|(rows, _)| *rows > 0) {
            *rows -= 1;
            let text = std::mem::take(text);
            out.push(self.copy(&text));
            self.covered[out.len() - 1].1 = text;
        }
        out.len() > before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(mark: Mark, cells: &[(&str, usize, usize)]) -> Row {
        let cells = cells.iter().map(|(text, columns, rows)| Cell {
            text: (*text).to_owned(),
            columns: *columns,
            rows: *rows,
        });
        Row { cells: cells.collect(), mark, place: Place::default() }
    }

    fn texts(rows: Vec<Row>) -> Vec<String> {
        let mut document = Document::default();
        push(&mut document, &[], rows);
        document.blocks.into_iter().map(|block| block.text).collect()
    }

    #[test]
    fn names_over_several_columns_and_rows_join() {
        let rows = vec![
            row(Mark::Header, &[("Type", 1, 2), ("Dimensions", 2, 1), ("Mass", 1, 2)]),
            row(Mark::Header, &[("Width", 1, 1), ("Height", 1, 1)]),
            row(Mark::Unmarked, &[("NV-1", 1, 1), ("18", 1, 1), ("85", 1, 1), ("120", 1, 1)]),
            row(Mark::Unmarked, &[("NV-2", 1, 1), ("n/a", 2, 1), ("125", 1, 1)]),
        ];
        assert_eq!(
            texts(rows),
            [
                "Type: NV-1; Dimensions / Width: 18; Dimensions / Height: 85; Mass: 120",
                "Type: NV-2; Dimensions / Width: n/a; Mass: 125"
            ]
        );
    }

    #[test]
    fn a_value_over_several_rows_is_in_each() {
        let rows = vec![
            row(Mark::Unmarked, &[("Series", 1, 1), ("Type", 1, 1)]),
            row(Mark::Unmarked, &[("NV", 1, 2), ("NV-1", 1, 1)]),
            row(Mark::Unmarked, &[("NV-2", 1, 1)]),
        ];
        assert_eq!(texts(rows), ["Series: NV; Type: NV-1", "Series: NV; Type: NV-2"]);
    }

    #[test]
    fn no_row_is_lost_for_being_the_first() {
        assert_eq!(texts(vec![row(Mark::Header, &[("A", 1, 1), ("B", 1, 1)])]), ["A; B"]);
        let prose = "long ".repeat(20);
        let rows =
            vec![row(Mark::Unmarked, &[("A", 1, 1), (&prose, 1, 1)]), row(Mark::Unmarked, &[("B", 1, 1)])];
        assert_eq!(texts(rows), [format!("A; {}", prose), "B".to_owned()].map(|t| t.trim().to_owned()));
        let titled = vec![
            row(Mark::Unmarked, &[("Ratings", 2, 1)]),
            row(Mark::Unmarked, &[("Type", 1, 1), ("A", 1, 1)]),
            row(Mark::Unmarked, &[("NV-1", 1, 1), ("16", 1, 1)]),
        ];
        assert_eq!(texts(titled), ["Ratings", "Type: NV-1; A: 16"]);
    }

    #[test]
    fn a_list_of_names_and_values_has_no_header() {
        let pair = |mark, name, value| row(mark, &[(name, 1, 1), (value, 1, 1)]);
        let marked = vec![pair(Mark::Data, "Colour", "grey"), pair(Mark::Data, "Mass", "")];
        assert_eq!(texts(marked), ["Colour: grey", "Mass"]);
        let numbers = vec![pair(Mark::Unmarked, "Width", "18 mm"), pair(Mark::Unmarked, "Colour", "grey")];
        assert_eq!(texts(numbers), ["Width: 18 mm", "Colour: grey"]);
        let named = vec![pair(Mark::Unmarked, "Type", "Colour"), pair(Mark::Unmarked, "NV-1", "grey")];
        assert_eq!(texts(named), ["Type: NV-1; Colour: grey"]);
    }

    #[test]
    fn an_absurd_span_is_not_believed() {
        let far = (usize::MAX, usize::MAX);
        let rows = vec![
            row(Mark::Header, &[("A", far.0, 1), ("B", 1, 1)]),
            row(Mark::Unmarked, &[("1", far.0, far.1), ("2", 1, 1)]),
        ];
        assert_eq!(texts(rows), ["A: 1; B: 2"]);
        let long = "x".repeat(1 << 19);
        let rows = (0..50).map(|_| row(Mark::Data, &[(&long, 1, far.1), ("1", 1, 1)]));
        let bytes: usize = texts(rows.collect()).iter().map(String::len).sum();
        assert!(bytes < MAX_COPIED + 51 * long.len(), "{bytes}");
    }
}
