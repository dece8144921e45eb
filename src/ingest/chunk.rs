//! Blocks to chunks of the embedder's size, along the structure.
//!
//! Neighbouring blocks of one kind under one heading (and header, page, sheet) share a chunk while it has room; a
//! block that is too large is cut between sentences, lines or words. A chunk's `text` is verbatim; what is embedded
//! also has its headings. The header of a table is not embedded again: its rows say `name: value` themselves.
//!
//! The text comes from strangers and is cut in the server's own process, so no more than [`MAX_ENCODE`] bytes are
//! tokenised at once, however long a block, a sentence or a heading is.

use crate::text::Tokenizer;

use super::document::{Block, BlockKind, MAX_HEADER, MAX_HEADING, Place, clip, column_name};

/// The chunker's name and version, kept with every document.
pub const NAME: &str = "tarn-chunk/1";

/// Bytes tokenised at once; a text longer than this is cut first.
const MAX_ENCODE: usize = 64 << 10;
/// Bytes of a token, generously: a text longer than this for each token of room is not worth counting.
const TOKEN_BYTES: usize = 16;
/// Bytes of a table's row that are repeated above its continuation.
const LEAD: usize = 160;

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
    /// The headings as they are embedded: as many of the innermost as fit half a chunk.
    context: String,
}

impl Chunk {
    /// What is embedded: headings, text.
    #[must_use]
    pub fn embed_text(&self) -> String {
        if self.context.is_empty() { self.text.clone() } else { format!("{}\n{}", self.context, self.text) }
    }

    /// `A2:F9`, for a chunk of a sheet.
    #[must_use]
    pub fn cell_range(&self) -> Option<String> {
        let ((first, last), (from, to)) = (self.place.rows?, self.place.columns?);
        Some(format!("{}{first}:{}{last}", column_name(from), column_name(to)))
    }
}

/// Cuts `blocks` into chunks whose [`Chunk::embed_text`] has about `target` tokens at most.
#[must_use]
pub fn chunk(blocks: &[Block], tokenizer: &Tokenizer, target: usize) -> Vec<Chunk> {
    let mut chunks: Vec<Chunk> = Vec::new();
    let mut headings: Option<Headings> = None;
    for block in blocks {
        let headings = match &mut headings {
            Some(headings) if headings.are_of(block) => headings,
            stale => stale.insert(Headings::new(&block.heading_path, tokenizer, target)),
        };
        let room = headings.room;
        if block.text.len() > most_bytes(room) {
            cut(block, headings, tokenizer, target, &mut chunks);
            continue;
        }
        let tokens = tokenizer.count(&block.text);
        if tokens > room {
            cut(block, headings, tokenizer, target, &mut chunks);
            continue;
        }
        match chunks.last_mut() {
            Some(last) if last.tokens + tokens < room && goes_with(last, block, headings) => {
                last.text.push('\n');
                last.text.push_str(&block.text);
                last.tokens += tokens + 1;
                extend(&mut last.place, &block.place);
            }
            _ => chunks.push(one(block, headings, block.text.clone(), block.place.clone(), tokens)),
        }
    }
    chunks
}

/// Bytes of a text that may have `room` tokens.
fn most_bytes(room: usize) -> usize {
    (room * TOKEN_BYTES).min(MAX_ENCODE)
}

/// Headings, what of them is embedded, and the tokens that they leave for the text.
struct Headings {
    path: Vec<String>,
    context: String,
    room: usize,
}

impl Headings {
    fn new(path: &[String], tokenizer: &Tokenizer, target: usize) -> Headings {
        let path: Vec<String> = path.iter().map(|heading| clip(heading, MAX_HEADING).to_owned()).collect();
        let budget = target / 2;
        // Where the path ends says more than where it begins.
        let joined = (0..path.len()).find_map(|from| {
            let bytes: usize = path[from..].iter().map(|heading| heading.len() + 3).sum();
            if bytes > most_bytes(budget) {
                return None;
            }
            let joined = path[from..].join(" > ");
            let tokens = tokenizer.count(&joined) + 1;
            (tokens <= budget).then_some((joined, tokens))
        });
        let (context, tokens) = joined.unwrap_or_else(|| {
            let last = path.last().map_or("", String::as_str);
            let (mut end, mut tokens) = (0, 0);
            each_piece(last, tokenizer, budget.saturating_sub(1), |piece_end, piece_tokens| {
                let fits = end == 0 && piece_tokens < budget;
                if fits {
                    (end, tokens) = (piece_end, piece_tokens + 1);
                }
                fits
            });
            (last[..end].trim().to_owned(), tokens)
        });
        let room = target.saturating_sub(if context.is_empty() { 0 } else { tokens });
        Headings { path, context, room }
    }

