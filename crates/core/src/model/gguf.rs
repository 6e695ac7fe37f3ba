//! The header of a GGUF file, from bytes that may be hostile.
//!
//! [`parse`] reads a prefix of the file and never allocates more than the prefix could describe:
//! counts are checked against the bytes that are left before anything is reserved, and arrays that
//! nobody needs (the vocabulary) are skipped, only their lengths are kept. It enforces what
//! llama.cpp enforces (`ggml/src/gguf.cpp`): known types, no name twice, tensors back to back.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, versions 2 and 3.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use super::GgmlType;

const MAGIC: &[u8; 4] = b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
/// Integer arrays up to this length are kept (a value for every layer); longer ones are skipped.
const MAX_KEPT_ARRAY: u64 = 4096;
/// Strings up to this length are kept; longer ones (chat templates) only by their length.
const MAX_KEPT_STRING: u64 = 1024;
const MAX_NAME: u64 = 65_535;
const MAX_DIMS: u32 = 4;
/// Tensors, and entries of metadata: far beyond every model there is.
const MAX_COUNT: u64 = 1 << 16;

/// Why a file is not a GGUF file that can be planned for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GgufError {
    /// The prefix ends inside the header: read more of the file and parse again.
    #[error("the header goes on after the first {have} bytes")]
    NeedMore {
        /// Bytes that were there.
        have: u64,
    },
    /// The file itself ends inside the header.
    #[error("the file ends at byte {len}, inside its header: it is truncated; fetch it again")]
    Truncated {
        /// The file's length in bytes.
        len: u64,
    },
    /// No header is this long.
    #[error("the header goes on beyond {limit} bytes: it is corrupt")]
    TooLong {
        /// The most that is read.
        limit: u64,
    },
    /// Tensor data lies beyond the end of the file.
    #[error(
        "the data of tensor `{tensor}` ends at byte {end}, but the file has {len} bytes: \
         it is truncated; fetch it again"
    )]
    DataTruncated {
        /// The first tensor that is cut off.
        tensor: String,
        /// Where its data would end.
        end: u64,
        /// The file's length.
        len: u64,
    },
    /// Not a GGUF file at all.
    #[error("this is not a GGUF file: it starts with {found:?}, not \"GGUF\"")]
    BadMagic {
        /// The first four bytes, as text.
        found: String,
    },
    /// A version this reader doesn't know.
    #[error("GGUF version {0} is not supported: versions 2 and 3 are; convert the model again")]
    UnsupportedVersion(u32),
    /// Something in the header can't be.
    #[error("corrupt GGUF header at byte {offset}: {what}")]
    Corrupt {
        /// Where, from the start of the file.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
}

/// One tensor of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorInfo {
    /// Its name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Its shape, innermost dimension first (GGML's `ne`).
    pub dims: Vec<u64>,
    /// Its element type.
    pub ty: GgmlType,
    /// Bytes from the start of the data section.
    pub offset: u64,
    /// Bytes of its data.
    pub bytes: u64,
}

impl TensorInfo {
    /// GGML's `ne[i]`: dimensions that are not written are 1.
    pub fn ne(&self, i: usize) -> u64 {
        self.dims.get(i).copied().unwrap_or(1)
    }
}

/// A value of the header's metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned or non-negative integer.
    Int(u64),
    /// A negative integer.
    Negative(i64),
    /// A floating-point number.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A short text.
    Text(String),
    /// A text too long to be kept, by its length in bytes.
    LongText(u64),
    /// A short array of integers or truth values (as 0 and 1).
    Ints(Vec<u64>),
    /// An array of texts, by its length and by how many of them have more than
    /// [`SHORT_TEXT`] bytes.
    Texts {
        /// How many there are.
        len: u64,
        /// How many of them are long.
        long: u64,
    },
    /// Any other array, by its length.
    Array(u64),
}

/// Texts up to this length fit into a C++ string without an allocation of their own.
pub const SHORT_TEXT: u64 = 15;

/// What a header says: metadata and tensors.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gguf {
    /// Metadata by key.
    pub metadata: BTreeMap<String, Value>,
    /// Tensors in the order of the file.
    pub tensors: Vec<TensorInfo>,
    /// Where the data section starts, from the start of the file.
    pub data_offset: u64,
    /// The length of the whole file.
    pub file_len: u64,
}

impl Gguf {
    /// An integer of the metadata.
    pub fn int(&self, key: &str) -> Option<u64> {
        match self.metadata.get(key)? {
            Value::Int(n) => Some(*n),
            _ => None,
        }
    }

