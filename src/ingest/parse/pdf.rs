//! PDF: text by page.
//!
//! pdf-extract panics on what it does not expect, so each page is read by itself; and it follows whatever a page
//! refers to, so what could lead it in circles is looked at first ([`super::pdf_guard`]).

use lopdf::{Dictionary, Document as Pdf, Object, ObjectId, dictionary};

use super::{caught, pdf_guard as guard};
use crate::ingest::document::{BlockKind, Document, Place};

/// Pages beyond which the rest is left out with a warning.
const MAX_PAGES: usize = 5_000;
/// Bytes of text of one page, some hundred times what can be read on one.
const MAX_PAGE_TEXT: usize = 1 << 20;

pub(super) fn parse(bytes: &[u8]) -> Result<Document, String> {
    let encrypted = || "the PDF is encrypted: remove the password and upload it again".to_owned();
    let loaded = caught("the PDF cannot be read: its table of objects is damaged", || Pdf::load_mem(bytes))?;
    let mut pdf = loaded.map_err(|error| {
        let said = error.to_string();
        if said.to_lowercase().contains("password") || said.to_lowercase().contains("decrypt") {
            encrypted()
        } else {
            format!("the PDF cannot be read: {said}")
        }
    })?;
    if pdf.is_encrypted() {
        // Many PDFs are encrypted with an empty password, only to forbid changes.
        let decrypted = caught("the PDF cannot be read: its encryption is damaged", || pdf.decrypt(""))?;
        decrypted.map_err(|_| encrypted())?;
    }
    guard::empty_images(&mut pdf);
    let mut document = Document { title: title(&pdf), ..Document::default() };
    let pages = pdf.get_pages();
    document.page_count = Some(pages.len() as i32);
    let (mut unreadable, mut long, mut blank) = (Vec::new(), Vec::new(), 0);
    let tree = Tree::new(&mut pdf);
    for (page, id) in pages.iter().take(MAX_PAGES) {
        if !guard::is_finite(&pdf, *id) {
            unreadable.push(page.to_string());
            continue;
        }
        if let Some(tree) = &tree {
            tree.keep_only(&mut pdf, *id);
        }
        let number = if tree.is_some() { 1 } else { *page };
        let mut text = Text::default();
        let end = caught("", || page_text(&pdf, number, &mut text));
        if text.is_full {
            long.push(page.to_string());
        }
        match end {
            Ok(Ok(())) if text.bytes.trim_ascii().is_empty() => blank += 1,
            // What was read before the damage is kept.
            Ok(Ok(())) => paragraphs(&mut document, &text, *page as i32),
            _ => {
                if !text.is_full {
                    unreadable.push(page.to_string());
                }
                paragraphs(&mut document, &text, *page as i32);
            }
        }
    }
    let mut warn = |warning: String| document.warnings.push(warning);
    if pages.len() > MAX_PAGES {
        warn(format!("only the first {MAX_PAGES} of {} pages were read: split the PDF", pages.len()));
    }
    if !unreadable.is_empty() {
        warn(format!("pages that cannot be read, or not to their end: {}", unreadable.join(", ")));
    }
    if !long.is_empty() {
        warn(format!(
            "pages with more than {} KiB of text, cut there: {}",
            MAX_PAGE_TEXT >> 10,
            long.join(", ")
        ));
    }
    if blank > 0 {
        warn(format!("{blank} pages have no text (scanned pages need OCR before the upload)"));
    }
    Ok(document)
}

/// A page tree of one page at a time: pdf-extract walks the whole tree for each page that it is asked for.
struct Tree {
    root: ObjectId,
}

impl Tree {
    /// Of the catalogue's own tree nothing is lost: a page inherits from its own parents.
    fn new(pdf: &mut Pdf) -> Option<Tree> {
        let root = pdf.add_object(Object::Dictionary(Dictionary::new()));
        pdf.catalog_mut().ok()?.set("Pages", root);
        Some(Tree { root })
    }

    fn keep_only(&self, pdf: &mut Pdf, page: ObjectId) {
        let one = dictionary! { "Type" => "Pages", "Kids" => vec![Object::Reference(page)], "Count" => 1 };
        pdf.objects.insert(self.root, Object::Dictionary(one));
    }
}

/// Text up to [`MAX_PAGE_TEXT`] bytes; more is an error, which ends the page.
#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    is_full: bool,
}

