//! What kind of file it is: by content first, then by name.

/// A format that Tarn reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Plain text.
    Text,
    /// Markdown.
    Markdown,
    /// HTML.
    Html,
    /// Comma- (or semicolon-, tab-) separated values.
    Csv,
    /// A workbook that calamine reads.
    Workbook,
    /// PDF.
    Pdf,
    /// XML.
    Xml,
    /// Word.
    Docx,
    /// A ZIP of other files.
    Zip,
}

impl Format {
    /// Its media type.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Format::Text => "text/plain",
            Format::Markdown => "text/markdown",
            Format::Html => "text/html",
            Format::Csv => "text/csv",
            Format::Workbook => "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
            Format::Pdf => "application/pdf",
            Format::Xml => "application/xml",
            Format::Docx => "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
            Format::Zip => "application/zip",
        }
    }
}

/// The format of a file that begins with `head` and is called `name`.
///
/// # Errors
/// What the file seems to be instead.
pub fn detect(name: &str, head: &[u8], zip_names: &[String]) -> Result<Format, String> {
    let extension = name.rsplit('.').next().unwrap_or("").to_lowercase();
    if head.is_empty() {
        return Err("the file is empty".to_owned());
    }
    let near = &head[..head.len().min(1024)];
    if near.windows(5).any(|five| five == b"%PDF-") {
        return Ok(Format::Pdf);
    }
    if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") || head.starts_with(b"PK\x07\x08") {
        let has = |prefix: &str| zip_names.iter().any(|name| name.starts_with(prefix));
        return Ok(if has("word/") {
            Format::Docx
        } else if has("xl/")
            || has("content.xml")
            || matches!(extension.as_str(), "xlsx" | "xlsm" | "xlsb" | "ods")
        {
            Format::Workbook
        } else {
            Format::Zip
        });
    }
    if head.starts_with(&[0xd0, 0xcf, 0x11, 0xe0, 0xa1, 0xb1, 0x1a, 0xe1]) {
        return match extension.as_str() {
            "xls" | "xla" | "xlt" => Ok(Format::Workbook),
            "xlsx" | "xlsm" | "xlsb" => {
                Err("the workbook is encrypted: remove the password and upload it again".to_owned())
            }
            "doc" | "ppt" => {
                Err(format!("the old .{extension} format is not supported: save it as .{extension}x or PDF"))
            }
            _ => Ok(Format::Workbook),
        };
    }
    let utf16 = head.starts_with(&[0xff, 0xfe]) || head.starts_with(&[0xfe, 0xff]);
    let control = near.iter().filter(|byte| **byte < 9 || (14..32).contains(*byte) && **byte != 27).count();
    if !utf16 && control * 20 > near.len() {
        return Err(format!(
            "unsupported type{}: Tarn reads text, Markdown, HTML, CSV, XLSX, XLS, ODS, PDF, XML, DOCX and ZIP",
            if extension.is_empty() { String::new() } else { format!(" (.{extension})") }
        ));
    }
    let start: String =
        String::from_utf8_lossy(near).trim_start_matches('\u{feff}').trim_start().to_lowercase();
    let html = ["<!doctype html", "<html", "<head", "<body"].iter().any(|tag| start.starts_with(tag));
    Ok(match extension.as_str() {
        _ if html => Format::Html,
        "html" | "htm" | "xhtml" => Format::Html,
        _ if start.starts_with("<?xml") => Format::Xml,
        "xml" | "xsd" | "bmecat" | "aml" => Format::Xml,
        "csv" | "tsv" => Format::Csv,
        "md" | "markdown" => Format::Markdown,
        _ => Format::Text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_goes_before_the_name() {
        assert_eq!(detect("x.txt", b"%PDF-1.4", &[]), Ok(Format::Pdf));
        assert_eq!(detect("x", b"<!DOCTYPE html><p>", &[]), Ok(Format::Html));
        assert_eq!(detect("x.zip", b"PK\x03\x04", &["word/document.xml".to_owned()]), Ok(Format::Docx));
        assert_eq!(detect("x.csv", b"a;b", &[]), Ok(Format::Csv));
        assert!(detect("x", b"", &[]).expect_err("empty").contains("empty"));
        assert!(
            detect("x.exe", b"MZ\x00\x01\x00\x02\x00\x00", &[]).expect_err("binary").contains("unsupported")
        );
    }
}
