//! Values of GGUF metadata.

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum GgufValue {
    /// Any integer or bool.
    Int(i128),
    /// f32 or f64.
    Float(f64),
    /// UTF-8 text (damaged bytes replaced).
    Text(String),
    /// Values of one type.
    Array(Vec<GgufValue>),
}

impl GgufValue {
    pub(super) fn as_usize(&self) -> Option<usize> {
        match self {
            GgufValue::Int(n) => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    pub(super) fn as_f64(&self) -> Option<f64> {
        match self {
            GgufValue::Float(x) => Some(*x),
            GgufValue::Int(n) => Some(*n as f64),
            _ => None,
        }
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            GgufValue::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn as_array(&self) -> Option<&[GgufValue]> {
        match self {
            GgufValue::Array(all) => Some(all),
            _ => None,
        }
    }
}

/// Reads little-endian values from bytes that may lie about their lengths.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// What went wrong, in words.
pub(super) type Refusal = String;

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Refusal> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len());
        let end =
            end.ok_or_else(|| format!("the header ends early, at byte {}: the file is truncated", self.at))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Refusal> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Refusal> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn text(&mut self) -> Result<String, Refusal> {
        let len = usize::try_from(self.u64()?).map_err(|_| "a text is too long".to_owned())?;
        Ok(String::from_utf8_lossy(self.take(len)?).into_owned())
    }

    pub(super) fn value(&mut self, kind: u32, depth: usize) -> Result<GgufValue, Refusal> {
        Ok(match kind {
            0 | 7 => GgufValue::Int(i128::from(self.array::<1>()?[0])),
            1 => GgufValue::Int(i128::from(i8::from_le_bytes(self.array()?))),
            2 => GgufValue::Int(i128::from(u16::from_le_bytes(self.array()?))),
            3 => GgufValue::Int(i128::from(i16::from_le_bytes(self.array()?))),
            4 => GgufValue::Int(i128::from(self.u32()?)),
            5 => GgufValue::Int(i128::from(i32::from_le_bytes(self.array()?))),
            6 => GgufValue::Float(f64::from(f32::from_le_bytes(self.array()?))),
            8 => GgufValue::Text(self.text()?),
            9 => {
                let inner = self.u32()?;
                let len = self.u64()?;
                // Every value takes at least a byte, which bounds what a lying length can allocate.
                if depth > 3 || len > (self.bytes.len() - self.at) as u64 {
                    return Err(format!("an array of {len} values does not fit the file"));
                }
                let mut all = Vec::new();
                for _ in 0..len {
                    all.push(self.value(inner, depth + 1)?);
                }
                GgufValue::Array(all)
            }
            10 => GgufValue::Int(i128::from(self.u64()?)),
            11 => GgufValue::Int(i128::from(i64::from_le_bytes(self.array()?))),
            12 => GgufValue::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("metadata has a value of unknown type {other}")),
        })
    }
}
