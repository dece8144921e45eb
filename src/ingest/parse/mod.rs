//! Parsers: one file a format. They run in the worker process and may panic, loop or allocate without harm.
//!
//! A panic of somebody else's parser is caught where it is called, so that the refusal names what is damaged and the
//! rest of the file is kept.

mod archive;
mod csv;
mod docx;
mod html;
mod markdown;
mod ole_guard;
mod pdf;
mod pdf_guard;
mod sheet;
mod table;
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
    let names = if bytes.starts_with(b"PK") { archive::names(&bytes) } else { Vec::new() };
    let format = detect(name, &bytes, &names)?;
    let mut document = match format {
        Format::Text => text::parse(&bytes),
        Format::Markdown => markdown::parse(&text::decode(&bytes)),
        Format::Html => html::parse(&text::decode(&bytes))?,
        Format::Csv => csv::parse(&text::decode(&bytes)),
        Format::Xlsx | Format::Xlsb | Format::Xls | Format::Ods => workbook::parse(bytes, format)?,
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

/// What `run` returns, or `damaged` if it panics.
fn caught<T>(damaged: &str, run: impl FnOnce() -> T) -> Result<T, String> {
    // Nothing that the closure changed is used after a panic but what its caller gave up for it.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).map_err(|_| damaged.to_owned())
}
