//! XML: streamed, never expanded.
//!
//! Products (BMEcat's ARTICLE or PRODUCT, anything with a supplier's article number) and classes (ETIM's Class and
//! friends) become one block each; of other files, every element with text becomes a line below the path of its
//! parents. Entities other than XML's own five and character references are not expanded, so no document can blow up.

use quick_xml::Reader;
use quick_xml::events::{BytesRef, BytesStart, Event};

use crate::ingest::document::{BlockKind, Document, Place};

/// Elements nested deeper than this are refused.
const MAX_DEPTH: usize = 256;

pub(super) fn parse(bytes: &[u8]) -> Result<Document, String> {
    let text = super::text::decode(bytes);
    let mut reader = Reader::from_str(&text);
    reader.config_mut().check_end_names = false;
    let mut walk = Walk::default();
    loop {
        match reader.read_event() {
            Ok(Event::Start(tag)) => walk.start(&tag)?,
            Ok(Event::Empty(tag)) => {
                walk.start(&tag)?;
                walk.end();
            }
            Ok(Event::End(_)) => walk.end(),
            Ok(Event::Text(text)) => walk.text.push_str(&text.decode().unwrap_or_default()),
            Ok(Event::CData(data)) => walk.text.push_str(&String::from_utf8_lossy(&data)),
            Ok(Event::GeneralRef(reference)) => walk.text.push_str(&entity(&reference)),
            Ok(Event::Eof) => break,
            Err(error) if walk.document.blocks.is_empty() && walk.lines.is_empty() => {
                return Err(format!("the XML cannot be read: {error}"));
            }
            Err(error) => {
                walk.document
                    .warnings
                    .push(format!("the XML ends early, at byte {}: {error}", reader.error_position()));
                break;
            }
            _ => {}
        }
    }
    walk.flush();
    Ok(walk.document)
}

/// What a reference stands for: XML's own entities and characters by number; others stay as they are written.
pub(super) fn entity(reference: &BytesRef<'_>) -> String {
    if let Ok(Some(c)) = reference.resolve_char_ref() {
        return c.to_string();
    }
    let name = reference.decode().unwrap_or_default();
    match name.as_ref() {
        "amp" => "&".to_owned(),
        "lt" => "<".to_owned(),
        "gt" => ">".to_owned(),
        "quot" => "\"".to_owned(),
        "apos" => "'".to_owned(),
        other => format!("&{other};"),
    }
}

struct Open {
    name: String,
    /// How many elements of this name came before it in its parent.
    index: usize,
    children: std::collections::HashMap<String, usize>,
    had_children: bool,
}

#[derive(Default)]
struct Walk {
    document: Document,
    stack: Vec<Open>,
    text: String,
    /// Lines of the open record, or of the open group of plain elements.
    lines: Vec<String>,
    /// The path where the lines began.
    lines_path: String,
    /// Depth of the open record, and what it is.
    record: Option<(usize, BlockKind)>,
    catalog: Option<String>,
}

fn record_kind(name: &str) -> Option<BlockKind> {
    match name {
        "ARTICLE" | "PRODUCT" | "Product" | "product" | "Article" | "article" | "Item" | "item" => {
            Some(BlockKind::Product)
        }
        "Class" | "class" | "CLASSIFICATION_GROUP" | "ontoml:class" | "Feature" | "Group" => {
            Some(BlockKind::Class)
        }
        _ => None,
    }
}

impl Walk {
    fn path(&self) -> String {
        let steps = self.stack.iter().map(|open| {
            if open.index == 0 { open.name.clone() } else { format!("{}[{}]", open.name, open.index + 1) }
        });
        format!("/{}", steps.collect::<Vec<_>>().join("/"))
    }

