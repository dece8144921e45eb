//! Plain text in any encoding: paragraphs.

use crate::ingest::document::{BlockKind, Document, Place};

/// The text of bytes: by byte-order mark, as UTF-8, or by what the encoding seems to be.
pub(super) fn decode(bytes: &[u8]) -> String {
    if let Some((encoding, _)) = encoding_rs::Encoding::for_bom(bytes) {
        return encoding.decode(bytes).0.into_owned();
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        return text.to_owned();
    }
    let mut detector = chardetng::EncodingDetector::new(chardetng::Iso2022JpDetection::Deny);
    detector.feed(&bytes[..bytes.len().min(1 << 20)], true);
    detector.guess(None, chardetng::Utf8Detection::Allow).decode(bytes).0.into_owned()
}

pub(super) fn parse(bytes: &[u8]) -> Document {
    let text = decode(bytes);
    let mut document = Document::default();
    let mut chars = 0_i64;
    let mut paragraph = String::new();
    let mut start = 0_i64;
    for line in text.split_inclusive('\n') {
        let length = line.chars().count() as i64;
        if line.trim().is_empty() {
            flush(&mut document, &mut paragraph, start);
        } else {
            if paragraph.is_empty() {
                start = chars;
            }
            paragraph.push_str(line);
        }
        chars += length;
    }
    flush(&mut document, &mut paragraph, start);
    document.title =
        document.blocks.first().map(|block| block.text.lines().next().unwrap_or("").trim().to_owned());
    document.title = document.title.filter(|title| !title.is_empty() && title.chars().count() <= 200);
    document
}

fn flush(document: &mut Document, paragraph: &mut String, start: i64) {
    let leading = paragraph.chars().take_while(|c| c.is_whitespace()).count() as i64;
    let length = paragraph.trim().chars().count() as i64;
    let place = Place { chars: Some((start + leading, start + leading + length)), ..Place::default() };
    document.push(BlockKind::Text, &[], None, paragraph, place);
    paragraph.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_and_places() {
        let mut utf16 = vec![0xff, 0xfe];
        "Größe".encode_utf16().for_each(|unit| utf16.extend(unit.to_le_bytes()));
        assert_eq!(decode(&utf16), "Größe");
        assert_eq!(decode(b"Gr\xf6\xdfe und L\xe4nge"), "Größe und Länge");
        let text = "Titel\n\n  zweiter\nAbsatz\n";
        let document = parse(text.as_bytes());
        let (from, to) = document.blocks[1].place.chars.expect("chars");
        let cut: String = text.chars().skip(from as usize).take((to - from) as usize).collect();
        assert_eq!(cut, document.blocks[1].text);
    }
}
