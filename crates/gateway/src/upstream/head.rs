//! Heads of requests and answers, as bytes.

use std::io;
use std::io::Write as _;
use std::net::SocketAddr;

use bytes::BytesMut;
use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderMap, HeaderName,
    HeaderValue, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::request::Parts;
use hyper::{StatusCode, Version};

/// Larger heads are refused.
pub(crate) const MOST_HEAD: usize = 64 * 1024;
const MOST_HEADERS: usize = 128;
/// W3C's trace context.
const TRACEPARENT: &str = "traceparent";

/// The head of an answer.
#[derive(Debug)]
pub(crate) struct AnswerHead {
    pub(crate) status: StatusCode,
    /// What passes to the client.
    pub(crate) headers: HeaderMap,
    pub(crate) framing: Framing,
    /// Whether the connection can be used again afterwards.
    pub(crate) is_reusable: bool,
    /// Whether the body is a stream of events.
    pub(crate) is_event_stream: bool,
}

/// How an answer's body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// After so many bytes.
    Length(u64),
    /// With an empty chunk.
    Chunked,
    /// With the connection.
    Close,
}

/// Headers that only concern one of the two connections.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    *name == CONNECTION
        || *name == TRANSFER_ENCODING
        || *name == CONTENT_LENGTH
        || *name == TE
        || *name == TRAILER
        || *name == UPGRADE
        || *name == EXPECT
        || matches!(name.as_str(), "keep-alive" | "proxy-connection")
}

/// Headers that `Connection` names: they don't pass either.
fn named_hops(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let names = values.flat_map(|value| value.split(','));
    let names = names.map(|name| name.trim().to_ascii_lowercase());
    // These two are said all the time, and name no header.
    names.filter(|name| name != "close" && name != "keep-alive" && !name.is_empty()).collect()
}

/// Headers with a client's key: where the gateway asks for one, it is none of an engine's business.
fn is_secret(name: &HeaderName) -> bool {
    *name == AUTHORIZATION || name.as_str() == "x-api-key"
}

/// How a request is passed on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passing<'a> {
    /// With the client's key: where the gateway itself asks for none.
    pub(crate) with_key: bool,
    /// Over a connection that is kept.
    pub(crate) keeps_alive: bool,
    /// The span that the engine's are part of, instead of what the client says; none passes that on.
    pub(crate) traceparent: Option<&'a str>,
}

/// Writes the head of a request to an engine.
pub(crate) fn write(
    out: &mut Vec<u8>,
    head: &Parts,
    address: SocketAddr,
    body: usize,
    passing: Passing<'_>,
) {
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let named = named_hops(&head.headers);
    // Writing to memory doesn't fail.
    drop(write!(out, "{} {path} HTTP/1.1\r\nhost: {address}\r\n", head.method));
    for (name, value) in &head.headers {
        let is_named = || named.iter().any(|named| named == name.as_str());
        if is_hop_by_hop(name)
            || *name == HOST
            || (passing.traceparent.is_some() && name.as_str() == TRACEPARENT)
            || is_named()
            || (is_secret(name) && !passing.with_key)
        {
            continue;
        }
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    if let Some(traceparent) = passing.traceparent {
        drop(write!(out, "{TRACEPARENT}: {traceparent}\r\n"));
    }
    if !passing.keeps_alive {
        out.extend_from_slice(b"connection: close\r\n");
    }
    drop(write!(out, "content-length: {body}\r\n\r\n"));
}

/// Takes an answer's head out of what was read; none while it isn't all there. What comes before the real answer
/// (1xx) is passed over.
pub(crate) fn parse(read: &mut BytesMut) -> io::Result<Option<AnswerHead>> {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut answer = httparse::Response::new(&mut headers);
        let length = match answer.parse(read) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(invalid(error.to_string())),
        };
        let status = answer.code.and_then(|code| StatusCode::from_u16(code).ok());
        let status = status.ok_or_else(|| invalid("no status"))?;
        if status.is_informational() {
            bytes::Buf::advance(read, length);
            continue;
        }
        let version = if answer.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
        let head = answer_head(status, version, answer.headers)?;
        bytes::Buf::advance(read, length);
        return Ok(Some(head));
    }
}

fn answer_head(
    status: StatusCode,
    version: Version,
    parsed: &[httparse::Header<'_>],
) -> io::Result<AnswerHead> {
    let mut all = HeaderMap::with_capacity(parsed.len());
    for header in parsed {
        let name = HeaderName::from_bytes(header.name.as_bytes())
            .map_err(|error| invalid(error.to_string()))?;
        let value =
            HeaderValue::from_bytes(header.value).map_err(|error| invalid(error.to_string()))?;
        all.append(name, value);
    }
    let framing = framing(status, &all)?;
    let says = |word: &str| {
        let values = all.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(word))
    };
    let keeps = if version == Version::HTTP_11 { !says("close") } else { says("keep-alive") };
    let is_event_stream =
        all.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    let named = named_hops(&all);
    let mut headers = all;
    for name in [CONNECTION, TRANSFER_ENCODING, CONTENT_LENGTH, TE, TRAILER, UPGRADE] {
        headers.remove(name);
    }
    for name in named.iter().map(String::as_str).chain(["keep-alive", "proxy-connection"]) {
        headers.remove(name);
    }
    let is_reusable = keeps && framing != Framing::Close;
    Ok(AnswerHead { status, headers, framing, is_reusable, is_event_stream })
}

/// RFC 9112, section 6.3.
fn framing(status: StatusCode, headers: &HeaderMap) -> io::Result<Framing> {
    if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return Ok(Framing::Length(0));
    }
    if let Some(coding) = headers.get_all(TRANSFER_ENCODING).iter().next_back() {
        let last =
            coding.to_str().unwrap_or_default().rsplit(',').next().unwrap_or_default().trim();
        return match last.eq_ignore_ascii_case("chunked") {
            true => Ok(Framing::Chunked),
            false => Ok(Framing::Close),
        };
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else { return Ok(Framing::Close) };
    if lengths.any(|other| other != length) {
        return Err(invalid("two lengths"));
    }
    let length = length.to_str().ok().and_then(|text| text.parse().ok());
    length.map(Framing::Length).ok_or_else(|| invalid("a length that is none"))
}

fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}
