//! What routing needs of a body, without building a document of it.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

use crate::GatewayError;

/// What routing needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peeked<'a> {
    /// The model's name.
    pub(crate) model: Cow<'a, str>,
    /// Where it stands, quotes included.
    model_at: Range<usize>,
    /// Where the prompt stands, whatever form it has.
    prompt_at: Range<usize>,
    /// The most tokens that the answer may have, where that is said.
    pub(crate) max_tokens: Option<u64>,
    /// Whether the name stands there plainly, and not as JSON.
    is_form: bool,
}

/// Some four bytes of a prompt are a token; of an answer that isn't bounded so many are expected.
const BYTES_PER_TOKEN: u64 = 4;
const ANSWER_TOKENS: u64 = 256;
/// Deeper bodies are refused: no request is, and engines refuse them too.
const DEEPEST: u32 = 127;

impl Peeked<'_> {
    /// Tokens of prompt and answer together, as far as they can be told without a tokenizer.
    pub(crate) fn tokens(&self) -> u64 {
        let prompt = self.prompt_at.len() as u64 / BYTES_PER_TOKEN;
        prompt.saturating_add(self.max_tokens.unwrap_or(ANSWER_TOKENS)).max(1)
    }

    /// The prompt, as it stands in the body.
    pub(crate) fn prompt<'b>(&self, body: &'b [u8]) -> &'b [u8] {
        &body[self.prompt_at.clone()]
    }

    /// The body with another name as its model; all else stays byte for byte.
    pub(crate) fn renamed(&self, body: &[u8], name: &str) -> Bytes {
        let name = match self.is_form {
            true => name.to_owned(),
            false => serde_json::Value::from(name).to_string(),
        };
        let parts = [&body[..self.model_at.start], name.as_bytes(), &body[self.model_at.end..]];
        Bytes::from(parts.concat())
    }
}

/// Looks at the fields of a JSON object. What is inside of them is only passed over: the engine reads it.
///
/// # Errors
/// Where it isn't an object, doesn't end, or hasn't one model.
pub(crate) fn peek(body: &[u8]) -> Result<Peeked<'_>, GatewayError> {
    let mut scan = Scan { body, at: 0 };
    let mut found: Option<Peeked<'_>> = None;
    let (mut prompt_at, mut max_tokens) = (0..0, None);
    scan.space();
    scan.expect(b'{', "it is not an object")?;
    scan.space();
    if scan.peek() == Some(b'}') {
        scan.at += 1;
    } else {
        loop {
            scan.space();
            let key = scan.string()?;
            scan.space();
            scan.expect(b':', "a field has no value")?;
            scan.space();
            let value = scan.value()?;
            match &*text(&body[key])? {
                "model" if found.is_some() => return Err(bad("`model` is given twice")),
                "model" => {
                    let raw = &body[value.clone()];
                    let model = match raw {
                        b"null" => Cow::Borrowed(""),
                        raw if raw.first() == Some(&b'"') => text(raw)?,
                        _ => return Err(bad("`model` is not a text")),
                    };
                    found = Some(Peeked { model, model_at: value, ..Peeked::default() });
                }
                "messages" | "prompt" | "input" | "query" | "contents" => prompt_at = value,
                "max_tokens" | "max_completion_tokens" | "max_output_tokens" => {
                    max_tokens =
                        std::str::from_utf8(&body[value]).ok().and_then(|text| text.parse().ok());
                }
                _ => {}
            }
            scan.space();
            match scan.next() {
                Some(b',') => {}
                Some(b'}') => break,
                _ => return Err(bad("it does not end")),
            }
        }
    }
    scan.space();
    if scan.at < body.len() {
        return Err(bad("something follows its end"));
    }
    let found = found.filter(|found| !found.model.is_empty()).ok_or(GatewayError::NoModel)?;
    Ok(Peeked { prompt_at, max_tokens, ..found })
}

