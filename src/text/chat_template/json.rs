//! The filter `tojson` as Python's `json.dumps(value, ensure_ascii=False, …)`, which is what templates were written for.

use std::io::{self, Write};

use minijinja::value::{Kwargs, Value as Jinja};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::Formatter;

/// Takes `indent`, `separators`, `sort_keys` and `ensure_ascii`.
pub(super) fn to_json(value: &Jinja, kwargs: Kwargs) -> Result<Jinja, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let sort_keys: Option<bool> = kwargs.get("sort_keys")?;
    let ensure_ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let failed = |err: serde_json::Error| Error::new(ErrorKind::BadSerialization, err.to_string());
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
        Some(_) => {
            return Err(Error::new(ErrorKind::InvalidOperation, "separators must be two texts"));
        }
    };
    let mut value = serde_json::to_value(value).map_err(failed)?;
    if sort_keys == Some(true) {
        value.sort_all_objects();
    }
    let python = Python {
        item,
        key,
        indent: indent.map(|blanks| blanks.min(16)),
        ascii: ensure_ascii == Some(true),
        depth: 0,
        empty: true,
    };
    let mut out = Vec::new();
    Value::serialize(&value, &mut serde_json::Serializer::with_formatter(&mut out, python))
        .map_err(failed)?;
    Ok(Jinja::from_safe_string(String::from_utf8_lossy(&out).into_owned()))
}

/// Python's layout: nothing between brackets that hold nothing, else an item a line where there is an indent.
struct Python {
    item: String,
    key: String,
    indent: Option<usize>,
    ascii: bool,
    depth: usize,
    /// The innermost array or object has no item yet.
    empty: bool,
}

impl Python {
    fn line<W: ?Sized + Write>(&self, writer: &mut W) -> io::Result<()> {
        match self.indent {
            Some(blanks) => write!(writer, "\n{}", " ".repeat(blanks * self.depth)),
            None => Ok(()),
        }
    }

    fn open<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.empty = true;
        writer.write_all(bracket)
    }

    fn close<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !std::mem::replace(&mut self.empty, false) {
            self.line(writer)?;
        }
        writer.write_all(bracket)
    }

    fn next<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.empty = false;
        if !first {
            writer.write_all(self.item.as_bytes())?;
        }
        self.line(writer)
    }
}

impl Formatter for Python {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if !self.ascii {
            return writer.write_all(fragment.as_bytes());
        }
        for c in fragment.chars() {
            if (' '..='~').contains(&c) {
                write!(writer, "{c}")?;
                continue;
            }
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::ChatTemplate;

    fn filtered(call: &str) -> String {
        let template = ChatTemplate::compile(&format!("{{{{ x | {call} }}}}"), None, None).expect("compiles");
        let serde_json::Value::Object(extra) = json!({"x": {"b": [1, "é🎉"], "a": {}, "c": []}}) else {
            panic!("an object")
        };
        template.render(&[], None, true, &extra).expect("renders")
    }

    #[test]
    fn the_arguments_do_what_pythons_do() {
        assert_eq!(filtered("tojson"), r#"{"b": [1, "é🎉"], "a": {}, "c": []}"#);
        assert_eq!(
            filtered("tojson(separators=(',', ':'), sort_keys=true)"),
            r#"{"a":{},"b":[1,"é🎉"],"c":[]}"#
        );
        assert_eq!(
            filtered("tojson(ensure_ascii=true)"),
            r#"{"b": [1, "\u00e9\ud83c\udf89"], "a": {}, "c": []}"#
        );
        assert_eq!(
            filtered("tojson(indent=2)"),
            "{\n  \"b\": [\n    1,\n    \"é🎉\"\n  ],\n  \"a\": {},\n  \"c\": []\n}"
        );
    }
}
