//! What a stream of server-sent events says, read from raw bytes as they come.
//!
//! No event is parsed as JSON while tokens come: of most lines only a key and the character after it
//! are looked at. Thousands of streams on one core would spend that on parsing.

use std::ops::AddAssign;

use memchr::memmem;
use serde::Deserialize;

/// What holds an answer's text: of chats, of plain completions, of thoughts, of calls of tools.
const TEXTS: [&[u8]; 5] =
    [b"\"content\"", b"\"text\"", b"\"reasoning_content\"", b"\"reasoning\"", b"\"arguments\""];
/// A line that is longer than this is no event of an engine's.
const MOST_LINE: usize = 1 << 20;
/// Of an error so much is kept.
const MOST_ERROR: usize = 500;

/// What some bytes said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Events with text in them.
    pub(crate) texts: u32,
    /// Whether the stream said that it is complete.
    pub(crate) is_done: bool,
}

impl AddAssign for Seen {
    fn add_assign(&mut self, other: Self) {
        self.texts += other.texts;
        self.is_done |= other.is_done;
    }
}

/// How many tokens there were, as a server counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Usage {
    /// Of the question.
    #[serde(default)]
    pub(crate) prompt_tokens: u32,
    /// Of the answer.
    #[serde(default)]
    pub(crate) completion_tokens: u32,
}

/// A stream, as far as it has come.
#[derive(Debug, Default)]
pub(crate) struct SseReader {
    /// A line whose end hasn't come.
    partial: Vec<u8>,
    /// The last event that had a usage.
    usage: Option<Vec<u8>>,
    error: Option<String>,
    /// Whether the event at hand is named an error.
    is_error_event: bool,
}

impl SseReader {
    /// Reads what came; a line may end in any later part.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) -> Seen {
        let mut seen = Seen::default();
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            seen += self.end_line(line);
            bytes = rest;
        }
        if self.partial.len() + bytes.len() <= MOST_LINE {
            self.partial.extend_from_slice(bytes);
        } else {
            self.error.get_or_insert_with(|| "a line is longer than 1 MiB".to_owned());
        }
        seen
    }

    /// What the stream said was wrong.
    pub(crate) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// How many tokens there were, where the stream said.
    pub(crate) fn usage(&self) -> Option<Usage> {
        #[derive(Deserialize)]
        struct Event {
            usage: Usage,
        }
        let event: Event = serde_json::from_slice(self.usage.as_deref()?).ok()?;
        Some(event.usage)
    }

    fn end_line(&mut self, end: &[u8]) -> Seen {
        if self.partial.is_empty() {
            return self.line(end);
        }
        let mut line = std::mem::take(&mut self.partial);
        line.extend_from_slice(end);
        let seen = self.line(&line);
        line.clear();
        self.partial = line;
        seen
    }

    fn line(&mut self, line: &[u8]) -> Seen {
        let line = line.trim_ascii_end();
        if let Some(data) = line.strip_prefix(b"data:") {
            return self.data(data.trim_ascii_start());
        }
        if let Some(event) = line.strip_prefix(b"event:") {
            self.is_error_event = event.trim_ascii() == b"error";
        } else if let Some(error) = line.strip_prefix(b"error:") {
            // llama-server before b3000 or so.
            self.fail(error);
        } else if line.is_empty() {
            self.is_error_event = false;
        }
        Seen::default()
    }

    fn data(&mut self, data: &[u8]) -> Seen {
        if data == b"[DONE]" {
            return Seen { texts: 0, is_done: true };
        }
        if self.is_error_event || is_error(data) {
            self.fail(data);
            return Seen::default();
        }
        let is_usage = |value: &[u8]| value.first() == Some(&b'{');
        if values(data, b"\"usage\"").any(is_usage) {
            self.usage = Some(data.to_vec());
        }
        let is_text = |value: &[u8]| {
            value.first() == Some(&b'"') && !matches!(value.get(1), None | Some(&b'"'))
        };
        let has_text = TEXTS.iter().any(|key| values(data, key).any(is_text));
        Seen { texts: u32::from(has_text), is_done: false }
    }

    fn fail(&mut self, said: &[u8]) {
        let said = String::from_utf8_lossy(said.trim_ascii());
        self.error.get_or_insert_with(|| said.chars().take(MOST_ERROR).collect());
    }
}

