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
            let header = header.map(str::to_owned);
            self.blocks.push(Block {
                kind,
                heading_path: heading_path.to_vec(),
                header,
                text: text.to_owned(),
                place,
            });
        }
    }
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
