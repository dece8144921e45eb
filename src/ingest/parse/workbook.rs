//! Workbooks: every sheet, messy ones too.
//!
//! A sheet is read cell by cell into its rows, never into the rectangle around them: two cells at its corners would
//! make calamine allocate 17 thousand million. A sheet that cannot be read is a warning, the others are kept.

use std::io::Cursor;

use calamine::{Data, DataRef, Dimensions, Error, Ods, Reader, Sheets, Xls, Xlsb, Xlsx, XlsxError};

use super::caught;
use super::sheet::{self, Rows};
use crate::ingest::detect::{ENCRYPTED_WORKBOOK, Format};
use crate::ingest::document::Document;

/// Filled cells of one sheet beyond which the rest is left out with a warning.
const MAX_CELLS: usize = 5_000_000;

type Bytes = Cursor<Vec<u8>>;

pub(super) fn parse(bytes: Vec<u8>, format: Format) -> Result<Document, String> {
    let mut workbook = open(bytes, format)?;
    let mut document = Document::default();
    let names = workbook.sheet_names();
    document.page_count = Some(names.len() as i32);
    for name in names {
        let mut read = Read::default();
        let end = caught("its content is damaged", || cells(&mut workbook, &name, &mut read))
            .and_then(|end| end.map_err(|error| error.to_string()));
        if let Err(error) = end {
            let what = if read.rows.is_empty() { "cannot be read" } else { "cannot be read to its end" };
            document.warnings.push(format!("sheet `{name}` {what}: {error}"));
        }
        if read.count > MAX_CELLS {
            document
                .warnings
                .push(format!("sheet `{name}` has more than {MAX_CELLS} cells; the rest was left out"));
        }
        // Without its merged cells a sheet is still worth reading.
        let merged = caught("", || merged(&mut workbook, &name)).unwrap_or_default();
        sheet::push(&mut document, &name, read.rows, &merged);
    }
    Ok(document)
}

fn open(bytes: Vec<u8>, format: Format) -> Result<Sheets<Bytes>, String> {
    if format == Format::Xls && is_encrypted_xls(&bytes) {
        return Err(ENCRYPTED_WORKBOOK.to_owned());
    }
    let what = kind(format);
    if format == Format::Xls && super::ole_guard::is_endless(&bytes) {
        return Err(format!(
            "the workbook cannot be read: its {what} content is damaged (a chain of its sectors has no end)"
        ));
    }
    let bytes = Cursor::new(bytes);
    let opened =
        caught(&format!("the workbook cannot be read: its {what} content is damaged"), || match format {
            Format::Xls => Xls::new(bytes).map(Sheets::Xls).map_err(Error::Xls),
            Format::Xlsb => Xlsb::new(bytes).map(Sheets::Xlsb).map_err(Error::Xlsb),
            Format::Ods => Ods::new(bytes).map(Sheets::Ods).map_err(Error::Ods),
            _ => Xlsx::new(bytes).map(Sheets::Xlsx).map_err(Error::Xlsx),
        })?;
    opened.map_err(|error| {
        let said = error.to_string();
        if said.to_lowercase().contains("password") {
            ENCRYPTED_WORKBOOK.to_owned()
        } else {
            format!("the workbook cannot be read: its {what} content is damaged ({said})")
        }
    })
}

fn kind(format: Format) -> &'static str {
    match format {
        Format::Xls => "XLS",
        Format::Xlsb => "XLSB",
        Format::Ods => "ODS",
        _ => "XLSX",
    }
}

