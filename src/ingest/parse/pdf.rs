//! PDF: text by page.

use lopdf::Document as Pdf;

use crate::ingest::document::{BlockKind, Document, Place};

pub(super) fn parse(bytes: &[u8]) -> Result<Document, String> {
    let encrypted = || "the PDF is encrypted: remove the password and upload it again".to_owned();
    let mut pdf = Pdf::load_mem(bytes).map_err(|error| {
        let said = error.to_string();
        if said.to_lowercase().contains("password") || said.to_lowercase().contains("decrypt") {
            encrypted()
        } else {
            format!("the PDF cannot be read: {said}")
        }
    })?;
    if pdf.is_encrypted() {
        // Many PDFs are encrypted with an empty password, only to forbid changes.
        pdf.decrypt("").map_err(|_| encrypted())?;
    }
    let mut document = Document { title: title(&pdf), ..Document::default() };
    let pages = pdf.get_pages();
    document.page_count = Some(pages.len() as i32);
    let (mut unreadable, mut blank) = (Vec::new(), 0);
    for page in pages.keys() {
        let text = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| page_text(&pdf, *page)));
        match text {
            Ok(Ok(text)) if text.trim().is_empty() => blank += 1,
            Ok(Ok(text)) => paragraphs(&mut document, &text, *page as i32),
            _ => unreadable.push(page.to_string()),
        }
    }
    if !unreadable.is_empty() {
        document.warnings.push(format!("pages without readable text: {}", unreadable.join(", ")));
    }
    if blank > 0 {
        document
            .warnings
            .push(format!("{blank} pages have no text (scanned pages need OCR before the upload)"));
    }
    Ok(document)
}

fn page_text(pdf: &Pdf, page: u32) -> Result<String, String> {
    let mut text = String::new();
    let mut output = pdf_extract::PlainTextOutput::new(&mut text);
    pdf_extract::output_doc_page(pdf, &mut output, page).map_err(|error| error.to_string())?;
    Ok(text)
}

fn paragraphs(document: &mut Document, text: &str, page: i32) {
    let place = || Place { page: Some(page), ..Place::default() };
    let mut paragraph = String::new();
    for line in text.lines().chain([""]) {
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
