//! How many tokens a text is, asked of the engine that will read it.

use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use hyper::StatusCode;
use serde_json::{Value, json};

use crate::body::Pieces;
use crate::connection::Connection;
use crate::target::Target;

/// An engine that is busy loading answers late.
const TIMEOUT: Duration = Duration::from_secs(30);
/// An answer lists every token of a text.
const MOST_ANSWER: usize = 64 << 20;

/// Why a text's tokens are not known.
#[derive(Debug, thiserror::Error)]
pub enum TokenizeError {
    /// No connection.
    #[error("the engine at {host} can't be reached")]
    Connect {
        /// Where it was sought.
        host: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The connection ended, or the answer is too long.
    #[error("the engine at {host} broke off while it was asked for tokens")]
    Broken {
        /// Which.
        host: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It doesn't answer.
    #[error("the engine at {host} didn't count tokens within {} s", TIMEOUT.as_secs())]
    Timeout {
        /// Which.
        host: String,
    },
    /// It has no such endpoint, or wants something else.
    #[error("the engine at {host} answered POST /tokenize with {status}")]
    Status {
        /// Which.
        host: String,
        /// What it answered.
        status: StatusCode,
    },
    /// The answer isn't one of those known.
    #[error("the engine at {host} answered POST /tokenize without \"count\" or \"tokens\"")]
    Answer {
        /// Which.
        host: String,
    },
}

/// An engine that counts tokens: vLLM or llama-server.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    target: Target,
    model: String,
}

impl Tokenizer {
    /// The tokenizer of an engine, of a model as the engine calls it.
    pub fn new(target: Target, model: String) -> Self {
        Self { target, model }
    }

    /// How many tokens a text is, as the engine says.
    pub async fn count(&self, text: &str) -> Result<u32, TokenizeError> {
        let timeout = TokenizeError::Timeout { host: self.host() };
        let body = tokio::time::timeout(TIMEOUT, self.ask(text)).await.map_err(|_| timeout)??;
        read(&body).ok_or_else(|| TokenizeError::Answer { host: self.host() })
    }

    async fn ask(&self, text: &str) -> Result<Vec<u8>, TokenizeError> {
        let mut connection = Connection::open(&self.target)
            .await
            .map_err(|source| TokenizeError::Connect { host: self.host(), source })?;
        // vLLM reads the prompt, llama-server the content; each leaves the other's alone.
        let body = json!({ "model": self.model, "prompt": text, "content": text }).to_string();
        let pieces = Pieces::from_iter([body]);
        let answer = connection
            .send(self.target.post("/tokenize", pieces))
            .await
            .map_err(|source| self.broken(source.into()))?;
        if answer.status() != StatusCode::OK {
            return Err(TokenizeError::Status { host: self.host(), status: answer.status() });
        }
        let body = Limited::new(answer.into_body(), MOST_ANSWER).collect();
        let body = connection.drive(std::pin::pin!(body)).await.map_err(|s| self.broken(s))?;
        Ok(body.to_bytes().into())
    }

    fn host(&self) -> String {
        String::from_utf8_lossy(self.target.host.as_bytes()).into_owned()
    }

    fn broken(&self, source: Box<dyn std::error::Error + Send + Sync>) -> TokenizeError {
        TokenizeError::Broken { host: self.host(), source }
    }
}

fn read(answer: &[u8]) -> Option<u32> {
    let answer: Value = serde_json::from_slice(answer).ok()?;
    let count = answer["count"].as_u64();
    let listed = || Some(answer["tokens"].as_array()?.len() as u64);
    count.or_else(listed)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        for (answer, want) in [
            (r#"{"tokens":[1,2,3]}"#, Some(3)),
            (r#"{"count":4,"max_model_len":9,"tokens":[1,2,3,4]}"#, Some(4)),
            (r#"{"tokens":[]}"#, Some(0)),
            (r#"{"count":-1}"#, None),
            (r#"{"count":99999999999}"#, None),
            (r#"{"tokens":3}"#, None),
            ("[]", None),
            ("", None),
        ] {
            assert_eq!(read(answer.as_bytes()), want, "{answer}");
        }
    }
}
