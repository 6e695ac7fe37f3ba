//! What routing needs of a body, without building a document of it.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap};

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
    /// Its tokens, as far as bytes tell.
    prompt_tokens: u64,
    /// The most tokens that the answer may have, where that is said.
    pub(crate) max_tokens: Option<u64>,
    /// Whether the name stands there plainly, and not as JSON.
    is_form: bool,
}

/// Some four bytes of a prompt are a token; of an answer that isn't bounded so many are expected.
const BYTES_PER_TOKEN: u64 = 4;
const ANSWER_TOKENS: u64 = 256;
/// Longer answers are asked for by clients that don't know what they ask for.
const MOST_ANSWER: u64 = 16_384;
/// What an image or a sound in the body counts, however long it is written.
const MEDIA_TOKENS: u64 = 1024;
/// No count is larger: sums of them stay numbers.
const MOST_TOKENS: u64 = u32::MAX as u64;
/// Deeper bodies are refused: no request is, and engines refuse them too.
const DEEPEST: u32 = 127;

impl Peeked<'_> {
    /// Tokens of prompt and answer together, as far as they can be told without a tokenizer.
    pub(crate) fn tokens(&self) -> u64 {
        let answer = self.max_tokens.map_or(ANSWER_TOKENS, |most| most.min(MOST_ANSWER));
        (self.prompt_tokens + answer).clamp(1, MOST_TOKENS)
    }

    /// Tokens of the prompt.
    pub(crate) fn prompt_tokens(&self) -> u64 {
        self.prompt_tokens
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
            let key = text(&body[key])?;
            if key.eq_ignore_ascii_case("model") && key != "model" {
                // Some engines would take it for `model`, and run another one than was looked at.
                return Err(bad("a field is called almost as `model` is"));
            }
            match &*key {
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
                    let most =
                        std::str::from_utf8(&body[value]).ok().and_then(|text| text.parse().ok());
                    max_tokens = max_tokens.max(most);
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
    let prompt_tokens = tokens_of(&body[prompt_at.clone()]);
    Ok(Peeked { prompt_at, prompt_tokens, max_tokens, ..found })
}

/// Tokens of a prompt as it stands in a body. What is written as a `data:` URL is no text.
fn tokens_of(prompt: &[u8]) -> u64 {
    const MEDIA: &[u8] = b"\"data:";
    let (mut text, mut media) = (prompt.len() as u64, 0);
    let mut at = 0;
    while let Some(found) = memchr::memmem::find(&prompt[at..], MEDIA) {
        let start = at + found + 1;
        let length = memchr::memchr(b'"', &prompt[start..]).unwrap_or(prompt.len() - start);
        text -= length as u64;
        media += MEDIA_TOKENS;
        at = start + length;
    }
    (text / BYTES_PER_TOKEN + media).min(MOST_TOKENS)
}

/// What a form with files (RFC 7578) says: the field `model`, wherever it stands.
///
/// # Errors
/// Where it is no form, or hasn't one model.
pub(crate) fn form<'a>(body: &'a [u8], headers: &HeaderMap) -> Result<Peeked<'a>, GatewayError> {
    const HEAD_END: &[u8] = b"\r\n\r\n";
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let boundary = parameter(kind, "boundary").ok_or_else(|| bad("the form has no boundary"))?;
    let mark = format!("--{boundary}");
    let marks: Vec<usize> = memchr::memmem::find_iter(body, &mark).collect();
    let mut found = None;
    for (mark_at, next) in marks.iter().zip(marks.iter().skip(1)) {
        let part = mark_at + mark.len()..*next;
        let Some(head) = memchr::memmem::find(&body[part.clone()], HEAD_END) else { continue };
        let lines = String::from_utf8_lossy(&body[part.start..part.start + head]).into_owned();
        let is_model = lines.lines().any(|line| {
            line.split_once(':').is_some_and(|(name, value)| {
                name.trim().eq_ignore_ascii_case("content-disposition")
                    && parameter(value, "name")
                        .is_some_and(|name| name.eq_ignore_ascii_case("model"))
            })
        });
        if !is_model {
            continue;
        }
        let value = part.start + head + HEAD_END.len()..part.end.saturating_sub(2);
        if found.replace(value).is_some() {
            return Err(bad("`model` is given twice"));
        }
    }
    let model_at = found.filter(|at| !at.is_empty()).ok_or(GatewayError::NoModel)?;
    let model = std::str::from_utf8(&body[model_at.clone()]);
    let model = Cow::Borrowed(model.map_err(|_| bad("`model` is not UTF-8"))?);
    Ok(Peeked { model, model_at, is_form: true, ..Peeked::default() })
}

/// A parameter of a header's value, as in `form-data; name="model"`.
fn parameter<'a>(value: &'a str, name: &str) -> Option<&'a str> {
    let parameters = value.split(';').skip(1).filter_map(|one| one.trim().split_once('='));
    let mut named = parameters.filter(|(key, _)| key.eq_ignore_ascii_case(name));
    named.next().map(|(_, value)| value.trim_matches('"')).filter(|value| !value.is_empty())
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
            (r#"{"model":"a","Model":"b"}"#, Err("invalid_json")),
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
        let image = format!(r#""data:image/png;base64,{}""#, "A".repeat(100_000));
        for (body, expected) in [
            (
                format!(r#"{{"model":"a","messages":[{image}, {image}],"max_tokens":1}}"#),
                2 * 1024 + 2 + 1,
            ),
            (r#"{"model":"a","max_tokens":1,"max_completion_tokens":50}"#.to_owned(), 50),
            (r#"{"model":"a","max_tokens":18446744073709551615}"#.to_owned(), MOST_ANSWER),
            (r#"{"model":"a"}"#.to_owned(), ANSWER_TOKENS),
        ] {
            assert_eq!(
                peek(body.as_bytes()).unwrap().tokens(),
                expected,
                "{}",
                &body[..40.min(body.len())]
            );
        }
    }

    #[test]
    fn a_form_names_its_model_in_a_field() {
        let check = |kind: &str, body: &str, expected: Result<&str, &str>| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, kind.parse().unwrap());
            let found = form(body.as_bytes(), &headers);
            let found = found.as_ref().map(|found| &*found.model).map_err(GatewayError::code);
            assert_eq!(found, expected, "{body}");
        };
        const KIND: &str = "multipart/form-data; boundary=\"x\"";
        let field = |head: &str, value: &str| {
            format!("--x\r\nContent-Disposition: form-data; {head}\r\n\r\n{value}\r\n")
        };
        let file = field("filename=\"model\"; name=\"file\"", "name=\"model\"\r\n\r\nno");
        let ear = field("name=\"model\"", "ear");
        check(KIND, &format!("{file}{ear}--x--\r\n"), Ok("ear"));
        check(KIND, &format!("{}{file}--x--", field("name=model", "ear")), Ok("ear"));
        check(KIND, &format!("{ear}{ear}--x--"), Err("invalid_json"));
        check(KIND, &format!("{file}--x--"), Err("model_missing"));
        check(KIND, &format!("{}--x--", field("name=\"model\"", "")), Err("model_missing"));
        check(KIND, "--x--x--x", Err("model_missing"));
        check("multipart/form-data", &ear, Err("invalid_json"));
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
