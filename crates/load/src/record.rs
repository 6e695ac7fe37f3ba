//! What was measured of one request.
//!
//! Latencies count from when a request was due, not from when it was sent: a server that makes others
//! wait is not let off because the generator waited with them.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// With a whole answer.
    Ok,
    /// The server had too much to do and said so (`queue_full`, `queue_timeout`).
    Refused,
    /// There was no connection.
    Connect,
    /// Another status than 200.
    Status(u16),
    /// The answer ended early, or with an error in it.
    Broken,
    /// It wasn't complete in time.
    Timeout,
    /// This machine had no file or port left to send it from: nothing is said of the server.
    Own,
}

impl Outcome {
    /// In words.
    pub fn words(self) -> String {
        match self {
            Self::Ok => "answered".to_owned(),
            Self::Refused => "refused for overload".to_owned(),
            Self::Connect => "left without a connection".to_owned(),
            Self::Status(status) => format!("answered with status {status}"),
            Self::Broken => "broken off".to_owned(),
            Self::Timeout => "not answered in time".to_owned(),
            Self::Own => "not sent, as the load generator had no file or port left".to_owned(),
        }
    }
}

/// When things happened to a request, since the run's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// It was due.
    pub intended: Duration,
    /// It was sent; where there was no connection, when that was sought.
    pub sent: Duration,
    /// The first text came.
    pub first: Option<Duration>,
    /// The last text came.
    pub last: Option<Duration>,
    /// It ended.
    pub end: Duration,
    /// The longest time between two texts.
    pub longest_gap: Duration,
    /// How long a task of the generator's waited for its turn just then: what comes is seen so late.
    pub reading_delay: Duration,
}

/// A request, as it went.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Which phase it was of.
    pub phase: Arc<str>,
    /// Whether that phase asks for more than can be served.
    pub is_overload: bool,
    /// Which model it asked.
    pub model: Arc<str>,
    /// When things happened.
    pub marks: Marks,
    /// How long the question was: as the server counted, else as it was made.
    pub prompt_tokens: u32,
    /// How long the answer was: as the server counted, else how many texts came.
    pub answer_tokens: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// What the server said was wrong, cut short.
    pub detail: Option<String>,
}

impl Record {
    /// Whether it was answered.
    pub fn is_ok(&self) -> bool {
        self.outcome == Outcome::Ok
    }

    /// The same in a run that began earlier by so much: of runs that follow each other.
    #[must_use]
    pub fn later_by(mut self, earlier: Duration) -> Self {
        let Marks { intended, sent, first, last, end, .. } = &mut self.marks;
        for mark in [intended, sent, end].into_iter().chain(first).chain(last) {
            *mark += earlier;
        }
        self
    }

    /// From due to the first text.
    pub fn ttft_ms(&self) -> Option<f64> {
        Some(between_ms(self.marks.intended, self.marks.first?))
    }

    /// From sent to the first text.
    pub fn ttft_from_sent_ms(&self) -> Option<f64> {
        Some(between_ms(self.marks.sent, self.marks.first?))
    }

    /// Between two tokens, on average.
    pub fn itl_ms(&self) -> Option<f64> {
        let gaps = self.answer_tokens.checked_sub(1).filter(|gaps| *gaps > 0)?;
        Some(between_ms(self.marks.first?, self.marks.last?) / f64::from(gaps))
    }

    /// From due to the end.
    pub fn e2e_ms(&self) -> f64 {
        between_ms(self.marks.intended, self.marks.end)
    }

    /// From sent to the end.
    pub fn e2e_from_sent_ms(&self) -> f64 {
        between_ms(self.marks.sent, self.marks.end)
    }

    /// How late the generator sent it.
    pub fn own_delay_ms(&self) -> f64 {
        between_ms(self.marks.intended, self.marks.sent)
    }
}

fn between_ms(from: Duration, to: Duration) -> f64 {
    to.saturating_sub(from).as_secs_f64() * 1000.0
}
