//! Headers that are right, cut off, and hostile.

use super::*;

/// A small header, written as the format says.
struct Header {
    bytes: Vec<u8>,
}

impl Header {
    fn new(version: u32, tensors: u64, metadata: u64) -> Self {
        let mut header = Self { bytes: b"GGUF".to_vec() };
        header.u32(version).u64(tensors).u64(metadata);
        header
    }

    fn u32(&mut self, n: u32) -> &mut Self {
        self.bytes.extend(n.to_le_bytes());
        self
    }

    fn u64(&mut self, n: u64) -> &mut Self {
        self.bytes.extend(n.to_le_bytes());
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.u64(text.len() as u64);
        self.bytes.extend(text.as_bytes());
        self
    }

    fn int(&mut self, key: &str, n: u32) -> &mut Self {
        self.text(key).u32(4).u32(n)
    }

    fn tensor(&mut self, name: &str, dims: &[u64], ty: u32, offset: u64) -> &mut Self {
        self.text(name).u32(dims.len() as u32);
        for dim in dims {
            self.u64(*dim);
        }
        self.u32(ty).u64(offset)
    }

    /// The header, padded, and `data` bytes after it.
    fn file(&self, data: usize) -> Vec<u8> {
        let mut file = self.bytes.clone();
        file.resize(file.len().next_multiple_of(32) + data, 0);
        file
    }
}

/// Two tensors of 64 and 36 bytes, a text, an array of texts and one of numbers.
fn good() -> Vec<u8> {
    let mut header = Header::new(3, 2, 4);
    header.text("general.architecture").u32(8).text("llama");
    header.int("llama.block_count", 1);
    header.text("tokenizer.ggml.tokens").u32(9).u32(8).u64(2).text("a").text("sixteen letters!");
    header.text("llama.heads").u32(9).u32(4).u64(2).u32(8).u32(4);
    header.tensor("token_embd.weight", &[8, 2], 0, 0);
    header.tensor("output.weight", &[32, 2], 2, 64);
    header.file(64 + 36)
}

fn parse_whole(file: &[u8]) -> Result<Gguf, GgufError> {
    parse(file, file.len() as u64)
}

#[test]
fn reads_metadata_and_tensors() {
    let gguf = parse_whole(&good()).unwrap();
    assert_eq!(gguf.text("general.architecture"), Some("llama"));
    assert_eq!(gguf.int("llama.block_count"), Some(1));
    assert_eq!(gguf.metadata["tokenizer.ggml.tokens"], Value::Texts { len: 2, long: 1 });
    assert_eq!(gguf.metadata["llama.heads"], Value::Ints(vec![8, 4]));
    let output = gguf.tensor("output.weight").unwrap();
    assert_eq!((output.bytes, output.offset, output.ty.name()), (36, 64, "q4_0"));
}

#[test]
fn a_prefix_asks_for_more_and_a_short_file_is_truncated() {
    let file = good();
    let header_len = file.len() - 100 - 31;
    for len in 0..header_len {
        let prefix = &file[..len];
        match parse(prefix, file.len() as u64) {
            Err(GgufError::NeedMore { have }) => assert_eq!(have, len as u64),
            other => panic!("{len} bytes gave {other:?}"),
        }
        match parse_whole(prefix) {
            Err(GgufError::Truncated { .. } | GgufError::Corrupt { .. }) => {}
            other => panic!("a file of {len} bytes gave {other:?}"),
        }
    }
    let cut = parse_whole(&file[..file.len() - 1]);
    assert!(
        matches!(cut, Err(GgufError::DataTruncated { tensor, .. }) if tensor == "output.weight")
    );
}

#[test]
fn hostile_headers_are_refused() {
    let mut overlap = Header::new(3, 2, 0);
    overlap.tensor("a", &[8, 2], 0, 0).tensor("b", &[8, 2], 0, 32);
    let mut twice = Header::new(3, 2, 0);
    twice.tensor("a", &[8, 2], 0, 0).tensor("a", &[8, 2], 0, 64);
    let mut key_twice = Header::new(3, 0, 2);
    key_twice.int("a", 1).int("a", 2);
    let mut huge_text = Header::new(3, 0, 1);
    huge_text.text("a").u32(8).u64(u64::MAX);
    let mut huge_array = Header::new(3, 0, 1);
    huge_array.text("a").u32(9).u32(4).u64(u64::MAX);
    let mut huge_name = Header::new(3, 0, 1);
    huge_name.u64(1 << 40);
    let mut nested = Header::new(3, 0, 1);
    nested.text("a").u32(9).u32(9).u64(1).u32(9).u64(1);
    let mut huge_tensor = Header::new(3, 1, 0);
    huge_tensor.tensor("a", &[1 << 40, 1 << 40], 0, 0);
    let mut ragged = Header::new(3, 1, 0);
    ragged.tensor("a", &[33], 2, 0);
    let mut unknown_type = Header::new(3, 1, 0);
    unknown_type.tensor("a", &[32], 99, 0);
    let mut alignment = Header::new(3, 0, 1);
    alignment.int("general.alignment", 0);
    for (header, expected) in [
        (Header::new(3, u64::MAX, 0), "tensors are beyond anything sensible"),
        (Header::new(3, 60_000, 0), "tensors can't fit"),
        (Header::new(3, 0, u64::MAX), "metadata entries are beyond"),
        (Header::new(3, 0, 60_000), "metadata entries can't fit"),
        (Header::new(1, 0, 0), "version 1 is not supported"),
        (overlap, "tensor `b` is at offset 32, but the one before it ends at 64"),
        (twice, "tensor `a` is there twice"),
        (key_twice, "metadata key `a` is there twice"),
        (huge_text, "bytes of a string can't fit"),
        (huge_array, "array elements can't fit"),
        (huge_name, "a name of 1099511627776 bytes"),
        (nested, "an array of unknown metadata type 9"),
        (huge_tensor, "too large"),
        (ragged, "rows of 33 elements, not a multiple of 32"),
        (unknown_type, "unknown type 99"),
        (alignment, "general.alignment is not a power of two"),
    ] {
        let error = parse_whole(&header.file(256)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
    let not_gguf = parse_whole(b"PK\x03\x04 a zip file").unwrap_err().to_string();
    assert!(not_gguf.contains("not a GGUF file"), "{not_gguf}");
}

/// Any change of any byte gives a header or an error, and never a panic.
#[test]
fn damaged_headers_never_panic() {
    let file = good();
    for at in 0..file.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut damaged = file.clone();
            damaged[at] = value;
            drop(parse_whole(&damaged));
        }
    }
    // And many changes at once, from a seed.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..100_000 {
        let mut damaged = file.clone();
        for _ in 0..next() % 8 {
            let at = (next() % file.len() as u64) as usize;
            damaged[at] = next() as u8;
        }
        damaged.truncate((next() % (file.len() as u64 + 1)) as usize);
        if let Ok(gguf) = parse_whole(&damaged) {
            drop(crate::model::ModelFacts::from_gguf(gguf));
        }
    }
}
