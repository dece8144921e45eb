//! Word: headings by style, paragraphs, tables.
//!
//! A block's place is the path of its paragraph or row, counted among those that are in no table. A table in a
//! cell is a table of its own, before the one that it is in.

use std::io::{Cursor, Read};

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use super::html::squeeze;
use super::table::{self, Cell, Mark, Row};
use super::xml::step;
use crate::ingest::document::{BlockKind, Document, Place};

/// Bytes of the main part beyond which the file is taken for a bomb.
const MAX_XML: u64 = 256 << 20;
/// Word has nine levels of headings; a title is above them.
const MAX_LEVEL: u32 = 9;

pub(super) fn parse(bytes: &[u8]) -> Result<Document, String> {
    let damaged = |error: &dyn std::fmt::Display| format!("the Word file cannot be read: {error}");
    let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).map_err(|error| damaged(&error))?;
    let part = zip.by_name("word/document.xml").map_err(|error| damaged(&error))?;
    let mut xml = Vec::new();
    part.take(MAX_XML + 1).read_to_end(&mut xml).map_err(|error| damaged(&error))?;
    if xml.len() as u64 > MAX_XML {
        return Err(format!("the Word file's text has more than {} MiB: split it", MAX_XML >> 20));
    }
    let xml = super::text::decode(&xml);
    Ok(read(&xml))
}

fn read(xml: &str) -> Document {
    let mut reader = Reader::from_str(xml);
    let mut state = State::default();
    loop {
        match reader.read_event() {
            Ok(Event::Start(tag)) => state.start(&tag),
            Ok(Event::Empty(tag)) => {
                state.start(&tag);
                state.end(tag.local_name().as_ref());
            }
            Ok(Event::End(tag)) => state.end(tag.local_name().as_ref()),
            Ok(Event::Text(text)) if state.in_text => {
                state.text.push_str(&text.decode().unwrap_or_default());
            }
            Ok(Event::GeneralRef(entity)) if state.in_text => {
                state.text.push_str(&super::xml::entity(&entity));
            }
            Ok(Event::Eof) => break,
            Err(error) => {
                state.document.warnings.push(format!("the text ends early: {error}"));
                break;
            }
            _ => {}
        }
    }
    // What a damaged file leaves open is text all the same.
    while !state.tables.is_empty() {
        state.end(b"tc");
        state.end(b"tr");
        state.end(b"tbl");
    }
    state.end_paragraph();
    state.document
}

/// An open table.
#[derive(Default)]
struct Table {
    path: String,
    rows: Vec<Row>,
    cells: Vec<Cell>,
    /// What was in the paragraph around it.
    around: String,
    cell: Cell,
    /// Whether the open cell goes on from the one above it.
    goes_on: bool,
    is_header: bool,
    /// Rows that began, those without text included.
    count: usize,
}

#[derive(Default)]
struct State {
    document: Document,
    headings: Vec<(u32, String)>,
    text: String,
    /// The level of the open paragraph, if it is a heading.
    level: Option<u32>,
    in_text: bool,
    tables: Vec<Table>,
    paragraphs: usize,
    outer_tables: usize,
}

impl State {
    fn start(&mut self, tag: &BytesStart<'_>) {
        let value = || {
            let value = tag.attributes().flatten().find(|a| a.key.local_name().as_ref() == b"val");
            value.map(|a| String::from_utf8_lossy(&a.value).to_lowercase())
        };
        match (tag.local_name().as_ref(), self.tables.last_mut()) {
            (b"t", _) => self.in_text = true,
            (b"tab" | b"br" | b"cr", _) => self.text.push(' '),
            (b"p", None) => self.paragraphs += 1,
            (b"tbl", _) => self.open_table(),
            (b"tr", Some(table)) => {
                (table.is_header, table.count) = (false, table.count + 1);
            }
            (b"tc", Some(table)) => (table.cell, table.goes_on) = (Cell::default(), false),
            (b"gridSpan", Some(table)) => {
                table.cell.columns = value().and_then(|span| span.parse().ok()).unwrap_or(1);
            }
            (b"vMerge", Some(table)) => table.goes_on = value().as_deref() != Some("restart"),
            (b"tblHeader", Some(table)) => {
                table.is_header = !matches!(value().as_deref(), Some("0" | "false" | "off"));
            }
            (b"pStyle", _) => self.level = value().and_then(|style| level(&style)),
            _ => {}
        }
    }

    fn end(&mut self, name: &[u8]) {
        match (name, self.tables.last_mut()) {
            (b"t", _) => self.in_text = false,
            (b"p", None) => self.end_paragraph(),
            (b"p", Some(_)) => {
                // A heading in a cell is a cell: it says nothing about what comes after the table.
                self.level = None;
                self.text.push(' ');
            }
            (b"tc", Some(table)) => {
                let mut cell = std::mem::take(&mut table.cell);
                cell.text = squeeze(&std::mem::take(&mut self.text));
                let column: usize = table.cells.iter().map(|cell| cell.columns.max(1)).sum();
                if table.goes_on
                    && let Some(above) = table.rows.last().and_then(|row| cell_at(row, column))
                {
                    cell.text.clone_from(&above.text);
                }
                table.cells.push(cell);
            }
            (b"tr", Some(table)) => {
                let mut path = table.path.clone();
                step(&mut path, "tr", table.count);
                let mark = if table.is_header { Mark::Header } else { Mark::Unmarked };
                let place = Place { xml_path: Some(path), ..Place::default() };
                table.rows.push(Row { cells: std::mem::take(&mut table.cells), mark, place });
            }
            (b"tbl", Some(_)) => {
                if let Some(table) = self.tables.pop() {
                    let headings = self.headings();
                    table::push(&mut self.document, &headings, table.rows);
                    self.text = table.around;
                }
            }
            _ => {}
        }
    }

