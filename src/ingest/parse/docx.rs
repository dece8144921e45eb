//! Word: headings by style, paragraphs, tables.

use std::io::{Cursor, Read};

use quick_xml::Reader;
use quick_xml::events::Event;

use crate::ingest::document::{BlockKind, Document, Place};

/// Bytes of the main part beyond which the file is taken for a bomb.
const MAX_XML: u64 = 256 << 20;

pub(super) fn parse(bytes: &[u8]) -> Result<Document, String> {
    let damaged = |error: &dyn std::fmt::Display| format!("the Word file cannot be read: {error}");
    let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).map_err(|error| damaged(&error))?;
    let part = zip.by_name("word/document.xml").map_err(|error| damaged(&error))?;
    let mut xml = String::new();
    part.take(MAX_XML).read_to_string(&mut xml).map_err(|error| damaged(&error))?;
    let mut reader = Reader::from_str(&xml);
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
                state.paragraph.push_str(&text.decode().unwrap_or_default());
            }
            Ok(Event::GeneralRef(entity)) if state.in_text => {
                state.paragraph.push_str(&super::xml::entity(&entity));
            }
            Ok(Event::Eof) => break,
            Err(error) => {
                state.document.warnings.push(format!("the text ends early: {error}"));
                break;
            }
            _ => {}
        }
    }
    Ok(state.document)
}

#[derive(Default)]
struct State {
    document: Document,
    path: Vec<(u32, String)>,
    paragraph: String,
    heading: Option<u32>,
    in_text: bool,
    /// Rows of the open table, cells each.
    row: Vec<String>,
    header: Option<Vec<String>>,
    tables: usize,
}

impl State {
    fn start(&mut self, tag: &quick_xml::events::BytesStart<'_>) {
        match tag.local_name().as_ref() {
            b"t" => self.in_text = true,
            b"tab" | b"br" => self.paragraph.push(' '),
            b"tbl" => {
                self.tables += 1;
                self.header = None;
            }
            b"pStyle" => {
                let style = tag.attributes().flatten().find(|a| a.key.local_name().as_ref() == b"val");
                let style =
                    style.map(|a| String::from_utf8_lossy(&a.value).to_lowercase()).unwrap_or_default();
                let named = style.strip_prefix("heading").or_else(|| style.strip_prefix("berschrift"));
                let named = named.or_else(|| style.strip_prefix("überschrift"));
                self.heading =
                    named.and_then(|level| level.trim().parse().ok()).or((style == "title").then_some(0));
            }
            _ => {}
        }
    }

    fn end(&mut self, name: &[u8]) {
        match name {
            b"t" => self.in_text = false,
            b"p" if self.tables == 0 => self.end_paragraph(),
            b"p" => self.paragraph.push(' '),
            b"tc" => self.row.push(super::html::squeeze(&std::mem::take(&mut self.paragraph))),
            b"tr" => {
                let cells = std::mem::take(&mut self.row);
                if self.header.is_none() {
                    self.header = Some(cells);
                } else {
                    let names = self.header.as_deref().unwrap_or_default();
                    let text = super::csv::row_text(names, &cells);
                    let headings: Vec<String> = self.path.iter().map(|(_, title)| title.clone()).collect();
                    self.document.push(
                        BlockKind::Table,
                        &headings,
                        Some(&names.join(" | ")),
                        &text,
                        Place::default(),
                    );
                }
            }
            b"tbl" => self.tables = self.tables.saturating_sub(1),
            _ => {}
        }
    }

    fn end_paragraph(&mut self) {
        let text = std::mem::take(&mut self.paragraph);
        match self.heading.take() {
            Some(level) if !text.trim().is_empty() => {
                self.path.retain(|(above, _)| *above < level);
                if self.document.title.is_none() {
                    self.document.title = Some(text.trim().to_owned());
                }
                self.path.push((level, text.trim().to_owned()));
            }
            _ => {
                let headings: Vec<String> = self.path.iter().map(|(_, title)| title.clone()).collect();
                self.document.push(BlockKind::Text, &headings, None, &text, Place::default());
            }
        }
    }
}
