//! Plain text in any encoding: paragraphs.

use crate::ingest::document::{BlockKind, Document, Place};

/// The text of bytes: by byte-order mark, as UTF-8, by what the markup declares, or by what the encoding seems to be.
pub(super) fn decode(bytes: &[u8]) -> String {
    if let Some((encoding, _)) = encoding_rs::Encoding::for_bom(bytes) {
        return encoding.decode(bytes).0.into_owned();
    }
    if bytes.starts_with(&[b'<', 0]) {
        return encoding_rs::UTF_16LE.decode(bytes).0.into_owned();
    }
    if bytes.starts_with(&[0, b'<']) {
        return encoding_rs::UTF_16BE.decode(bytes).0.into_owned();
    }
    let declared = declared(bytes);
    // What is UTF-8 by its bytes is nothing else by accident, whatever it says; but ISO-2022-JP is ASCII by its bytes.
    if declared != Some(encoding_rs::ISO_2022_JP)
        && let Ok(text) = std::str::from_utf8(bytes)
    {
        return text.to_owned();
    }
    if let Some(encoding) = declared.filter(|encoding| *encoding != encoding_rs::UTF_8) {
        return encoding.decode(bytes).0.into_owned();
    }
    let mut detector = chardetng::EncodingDetector::new(chardetng::Iso2022JpDetection::Deny);
    detector.feed(&bytes[..bytes.len().min(1 << 20)], true);
    detector.guess(None, chardetng::Utf8Detection::Allow).decode(bytes).0.into_owned()
}

/// The encoding that the declaration of XML or a `meta` of HTML names, in the first KiB.
fn declared(bytes: &[u8]) -> Option<&'static encoding_rs::Encoding> {
    let near = String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]).to_lowercase();
    let near = near.trim_start();
    let name = if let Some(declaration) = near.strip_prefix("<?xml") {
        declaration.split("?>").next()?.split("encoding").nth(1)
    } else if near.starts_with('<') {
        near.split("<meta").skip(1).find_map(|meta| meta.split('>').next()?.split("charset").nth(1))
    } else {
        None
    };
    let name = name?.trim_start().strip_prefix('=')?.trim_start().trim_start_matches(['"', '\'']);
    let end = name.find(|c: char| !c.is_ascii_alphanumeric() && !"-_:.".contains(c)).unwrap_or(name.len());
    // What calls itself UTF-16 and can be read this far is not.
    encoding_rs::Encoding::for_label_no_replacement(&name.as_bytes()[..end])
        .filter(|encoding| *encoding == encoding.output_encoding())
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

    #[test]
    fn markup_says_its_encoding() {
        // The same bytes are Cyrillic in one encoding and Greek in another: no guess is needed.
        let text = b"\xc1\xc2\xc3";
        let xml = |name: &str| {
            decode(&[format!("<?xml version='1.0' encoding='{name}'?><a>").as_bytes(), text].concat())
        };
        assert!(xml("windows-1251").ends_with("\u{411}\u{412}\u{413}"));
        assert!(xml("ISO-8859-7").ends_with("\u{391}\u{392}\u{393}"));
        for meta in ["<meta charset=\"windows-1251\">", "<meta content='text/html; charset=windows-1251'>"] {
            let html = decode(&[b"<html>", meta.as_bytes(), text].concat());
            assert!(html.ends_with("\u{411}\u{412}\u{413}"), "{meta}");
        }
        let wide: Vec<u8> =
            "<?xml version='1.0'?><a>\u{e4}</a>".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert!(decode(&wide).contains("<a>\u{e4}</a>"));
    }
}