    /// A text of the metadata.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The length of an array of the metadata.
    pub fn array_len(&self, key: &str) -> Option<u64> {
        match self.metadata.get(key)? {
            Value::Array(len) | Value::Texts { len, .. } => Some(*len),
            Value::Ints(ints) => Some(ints.len() as u64),
            _ => None,
        }
    }

    /// The tensor with this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

/// Reads the header from `prefix`, the first bytes of a file of `file_len` bytes.
///
/// # Errors
/// [`GgufError::NeedMore`] where the prefix is too short although the file isn't; the other
/// variants say what is wrong with the file.
pub fn parse(prefix: &[u8], file_len: u64) -> Result<Gguf, GgufError> {
    let mut cursor = Cursor { bytes: prefix, at: 0, file_len };
    let magic = cursor.take(4)?;
    if magic != MAGIC {
        return Err(GgufError::BadMagic { found: String::from_utf8_lossy(magic).into_owned() });
    }
    match cursor.u32()? {
        2 | 3 => {}
        version => return Err(GgufError::UnsupportedVersion(version)),
    }
    let tensor_count = cursor.u64()?;
    let metadata_count = cursor.u64()?;
    for (count, what) in [(tensor_count, "tensors"), (metadata_count, "metadata entries")] {
        if count > MAX_COUNT {
            return Err(cursor.corrupt(format!("{count} {what} are beyond anything sensible")));
        }
    }
    cursor.check_count(metadata_count, 13, "metadata entries")?;
    let metadata = read_metadata(&mut cursor, metadata_count)?;

    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(Value::Int(n)) if n.is_power_of_two() && *n <= 1 << 20 => *n,
        Some(_) => return Err(cursor.corrupt("general.alignment is not a power of two")),
    };
    cursor.check_count(tensor_count, 24, "tensors")?;
    let tensors = read_tensors(&mut cursor, tensor_count, alignment)?;
    let data_offset = (cursor.at as u64).next_multiple_of(alignment);
    check_data(&tensors, data_offset, file_len)?;
    Ok(Gguf { metadata, tensors, data_offset, file_len })
}

fn read_metadata(
    cursor: &mut Cursor<'_>,
    count: u64,
) -> Result<BTreeMap<String, Value>, GgufError> {
    let mut metadata = BTreeMap::new();
    for _ in 0..count {
        let key = cursor.name()?;
        let ty = cursor.u32()?;
        let value = cursor.value(ty)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(cursor.corrupt(format!("metadata key `{key}` is there twice")));
        }
    }
    Ok(metadata)
}

fn read_tensors(
    cursor: &mut Cursor<'_>,
    count: u64,
    alignment: u64,
) -> Result<Vec<TensorInfo>, GgufError> {
    let mut tensors: Vec<TensorInfo> = Vec::new();
    let mut names = HashSet::new();
    let mut expected_offset = 0_u64;
    for _ in 0..count {
        let tensor = read_tensor(cursor)?;
        if !names.insert(tensor.name.clone()) {
            return Err(cursor.corrupt(format!("tensor `{}` is there twice", tensor.name)));
        }
        if tensor.offset != expected_offset {
            return Err(cursor.corrupt(format!(
                "tensor `{}` is at offset {}, but the one before it ends at {expected_offset}",
                tensor.name, tensor.offset
            )));
        }
        expected_offset = (tensor.offset.checked_add(tensor.bytes))
            .and_then(|end| end.checked_next_multiple_of(alignment))
            .ok_or_else(|| cursor.corrupt(format!("tensor `{}` is too large", tensor.name)))?;
        tensors.push(tensor);
    }
    Ok(tensors)
}

fn read_tensor(cursor: &mut Cursor<'_>) -> Result<TensorInfo, GgufError> {
    let name = cursor.name()?;
    let n_dims = cursor.u32()?;
    if n_dims > MAX_DIMS {
        return Err(cursor.corrupt(format!("tensor `{name}` has {n_dims} dimensions")));
    }
    let dims = (0..n_dims).map(|_| cursor.u64()).collect::<Result<Vec<_>, _>>()?;
    let id = cursor.u32()?;
    let ty = GgmlType::from_id(id)
        .ok_or_else(|| cursor.corrupt(format!("tensor `{name}` has unknown type {id}")))?;
    let offset = cursor.u64()?;
    let row = dims.first().copied().unwrap_or(1);
    if !row.is_multiple_of(ty.block) {
        return Err(cursor.corrupt(format!(
            "tensor `{name}` has rows of {row} elements, not a multiple of {} as {} needs",
            ty.block,
            ty.name()
        )));
    }
    let bytes = dims
        .iter()
        .skip(1)
        .try_fold(ty.row_bytes(row).unwrap_or(u64::MAX), |bytes, dim| bytes.checked_mul(*dim))
        .ok_or_else(|| cursor.corrupt(format!("tensor `{name}` is too large")))?;
    Ok(TensorInfo { name, dims, ty, offset, bytes })
}