/// Whether the workbook's stream begins with FilePass ([MS-XLS] 2.4.117), also one by XOR, which calamine takes for no
/// encryption. A stream begins at a multiple of 512 bytes, and only WriteProtect may be before FilePass.
fn is_encrypted_xls(bytes: &[u8]) -> bool {
    const BOF: [u8; 2] = [0x09, 0x08];
    const WORKBOOK_GLOBALS: [u8; 2] = [0x05, 0x00];
    const WRITE_PROTECT: [u8; 4] = [0x86, 0, 0, 0];
    const FILE_PASS: [u8; 2] = [0x2f, 0];
    bytes.as_chunks::<512>().0.iter().any(|sector| {
        let end = 4 + usize::from(u16::from_le_bytes([sector[2], sector[3]]));
        let next = sector.get(end..).unwrap_or_default();
        let next = next.strip_prefix(&WRITE_PROTECT).unwrap_or(next);
        sector[..2] == BOF && sector[6..8] == WORKBOOK_GLOBALS && next.starts_with(&FILE_PASS)
    })
}

/// What was read of a sheet.
#[derive(Default)]
struct Read {
    rows: Rows,
    count: usize,
}

impl Read {
    /// Whether more cells are wanted.
    fn put(&mut self, (row, column): (u32, u32), cell: &Data) -> bool {
        let text = cell_text(cell);
        if !text.is_empty() {
            self.count += 1;
            if self.count > MAX_CELLS {
                return false;
            }
            self.rows.entry(row).or_default().insert(column, text.into());
        }
        true
    }
}

fn cells(workbook: &mut Sheets<Bytes>, name: &str, read: &mut Read) -> Result<(), Error> {
    match workbook {
        Sheets::Xlsx(xlsx) => {
            let mut cells = match xlsx.worksheet_cells_reader(name) {
                // Charts are sheets too.
                Err(XlsxError::NotAWorksheet(_)) => return Ok(()),
                cells => cells.map_err(Error::Xlsx)?,
            };
            while let Some(cell) = cells.next_cell().map_err(Error::Xlsx)? {
                if !put_ref(read, &cell) {
                    break;
                }
            }
        }
        Sheets::Xlsb(xlsb) => {
            let mut cells = xlsb.worksheet_cells_reader(name).map_err(Error::Xlsb)?;
            while let Some(cell) = cells.next_cell().map_err(Error::Xlsb)? {
                if !put_ref(read, &cell) {
                    break;
                }
            }
        }
        // Their formats bound a sheet, or their reader does.
        Sheets::Xls(_) | Sheets::Ods(_) => {
            let range = workbook.worksheet_range(name)?;
            let (row, column) = range.start().unwrap_or_default();
            for (down, right, cell) in range.used_cells() {
                if !read.put((row + down as u32, column + right as u32), cell) {
                    break;
                }
            }
        }
    }
    Ok(())
}

fn put_ref(read: &mut Read, cell: &calamine::Cell<DataRef<'_>>) -> bool {
    read.put(cell.get_position(), &cell.get_value().clone().into())
}

/// The regions of merged cells, in the formats of which calamine knows them.
fn merged(workbook: &mut Sheets<Bytes>, name: &str) -> Vec<Dimensions> {
    match workbook {
        Sheets::Xlsx(xlsx) => xlsx.worksheet_merge_cells(name).and_then(Result::ok),
        Sheets::Xls(xls) => xls.worksheet_merge_cells(name),
        Sheets::Xlsb(_) | Sheets::Ods(_) => None,
    }
    .unwrap_or_default()
}

