//! The chunked transfer coding (RFC 9112, section 7.1), undone.

use std::io;

use bytes::{Buf as _, BytesMut};

/// How far a chunked body was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chunked {
    /// At a chunk's size.
    Size,
    /// So many bytes are left of a chunk, and the end of its line.
    Data(u64),
    /// At the end of a chunk's line.
    DataEnd,
    /// Among the lines after the last chunk.
    Trailer,
    /// At the end.
    Done,
}

/// Longer lines are not part of any coding that an engine makes.
const MOST_LINE: usize = 4096;

impl Chunked {
    /// Moves the data of what was read to `out`; what isn't complete yet stays.
    ///
    /// # Errors
    /// Where it is no chunked body.
    pub(crate) fn decode(&mut self, read: &mut BytesMut, out: &mut BytesMut) -> io::Result<()> {
        loop {
            match *self {
                Self::Done => return Ok(()),
                Self::Data(left) => {
                    let here = usize::try_from(left).unwrap_or(usize::MAX).min(read.len());
                    out.extend_from_slice(&read[..here]);
                    read.advance(here);
                    *self = match left - here as u64 {
                        0 => Self::DataEnd,
                        left => {
                            *self = Self::Data(left);
                            return Ok(());
                        }
                    };
                }
                Self::Size | Self::DataEnd | Self::Trailer => {
                    let Some(end) = memchr::memchr(b'\n', read) else {
                        return if read.len() > MOST_LINE { Err(invalid()) } else { Ok(()) };
                    };
                    let line = read[..end].strip_suffix(b"\r").unwrap_or(&read[..end]);
                    *self = match *self {
                        Self::DataEnd if line.is_empty() => Self::Size,
                        Self::DataEnd => return Err(invalid()),
                        Self::Trailer if line.is_empty() => Self::Done,
                        Self::Trailer => Self::Trailer,
                        _ => match size(line).ok_or_else(invalid)? {
                            0 => Self::Trailer,
                            size => Self::Data(size),
                        },
                    };
                    read.advance(end + 1);
                }
            }
        }
    }
}

/// A chunk's size; what follows a semicolon is none of ours.
fn size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| *byte == b';').next()?.trim_ascii();
    if digits.is_empty() || digits.len() > 15 {
        return None;
    }
    digits.iter().try_fold(0, |size, digit| {
        let value = char::from(*digit).to_digit(16)?;
        Some(size * 16 + u64::from(value))
    })
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the engine's chunks are broken")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes out, however it is cut, and where it stands then.
    fn check(wire: &str, expected: Option<(&str, Chunked)>) {
        for cut in 0..=wire.len() {
            let (mut read, mut out, mut state) = (BytesMut::new(), BytesMut::new(), Chunked::Size);
            let decoded = [&wire[..cut], &wire[cut..]].into_iter().try_for_each(|part| {
                read.extend_from_slice(part.as_bytes());
                state.decode(&mut read, &mut out)
            });
            let found = decoded.ok().map(|()| (String::from_utf8_lossy(&out).into_owned(), state));
            let expected = expected.map(|(text, state)| (text.to_owned(), state));
            assert_eq!(found, expected, "{wire:?} cut at {cut}");
        }
    }

    #[test]
    fn chunks_come_out_together() {
        let rows = [
            ("3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", Some(("abcde", Chunked::Done))),
            ("A\r\n0123456789\r\n0\r\nx: y\r\n\r\n", Some(("0123456789", Chunked::Done))),
            ("3\nabc\n0\n\n", Some(("abc", Chunked::Done))),
            ("3\r\nab", Some(("ab", Chunked::Data(1)))),
            ("3\r\nabcd\r\n", None),
            ("x\r\n", None),
            ("\r\n", None),
            ("-1\r\n", None),
            ("ffffffffffffffff\r\n", None),
        ];
        for (wire, expected) in rows {
            check(wire, expected);
        }
    }
}
