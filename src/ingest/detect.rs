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
    /// Excel since 2007.
    Xlsx,
    /// Excel since 2007, binary.
    Xlsb,
    /// Excel until 2003.
    Xls,
    /// An OpenDocument spreadsheet.
    Ods,
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
            Format::Xlsx => "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
            Format::Xlsb => "application/vnd.ms-excel.sheet.binary.macroEnabled.12",
            Format::Xls => "application/vnd.ms-excel",
            Format::Ods => ODS,
            Format::Pdf => "application/pdf",
            Format::Xml => "application/xml",
            Format::Docx => "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
            Format::Zip => "application/zip",
        }
    }
}

const ODS: &str = "application/vnd.oasis.opendocument.spreadsheet";
/// What whoever uploaded an encrypted workbook reads.
pub(super) const ENCRYPTED_WORKBOOK: &str =
    "the workbook is encrypted: remove the password and upload it again";

/// The format of a file of these `bytes` that is called `name`; `zip_names` are its members if it is a ZIP.
///
/// # Errors
/// What the file seems to be instead.
pub fn detect(name: &str, bytes: &[u8], zip_names: &[String]) -> Result<Format, String> {
    let extension = name.rsplit('.').next().unwrap_or("").to_lowercase();
    if bytes.is_empty() {
        return Err("the file is empty".to_owned());
    }
    if [b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"].iter().any(|magic| bytes.starts_with(*magic)) {
        return Ok(zip(bytes, &extension, zip_names));
    }
    if bytes.starts_with(&[0xd0, 0xcf, 0x11, 0xe0, 0xa1, 0xb1, 0x1a, 0xe1]) {
        return ole(bytes, &extension);
    }
    let near = &bytes[..bytes.len().min(1024)];
    let text = near.strip_prefix(&[0xef, 0xbb, 0xbf]).unwrap_or(near).trim_ascii_start();
    // Readers take a PDF with something before it; a text that mentions the magic is none.
    let inside = extension == "pdf" && near.windows(5).any(|five| five == b"%PDF-");
    if text.starts_with(b"%PDF-") || inside {
        return Ok(Format::Pdf);
    }
    let utf16 = [[0xff, 0xfe], [0xfe, 0xff], [b'<', 0], [0, b'<']].iter().any(|two| near.starts_with(two));
    let control = near.iter().filter(|byte| **byte < 9 || (14..32).contains(*byte) && **byte != 27).count();
    if !utf16 && control * 20 > near.len() {
        return Err(unsupported(&extension));
    }
    let start: String = String::from_utf8_lossy(near)
        .replace('\0', "")
        .trim_start_matches('\u{feff}')
        .trim_start()
        .to_lowercase();
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

fn unsupported(extension: &str) -> String {
    let named = if extension.is_empty() { String::new() } else { format!(" (.{extension})") };
    format!(
        "unsupported type{named}: Tarn reads text, Markdown, HTML, CSV, XLSX, XLS, ODS, PDF, XML, DOCX and ZIP"
    )
}

/// A ZIP by the part that makes it a document. A folder of that name alone does not: people pack `xl/` themselves.
fn zip(bytes: &[u8], extension: &str, names: &[String]) -> Format {
    let parts: Vec<String> =
        names.iter().map(|name| name.replace('\\', "/").trim_start_matches('/').to_lowercase()).collect();
    let has = |name: &str| parts.iter().any(|part| part == name);
    let near = &bytes[..bytes.len().min(256)];
    let says_ods = near.windows(ODS.len()).any(|window| window == ODS.as_bytes());
    if has("word/document.xml") {
        return Format::Docx;
    }
    if has("xl/workbook.bin") {
        return Format::Xlsb;
    }
    if parts.iter().any(|part| part.starts_with("xl/workbook")) {
        return Format::Xlsx;
    }
    if has("content.xml") && (says_ods && has("mimetype") || extension == "ods") {
        return Format::Ods;
    }
    // A package whose parts have other names, or whose directory is damaged: its parser says what is wrong.
    match extension {
        "docx" | "docm" if parts.is_empty() => Format::Docx,
        "ods" if parts.is_empty() => Format::Ods,
        "xlsb" if parts.is_empty() || has("[content_types].xml") => Format::Xlsb,
        "xlsx" | "xlsm" if parts.is_empty() || has("[content_types].xml") => Format::Xlsx,
        _ => Format::Zip,
    }
}

/// An OLE compound file by the streams in its directory.
fn ole(bytes: &[u8], extension: &str) -> Result<Format, String> {
    // Directory entries have 128 bytes and stand at multiples of that: a name in UTF-16LE, its length at 64.
    let has = |name: &str| {
        let wanted: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).chain([0, 0]).collect();
        let (entries, _) = bytes.as_chunks::<128>();
        entries.iter().any(|entry| entry[..wanted.len()].eq_ignore_ascii_case(&wanted))
    };
    if has("EncryptedPackage") {
        return Err(match extension {
            "docx" | "docm" | "pptx" | "pptm" => {
                format!("the .{extension} file is encrypted: remove the password and upload it again")
            }
            _ => ENCRYPTED_WORKBOOK.to_owned(),
        });
    }
    if has("Workbook") || has("Book") || matches!(extension, "xls" | "xla" | "xlt") {
        return Ok(Format::Xls);
    }
    for (stream, old) in [("WordDocument", "doc"), ("PowerPoint Document", "ppt")] {
        if has(stream) || extension == old {
            return Err(format!("the old .{old} format is not supported: save it as .{old}x or PDF"));
        }
    }
    Err(unsupported(extension))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLE: [u8; 8] = [0xd0, 0xcf, 0x11, 0xe0, 0xa1, 0xb1, 0x1a, 0xe1];

    fn zip_of(names: &[&str], head: &[u8]) -> Result<Format, String> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        detect("x", &[b"PK\x03\x04", head].concat(), &names)
    }

    fn ole_of(name: &str, stream: &str) -> Result<Format, String> {
        let mut bytes = OLE.to_vec();
        bytes.resize(512, 0);
        bytes.extend(stream.encode_utf16().flat_map(u16::to_le_bytes));
        bytes.resize(640, 0);
        detect(name, &bytes, &[])
    }

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

    #[test]
    fn a_pdf_begins_with_its_magic_unless_it_is_called_one() {
        assert_eq!(zip_of(&["a.pdf"], b"..a.pdf%PDF-1.4"), Ok(Format::Zip));
        assert_eq!(detect("x.md", b"# On %PDF-1.7\n", &[]), Ok(Format::Markdown));
        assert_eq!(detect("x", b"\xef\xbb\xbf \n%PDF-1.7\n", &[]), Ok(Format::Pdf));
        assert_eq!(detect("x.pdf", b"junk\n%PDF-1.7\n", &[]), Ok(Format::Pdf));
    }

    #[test]
    fn a_folder_does_not_make_a_document_of_a_zip() {
        assert_eq!(zip_of(&["word/notes.txt", "xl/a.csv", "content.xml"], b""), Ok(Format::Zip));
        assert_eq!(zip_of(&["xl/workbook.xml"], b""), Ok(Format::Xlsx));
        assert_eq!(zip_of(&["xl\\workbook.bin"], b""), Ok(Format::Xlsb));
        let odf = b"....mimetypeapplication/vnd.oasis.opendocument.";
        assert_eq!(
            zip_of(&["mimetype", "content.xml"], &[odf, &b"spreadsheet"[..]].concat()),
            Ok(Format::Ods)
        );
        assert_eq!(zip_of(&["mimetype", "content.xml"], &[odf, &b"text"[..]].concat()), Ok(Format::Zip));
    }

    #[test]
    fn an_ole_file_is_what_its_streams_are() {
        assert_eq!(ole_of("x", "EncryptedPackage"), Err(ENCRYPTED_WORKBOOK.to_owned()));
        assert!(ole_of("x.docx", "EncryptedPackage").expect_err("encrypted").contains("remove the password"));
        assert_eq!(ole_of("x", "WORKBOOK"), Ok(Format::Xls));
        assert!(ole_of("x", "WordDocument").expect_err("old").contains("save it as .docx"));
        assert!(ole_of("x.msi", "Other").expect_err("unknown").contains("unsupported"));
    }

    #[test]
    fn every_workbook_has_its_own_media_type() {
        let all = [Format::Xlsx, Format::Xlsb, Format::Xls, Format::Ods].map(Format::media_type);
        assert!((0..4).all(|at| !all[at + 1..].contains(&all[at])), "{all:?}");
    }
}
