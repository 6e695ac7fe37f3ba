//! Pictures of noise, for models that look at some.
//!
//! A picture is an uncompressed BMP as a `data:` URL: nothing to encode, and every reader knows it. All
//! of a phase share their last part; the first pixels differ, so that no cache of pictures helps.

use bytes::Bytes;

/// What vision models are often shown.
pub const SIDE: u32 = 448;
/// Header and information of a BMP with 24 bits a pixel.
const HEADER: usize = 54;
/// Whole groups of base64, so that what follows may be encoded apart.
const FIRST: usize = 60;
const SCHEME: &str = "data:image/bmp;base64,";
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Pictures that differ in their first pixels only.
#[derive(Clone, Debug)]
pub struct Images {
    header: [u8; HEADER],
    rest: Bytes,
}

impl Images {
    /// Pictures of one noise.
    pub fn new(seed: u64) -> Self {
        let pixels = (SIDE * SIDE * 3) as usize;
        let mut noise = vec![0; HEADER + pixels - FIRST];
        fastrand::Rng::with_seed(seed).fill(&mut noise);
        Self { header: header(HEADER + pixels), rest: base64(&noise).into() }
    }

    /// One of them, in two parts of a URL.
    pub(crate) fn nth(&self, nth: u64) -> [Bytes; 2] {
        let mut first = [0; FIRST];
        first[..HEADER].copy_from_slice(&self.header);
        first[HEADER..].copy_from_slice(&nth.to_le_bytes()[..FIRST - HEADER]);
        [format!("{SCHEME}{}", base64(&first)).into(), self.rest.clone()]
    }

    /// One of them, as a URL.
    pub fn url(&self, nth: u64) -> String {
        String::from_utf8_lossy(&self.nth(nth).concat()).into_owned()
    }
}

/// A header as Windows 3.1 has it (BITMAPINFOHEADER).
fn header(bytes: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let mut put = |at: usize, part: &[u8]| header[at..at + part.len()].copy_from_slice(part);
    put(0, b"BM");
    put(2, &(bytes as u32).to_le_bytes());
    put(10, &(HEADER as u32).to_le_bytes());
    put(14, &40u32.to_le_bytes());
    put(18, &SIDE.to_le_bytes());
    put(22, &SIDE.to_le_bytes());
    put(26, &1u16.to_le_bytes());
    put(28, &24u16.to_le_bytes());
    put(34, &((bytes - HEADER) as u32).to_le_bytes());
    header
}

fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            match at <= group.len() {
                true => text.push(ALPHABET[(bits >> (18 - 6 * at)) as usize & 63] as char),
                false => text.push('='),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_in_rfc_4648() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn pictures_differ_and_are_of_one_size() {
        let images = Images::new(1);
        let (one, other) = (images.url(1), images.url(2));
        assert_ne!(one, other);
        assert_eq!((one.len(), &one), (other.len(), &Images::new(1).url(1)));
        assert!(one.starts_with("data:image/bmp;base64,Qk02"), "{}", &one[..40]);
        let bytes = HEADER + (SIDE * SIDE * 3) as usize;
        assert_eq!(one.len(), SCHEME.len() + bytes.div_ceil(3) * 4);
    }
}
