//! Blocks to chunks of the embedder's size, along the structure.
//!
//! Neighbouring blocks of one kind under one heading (and header, page, sheet) share a chunk while it has room; a
//! block that is too large is cut between sentences, lines or words. A chunk's `text` is verbatim; what is embedded
//! also has its headings and the header of its table.

use crate::text::Tokenizer;

use super::document::{Block, BlockKind, Place, column_name};

/// The chunker's name and version, kept with every document.
pub const NAME: &str = "tarn-chunk/1";

/// A piece of a document that is embedded and found as one.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// What it is.
    pub kind: BlockKind,
    /// Headings above it.
    pub heading_path: Vec<String>,
    /// The header of its table.
    pub header: Option<String>,
    /// Its text, verbatim.
    pub text: String,
    /// Where it stands.
    pub place: Place,
    /// Tokens of its text.
    pub tokens: usize,
}

impl Chunk {
    /// What is embedded: headings, header, text.
    #[must_use]
    pub fn embed_text(&self) -> String {
        let mut out = String::new();
        if !self.heading_path.is_empty() {
            out.push_str(&self.heading_path.join(" > "));
            out.push('\n');
        }
        out.push_str(&self.text);
        out
    }

    /// `A2:F9`, for a chunk of a sheet.
    #[must_use]
    pub fn cell_range(&self) -> Option<String> {
        let ((first, last), (from, to)) = (self.place.rows?, self.place.columns?);
        Some(format!("{}{first}:{}{last}", column_name(from), column_name(to)))
    }
}

/// Cuts `blocks` into chunks of about `target` tokens.
#[must_use]
pub fn chunk(blocks: &[Block], tokenizer: &Tokenizer, target: usize) -> Vec<Chunk> {
    let mut chunks: Vec<Chunk> = Vec::new();
    for block in blocks {
        let overhead = tokenizer.count(&block.heading_path.join(" > "));
        let room = target.saturating_sub(overhead).max(target / 2);
        let tokens = tokenizer.count(&block.text);
        if tokens > room {
            chunks.extend(cut(block, tokenizer, room));
            continue;
        }
        match chunks.last_mut() {
            Some(last) if goes_with(last, block) && last.tokens + tokens < room => {
                last.text.push('\n');
                last.text.push_str(&block.text);
                last.tokens += tokens + 1;
                extend(&mut last.place, &block.place);
            }
            _ => chunks.push(one(block, block.text.clone(), block.place.clone(), tokens)),
        }
    }
    chunks
}

fn one(block: &Block, text: String, place: Place, tokens: usize) -> Chunk {
    Chunk {
        kind: block.kind,
        heading_path: block.heading_path.clone(),
        header: block.header.clone(),
        text,
        place,
        tokens,
    }
}

/// Products and classes stand alone; the rest joins what it belongs to.
fn goes_with(last: &Chunk, block: &Block) -> bool {
    !matches!(block.kind, BlockKind::Product | BlockKind::Class)
        && last.kind == block.kind
        && last.heading_path == block.heading_path
        && last.header == block.header
        && last.place.page == block.place.page
        && last.place.sheet == block.place.sheet
}

fn extend(place: &mut Place, more: &Place) {
    let join = |a: Option<(u32, u32)>, b: Option<(u32, u32)>| match (a, b) {
        (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
        (a, b) => a.or(b),
    };
    place.rows = join(place.rows, more.rows);
    place.columns = join(place.columns, more.columns);
    if let (Some(chars), Some(more)) = (&mut place.chars, more.chars) {
        chars.1 = more.1;
    }
}

/// A block that is too large, in parts that end where a reader would pause.
fn cut(block: &Block, tokenizer: &Tokenizer, room: usize) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let (mut start, mut end, mut tokens) = (0, 0, 0);
    for (piece_end, piece_tokens) in pieces(&block.text, tokenizer, room) {
        if tokens > 0 && tokens + piece_tokens > room {
            push_part(&mut chunks, block, start, end, tokens);
            (start, tokens) = (end, 0);
        }
        tokens += piece_tokens;
        end = piece_end;
    }
    push_part(&mut chunks, block, start, end, tokens);
    chunks
}