impl std::io::Write for Text {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.is_full = self.is_full || self.bytes.len() + bytes.len() > MAX_PAGE_TEXT;
        if self.is_full {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn page_text(pdf: &Pdf, page: u32, text: &mut Text) -> Result<(), String> {
    let text: &mut dyn std::io::Write = text;
    let mut output = pdf_extract::PlainTextOutput::new(text);
    pdf_extract::output_doc_page(pdf, &mut output, page).map_err(|error| error.to_string())
}

fn paragraphs(document: &mut Document, text: &Text, page: i32) {
    let place = || Place { page: Some(page), ..Place::default() };
    let mut paragraph = String::new();
    for line in String::from_utf8_lossy(&text.bytes).lines().chain([""]) {
        if line.trim().is_empty() {
            document.push(BlockKind::Text, &[], None, &paragraph, place());
            paragraph.clear();
        } else {
            paragraph.push_str(line.trim_end());
            paragraph.push('\n');
        }
    }
}

fn title(pdf: &Pdf) -> Option<String> {
    let info = pdf.trailer.get(b"Info").ok()?.as_reference().ok()?;
    let bytes = pdf.get_dictionary(info).ok()?.get(b"Title").ok()?.as_str().ok()?;
    let title = match bytes.strip_prefix(&[0xfe, 0xff]) {
        Some(rest) => {
            let units: Vec<u16> = rest.as_chunks::<2>().0.iter().map(|b| u16::from_be_bytes(*b)).collect();
            String::from_utf16_lossy(&units)
        }
        None => encoding_rs::WINDOWS_1252.decode(bytes).0.into_owned(),
    };
    Some(title.trim().to_owned()).filter(|title| !title.is_empty())
}

#[cfg(test)]
mod tests {
    use lopdf::Stream;

    use super::*;

    /// A PDF whose pages have these contents, all with the forms `F0`, `F1`, … of these contents, which have no
    /// resources of their own.
    fn pdf_of(pages: &[String], forms: &[&str]) -> Vec<u8> {
        let mut pdf = Pdf::with_version("1.5");
        let font = pdf.add_object(dictionary! {
            "Type" => "Font", "Subtype" => "Type1", "BaseFont" => "Helvetica", "Encoding" => "WinAnsiEncoding",
        });
        let mut named = Dictionary::new();
        for (at, content) in forms.iter().enumerate() {
            let form = dictionary! { "Type" => "XObject", "Subtype" => "Form" };
            let id = pdf.add_object(Stream::new(form, content.as_bytes().to_vec()));
            named.set(format!("F{at}"), id);
        }
        let tree = pdf.new_object_id();
        let kids: Vec<Object> = pages
            .iter()
            .map(|content| {
                let content = pdf.add_object(Stream::new(dictionary! {}, content.as_bytes().to_vec()));
                pdf.add_object(dictionary! { "Type" => "Page", "Parent" => tree, "Contents" => content })
                    .into()
            })
            .collect();
        let count = kids.len() as i64;
        let resources = dictionary! { "Font" => dictionary! { "F" => font }, "XObject" => named };
        let node = dictionary! {
            "Type" => "Pages", "Kids" => kids, "Count" => count, "Resources" => resources,
            "MediaBox" => vec![0.into(), 0.into(), 595.into(), 842.into()],
        };
        pdf.objects.insert(tree, node.into());
        let catalog = pdf.add_object(dictionary! { "Type" => "Catalog", "Pages" => tree });
        pdf.trailer.set("Root", catalog);
        let mut bytes = Vec::new();
        pdf.save_to(&mut bytes).expect("saves");
        bytes
    }

    fn says(text: &str) -> String {
        format!("BT /F 12 Tf 72 700 Td ({text}) Tj ET")
    }

    fn seen(document: &Document) -> Vec<(&str, Option<i32>)> {
        document.blocks.iter().map(|b| (b.text.as_str(), b.place.page)).collect()
    }

    #[test]
    fn each_page_has_its_text_and_a_form_its_own() {
        let pages = [says("first"), "/F0 Do".to_owned(), String::new()];
        let document = parse(&pdf_of(&pages, &[&says("in a form")])).expect("parses");
        assert_eq!(seen(&document), [("first", Some(1)), ("in a form", Some(2))]);
        assert_eq!(document.page_count, Some(3));
        assert!(document.warnings[0].contains("1 pages have no text"), "{:?}", document.warnings);
    }

    #[test]
    fn forms_that_go_in_circles_or_multiply_are_not_followed() {
        let ten = |name: &str| format!("/{name} Do ").repeat(10);
        let (a, b, c, d, e, f) = (ten("F1"), ten("F2"), ten("F3"), ten("F4"), ten("F5"), ten("F6"));
        for forms in [vec!["/F0 Do"], vec!["/F1 Do", "/F0 Do"], vec![&a, &b, &c, &d, &e, &f, "BT ET"]] {
            let document = parse(&pdf_of(&[says("before"), "/F0 Do".to_owned()], &forms)).expect("parses");
            assert_eq!(seen(&document), [("before", Some(1))]);
            assert!(document.warnings[0].contains("cannot be read, or not to their end: 2"));
        }
    }

    #[test]
    fn a_page_of_endless_text_is_cut() {
        let page = says(&"x".repeat(1000)).repeat(2 * MAX_PAGE_TEXT / 1000);
        let document = parse(&pdf_of(&[page], &[])).expect("parses");
        assert!(document.blocks.iter().map(|b| b.text.len()).sum::<usize>() <= MAX_PAGE_TEXT);
        assert!(document.warnings[0].contains("of text, cut there: 1"), "{:?}", document.warnings);
    }

    #[test]
    fn pages_beyond_the_limit_are_left_out_with_a_warning() {
        let document = parse(&pdf_of(&vec![says("x"); MAX_PAGES + 1], &[])).expect("parses");
        assert_eq!(document.blocks.len(), MAX_PAGES);
        assert_eq!(document.page_count, Some(MAX_PAGES as i32 + 1));
        assert!(document.warnings[0].contains("split the PDF"), "{:?}", document.warnings);
    }
}