    fn are_of(&self, block: &Block) -> bool {
        self.path.iter().map(String::as_str).eq(block.heading_path.iter().map(|h| clip(h, MAX_HEADING)))
    }
}

fn header_of(block: &Block) -> Option<&str> {
    block.header.as_deref().map(|header| clip(header, MAX_HEADER))
}

fn one(block: &Block, headings: &Headings, text: String, place: Place, tokens: usize) -> Chunk {
    Chunk {
        kind: block.kind,
        heading_path: headings.path.clone(),
        header: header_of(block).map(str::to_owned),
        text,
        place,
        tokens,
        context: headings.context.clone(),
    }
}

/// Products and classes stand alone; the rest joins what it belongs to.
fn goes_with(last: &Chunk, block: &Block, headings: &Headings) -> bool {
    !matches!(block.kind, BlockKind::Product | BlockKind::Class)
        && last.kind == block.kind
        && last.heading_path == headings.path
        && last.header.as_deref() == header_of(block)
        && last.place.page == block.place.page
        && last.place.sheet == block.place.sheet
        && match (&last.place.xml_path, &block.place.xml_path) {
            // A place that is the whole file is none.
            (Some(a), Some(b)) => a == b || common_path(a, b).matches('/').count() >= 2,
            (a, b) => a == b,
        }
}

/// The innermost element that both are in.
fn common_path<'a>(a: &'a str, b: &str) -> &'a str {
    let mut end = 0;
    for (at, step) in a.split('/').zip(b.split('/')).take_while(|(a, b)| a == b).map(|(a, _)| a).enumerate() {
        end += step.len() + usize::from(at > 0);
    }
    &a[..end]
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
    if let (Some(path), Some(more)) = (&mut place.xml_path, &more.xml_path) {
        path.truncate(common_path(path, more).len());
    }
}

/// A block that is too large, in parts that end where a reader would pause. The first cells of a row are a heading
/// of the row's other parts, which would not say otherwise whose values they have.
fn cut(block: &Block, headings: &Headings, tokenizer: &Tokenizer, target: usize, chunks: &mut Vec<Chunk>) {
    let first = chunks.len();
    let lead = (block.kind == BlockKind::Table).then(|| {
        let mut path = headings.path.clone();
        let lead = clip(&block.text, LEAD);
        path.push(lead[..lead.rfind("; ").unwrap_or(lead.len())].to_owned());
        Headings::new(&path, tokenizer, target)
    });
    let room = lead.as_ref().map_or(headings.room, |lead| lead.room.min(headings.room));
    let verbatim = block.place.chars.is_some_and(|(from, to)| to - from == block.text.chars().count() as i64);
    let (mut part, mut tokens) = (Part { verbatim, start: 0, end: 0, chars: 0 }, 0);
    let mut put = |part: &mut Part, tokens: usize| {
        let above = if chunks.len() > first { lead.as_ref().unwrap_or(headings) } else { headings };
        if let Some((text, place)) = part.take(block) {
            chunks.push(one(block, above, text, place, tokens));
        }
    };
    each_piece(&block.text, tokenizer, room, |end, piece_tokens| {
        if tokens > 0 && tokens + piece_tokens > room {
            put(&mut part, tokens);
            tokens = 0;
        }
        tokens += piece_tokens;
        part.end = end;
        true
    });
    put(&mut part, tokens);
}

/// A part of a block's text: its bytes, and the characters before it.
struct Part {
    /// Whether the block's text is what stands at its place, so that each part has a place of its own.
    verbatim: bool,
    start: usize,
    end: usize,
    chars: i64,
}

impl Part {
    /// Its text and place; then it is the empty part after it.
    fn take(&mut self, block: &Block) -> Option<(String, Place)> {
        let part = &block.text[self.start..self.end];
        let text = part.trim();
        let leading = part[..part.len() - part.trim_start().len()].chars().count() as i64;
        let mut place = block.place.clone();
        if let (Some((from, _)), true) = (block.place.chars, self.verbatim) {
            let first = from + self.chars + leading;
            place.chars = Some((first, first + text.chars().count() as i64));
        }
        self.chars += part.chars().count() as i64;
        self.start = self.end;
        (!text.is_empty()).then(|| (text.to_owned(), place))
    }
}

/// Tells `put` the ends of sentences, lines or (in a long run without either) words, with the tokens since the one
/// before, until it returns false. Nothing is collected: a text may have hundreds of millions of them.
fn each_piece(text: &str, tokenizer: &Tokenizer, room: usize, mut put: impl FnMut(usize, usize) -> bool) {
    // Very short lines go together: each piece costs a call of the tokenizer.
    let least = room / 8;
    let (mut start, mut previous) = (0, ' ');
    for (at, c) in text.char_indices() {
        let pause = c == '\n' || (c.is_whitespace() && matches!(previous, '.' | '!' | '?' | ';'));
        previous = c;
        let end = at + c.len_utf8();
        if pause && end - start > least {
            if !sentence(text, start, end, tokenizer, room, &mut put) {
                return;
            }
            start = end;
        }
    }
    sentence(text, start, text.len(), tokenizer, room, &mut put);
}