/// What a form with files (RFC 7578) says: the field `model`, wherever it stands.
///
/// # Errors
/// Where it has none, or two.
pub(crate) fn form(body: &[u8]) -> Result<Peeked<'_>, GatewayError> {
    const FIELD: &[u8] = b"name=\"model\"";
    const HEAD_END: &[u8] = b"\r\n\r\n";
    let mut found = memchr::memmem::find_iter(body, FIELD);
    let at = found.next().ok_or(GatewayError::NoModel)? + FIELD.len();
    if found.next().is_some() {
        return Err(bad("`model` is given twice"));
    }
    let head = memchr::memmem::find(&body[at..], HEAD_END).ok_or(GatewayError::NoModel)?;
    let start = at + head + HEAD_END.len();
    let end = memchr::memmem::find(&body[start..], b"\r\n").ok_or(GatewayError::NoModel)? + start;
    let model = std::str::from_utf8(&body[start..end]).map_err(|_| bad("`model` is not UTF-8"))?;
    if model.is_empty() {
        return Err(GatewayError::NoModel);
    }
    let model = Cow::Borrowed(model);
    Ok(Peeked { model, model_at: start..end, prompt_at: 0..0, max_tokens: None, is_form: true })
}

fn bad(why: &str) -> GatewayError {
    GatewayError::BadJson(why.to_owned())
}

/// A string with its quotes, read.
fn text(raw: &[u8]) -> Result<Cow<'_, str>, GatewayError> {
    let inner = &raw[1..raw.len() - 1];
    if memchr::memchr(b'\\', inner).is_none() {
        return std::str::from_utf8(inner)
            .map(Cow::Borrowed)
            .map_err(|_| bad("a text is not UTF-8"));
    }
    let text: String = serde_json::from_slice(raw).map_err(|error| bad(&error.to_string()))?;
    Ok(Cow::Owned(text))
}

