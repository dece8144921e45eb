//! HTML: headings, paragraphs, lists, tables; scripts and navigation are left out.

use scraper::{ElementRef, Html, Node};

use crate::ingest::document::{BlockKind, Document, Place};

pub(super) fn parse(text: &str) -> Document {
    let html = Html::parse_document(text);
    let mut walk = Walk { document: Document::default(), path: Vec::new(), text: String::new() };
    walk.element(html.root_element(), 0);
    walk.flush();
    walk.document
}

const SKIPPED: [&str; 9] =
    ["script", "style", "noscript", "template", "nav", "svg", "iframe", "object", "select"];
const BREAKING: [&str; 22] = [
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
];

struct Walk {
    document: Document,
    path: Vec<(u32, String)>,
    text: String,
}

impl Walk {
    fn headings(&self) -> Vec<String> {
        self.path.iter().map(|(_, title)| title.clone()).collect()
    }

    fn flush(&mut self) {
        let text = squeeze(&std::mem::take(&mut self.text));
        let headings = self.headings();
        self.document.push(BlockKind::Text, &headings, None, &text, Place::default());
    }

    fn element(&mut self, element: ElementRef<'_>, depth: usize) {
        let name = element.value().name();
        // Deep nesting is hostile: what lies deeper than this has no more structure.
        if SKIPPED.contains(&name) || depth > 512 {
            return;
        }
        match name {
            "title" => {
                let title = squeeze(&element.text().collect::<String>());
                self.document.title = Some(title).filter(|title| !title.is_empty());
            }
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" => {
                self.flush();
                let level = name[1..].parse().unwrap_or(6);
                self.path.retain(|(above, _)| *above < level);
                self.path.push((level, squeeze(&element.text().collect::<String>())));
            }
            "table" => {
                self.flush();
                self.table(element);
            }
            "pre" => {
                self.flush();
                let headings = self.headings();
                let code: String = element.text().collect();
                self.document.push(BlockKind::Code, &headings, None, &code, Place::default());
            }
            _ => {
                let breaking = BREAKING.contains(&name);
                if breaking {
                    self.flush();
                }
                for child in element.children() {
                    match child.value() {
                        Node::Text(text) => self.text.push_str(text),
                        Node::Element(_) => {
                            if let Some(child) = ElementRef::wrap(child) {
                                self.element(child, depth + 1);
                            }
                        }
                        _ => {}
                    }
                }
                if breaking {
                    self.flush();
                }
            }
        }
    }

    fn table(&mut self, table: ElementRef<'_>) {
        let headings = self.headings();
        let mut header: Option<Vec<String>> = None;
        let rows = table.descendants().filter_map(ElementRef::wrap).filter(|e| e.value().name() == "tr");
        for row in rows {
            let cells: Vec<String> = row
                .children()
                .filter_map(ElementRef::wrap)
                .filter(|cell| matches!(cell.value().name(), "td" | "th"))
                .map(|cell| squeeze(&cell.text().collect::<Vec<_>>().join(" ")))
                .collect();
            if header.is_none() {
                header = Some(cells);
                continue;
            }
            let names = header.as_deref().unwrap_or_default();
            let text = super::csv::row_text(names, &cells);
            self.document.push(
                BlockKind::Table,
                &headings,
                Some(&names.join(" | ")),
                &text,
                Place::default(),
            );
        }
    }
}

/// One blank for each run of white space.
pub(super) fn squeeze(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structure_is_kept_and_scripts_are_not() {
        let document = parse(
            "<title>T</title><script>bad()</script><nav>menu</nav><h1>Breakers</h1><p>Some <b>bold</b> text</p>\
             <table><tr><th>A<th>B<tr><td>1<td>2</table>",
        );
        assert_eq!(document.title.as_deref(), Some("T"));
        assert_eq!(
            document.blocks.iter().map(|b| b.text.as_str()).collect::<Vec<_>>(),
            ["Some bold text", "A: 1; B: 2"]
        );
        assert_eq!(document.blocks[1].heading_path, ["Breakers"]);
    }
}