fn cell_text(cell: &Data) -> String {
    let text = match cell {
        Data::Empty => String::new(),
        Data::Float(x) if x.fract() == 0.0 && x.abs() < 1e15 => format!("{x:.0}"),
        Data::DateTime(at) => at.as_datetime().map_or_else(|| at.to_string(), |time| time.to_string()),
        Data::Error(error) => format!("{error:?}"),
        other => other.to_string(),
    };
    let text = if text.contains('<') && text.contains('>') && text.contains("</") {
        scraper::Html::parse_fragment(&text).root_element().text().collect::<Vec<_>>().join(" ")
    } else {
        text
    };
    super::html::squeeze(&text)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::write::SimpleFileOptions;

    use super::*;

    /// A workbook whose sheets have this content.
    fn xlsx(sheets: &[&str]) -> Vec<u8> {
        let each = |of: &dyn Fn(usize) -> String| (1..=sheets.len()).map(of).collect::<String>();
        let relation = "http://schemas.openxmlformats.org/officeDocument/2006/relationships";
        let mut parts = vec![
            (
                "xl/workbook.xml".to_owned(),
                format!(
                    "<workbook xmlns:r=\"{relation}\"><sheets>{}</sheets></workbook>",
                    each(&|at| format!("<sheet name=\"S{at}\" sheetId=\"{at}\" r:id=\"r{at}\"/>"))
                ),
            ),
            (
                "xl/_rels/workbook.xml.rels".to_owned(),
                format!(
                    "<Relationships>{}</Relationships>",
                    each(&|at| format!(
                        "<Relationship Id=\"r{at}\" Type=\"{relation}/worksheet\" Target=\"worksheets/s{at}.xml\"/>"
                    ))
                ),
            ),
        ];
        for (sheet, at) in sheets.iter().zip(1..) {
            parts.push((format!("xl/worksheets/s{at}.xml"), format!("<worksheet>{sheet}</worksheet>")));
        }
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (name, content) in parts {
            zip.start_file(name, SimpleFileOptions::default()).expect("starts");
            zip.write_all(content.as_bytes()).expect("writes");
        }
        zip.finish().expect("finishes").into_inner()
    }

    fn row(number: u32, cells: &[&str]) -> String {
        let cells = cells
            .iter()
            .zip("ABCDEFGH".chars())
            .filter(|(text, _)| !text.is_empty())
            .map(|(text, column)| format!("<c r=\"{column}{number}\" t=\"str\"><v>{text}</v></c>"));
        format!("<row r=\"{number}\">{}</row>", cells.collect::<String>())
    }

    fn sheet(rows: &[String]) -> String {
        format!("<sheetData>{}</sheetData>", rows.concat())
    }

    #[test]
    fn merged_cells_of_a_file_are_read() {
        let rows = [
            row(1, &["Type", "Dimensions"]),
            row(2, &["", "Width", "Height"]),
            row(3, &["NV-1", "18", "85"]),
        ];
        let merged = "<mergeCells><mergeCell ref=\"A1:A2\"/><mergeCell ref=\"B1:C1\"/></mergeCells>";
        let document = parse(xlsx(&[&(sheet(&rows) + merged)]), Format::Xlsx).expect("parses");
        assert_eq!(
            document.blocks[0].text, "Type: NV-1; Dimensions / Width: 18; Dimensions / Height: 85",
            "{document:?}"
        );
    }

    #[test]
    fn two_cells_at_the_corners_of_a_sheet_are_two_cells() {
        let far = "<row r=\"1048576\"><c r=\"XFD1048576\" t=\"str\"><v>far</v></c></row>";
        let document =
            parse(xlsx(&[&sheet(&[row(1, &["near"]), far.to_owned()])]), Format::Xlsx).expect("parses");
        let cells: Vec<_> = document.blocks.iter().map(|b| (b.text.as_str(), b.place.rows)).collect();
        assert_eq!(cells, [("near", Some((1, 1))), ("far", Some((1_048_576, 1_048_576)))]);
    }

    #[test]
    fn a_damaged_sheet_leaves_the_others() {
        let good = sheet(&[row(1, &["Type", "A"]), row(2, &["NV-1", "16"])]);
        let bad =
            sheet(&[row(1, &["kept"]), "<row r=\"2\"><c r=\"A2\" t=\"none\"><v>1</v></c></row>".to_owned()]);
        let document = parse(xlsx(&[&bad, &good]), Format::Xlsx).expect("parses");
        let texts: Vec<_> = document.blocks.iter().map(|b| b.text.as_str()).collect();
        assert_eq!(texts, ["kept", "Type: NV-1; A: 16"]);
        assert!(document.warnings[0].starts_with("sheet `S1` cannot be read to its end: "));
    }

    /// An XLSB whose sheets have these records after the beginning of their data.
    fn xlsb(sheets: &[&[u8]]) -> Vec<u8> {
        let record = |number: u16, content: &[u8]| {
            [&[(number & 0x7f) as u8 | 0x80, (number >> 7) as u8, content.len() as u8], content].concat()
        };
        let wide = |text: &str| {
            let text: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
            [&(text.len() as u32 / 2).to_le_bytes(), &text[..]].concat()
        };
        let (mut workbook, mut relations) = (Vec::new(), String::new());
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let mut put = |name: &str, content: &[u8]| {
            zip.start_file(name, SimpleFileOptions::default()).expect("starts");
            zip.write_all(content).expect("writes");
        };
        for (sheet, at) in sheets.iter().zip(1..) {
            let named = [&[0; 8], &wide(&format!("r{at}"))[..], &wide(&format!("S{at}"))].concat();
            workbook.extend(record(0x9c, &named));
            relations +=
                &format!("<Relationship Id=\"r{at}\" Target=\"worksheets/s{at}.bin\"></Relationship>");
            let content = [&record(0x94, &[0; 16])[..], &record(0x91, &[]), sheet].concat();
            put(&format!("xl/worksheets/s{at}.bin"), &content);
        }
        workbook.extend([record(0x90, &[]), record(0x9d, &[])].concat());
        put("xl/workbook.bin", &workbook);
        put("xl/_rels/workbook.bin.rels", format!("<Relationships>{relations}</Relationships>").as_bytes());
        zip.finish().expect("finishes").into_inner()
    }

    #[test]
    fn a_sheet_on_which_its_parser_panics_leaves_the_others() {
        // A number without its bytes; then a row and a cell of it with the text `ok`.
        let bad = [0x02, 0];
        let good =
            [&[0x00, 4, 0, 0, 0, 0, 0x06, 16][..], &[0; 8], &[2, 0, 0, 0, b'o', 0, b'k', 0, 0x92, 1, 0]]
                .concat();
        let document = parse(xlsb(&[&bad, &good]), Format::Xlsb).expect("parses");
        assert_eq!(document.warnings, ["sheet `S1` cannot be read: its content is damaged"]);
        assert_eq!(document.blocks.iter().map(|b| b.text.as_str()).collect::<Vec<_>>(), ["ok"]);
    }

    #[test]
    fn a_workbook_that_cannot_be_opened_says_what_it_is() {
        for (format, name) in
            [(Format::Xlsx, "XLSX"), (Format::Xlsb, "XLSB"), (Format::Ods, "ODS"), (Format::Xls, "XLS")]
        {
            let refused = parse(b"PK\x03\x04 no zip".to_vec(), format).expect_err("damaged");
            assert!(refused.contains(&format!("its {name} content is damaged")), "{refused}");
        }
    }

    #[test]
    fn an_old_workbook_with_a_password_is_encrypted() {
        let mut bytes = vec![0; 512];
        bytes.extend([0x09, 0x08, 16, 0, 0, 6, 5, 0]);
        bytes.extend([0; 12]);
        bytes.extend([0x2f, 0, 6, 0, 0, 0]);
        bytes.resize(1024, 0);
        assert_eq!(parse(bytes, Format::Xls), Err(ENCRYPTED_WORKBOOK.to_owned()));
    }

    #[test]
    fn an_ods_with_a_password_is_encrypted() {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let manifest = "<manifest:manifest><manifest:file-entry><manifest:encryption-data/></manifest:file-entry>\
                        </manifest:manifest>";
        let mimetype = "application/vnd.oasis.opendocument.spreadsheet";
        for (name, content) in
            [("mimetype", mimetype), ("META-INF/manifest.xml", manifest), ("content.xml", "?")]
        {
            zip.start_file(name, SimpleFileOptions::default()).expect("starts");
            zip.write_all(content.as_bytes()).expect("writes");
        }
        let bytes = zip.finish().expect("finishes").into_inner();
        assert_eq!(parse(bytes, Format::Ods), Err(ENCRYPTED_WORKBOOK.to_owned()));
    }
}
