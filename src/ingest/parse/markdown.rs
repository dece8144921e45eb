//! Markdown: headings, paragraphs, tables, code.

use super::csv::{row_text, shown};
use crate::ingest::document::{BlockKind, Document, Place};

pub(super) fn parse(text: &str) -> Document {
    let mut document = Document::default();
    let mut path: Vec<(usize, String)> = Vec::new();
    let mut lines = Lines { text, at: 0, chars: 0 };
    let mut paragraph: Option<(i64, String)> = None;
    while let Some((start, line)) = lines.next() {
        let trimmed = line.trim();
        let headings =
            |path: &[(usize, String)]| path.iter().map(|(_, title)| title.clone()).collect::<Vec<_>>();
        let level = trimmed.chars().take_while(|c| *c == '#').count();
        let is_heading = (1..=6).contains(&level) && trimmed[level..].starts_with(' ');
        let fence = trimmed.starts_with("```") || trimmed.starts_with("~~~");
        if trimmed.is_empty() || is_heading || fence || trimmed.starts_with('|') {
            put(&mut document, &headings(&path), paragraph.take());
        }
        if is_heading {
            let title = trimmed[level..].trim().trim_end_matches('#').trim().to_owned();
            path.retain(|(above, _)| *above < level);
            if document.title.is_none() {
                document.title = Some(title.clone());
            }
            path.push((level, title));
        } else if fence {
            let mut code = String::new();
            for (_, line) in lines.by_ref() {
                if line.trim().starts_with(&trimmed[..3]) {
                    break;
                }
                code.push_str(line);
            }
            let place = Place { chars: Some((start, lines.chars)), ..Place::default() };
            document.push(BlockKind::Code, &headings(&path), None, &code, place);
        } else if trimmed.starts_with('|') {
            table(&mut document, &headings(&path), &mut lines, start, trimmed);
        } else if !trimmed.is_empty() {
            paragraph.get_or_insert((start, String::new())).1.push_str(line);
        }
    }
    let headings: Vec<String> = path.into_iter().map(|(_, title)| title).collect();
    put(&mut document, &headings, paragraph);
    document
}

fn put(document: &mut Document, headings: &[String], paragraph: Option<(i64, String)>) {
    if let Some((start, text)) = paragraph {
        // A paragraph ends with its line, but its text does not.
        let start = start + (text.chars().count() - text.trim_start().chars().count()) as i64;
        let end = start + text.trim().chars().count() as i64;
        let place = Place { chars: Some((start, end)), ..Place::default() };
        document.push(BlockKind::Text, headings, None, &text, place);
    }
}

/// The table that begins with the line `header`, at the character `start`.
fn table(document: &mut Document, headings: &[String], lines: &mut Lines<'_>, start: i64, header: &str) {
    let names = cells(header);
    let (rows_before, header_end) = (document.blocks.len(), lines.chars);
    while let Some((start, line)) = lines.peek().filter(|(_, line)| line.trim().starts_with('|')) {
        lines.next();
        if line.chars().all(|c| matches!(c, '|' | '-' | ':' | ' ' | '\t' | '\r' | '\n')) {
            continue;
        }
        let place = Place { chars: Some((start, lines.chars)), ..Place::default() };
        let cells = cells(line);
        let header = shown(&names, &cells);
        document.push(BlockKind::Table, headings, header.as_deref(), &row_text(&names, &cells), place);
    }
    if document.blocks.len() == rows_before {
        let place = Place { chars: Some((start, header_end)), ..Place::default() };
        document.push(BlockKind::Table, headings, None, &row_text(&[], &names), place);
    }
}

/// The cells of a row; `\|` is a bar in a cell.
fn cells(line: &str) -> Vec<String> {
    let line = line.trim().replace("\\|", "\u{0}");
    let line = line.strip_prefix('|').unwrap_or(&line);
    let line = line.strip_suffix('|').unwrap_or(line);
    line.split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect()
}

/// Lines with the character at which they start.
struct Lines<'a> {
    text: &'a str,
    at: usize,
    chars: i64,
}

impl<'a> Lines<'a> {
    fn peek(&self) -> Option<(i64, &'a str)> {
        let rest = &self.text[self.at..];
        let line = rest.split_inclusive('\n').next()?;
        Some((self.chars, line))
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = (i64, &'a str);
    fn next(&mut self) -> Option<(i64, &'a str)> {
        let (start, line) = self.peek()?;
        self.at += line.len();
        self.chars += line.chars().count() as i64;
        Some((start, line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structure_is_kept() {
        let document = parse(
            "# Manual\nIntro\n\n## Ratings\n| A | B |\n|---|---|\n| 1 | 2 |\n\n```\ncode\n```\n## Next\nend",
        );
        let seen: Vec<_> =
            document.blocks.iter().map(|b| (b.kind, b.heading_path.join("/"), b.text.as_str())).collect();
        assert_eq!(
            seen,
            [
                (BlockKind::Text, "Manual".to_owned(), "Intro"),
                (BlockKind::Table, "Manual/Ratings".to_owned(), "A: 1; B: 2"),
                (BlockKind::Code, "Manual/Ratings".to_owned(), "code"),
                (BlockKind::Text, "Manual/Next".to_owned(), "end"),
            ]
        );
        assert_eq!(document.blocks[1].header.as_deref(), Some("A | B"));
    }

    #[test]
    fn a_table_without_rows_keeps_its_text_and_empty_cells_their_columns() {
        let document = parse("| A | B |\n\n|| x \\| y |\n|-|-|\n| 1 ||\n");
        let texts: Vec<_> = document.blocks.iter().map(|b| b.text.as_str()).collect();
        assert_eq!(texts, ["A; B", "1"]);
        assert_eq!(document.blocks[1].header.as_deref(), Some("x | y"));
    }

    #[test]
    fn a_paragraph_stands_exactly_at_its_place() {
        let text = "# T\n\n  \u{e4}n indented\nparagraph\n\nend\n";
        for block in parse(text).blocks {
            let (from, to) = block.place.chars.expect("chars");
            assert_eq!(
                text.chars().skip(from as usize).take((to - from) as usize).collect::<String>(),
                block.text
            );
        }
    }
}
