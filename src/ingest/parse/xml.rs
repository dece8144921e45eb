//! XML: streamed, never expanded.
//!
//! Products (BMEcat's ARTICLE or PRODUCT, anything with a supplier's article number) and classes (ETIM's Class and
//! friends) become one block each, below a heading that names them; of other files, every element with text becomes a
//! line below the path of its parents. Entities other than XML's own five and character references are not expanded, so no document can blow up.

use quick_xml::Reader;
use quick_xml::events::{BytesRef, BytesStart, Event};

use crate::ingest::document::{BlockKind, Document, Place, clip};

/// Elements nested deeper than this are refused.
const MAX_DEPTH: usize = 256;
/// Bytes of a name in a path: every block has a path.
const MAX_STEP: usize = 64;
/// Bytes of a record's description in its heading.
const MAX_LABEL: usize = 200;

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
    // What a damaged file leaves open is text all the same.
    while !walk.stack.is_empty() {
        walk.end();
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

/// Adds a child to the path of an element; `count` says which of its name it is, from 1.
pub(super) fn step(path: &mut String, name: &str, count: usize) {
    path.push('/');
    path.push_str(clip(name, MAX_STEP));
    if count > 1 {
        path.push_str(&format!("[{count}]"));
    }
}

struct Open {
    name: String,
    /// Which element of this name it is in its parent, from 1.
    count: usize,
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
    /// What the open record says about itself.
    group: Option<String>,
    id: Option<String>,
    label: Option<String>,
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
        let mut path = String::new();
        for open in &self.stack {
            step(&mut path, &open.name, open.count);
        }
        path
    }

    /// The text so far becomes a line of the open element: there may be more of it after a child.
    fn end_text(&mut self) -> String {
        let text = super::html::squeeze(&std::mem::take(&mut self.text));
        if let (Some(open), false) = (self.stack.last(), text.is_empty()) {
            self.lines.push(format!("{}: {text}", open.name));
        }
        text
    }

    fn start(&mut self, tag: &BytesStart<'_>) -> Result<(), String> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(format!("the XML is nested deeper than {MAX_DEPTH} elements"));
        }
        self.end_text();
        let name = String::from_utf8_lossy(tag.local_name().as_ref()).into_owned();
        let count = self.stack.last_mut().map_or(1, |parent| {
            parent.had_children = true;
            let count = parent.children.entry(name.clone()).or_insert(0);
            *count += 1;
            *count
        });
        self.stack.push(Open {
            name: name.clone(),
            count,
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
            let raw = String::from_utf8_lossy(&attribute.value);
            // A value with an entity of the document's own stays as it is written.
            let value = quick_xml::escape::unescape(&raw).unwrap_or_else(|_| raw.clone());
            if !key.starts_with("xmlns") && !key.starts_with("schemaLocation") && !value.trim().is_empty() {
                self.lines.push(format!("{name} {key}: {value}"));
            }
        }
        Ok(())
    }

    fn end(&mut self) {
        let text = self.end_text();
        let depth = self.stack.len();
        let Some(open) = self.stack.last() else { return };
        if !text.is_empty() {
            if self.document.title.is_none()
                && matches!(open.name.as_str(), "CATALOG_NAME" | "title" | "Title")
            {
                self.document.title = Some(text.clone());
            }
            let slot = match open.name.as_str() {
                "CATALOG_NAME" | "CatalogName" => Some(&mut self.catalog),
                _ if self.record.is_none() => None,
                "REFERENCE_FEATURE_GROUP_NAME" | "REFERENCE_FEATURE_GROUP_ID" | "GroupName" => {
                    Some(&mut self.group)
                }
                "SUPPLIER_AID" | "SUPPLIER_PID" | "ArticleNumber" | "ProductId" | "Code" => {
                    Some(&mut self.id)
                }
                "DESCRIPTION_SHORT" | "ProductName" | "Description" | "Name" | "name" | "Title" | "title" => {
                    Some(&mut self.label)
                }
                _ => None,
            };
            if let Some(slot) = slot {
                slot.get_or_insert(text);
            }
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
        let (group, id, label) = (self.group.take(), self.id.take(), self.label.take());
        if self.lines.is_empty() {
            return;
        }
        let lines = features(std::mem::take(&mut self.lines)).join("\n");
        let label = label.as_deref().map(|label| clip(label, MAX_LABEL));
        let own = [id.as_deref(), label].into_iter().flatten().collect::<Vec<_>>().join(" ");
        let headings: Vec<String> = self
            .catalog
            .clone()
            .into_iter()
            .chain(group)
            .chain(Some(own).filter(|own| !own.is_empty()))
            .collect();
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
        assert_eq!(products[0].heading_path, ["Norvolt", "NV-1"]);
    }

    #[test]
    fn an_articles_heading_names_it() {
        let xml = "<BMECAT><CATALOG_NAME>Norvolt</CATALOG_NAME><ARTICLE><SUPPLIER_AID>NV-1</SUPPLIER_AID>\
            <ARTICLE_DETAILS><DESCRIPTION_SHORT>Breaker 16 A</DESCRIPTION_SHORT></ARTICLE_DETAILS>\
            <ARTICLE_FEATURES><REFERENCE_FEATURE_GROUP_ID>EC000042</REFERENCE_FEATURE_GROUP_ID></ARTICLE_FEATURES>\
            </ARTICLE><ARTICLE><SUPPLIER_AID>NV-2</SUPPLIER_AID></ARTICLE></BMECAT>";
        let document = parse(xml.as_bytes()).expect("parses");
        let products: Vec<_> = document.blocks.iter().filter(|b| b.kind == BlockKind::Product).collect();
        assert_eq!(products[0].heading_path, ["Norvolt", "EC000042", "NV-1 Breaker 16 A"]);
        assert_eq!(products[1].heading_path, ["Norvolt", "NV-2"]);
    }

    #[test]
    fn text_before_and_after_a_child_is_kept() {
        let document = parse(b"<r><p>Hello <b>World</b> again</p></r>").expect("parses");
        assert_eq!(document.blocks[0].text, "p: Hello\nb: World\np: again");
    }

    #[test]
    fn text_of_a_file_that_ends_early_is_kept() {
        assert_eq!(parse(b"<r><p>Hello").expect("parses").blocks[0].text, "p: Hello");
    }

    #[test]
    fn attributes_are_read_as_they_mean() {
        let document = parse(b"<r><p n=\"R&amp;D &#65;\" m=\"&own;\"/></r>").expect("parses");
        assert_eq!(document.blocks[0].text, "p n: R&D A\np m: &own;");
    }

    #[test]
    fn a_billion_laughs_stay_unexpanded() {
        let xml = "<!DOCTYPE l [<!ENTITY a \"ha\"><!ENTITY b \"&a;&a;\">]><l>&b;&amp;&#65;</l>";
        assert_eq!(parse(xml.as_bytes()).expect("parses").blocks[0].text, "l: &b;&A");
    }
}
