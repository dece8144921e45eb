//! HTML: headings, paragraphs, lists, tables; scripts and navigation are left out.
//!
//! A block's place is the path of its element in the parsed tree, where a table has a `tbody` even if the file does
//! not write it.

use std::collections::HashMap;

use scraper::{ElementRef, Html, Node};

use super::caught;
use super::table::{self, Cell, Mark, Row};
use super::xml::step;
use crate::ingest::document::{BlockKind, Document, Place};

pub(super) fn parse(text: &str) -> Result<Document, String> {
    let html = caught("the HTML cannot be read: its markup is damaged", || Html::parse_document(text))?;
    let mut walk = Walk::default();
    walk.element(html.root_element(), 1, 0);
    walk.flush();
    Ok(walk.document)
}

const SKIPPED: [&str; 9] =
    ["script", "style", "noscript", "template", "nav", "svg", "iframe", "object", "select"];
const BREAKING: [&str; 30] = [
    "p",
    "div",
    "section",
    "article",
    "main",
    "header",
    "footer",
    "aside",
    "ul",
    "ol",
    "li",
    "dl",
    "dt",
    "dd",
    "br",
    "hr",
    "blockquote",
    "figure",
    "figcaption",
    "form",
    "body",
    "html",
    "tr",
    "td",
    "th",
    "thead",
    "tbody",
    "tfoot",
    "caption",
    "table",
];
/// Deep nesting is hostile: what lies deeper than this has no more structure.
const MAX_DEPTH: usize = 512;

#[derive(Default)]
struct Walk {
    document: Document,
    headings: Vec<(u32, String)>,
    text: String,
    /// The path of the open element, and how much of it is that of the block around it.
    path: String,
    block: usize,
}

impl Walk {
    fn headings(&self) -> Vec<String> {
        self.headings.iter().map(|(_, title)| title.clone()).collect()
    }

    fn put(&mut self, kind: BlockKind, text: &str, path: &str) {
        let place = Place { xml_path: Some(path.to_owned()), ..Place::default() };
        self.document.push(kind, &self.headings(), None, text, place);
    }

    fn flush(&mut self) {
        let text = squeeze(&std::mem::take(&mut self.text));
        let path = self.path[..self.block].to_owned();
        self.put(BlockKind::Text, &text, &path);
    }

    /// `index` counts the elements of this name in its parent, from 1.
    fn element(&mut self, element: ElementRef<'_>, index: usize, depth: usize) {
        let name = element.value().name();
        if SKIPPED.contains(&name) {
            return;
        }
        if depth > MAX_DEPTH {
            self.text.push_str(&text_of(element));
            return;
        }
        let (above, block) = (self.path.len(), self.block);
        match name {
            "title" => {
                let title = squeeze(&text_of(element));
                self.document.title = Some(title).filter(|title| !title.is_empty());
            }
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" => {
                self.flush();
                let level = name[1..].parse().unwrap_or(6);
                self.headings.retain(|(above, _)| *above < level);
                self.headings.push((level, squeeze(&text_of(element))));
            }
            "pre" => {
                self.flush();
                step(&mut self.path, name, index);
                let path = self.path.clone();
                self.put(BlockKind::Code, &text_of(element), &path);
            }
            _ => {
                let breaking = BREAKING.contains(&name);
                if breaking {
                    self.flush();
                }
                step(&mut self.path, name, index);
                if breaking {
                    self.block = self.path.len();
                }
                if name == "table" {
                    self.table(element, depth);
                } else {
                    self.children(element, depth);
                }
                if breaking {
                    self.flush();
                }
            }
        }
        self.path.truncate(above);
        self.block = block;
    }

    fn children(&mut self, element: ElementRef<'_>, depth: usize) {
        let mut counts = HashMap::new();
        for child in element.children() {
            match child.value() {
                Node::Text(text) => self.text.push_str(text),
                Node::Element(_) => {
                    if let Some(child) = ElementRef::wrap(child) {
                        self.element(child, count(&mut counts, child), depth + 1);
                    }
                }
                _ => {}
            }
        }
    }

    /// The rows of a table, but not those of the tables in its cells: a row that has one lays out a page, and its
    /// cells are read as any other part of the page.
    fn table(&mut self, table: ElementRef<'_>, depth: usize) {
        let mut rows = Vec::new();
        let (above, mut counts) = (self.path.len(), HashMap::new());
        for part in table.children().filter_map(ElementRef::wrap) {
            let index = count(&mut counts, part);
            match part.value().name() {
                "tr" => self.row(part, index, false, depth, &mut rows),
                name @ ("thead" | "tbody" | "tfoot") => {
                    step(&mut self.path, name, index);
                    let mut counts = HashMap::new();
                    for row in part.children().filter_map(ElementRef::wrap) {
                        let index = count(&mut counts, row);
                        if row.value().name() == "tr" {
                            self.row(row, index, name == "thead", depth + 1, &mut rows);
                        }
                    }
                    self.path.truncate(above);
                }
                _ => self.element(part, index, depth + 1),
            }
        }
        self.rows(&mut rows);
    }

    fn rows(&mut self, rows: &mut Vec<Row>) {
        let headings = self.headings();
        table::push(&mut self.document, &headings, std::mem::take(rows));
    }

    fn row(&mut self, row: ElementRef<'_>, index: usize, head: bool, depth: usize, rows: &mut Vec<Row>) {
        let is_table = |e: ElementRef<'_>| e.value().name() == "table";
        if row.descendants().filter_map(ElementRef::wrap).any(is_table) {
            self.rows(rows);
            self.element(row, index, depth + 1);
            return;
        }
        let above = self.path.len();
        step(&mut self.path, "tr", index);
        let place = Place { xml_path: Some(self.path.clone()), ..Place::default() };
        self.path.truncate(above);
        let cells: Vec<ElementRef<'_>> = row
            .children()
            .filter_map(ElementRef::wrap)
            .filter(|cell| matches!(cell.value().name(), "td" | "th"))
            .collect();
        let names = cells.iter().filter(|cell| cell.value().name() == "th").count();
        let mark = match names {
            _ if head => Mark::Header,
            0 => Mark::Unmarked,
            all if all == cells.len() => Mark::Header,
            _ => Mark::Data,
        };
        let span = |cell: ElementRef<'_>, of: &str| {
            cell.value().attr(of).and_then(|span| span.trim().parse().ok()).unwrap_or(1)
        };
        let cells = cells.into_iter().map(|cell| Cell {
            text: squeeze(&text_of(cell)),
            columns: span(cell, "colspan"),
            rows: span(cell, "rowspan"),
        });
        rows.push(Row { cells: cells.collect(), mark, place });
    }
}