fn push_part(chunks: &mut Vec<Chunk>, block: &Block, start: usize, end: usize, tokens: usize) {
    let part = &block.text[start..end];
    let text = part.trim();
    if text.is_empty() {
        return;
    }
    let mut place = block.place.clone();
    if let Some((from, _)) = block.place.chars {
        let leading = part.len() - part.trim_start().len();
        let first = from + block.text[..start + leading].chars().count() as i64;
        place.chars = Some((first, first + text.chars().count() as i64));
    }
    chunks.push(one(block, text.to_owned(), place, tokens));
}

/// Ends of sentences, lines or (in a long run without either) words, with the tokens since the one before.
fn pieces(text: &str, tokenizer: &Tokenizer, room: usize) -> Vec<(usize, usize)> {
    let mut out = Vec::new();
    let mut start = 0;
    let mut previous = ' ';
    let mut ends: Vec<usize> = Vec::new();
    for (at, c) in text.char_indices() {
        if c == '\n' || (c.is_whitespace() && matches!(previous, '.' | '!' | '?' | ';')) {
            ends.push(at + c.len_utf8());
        }
        previous = c;
    }
    ends.push(text.len());
    for end in ends {
        let sentence = &text[start..end];
        let tokens = tokenizer.count(sentence);
        if tokens <= room {
            out.push((end, tokens));
        } else {
            // A token is at least a byte: a run of `room` bytes always fits.
            let mut from = start;
            while from < end {
                let mut to = (from + room.max(8)).min(end);
                while !text.is_char_boundary(to) {
                    to -= 1;
                }
                if to < end
                    && let Some(blank) = text[from..to].rfind(char::is_whitespace).filter(|blank| *blank > 0)
                {
                    to = from + blank;
                }
                out.push((to, tokenizer.count(&text[from..to])));
                from = to;
            }
        }
        start = end;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fake_embedder;

    fn block(kind: BlockKind, text: &str, row: u32) -> Block {
        let place = Place {
            rows: Some((row, row)),
            columns: Some((0, 2)),
            sheet: Some("S".to_owned()),
            ..Place::default()
        };
        Block {
            kind,
            heading_path: vec!["H".to_owned()],
            header: Some("a | b".to_owned()),
            text: text.to_owned(),
            place,
        }
    }

    #[test]
    fn rows_share_a_chunk_and_products_do_not() {
        let (handle, _thread) = fake_embedder(2);
        let rows: Vec<Block> = (1..=4).map(|row| block(BlockKind::Table, "a: 1; b: 2", row)).collect();
        let chunks = chunk(&rows, handle.tokenizer(), 50);
        assert_eq!(chunks.iter().filter_map(Chunk::cell_range).collect::<Vec<_>>(), ["A1:C4"]);
        assert_eq!(chunks[0].header.as_deref(), Some("a | b"));
        let products: Vec<Block> = (1..=3).map(|row| block(BlockKind::Product, "p", row)).collect();
        assert_eq!(chunk(&products, handle.tokenizer(), 50).len(), 3);
    }

    #[test]
    fn a_long_block_is_cut_verbatim_within_the_size() {
        let (handle, _thread) = fake_embedder(2);
        let text = "One sentence here. Another one there! ".repeat(20) + &"x".repeat(300);
        let mut long = block(BlockKind::Text, text.trim(), 1);
        long.place = Place { chars: Some((10, 10 + text.chars().count() as i64)), ..Place::default() };
        let chunks = chunk(&[long], handle.tokenizer(), 60);
        for chunk in &chunks {
            assert!(text.contains(&chunk.text));
            assert!(handle.tokenizer().count(&chunk.text) <= 60, "{}", chunk.text);
            let (from, to) = chunk.place.chars.expect("chars");
            let cut: String = text.chars().skip(from as usize - 10).take((to - from) as usize).collect();
            assert_eq!(cut, chunk.text);
        }
        let kept: String = chunks.iter().map(|c| c.text.replace(char::is_whitespace, "")).collect();
        assert_eq!(kept, text.replace(char::is_whitespace, ""));
    }
}