struct Scan<'a> {
    body: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn peek(&self) -> Option<u8> {
        self.body.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8, why: &str) -> Result<(), GatewayError> {
        if self.next() == Some(byte) { Ok(()) } else { Err(bad(why)) }
    }

    /// A string, quotes included.
    fn string(&mut self) -> Result<Range<usize>, GatewayError> {
        let start = self.at;
        self.expect(b'"', "a field has no name")?;
        self.string_end()?;
        Ok(start..self.at)
    }

    /// To the end of a string whose first quote was read.
    fn string_end(&mut self) -> Result<(), GatewayError> {
        loop {
            let rest = &self.body[self.at.min(self.body.len())..];
            let Some(found) = memchr::memchr2(b'"', b'\\', rest) else {
                return Err(bad("a text does not end"));
            };
            let is_end = rest[found] == b'"';
            // What follows a backslash is no end.
            self.at += found + if is_end { 1 } else { 2 };
            if is_end {
                return Ok(());
            }
        }
    }

    /// A value of any kind.
    fn value(&mut self) -> Result<Range<usize>, GatewayError> {
        let start = self.at;
        match self.peek() {
            Some(b'"') => _ = self.string()?,
            Some(b'{' | b'[') => self.nested()?,
            _ => {
                let ends = |byte: &u8| {
                    matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r' | b':' | b'"')
                };
                let rest = &self.body[start..];
                self.at += rest.iter().position(ends).unwrap_or(rest.len());
                let scalar = &self.body[start..self.at];
                serde_json::from_slice::<serde::de::IgnoredAny>(scalar)
                    .map_err(|error| bad(&format!("a value is none: {error}")))?;
            }
        }
        Ok(start..self.at)
    }

    /// An object or an array, with all that is in it. Which of the two each level is, is a bit of `kinds`.
    fn nested(&mut self) -> Result<(), GatewayError> {
        let (mut depth, mut kinds) = (0_u32, 0_u128);
        while let Some(byte) = self.next() {
            match byte {
                b'"' => self.string_end()?,
                b'{' | b'[' => {
                    if depth == DEEPEST {
                        return Err(bad("it is nested too deeply"));
                    }
                    depth += 1;
                    kinds = kinds << 1 | u128::from(byte == b'{');
                }
                b'}' | b']' => {
                    if (kinds & 1 == 1) != (byte == b'}') {
                        return Err(bad("its brackets don't match"));
                    }
                    depth -= 1;
                    kinds >>= 1;
                    if depth == 0 {
                        return Ok(());
                    }
                }
                _ => {}
            }
        }
        Err(bad("it does not end"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn finds_the_model_wherever_it_stands() {
        for (body, expected) in [
            (r#"{"model":"tiny"}"#, Ok("tiny")),
            (r#"{"messages":[{"model":"no"}],"x":{"model":1},"model":"tiny"}"#, Ok("tiny")),
            (r#"{"x":"\"model\":\"no\"","model":"tiny"}"#, Ok("tiny")),
            (r#"{"x":"\\","model":"tiny"}"#, Ok("tiny")),
            (r#"{"model":"t\u0069ny"}"#, Ok("tiny")),
            (r#"{"mo\u0064el":"tiny"}"#, Ok("tiny")),
            (r#"{"model":""}"#, Err("model_missing")),
            (r#"{"messages":[]}"#, Err("model_missing")),
            ("{}", Err("model_missing")),
            (r#"{"model":null}"#, Err("model_missing")),
            (r#"{"model":7}"#, Err("invalid_json")),
            (r#"{"model":["a"]}"#, Err("invalid_json")),
            (r#"{"model":"a","model":"b"}"#, Err("invalid_json")),
            (r#"{"model":"a","mode\u006c":"b"}"#, Err("invalid_json")),
            (r#"{"model":"tiny""#, Err("invalid_json")),
            (r#"{"model":"tiny\"#, Err("invalid_json")),
            (r#"{"model":"tiny"} x"#, Err("invalid_json")),
            (r#"{"model":"tiny","x":[}"#, Err("invalid_json")),
            (r#"{"x":tru,"model":"tiny"}"#, Err("invalid_json")),
            (r#"{"model":"tiny",}"#, Err("invalid_json")),
            (r#"["model"]"#, Err("invalid_json")),
            ("", Err("invalid_json")),
        ] {
            let found = peek(body.as_bytes());
            let found = found.as_ref().map(|found| &*found.model).map_err(GatewayError::code);
            assert_eq!(found, expected, "{body}");
        }
    }

    #[test]
    fn only_the_name_changes() {
        for (body, expected) in [
            (r#"{"model":"a"}"#, r#"{"model":"b\"c"}"#),
            (
                r#" { "x" : {"model":"no"}, "model" : "t\u0069ny" , "y":1e400}"#,
                r#" { "x" : {"model":"no"}, "model" : "b\"c" , "y":1e400}"#,
            ),
        ] {
            let renamed = peek(body.as_bytes()).unwrap().renamed(body.as_bytes(), "b\"c");
            assert_eq!(renamed, Bytes::from(expected), "{body}");
        }
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_overflow() {
        let body = format!(r#"{{"x":{}"#, "[".repeat(1_000_000));
        assert_eq!(peek(body.as_bytes()).map_err(|e| e.code()).err(), Some("invalid_json"));
    }

    #[test]
    fn a_request_is_as_large_as_it_says() {
        let body = br#"{"model":"a","prompt":"0123456789","max_tokens":100}"#;
        let peeked = peek(body).unwrap();
        assert_eq!((peeked.tokens(), peeked.prompt(body)), (103, &br#""0123456789""#[..]));
    }

    proptest! {
        /// Where there is a model for serde_json, it is the same one; and nothing makes it panic.
        #[test]
        fn it_agrees_with_a_parser(body in r#"[{}\[\]":,\\ a-cmodel0-9tu.\n-]{0,60}"#) {
            check_against_serde(body.as_bytes());
        }

        #[test]
        fn whatever_stands_around_it(before in ".{0,40}", after in "\\PC{0,40}", name in "[a-z\"\\\\é]{1,8}") {
            let body = serde_json::json!({ "x": before, "model": name, "y": [after] }).to_string();
            prop_assert_eq!(&*peek(body.as_bytes()).unwrap().model, &name);
            for cut in 0..body.len() {
                check_against_serde(&body.as_bytes()[..cut]);
            }
        }
    }

    fn check_against_serde(body: &[u8]) {
        let parsed = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(body);
        let peeked = peek(body);
        if let Ok(parsed) = parsed {
            let model = parsed.get("model").and_then(serde_json::Value::as_str);
            // serde_json takes the last of two.
            if let Ok(peeked) = peeked {
                assert_eq!(Some(&*peeked.model), model);
            }
        }
    }
}