/// Which child of its name it is, from 1.
fn count<'a>(counts: &mut HashMap<&'a str, usize>, child: ElementRef<'a>) -> usize {
    let count = counts.entry(child.value().name()).or_insert(0);
    *count += 1;
    *count
}

/// The text of an element without what is [`SKIPPED`], however deep it is.
fn text_of(element: ElementRef<'_>) -> String {
    let one_of = |node: &Node, names: &[&str]| node.as_element().is_some_and(|e| names.contains(&e.name()));
    let (root, mut out) = (element.id(), String::new());
    let mut next = element.first_child();
    while let Some(node) = next {
        let skipped = one_of(node.value(), &SKIPPED);
        if let Node::Text(text) = node.value() {
            out.push_str(text);
        } else if one_of(node.value(), &BREAKING) {
            out.push('\n');
        }
        next = node.first_child().filter(|_| !skipped);
        let mut up = Some(node).filter(|_| next.is_none());
        while let Some(node) = up.filter(|node| node.id() != root) {
            if one_of(node.value(), &BREAKING) {
                out.push('\n');
            }
            next = node.next_sibling();
            up = node.parent().filter(|_| next.is_none());
        }
    }
    out
}

/// One blank for each run of white space.
pub(super) fn squeeze(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(html: &str) -> Vec<(String, String)> {
        let document = parse(html).expect("parses");
        document.blocks.into_iter().map(|b| (b.text, b.place.xml_path.unwrap_or_default())).collect()
    }

    fn texts(html: &str) -> Vec<String> {
        seen(html).into_iter().map(|(text, _)| text).collect()
    }

    #[test]
    fn structure_is_kept_and_scripts_are_not() {
        let document = parse(
            "<title>T</title><script>bad()</script><nav>menu</nav><h1>Breakers</h1><p>Some <b>bold</b> text</p>\
             <table><tr><th>A<th>B<tr><td>1<td>2<style>no</style></table>",
        )
        .expect("parses");
        assert_eq!(document.title.as_deref(), Some("T"));
        assert_eq!(
            document.blocks.iter().map(|b| b.text.as_str()).collect::<Vec<_>>(),
            ["Some bold text", "A: 1; B: 2"]
        );
        assert_eq!(document.blocks[1].heading_path, ["Breakers"]);
    }

    #[test]
    fn a_table_of_one_row_keeps_its_text() {
        assert_eq!(texts("<table><tr><td>16 A<td>400 V</table>"), ["16 A; 400 V"]);
        assert_eq!(texts("<table><thead><tr><th>Type<th>A</thead></table>"), ["Type; A"]);
        assert_eq!(texts("<table><caption>Ratings</caption><tr><td>16 A</table>"), ["Ratings", "16 A"]);
    }

    #[test]
    fn a_table_in_a_table_has_its_own_header() {
        let html =
            "<table><tr><td>menu<td><p>Page text</p><table><tr><th>A<th>B<tr><td>1<td>2</table></table>";
        assert_eq!(texts(html), ["menu", "Page text", "A: 1; B: 2"]);
    }

    #[test]
    fn values_stay_under_their_names() {
        let html = "<table><tr><th>Type<th colspan=2>Range<th>Mass<tr><td>NV-1<td>1<td>2<td>3\
                    <tr><td>NV-2<td colspan=2>none<td>4</table>";
        assert_eq!(
            texts(html),
            ["Type: NV-1; Range: 1; Range: 2; Mass: 3", "Type: NV-2; Range: none; Mass: 4"]
        );
        assert_eq!(
            texts("<table><tr><th>Width<td>18<tr><th>Mass<td>120</table>"),
            ["Width: 18", "Mass: 120"]
        );
    }

    #[test]
    fn what_is_nested_too_deeply_is_text_without_structure() {
        let html = "<div>".repeat(2 * MAX_DEPTH) + "deep";
        assert_eq!(texts(&html), ["deep"]);
    }

    #[test]
    fn every_block_says_its_element() {
        let html = "<p>a<p>b <i>c</i><div>d<br>e</div><table><tr><th>A<th>B<tr><td>1<td>2</table>";
        let places: Vec<String> = seen(html).into_iter().map(|(_, path)| path).collect();
        assert_eq!(
            places,
            [
                "/html/body/p",
                "/html/body/p[2]",
                "/html/body/div",
                "/html/body/div",
                "/html/body/table/tbody/tr[2]"
            ]
        );
    }
}