    fn start(&mut self, tag: &BytesStart<'_>) -> Result<(), String> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(format!("the XML is nested deeper than {MAX_DEPTH} elements"));
        }
        self.text.clear();
        let name = String::from_utf8_lossy(tag.local_name().as_ref()).into_owned();
        let index = self.stack.last_mut().map_or(0, |parent| {
            parent.had_children = true;
            let count = parent.children.entry(name.clone()).or_insert(0);
            *count += 1;
            *count - 1
        });
        self.stack.push(Open {
            name: name.clone(),
            index,
            children: std::collections::HashMap::new(),
            had_children: false,
        });
        if self.record.is_none()
            && let Some(kind) = record_kind(&name)
        {
            self.flush();
            self.record = Some((self.stack.len(), kind));
        }
        // A record's place is its own element, not its first child.
        if self.lines.is_empty() && self.record.is_none_or(|(at, _)| at == self.stack.len()) {
            self.lines_path = self.path();
        }
        for attribute in tag.attributes().flatten() {
            let key = String::from_utf8_lossy(attribute.key.local_name().as_ref()).into_owned();
            let value = String::from_utf8_lossy(&attribute.value).into_owned();
            if !key.starts_with("xmlns") && !key.starts_with("schemaLocation") && !value.trim().is_empty() {
                self.lines.push(format!("{name} {key}: {value}"));
            }
        }
        Ok(())
    }

    fn end(&mut self) {
        let text = super::html::squeeze(&std::mem::take(&mut self.text));
        let depth = self.stack.len();
        let Some(open) = self.stack.last() else { return };
        if !text.is_empty() {
            if self.catalog.is_none() && matches!(open.name.as_str(), "CATALOG_NAME" | "CatalogName") {
                self.catalog = Some(text.clone());
            }
            if self.document.title.is_none()
                && matches!(open.name.as_str(), "CATALOG_NAME" | "title" | "Title")
            {
                self.document.title = Some(text.clone());
            }
            self.lines.push(format!("{}: {text}", open.name));
        }
        match self.record {
            Some((at, _)) if at == depth => self.flush(),
            // Outside of records, an element with children closes a group of lines.
            None if open.had_children && depth <= 4 => self.flush(),
            None if self.lines.len() >= 40 => self.flush(),
            _ => {}
        }
        self.stack.pop();
    }

    fn flush(&mut self) {
        let kind = self.record.take().map_or(BlockKind::Text, |(_, kind)| kind);
        if self.lines.is_empty() {
            return;
        }
        let lines = features(std::mem::take(&mut self.lines)).join("\n");
        let headings: Vec<String> = self.catalog.iter().cloned().collect();
        let place = Place { xml_path: Some(std::mem::take(&mut self.lines_path)), ..Place::default() };
        self.document.push(kind, &headings, None, &lines, place);
    }
}

/// Joins BMEcat's FNAME, FVALUE and FUNIT lines to `name: value unit`.
fn features(lines: Vec<String>) -> Vec<String> {
    let mut out: Vec<String> = Vec::with_capacity(lines.len());
    let mut open = false;
    for line in lines {
        if let Some(name) = line.strip_prefix("FNAME: ") {
            out.push(format!("{name}:"));
            open = true;
        } else if let (true, Some(value)) =
            (open, line.strip_prefix("FVALUE: ").or_else(|| line.strip_prefix("FUNIT: ")))
        {
            if let Some(last) = out.last_mut() {
                last.push(' ');
                last.push_str(value);
            }
        } else {
            open = false;
            out.push(line);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bmecat_article_is_one_block_with_its_features() {
        let xml = "<BMECAT><HEADER><CATALOG><CATALOG_NAME>Norvolt</CATALOG_NAME></CATALOG></HEADER><T_NEW_CATALOG>\
            <ARTICLE><SUPPLIER_AID>NV-1</SUPPLIER_AID><ARTICLE_FEATURES><FEATURE><FNAME>Rated current</FNAME>\
            <FVALUE>16</FVALUE><FUNIT>A</FUNIT></FEATURE></ARTICLE_FEATURES></ARTICLE>\
            <ARTICLE><SUPPLIER_AID>NV-2</SUPPLIER_AID></ARTICLE></T_NEW_CATALOG></BMECAT>";
        let document = parse(xml.as_bytes()).expect("parses");
        let products: Vec<_> = document.blocks.iter().filter(|b| b.kind == BlockKind::Product).collect();
        assert_eq!(products[0].text, "SUPPLIER_AID: NV-1\nRated current: 16 A");
        assert_eq!(products[1].place.xml_path.as_deref(), Some("/BMECAT/T_NEW_CATALOG/ARTICLE[2]"));
        assert_eq!(products[0].heading_path, ["Norvolt"]);
    }

    #[test]
    fn a_billion_laughs_stay_unexpanded() {
        let xml = "<!DOCTYPE l [<!ENTITY a \"ha\"><!ENTITY b \"&a;&a;\">]><l>&b;&amp;&#65;</l>";
        assert_eq!(parse(xml.as_bytes()).expect("parses").blocks[0].text, "l: &b;&A");
    }
}