/// Whether an event is an error and nothing else.
fn is_error(data: &[u8]) -> bool {
    let first = data.strip_prefix(b"{").unwrap_or_default().trim_ascii_start();
    first.starts_with(b"\"error\"")
        || first
            .strip_prefix(b"\"object\"")
            .and_then(value)
            .is_some_and(|value| value.starts_with(b"\"error\""))
}

/// What follows each place where a key is. In a text its quotes are escaped, so that it isn't found there.
fn values<'a>(data: &'a [u8], key: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    memmem::find_iter(data, key).filter_map(move |at| value(&data[at + key.len()..]))
}

fn value(after_key: &[u8]) -> Option<&[u8]> {
    Some(after_key.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": hello\n\
        data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}],\"usage\":null}\n\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"a \\\"content\\\":\\\"\"}}]}\r\n\r\n\
        data: {\"choices\": [{\"delta\": {\"content\": null, \"reasoning_content\": \"hm\"}}]}\n\n\
        data: {\"choices\":[{\"text\":\"b\",\"logprobs\":null}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3,\"x\":1}}\n\n\
        data: [DONE]\n\n";

    #[test]
    fn a_stream_is_the_same_however_it_is_cut() {
        let bytes = STREAM.as_bytes();
        for cut in 0..=bytes.len() {
            let mut reader = SseReader::default();
            let mut seen = reader.feed(&bytes[..cut]);
            seen += reader.feed(&bytes[cut..]);
            assert_eq!(seen, Seen { texts: 3, is_done: true }, "cut at {cut}");
            let usage = Usage { prompt_tokens: 7, completion_tokens: 3 };
            assert_eq!((reader.usage(), reader.error()), (Some(usage), None), "cut at {cut}");
        }
        let mut reader = SseReader::default();
        let mut seen = Seen::default();
        bytes.iter().for_each(|byte| seen += reader.feed(&[*byte]));
        assert_eq!(seen, Seen { texts: 3, is_done: true });
    }

    #[test]
    fn events() {
        for (stream, texts, is_done, error) in [
            (
                "data: {\"error\":{\"message\":\"out of memory\"}}\n",
                0,
                false,
                Some("out of memory"),
            ),
            ("data:{ \"error\" : {\"code\":500}}\n", 0, false, Some("500")),
            ("data: {\"object\":\"error\",\"message\":\"m\"}\n", 0, false, Some("\"m\"")),
            ("error: {\"code\":500}\n", 0, false, Some("500")),
            ("event: error\ndata: {\"content\":\"x\"}\n\n", 0, false, Some("x")),
            ("event: error\n\ndata: {\"content\":\"x\"}\n\n", 1, false, None),
            ("data: {\"a\":{\"error\":\"no\"},\"content\":\"x\"}\n", 1, false, None),
            ("data: {\"content\":\"x\"}", 0, false, None),
            ("data: {\"logprobs\":{\"content\":[]}}\n", 0, false, None),
            ("data: {\"content\":\"\",\"text\":\"\"}\n", 0, false, None),
            ("data: {\"function\":{\"arguments\":\"{\"}}\n", 1, false, None),
            ("data: {\"content\":\n", 0, false, None),
            ("data: {\"content\":\"\n", 0, false, None),
            ("data:[DONE]\n", 0, true, None),
            ("[DONE]\n\u{0}\n", 0, false, None),
        ] {
            let mut reader = SseReader::default();
            assert_eq!(reader.feed(stream.as_bytes()), Seen { texts, is_done }, "{stream}");
            match (reader.error(), error) {
                (Some(got), Some(want)) => assert!(got.contains(want), "{stream}: {got}"),
                (got, want) => assert_eq!(got, want, "{stream}"),
            }
        }
    }

    #[test]
    fn an_endless_line_is_an_error_and_is_not_kept() {
        let mut reader = SseReader::default();
        for _ in 0..40 {
            reader.feed(&[b'x'; 1 << 16]);
        }
        assert!(reader.error().is_some() && reader.partial.len() <= MOST_LINE);
    }
}
