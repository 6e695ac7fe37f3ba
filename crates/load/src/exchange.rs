//! One request and its answer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::{Response, StatusCode};
use tokio::time::Instant;

use crate::asks::Ask;
use crate::connection::Connection;
use crate::record::{Marks, Outcome, Record};
use crate::sse::SseReader;
use crate::wire::Wire;

/// What follows the last event comes with it, or this connection isn't worth keeping.
const DRAIN: Duration = Duration::from_millis(200);
/// A connection that had been closed before says so by then.
const STALE: Duration = Duration::from_millis(50);
/// Of an answer that is an error so much is read.
const MOST_ERROR: usize = 64 << 10;
/// And so much is kept, in characters.
const MOST_DETAIL: usize = 300;
/// No file left for a process or the machine; no port left to a server.
const EMFILE: i32 = 24;
const ENFILE: i32 = 23;
const EADDRNOTAVAIL: i32 = 99;

/// When a run began, a phase began, and what is in flight has to end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    pub(crate) run: Instant,
    pub(crate) phase: Instant,
    pub(crate) deadline: Instant,
}

impl Clock {
    pub(crate) fn since_start(&self) -> Duration {
        self.run.elapsed()
    }
}

/// How it ended, and what was said of it.
type End = (Outcome, Option<String>);

/// Sends a request on a connection, or on a new one, and reads its answer to the end or the deadline.
pub(crate) async fn exchange(
    wire: Arc<Wire>,
    clock: Clock,
    ask: Ask,
    ready: Option<Connection>,
) -> Record {
    let intended = (clock.phase + ask.due).saturating_duration_since(clock.run);
    let mut answer = Answer::new(clock, intended);
    let whole = answer.whole(&wire, &ask, ready);
    let (outcome, detail) = match tokio::time::timeout_at(clock.deadline, whole).await {
        Ok(end) => end,
        Err(_) => (Outcome::Timeout, None),
    };
    answer.record(ask, outcome, detail)
}

/// An answer, as far as it has come: what was measured stays when the time is up.
struct Answer {
    clock: Clock,
    marks: Marks,
    texts: u32,
    events: SseReader,
}

impl Answer {
    fn new(clock: Clock, intended: Duration) -> Self {
        let marks = Marks { intended, ..Marks::default() };
        Self { clock, marks, texts: 0, events: SseReader::default() }
    }

    async fn whole(&mut self, wire: &Wire, ask: &Ask, ready: Option<Connection>) -> End {
        self.marks.sent = self.clock.since_start();
        if let Some(mut connection) = ready {
            let request = wire.target.post(ask.endpoint.path(), ask.body.clone());
            match connection.send(request).await {
                Ok(response) => return self.read(wire, connection, response).await,
                Err(error) if self.is_stale(&error) => {}
                Err(error) => return (Outcome::Broken, Some(error.to_string())),
            }
        }
        let mut connection = match Connection::open(&wire.target).await {
            Ok(connection) => connection,
            Err(error) => return (unconnected(&error), Some(error.to_string())),
        };
        let request = wire.target.post(ask.endpoint.path(), ask.body.clone());
        match connection.send(request).await {
            Ok(response) => self.read(wire, connection, response).await,
            Err(error) => (Outcome::Broken, Some(error.to_string())),
        }
    }

    /// Whether a server hung up just when a connection was used: it did nothing with the request.
    fn is_stale(&self, error: &hyper::Error) -> bool {
        error.is_canceled() || self.clock.since_start().saturating_sub(self.marks.sent) < STALE
    }

    async fn read(
        &mut self,
        wire: &Wire,
        mut connection: Connection,
        response: Response<Incoming>,
    ) -> End {
        let status = response.status();
        let mut body = response.into_body();
        if status != StatusCode::OK {
            let said = read_error(&mut connection, &mut body).await;
            return (refused(status, &said), Some(detail(&said)));
        }
        match self.stream(wire, &mut connection, &mut body).await {
            Ok(()) => {
                self.marks.end = self.clock.since_start();
                let drained = tokio::time::timeout(DRAIN, drain(&mut connection, &mut body)).await;
                if drained.is_ok_and(|is_whole| is_whole) {
                    wire.keep(connection);
                }
                (Outcome::Ok, None)
            }
            Err(said) if is_overload(said.as_bytes()) => (Outcome::Refused, Some(said)),
            Err(said) => (Outcome::Broken, Some(said)),
        }
    }

    /// Reads events to the last one; else says what is wrong.
    async fn stream(
        &mut self,
        wire: &Wire,
        connection: &mut Connection,
        body: &mut Incoming,
    ) -> Result<(), String> {
        while let Some(part) = connection.next(body).await {
            let part = part.map_err(|error| format!("the connection broke: {error}"))?;
            let seen = self.events.feed(&part);
            if seen.texts > 0 {
                let now = self.clock.since_start();
                self.mark_texts(seen.texts, now);
                wire.sign.look(now);
            }
            if let Some(error) = self.events.error() {
                return Err(detail(error.as_bytes()));
            }
            if seen.is_done {
                return Ok(());
            }
        }
        Err("the answer ended without [DONE]".to_owned())
    }

    fn mark_texts(&mut self, texts: u32, now: Duration) {
        if let Some(last) = self.marks.last {
            self.marks.longest_gap = self.marks.longest_gap.max(now.saturating_sub(last));
        }
        self.marks.first.get_or_insert(now);
        self.marks.last = Some(now);
        self.texts = self.texts.saturating_add(texts);
    }

    fn record(self, ask: Ask, outcome: Outcome, detail: Option<String>) -> Record {
        let usage = self.events.usage();
        let mut marks = self.marks;
        if outcome != Outcome::Ok {
            marks.end = self.clock.since_start();
        }
        Record {
            phase: ask.phase,
            is_overload: ask.is_overload,
            model: ask.model,
            marks,
            prompt_tokens: usage.map_or(ask.prompt_tokens, |usage| usage.prompt_tokens),
            answer_tokens: usage.map_or(self.texts, |usage| usage.completion_tokens),
            outcome,
            detail,
        }
    }
}

/// Whether an answer ended as it should.
async fn drain(connection: &mut Connection, body: &mut Incoming) -> bool {
    while let Some(part) = connection.next(body).await {
        if part.is_err() {
            return false;
        }
    }
    true
}

async fn read_error(connection: &mut Connection, body: &mut Incoming) -> Vec<u8> {
    let mut said = Vec::new();
    while let Some(Ok(part)) = connection.next(body).await {
        let part: Bytes = part;
        said.extend_from_slice(&part[..part.len().min(MOST_ERROR - said.len())]);
        if said.len() == MOST_ERROR {
            break;
        }
    }
    said
}

fn refused(status: StatusCode, said: &[u8]) -> Outcome {
    match is_overload(said) {
        true => Outcome::Refused,
        false => Outcome::Status(status.as_u16()),
    }
}

/// Overload is what a gateway says it is: for an engine that isn't there it answers with the same status.
fn is_overload(said: &[u8]) -> bool {
    let mut codes = ["\"queue_full\"", "\"queue_timeout\""].into_iter();
    codes.any(|code| memchr::memmem::find(said, code.as_bytes()).is_some())
}

fn unconnected(error: &io::Error) -> Outcome {
    match error.raw_os_error() {
        Some(EMFILE | ENFILE | EADDRNOTAVAIL) => Outcome::Own,
        _ => Outcome::Connect,
    }
}

fn detail(said: &[u8]) -> String {
    String::from_utf8_lossy(said).trim().chars().take(MOST_DETAIL).collect()
}