    fn open_table(&mut self) {
        let path = match self.tables.last() {
            None => {
                self.outer_tables += 1;
                let mut path = "/document/body".to_owned();
                step(&mut path, "tbl", self.outer_tables);
                path
            }
            // The tables of a cell are few: its row is place enough.
            Some(outer) => {
                let mut path = outer.path.clone();
                step(&mut path, "tr", outer.count);
                path
            }
        };
        let around = std::mem::take(&mut self.text);
        self.tables.push(Table { path, around, ..Table::default() });
    }

    fn headings(&self) -> Vec<String> {
        self.headings.iter().map(|(_, title)| title.clone()).collect()
    }

    fn end_paragraph(&mut self) {
        let text = std::mem::take(&mut self.text);
        match self.level.take() {
            Some(level) if !text.trim().is_empty() => {
                self.headings.retain(|(above, _)| *above < level);
                if self.document.title.is_none() {
                    self.document.title = Some(text.trim().to_owned());
                }
                self.headings.push((level, text.trim().to_owned()));
            }
            _ => {
                let mut path = "/document/body".to_owned();
                step(&mut path, "p", self.paragraphs);
                let place = Place { xml_path: Some(path), ..Place::default() };
                self.document.push(BlockKind::Text, &self.headings(), None, &text, place);
            }
        }
    }
}

/// The level of a style that is a heading, in English or German.
fn level(style: &str) -> Option<u32> {
    if style == "title" {
        return Some(0);
    }
    let named = ["heading", "berschrift", "überschrift"].iter().find_map(|name| style.strip_prefix(name))?;
    named.trim().parse().ok().map(|level: u32| level.min(MAX_LEVEL))
}

fn cell_at(row: &Row, column: usize) -> Option<&Cell> {
    let mut from = 0;
    row.cells.iter().find(|cell| {
        from += cell.columns.max(1);
        from > column
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(text: &str) -> String {
        format!("<w:p><w:r><w:t>{text}</w:t></w:r></w:p>")
    }

    fn tc(inside: &str) -> String {
        format!("<w:tc>{inside}</w:tc>")
    }

    fn tbl(rows: &[&[String]]) -> String {
        let rows = rows.iter().map(|cells| format!("<w:tr>{}</w:tr>", cells.concat()));
        format!("<w:tbl>{}</w:tbl>", rows.collect::<String>())
    }

    fn seen(body: &str) -> Vec<(String, String)> {
        let document = read(&format!("<w:document><w:body>{body}</w:body></w:document>"));
        document.blocks.into_iter().map(|b| (b.text, b.place.xml_path.unwrap_or_default())).collect()
    }

    #[test]
    fn a_table_of_one_row_keeps_its_text() {
        let body = p("before") + &tbl(&[&[tc(&p("16 A")), tc(&p("400 V"))]]) + &p("after");
        assert_eq!(
            seen(&body),
            [("before", "p"), ("16 A; 400 V", "tbl/tr"), ("after", "p[2]")]
                .map(|(text, path)| (text.to_owned(), format!("/document/body/{path}")))
        );
    }

    #[test]
    fn a_table_in_a_cell_leaves_the_outer_one_its_header() {
        let inner = tbl(&[&[tc(&p("X")), tc(&p("Y"))], &[tc(&p("8")), tc(&p("9"))]]);
        let body = tbl(&[
            &[tc(&p("A")), tc(&p("B"))],
            &[tc(&p("1")), tc(&(p("2") + &inner + &p("z")))],
            &[tc(&p("3")), tc(&p("4"))],
        ]);
        assert_eq!(
            seen(&body),
            [("X: 8; Y: 9", "tr[2]/tr[2]"), ("A: 1; B: 2 z", "tr[2]"), ("A: 3; B: 4", "tr[3]")]
                .map(|(text, path)| (text.to_owned(), format!("/document/body/tbl/{path}")))
        );
    }

    #[test]
    fn values_stay_under_their_names() {
        let span = |text: &str| tc(&format!("<w:tcPr><w:gridSpan w:val=\"2\"/></w:tcPr>{}", p(text)));
        let merge = |how: &str, text: &str| tc(&format!("<w:tcPr><w:vMerge{how}/></w:tcPr>{}", p(text)));
        let body = tbl(&[
            &[tc(&p("Series")), span("Range"), tc(&p("Mass"))],
            &[merge(" w:val=\"restart\"", "NV"), tc(&p("1")), tc(&p("2")), tc(&p("3"))],
            &[merge("", ""), span("none"), tc(&p("4"))],
        ]);
        let texts: Vec<String> = seen(&body).into_iter().map(|(text, _)| text).collect();
        assert_eq!(texts, ["Series: NV; Range: 1; Range: 2; Mass: 3", "Series: NV; Range: none; Mass: 4"]);
    }

    #[test]
    fn a_heading_style_in_a_cell_is_no_heading() {
        let heading = |text: &str| {
            format!("<w:p><w:pPr><w:pStyle w:val=\"Heading1\"/></w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>")
        };
        let body = heading("Real") + &tbl(&[&[tc(&heading("Cell"))]]) + &p("after");
        let document = read(&format!("<w:document><w:body>{body}</w:body></w:document>"));
        let seen: Vec<_> =
            document.blocks.iter().map(|b| (b.text.as_str(), b.heading_path.concat())).collect();
        assert_eq!(seen, [("Cell", "Real".to_owned()), ("after", "Real".to_owned())]);
    }
}
