//! Where in a document a passage stands.

use std::fmt;

use serde::Serialize;

use crate::lake::ChunkRow;

/// Where in a document a passage stands, as exactly as its format knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Place {
    /// Pages, counted from 1.
    Pages {
        /// The first.
        page_start: i32,
        /// The last.
        page_end: i32,
    },
    /// Cells of a sheet.
    Cells {
        /// The sheet's name.
        sheet: String,
        /// As in `A2:F9`.
        #[serde(skip_serializing_if = "Option::is_none")]
        cell_range: Option<String>,
    },
    /// An element of an XML file.
    Xml {
        /// Its path.
        xml_path: String,
    },
    /// Characters of a text.
    Characters {
        /// The first.
        char_start: i64,
        /// One past the last.
        char_end: i64,
    },
    /// The format has no finer place than the document.
    Document {},
}

impl Place {
    /// The place of a chunk.
    pub fn of(chunk: &ChunkRow) -> Place {
        match chunk {
            ChunkRow { sheet: Some(sheet), cell_range, .. } => {
                Place::Cells { sheet: sheet.clone(), cell_range: cell_range.clone() }
            }
            ChunkRow { page_start: Some(first), page_end, .. } => {
                Place::Pages { page_start: *first, page_end: page_end.unwrap_or(*first) }
            }
            ChunkRow { xml_path: Some(path), .. } => Place::Xml { xml_path: path.clone() },
            ChunkRow { char_start: Some(start), char_end: Some(end), .. } => {
                Place::Characters { char_start: *start, char_end: *end }
            }
            _ => Place::Document {},
        }
    }
}

impl fmt::Display for Place {
    /// As a reader would say it; nothing for what says nothing to a reader.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Pages { page_start, page_end } if page_start == page_end => write!(f, "page {page_start}"),
            Place::Pages { page_start, page_end } => write!(f, "pages {page_start}–{page_end}"),
            Place::Cells { sheet, cell_range: Some(cells) } => write!(f, "sheet {sheet}, {cells}"),
            Place::Cells { sheet, cell_range: None } => write!(f, "sheet {sheet}"),
            Place::Xml { xml_path } => f.write_str(xml_path),
            Place::Characters { .. } | Place::Document {} => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Place;

    #[test]
    fn a_place_reads_as_one_would_say_it_and_serialises_by_its_own_names() {
        let pages = Place::Pages { page_start: 3, page_end: 4 };
        assert_eq!(pages.to_string(), "pages 3–4");
        assert_eq!(serde_json::to_string(&pages).unwrap(), r#"{"page_start":3,"page_end":4}"#);
        let cells = Place::Cells { sheet: "Prices".to_owned(), cell_range: Some("A2:F9".to_owned()) };
        assert_eq!(cells.to_string(), "sheet Prices, A2:F9");
        assert_eq!(serde_json::to_string(&Place::Document {}).unwrap(), "{}");
    }
}
