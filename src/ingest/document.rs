//! What a parser makes of a file: blocks in reading order, each with its place.

use serde::{Deserialize, Serialize};

/// What a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlockKind {
    /// Prose.
    Text,
    /// A row of a table.
    Table,
    /// A product of a catalogue.
    Product,
    /// A class of a classification.
    Class,
    /// Source code or preformatted text.
    Code,
}

impl BlockKind {
    /// Its name in the lake.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            BlockKind::Text => "text",
            BlockKind::Table => "table",
            BlockKind::Product => "product",
            BlockKind::Class => "class",
            BlockKind::Code => "code",
        }
    }
}

/// Where a block stands, as exactly as its format knows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Place {
    /// Page, from 1.
    pub page: Option<i32>,
    /// Sheet of a workbook.
    pub sheet: Option<String>,
    /// First and last row (from 1) and last column (from 0) in the sheet.
    pub rows: Option<(u32, u32)>,
    /// First and last column, from 0.
    pub columns: Option<(u32, u32)>,
    /// Path of the element.
    pub xml_path: Option<String>,
    /// Characters of the file's text.
    pub chars: Option<(i64, i64)>,
}

/// A piece of a document that belongs together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Block {
    /// What it is.
    pub kind: BlockKind,
    /// Headings above it, outermost first.
    pub heading_path: Vec<String>,
    /// The header of its table.
    pub header: Option<String>,
    /// Its text, verbatim.
    pub text: String,
    /// Where it stands.
    pub place: Place,
}

/// A file inside an archive, unpacked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// Its path in the archive.
    pub name: String,
    /// Its file in the folder that the parent gave.
    pub file: String,
}

/// A parsed file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Document {
    /// Its media type.
    pub media_type: String,
    /// Its title, if it says one.
    pub title: Option<String>,
    /// Pages or sheets.
    pub page_count: Option<i32>,
    /// Blocks in reading order.
    pub blocks: Vec<Block>,
    /// Files inside it.
    pub members: Vec<Member>,
    /// What a reader should know.
    pub warnings: Vec<String>,
}

impl Document {
    /// Adds a block unless it is empty.
    pub fn push(
        &mut self,
        kind: BlockKind,
        heading_path: &[String],
        header: Option<&str>,
        text: &str,
        place: Place,
    ) {
        let text = text.trim();
        if !text.is_empty() {
            let header = header.map(|header| clip(header, MAX_HEADER).to_owned());
            self.blocks.push(Block {
                kind,
                heading_path: heading_path
                    .iter()
                    .map(|heading| clip(heading, MAX_HEADING).to_owned())
                    .collect(),
                header,
                text: text.to_owned(),
                place,
            });
        }
    }
}

/// Bytes of a heading: each block below it has a copy, so a hostile one would multiply.
pub(super) const MAX_HEADING: usize = 600;
/// Bytes of a table's header, for the same reason.
pub(super) const MAX_HEADER: usize = 8 << 10;

/// The beginning of `text`, at most `bytes` long.
pub(super) fn clip(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// The name of a column: 0 is A, 26 is AA.
#[must_use]
pub fn column_name(mut column: u32) -> String {
    let mut name = String::new();
    loop {
        name.insert(0, char::from(b'A' + (column % 26) as u8));
        if column < 26 {
            return name;
        }
        column = column / 26 - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_and_headers_that_every_block_copies_are_bounded() {
        let mut document = Document::default();
        let long = "ä".repeat(1 << 16);
        document.push(BlockKind::Table, std::slice::from_ref(&long), Some(&long), "text", Place::default());
        let block = &document.blocks[0];
        assert_eq!(block.heading_path[0].len(), MAX_HEADING);
        assert_eq!(block.header.as_ref().map(String::len), Some(MAX_HEADER));
    }
}
