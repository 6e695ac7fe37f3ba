//! One request to Ray's dashboard.

use std::time::Duration;

use serde_json::Value;
use ureq::{Agent, Body, RequestBuilder, http};

const TIMEOUT: Duration = Duration::from_secs(20);
/// A first `PUT` of applications starts Serve itself, which took 6 s on two busy cores.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(90);
const TRIES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Of 4,096 nodes all is some 30 MiB.
const MOST_BYTES: u64 = 256 << 20;

/// A Ray cluster's dashboard.
#[derive(Clone)]
pub struct Ray {
    address: String,
    /// Never shown, never logged.
    token: Option<String>,
    agent: Agent,
}

/// Why Ray didn't do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RayError {
    /// Nobody answers.
    #[error("Ray's dashboard at {address} can't be reached: {reason}")]
    Unreachable {
        /// The address.
        address: String,
        /// What the network says.
        reason: String,
    },
    /// It wants a token, or another one.
    #[error("Ray at {address} refuses: {reason}")]
    Unauthorized {
        /// The address.
        address: String,
        /// Ray's words.
        reason: String,
    },
    /// It says no.
    #[error("Ray answers {status} to {path}: {reason}")]
    Refused {
        /// The status.
        status: u16,
        /// The path.
        path: String,
        /// Ray's words, cut.
        reason: String,
    },
    /// The file with the token can't be read.
    #[error("the token file {file} can't be read")]
    NoToken {
        /// The file.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// It answers something else than Ray 2.60 does.
    #[error("Ray's answer to {path} is not understood: {reason}")]
    Strange {
        /// The path.
        path: String,
        /// What was missing.
        reason: String,
    },
}

impl RayError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => {
                "set address in [cluster.ray] to the head's dashboard, as in \"http://10.0.0.1:8265\"; \
                 `ray start --head --dashboard-host` opens it to other machines"
            }
            Self::Unauthorized { .. } => {
                "name the file with the token: token_file in [cluster.ray], or set RAY_AUTH_TOKEN"
            }
            Self::NoToken { .. } => "correct token_file in [cluster.ray], or leave it out",
            Self::Refused { .. } => "`berth doctor` looks for what Ray doesn't say",
            Self::Strange { .. } => {
                "berth was written against Ray 2.60; `berth doctor` says which this is"
            }
        }
    }

    /// Whether the same may work in a moment.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => *status >= 500,
            Self::Unauthorized { .. } | Self::Strange { .. } | Self::NoToken { .. } => false,
        }
    }
}

impl Ray {
    /// The cluster at an address, as in `http://127.0.0.1:8265`.
    pub fn new(address: &str, token: Option<String>) -> Self {
        let config = Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .timeout_connect(Some(Duration::from_secs(5)))
            .http_status_as_error(false)
            .build();
        let address = address.trim_end_matches('/').to_owned();
        Self { address, token, agent: config.into() }
    }

    /// Reads something, again where Ray is busy.
    ///
    /// # Errors
    /// Where Ray can't be reached, refuses, or answers no JSON.
    pub fn get(&self, path: &str) -> Result<Value, RayError> {
        let mut pause = FIRST_PAUSE;
        for _ in 1..TRIES {
            match self.get_once(path) {
                Err(error) if error.is_passing() => {
                    tracing::debug!(%error, "trying again");
                    std::thread::sleep(pause);
                    pause *= 3;
                }
                answer => return answer,
            }
        }
        self.get_once(path)
    }

    fn get_once(&self, path: &str) -> Result<Value, RayError> {
        serde_json::from_str(&self.text(path)?).map_err(|error| strange(path, error.to_string()))
    }

    pub(super) fn text(&self, path: &str) -> Result<String, RayError> {
        let request = self.agent.get(format!("{}{path}", self.address));
        self.read(path, self.with_token(request).call())
    }

    fn with_token<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    /// Whether something is there.
    ///
    /// # Errors
    /// As [`get`](Self::get), but for 404.
    pub fn has(&self, path: &str) -> Result<bool, RayError> {
        match self.text(path) {
            Ok(_) => Ok(true),
            Err(RayError::Refused { status: 404, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Puts something in place. It is not tried again: the caller looks first what came of it.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn put(&self, path: &str, content_type: &str, body: &[u8]) -> Result<(), RayError> {
        let request = self.agent.put(format!("{}{path}", self.address));
        let request = request.config().timeout_global(Some(CHANGE_TIMEOUT)).build();
        let request = request.header("content-type", content_type);
        let request = self.with_token(request);
        self.read(path, request.send(body)).map(drop)
    }

    fn read(
        &self,
        path: &str,
        answer: Result<http::Response<Body>, ureq::Error>,
    ) -> Result<String, RayError> {
        let address = || self.address.clone();
        let unreachable = |error: ureq::Error| RayError::Unreachable {
            address: address(),
            reason: error.to_string(),
        };
        let mut answer = answer.map_err(unreachable)?;
        let status = answer.status().as_u16();
        let body = answer.body_mut().with_config().limit(MOST_BYTES).lossy_utf8(true);
        let text = body.read_to_string().map_err(unreachable)?;
        match status {
            200..=299 => Ok(text),
            401 | 403 => Err(RayError::Unauthorized { address: address(), reason: cut(&text) }),
            _ => Err(RayError::Refused { status, path: path.to_owned(), reason: cut(&text) }),
        }
    }
}

/// An answer that lacks something.
pub(super) fn strange(path: &str, reason: impl Into<String>) -> RayError {
    RayError::Strange { path: path.to_owned(), reason: reason.into() }
}

/// The end of a text: of a traceback that is where the reason stands.
fn cut(text: &str) -> String {
    const MOST: usize = 2000;
    let start = text.len().saturating_sub(MOST);
    let start = (start..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text[start..].trim().to_owned()
}