fn check_data(tensors: &[TensorInfo], data_offset: u64, file_len: u64) -> Result<(), GgufError> {
    for tensor in tensors {
        let end = data_offset.saturating_add(tensor.offset).saturating_add(tensor.bytes);
        if end > file_len {
            return Err(GgufError::DataTruncated {
                tensor: tensor.name.clone(),
                end,
                len: file_len,
            });
        }
    }
    Ok(())
}

/// A reader over the prefix that knows whether its end is the file's end.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    file_len: u64,
}

impl<'a> Cursor<'a> {
    fn corrupt(&self, what: impl Into<String>) -> GgufError {
        GgufError::Corrupt { offset: self.at as u64, what: what.into() }
    }

    fn ended(&self) -> GgufError {
        let have = self.bytes.len() as u64;
        match have < self.file_len {
            true => GgufError::NeedMore { have },
            false => GgufError::Truncated { len: self.file_len },
        }
    }

    /// Refuses a count that could not fit in the rest of the *file*, at `least` bytes each.
    fn check_count(&self, count: u64, least: u64, what: &str) -> Result<(), GgufError> {
        let left = self.file_len.saturating_sub(self.at as u64);
        match count.checked_mul(least) {
            Some(bytes) if bytes <= left => Ok(()),
            _ => Err(self.corrupt(format!("{count} {what} can't fit in the {left} bytes left"))),
        }
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8], GgufError> {
        let n = usize::try_from(n).map_err(|_| self.ended())?;
        let end = self.at.checked_add(n).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| self.ended())?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn name(&mut self) -> Result<String, GgufError> {
        let len = self.u64()?;
        if len > MAX_NAME {
            return Err(self.corrupt(format!("a name of {len} bytes")));
        }
        let bytes = self.take(len)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.corrupt("a name that is not UTF-8")),
        }
    }

    /// Skips a string's bytes and says how many they were.
    fn skip_string(&mut self) -> Result<u64, GgufError> {
        let len = self.u64()?;
        self.check_count(len, 1, "bytes of a string")?;
        self.take(len)?;
        Ok(len)
    }

    fn text(&mut self) -> Result<Value, GgufError> {
        let len = self.u64()?;
        self.check_count(len, 1, "bytes of a string")?;
        let bytes = self.take(len)?;
        Ok(match std::str::from_utf8(bytes) {
            Ok(text) if len <= MAX_KEPT_STRING => Value::Text(text.to_owned()),
            _ => Value::LongText(len),
        })
    }

    fn value(&mut self, ty: u32) -> Result<Value, GgufError> {
        match ty {
            8 => self.text(),
            9 => self.array_value(),
            _ => self.scalar(ty),
        }
    }

    fn scalar(&mut self, ty: u32) -> Result<Value, GgufError> {
        let signed = |n: i64| u64::try_from(n).map_or(Value::Negative(n), Value::Int);
        Ok(match ty {
            0 => Value::Int(u64::from(self.array::<1>()?[0])),
            1 => signed(i64::from(i8::from_le_bytes(self.array()?))),
            2 => Value::Int(u64::from(u16::from_le_bytes(self.array()?))),
            3 => signed(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Value::Int(u64::from(self.u32()?)),
            5 => signed(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            10 => Value::Int(self.u64()?),
            11 => signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(self.corrupt(format!("unknown metadata type {ty}"))),
        })
    }

    fn array_value(&mut self) -> Result<Value, GgufError> {
        let ty = self.u32()?;
        let len = self.u64()?;
        if ty == 8 {
            self.check_count(len, 8, "strings")?;
            let mut long = 0;
            for _ in 0..len {
                long += u64::from(self.skip_string()? > SHORT_TEXT);
            }
            return Ok(Value::Texts { len, long });
        }
        let width = scalar_width(ty)
            .ok_or_else(|| self.corrupt(format!("an array of unknown metadata type {ty}")))?;
        self.check_count(len, width, "array elements")?;
        if len > MAX_KEPT_ARRAY || matches!(ty, 6 | 12) {
            self.take(len.saturating_mul(width))?;
            return Ok(Value::Array(len));
        }
        let mut ints = Vec::new();
        for _ in 0..len {
            match self.scalar(ty)? {
                Value::Int(n) => ints.push(n),
                Value::Bool(flag) => ints.push(u64::from(flag)),
                _ => {}
            }
        }
        if ints.len() as u64 != len {
            return Ok(Value::Array(len));
        }
        Ok(Value::Ints(ints))
    }
}

fn scalar_width(ty: u32) -> Option<u64> {
    match ty {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
