//! Parsers: one file a format. They run in the worker process and may panic, loop or allocate without harm.

mod archive;
mod csv;
mod docx;
mod html;
mod markdown;
mod pdf;
mod text;
mod workbook;
mod xml;

use std::path::Path;

use super::detect::{Format, detect};
use super::document::Document;

/// Parses the file `path` called `name`; members of an archive go to `extract`.
///
/// # Errors
/// What is wrong with the file and what to do, in words for whoever uploaded it.
pub fn parse(path: &Path, name: &str, extract: &Path) -> Result<Document, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("it cannot be read: {error}"))?;
    let head = &bytes[..bytes.len().min(4096)];
    let names = if bytes.starts_with(b"PK") { archive::names(&bytes) } else { Vec::new() };
    let format = detect(name, head, &names)?;
    let mut document = match format {
        Format::Text => text::parse(&bytes),
        Format::Markdown => markdown::parse(&text::decode(&bytes)),
        Format::Html => html::parse(&text::decode(&bytes)),
        Format::Csv => csv::parse(&text::decode(&bytes)),
        Format::Workbook => workbook::parse(bytes)?,
        Format::Pdf => pdf::parse(&bytes)?,
        Format::Xml => xml::parse(&bytes)?,
        Format::Docx => docx::parse(&bytes)?,
        Format::Zip => archive::parse(&bytes, extract)?,
    };
    document.media_type = format.media_type().to_owned();
    if document.blocks.is_empty() && document.members.is_empty() && document.warnings.is_empty() {
        document.warnings.push("the file has no text".to_owned());
    }
    Ok(document)
}