/// One sentence as one piece, or as many as it needs.
fn sentence(
    text: &str,
    start: usize,
    end: usize,
    tokenizer: &Tokenizer,
    room: usize,
    put: &mut impl FnMut(usize, usize) -> bool,
) -> bool {
    if end - start <= most_bytes(room) {
        let tokens = tokenizer.count(&text[start..end]);
        if tokens <= room {
            return put(end, tokens);
        }
    }
    // A token is at least a byte: a run of `room` bytes always fits.
    let run = room.clamp(8, MAX_ENCODE);
    let mut from = start;
    while from < end {
        let mut to = (from + run).min(end);
        while !text.is_char_boundary(to) {
            to -= 1;
        }
        if to < end
            && let Some(blank) = text[from..to].rfind(char::is_whitespace).filter(|blank| *blank > 0)
        {
            to = from + blank;
        }
        if !put(to, tokenizer.count(&text[from..to])) {
            return false;
        }
        from = to;
    }
    true
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

    #[test]
    fn a_text_of_one_endless_line_is_never_tokenised_whole() {
        let (handle, _thread) = fake_embedder(2);
        assert!(most_bytes(usize::MAX / TOKEN_BYTES) <= MAX_ENCODE);
        for text in ["x".repeat(1 << 20), "a\n".repeat(1 << 19), "word ".repeat(1 << 17)] {
            let began = std::time::Instant::now();
            let mut long = block(BlockKind::Text, text.trim(), 1);
            long.heading_path = vec!["h ".repeat(1 << 20)];
            let chunks = chunk(&[long], handle.tokenizer(), 64);
            let kept: usize = chunks.iter().map(|c| c.text.replace(char::is_whitespace, "").len()).sum();
            assert_eq!(kept, text.replace(char::is_whitespace, "").len());
            assert!(chunks.iter().all(|c| c.embed_text().len() < 64 * TOKEN_BYTES * 2));
            assert!(began.elapsed().as_secs() < 60);
        }
    }

    #[test]
    fn headings_and_text_together_keep_to_the_size() {
        let (handle, _thread) = fake_embedder(2);
        let mut long = block(BlockKind::Text, &"Some words here. ".repeat(50), 1);
        for heading_path in [vec!["A heading".to_owned()], vec!["outer ".repeat(40), "inner".to_owned()]] {
            long.heading_path.clone_from(&heading_path);
            let chunks = chunk(std::slice::from_ref(&long), handle.tokenizer(), 60);
            assert!(chunks.len() > 1);
            for chunk in &chunks {
                assert_eq!(chunk.heading_path, heading_path);
                assert!(handle.tokenizer().count(&chunk.embed_text()) <= 60, "{}", chunk.embed_text());
            }
            assert!(chunks[0].embed_text().contains(heading_path.last().expect("one").as_str()));
        }
    }

    #[test]
    fn the_rest_of_a_long_row_says_whose_it_is() {
        let (handle, _thread) = fake_embedder(2);
        let row = (0..60).map(|at| format!("Property {at}: {at}")).collect::<Vec<_>>().join("; ");
        let row = block(
            BlockKind::Table,
            &format!("Type: NV-1; Name: Breaker; Use: {}; {row}", "x".repeat(150)),
            1,
        );
        let chunks = chunk(&[row], handle.tokenizer(), 200);
        assert_eq!(chunks[0].heading_path, ["H"]);
        assert_eq!(chunks[1].heading_path, ["H", "Type: NV-1; Name: Breaker"]);
        assert!(chunks[1].embed_text().starts_with("H > Type: NV-1; Name: Breaker\n"));
    }

    #[test]
    fn elements_share_a_chunk_only_below_an_element_that_is_not_the_root() {
        let (handle, _thread) = fake_embedder(2);
        let at = |path: &str| {
            let place = Place { xml_path: Some(path.to_owned()), ..Place::default() };
            Block { place, ..block(BlockKind::Text, "text", 1) }
        };
        let blocks = [at("/r/head/a"), at("/r/head/b[2]"), at("/r/headline/c")];
        let chunks = chunk(&blocks, handle.tokenizer(), 80);
        let places: Vec<_> = chunks.iter().filter_map(|c| c.place.xml_path.as_deref()).collect();
        assert_eq!(places, ["/r/head", "/r/headline/c"]);
    }
}
