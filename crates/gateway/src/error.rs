//! What can go wrong with a request, and what the client is told.

use hyper::StatusCode;
use serde_json::json;

/// Why a request is not answered by a model.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The body is not JSON.
    #[error("the request's body is not valid JSON: {0}")]
    BadJson(String),
    /// The body has no model.
    #[error("the request's body has no `model`")]
    NoModel,
    /// There is no such model.
    #[error("the model `{}` does not exist; there are: {}", short(model), known.join(", "))]
    UnknownModel {
        /// What was asked for.
        model: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The model has no instance that serves.
    #[error("the model `{model}` is not ready: {reason}")]
    NotReady {
        /// What was asked for.
        model: String,
        /// What its instances are doing.
        reason: &'static str,
    },
    /// The gateway is going.
    #[error("this gateway is stopping; try again, at another one")]
    Draining,
    /// The body is larger than allowed.
    #[error("the request's body is larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// The body broke off.
    #[error("the request's body could not be read")]
    BodyBroken,
    /// The body did not come in time.
    #[error("the request's body did not arrive in time")]
    BodySlow,
    /// There is no such endpoint.
    #[error("there is no {method} {path} here")]
    NoEndpoint {
        /// The method.
        method: String,
        /// The path.
        path: String,
    },
    /// No instance could be reached.
    #[error("the model `{model}` could not be reached; try again")]
    Unreachable {
        /// What was asked for.
        model: String,
    },
    /// The engine took the request and said nothing.
    #[error("the model `{model}` did not begin to answer in time")]
    Silent {
        /// What was asked for.
        model: String,
    },
    /// No more may wait for room.
    #[error("the model `{model}` has no room, and too many wait for it; try again")]
    TooMany {
        /// What was asked for.
        model: String,
    },
    /// It waited for room, and there was none.
    #[error("the model `{model}` had no room in time; try again")]
    NoRoom {
        /// What was asked for.
        model: String,
    },
    /// A key is wanted, and there was none that is known.
    #[error("an API key is needed: send `Authorization: Bearer KEY` with one that is known here")]
    NoKey,
    /// The key may not use the model.
    #[error("the key `{key}` may not use the model `{}`", short(model))]
    NotAllowed {
        /// The key's name.
        key: String,
        /// What was asked for.
        model: String,
    },
    /// The key has used up what it may.
    #[error("the key `{key}` has reached its limit of {what}")]
    Limited {
        /// The key's name.
        key: String,
        /// Which limit.
        what: &'static str,
        /// Seconds until there is more.
        seconds: u32,
    },
}

/// The start of a name that may be of any length.
fn short(name: &str) -> String {
    name.chars().take(100).collect()
}

impl GatewayError {
    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::BadJson(_) | Self::NoModel | Self::BodyBroken => StatusCode::BAD_REQUEST,
            Self::UnknownModel { .. } | Self::NoEndpoint { .. } => StatusCode::NOT_FOUND,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodySlow => StatusCode::REQUEST_TIMEOUT,
            Self::NotReady { .. } | Self::NoRoom { .. } | Self::Draining => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::TooMany { .. } | Self::Limited { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Silent { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::NoKey => StatusCode::UNAUTHORIZED,
            Self::NotAllowed { .. } => StatusCode::FORBIDDEN,
            Self::Unreachable { .. } => StatusCode::BAD_GATEWAY,
        }
    }

    /// A short name for metrics and for `code`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadJson(_) => "invalid_json",
            Self::NoModel => "model_missing",
            Self::UnknownModel { .. } => "model_not_found",
            Self::NotReady { .. } => "model_not_ready",
            Self::Draining => "gateway_draining",
            Self::TooLarge { .. } => "body_too_large",
            Self::BodyBroken => "body_broken",
            Self::BodySlow => "body_slow",
            Self::NoEndpoint { .. } => "endpoint_not_found",
            Self::Unreachable { .. } => "upstream_unreachable",
            Self::Silent { .. } => "upstream_silent",
            Self::TooMany { .. } => "queue_full",
            Self::NoRoom { .. } => "queue_timeout",
            Self::NoKey => "invalid_api_key",
            Self::NotAllowed { .. } => "model_not_allowed",
            Self::Limited { .. } => "rate_limit_exceeded",
        }
    }

    /// Whether the request was on its way to an instance already, or waiting for one.
    pub(crate) fn is_of_a_flight(&self) -> bool {
        self.is_of_a_model() && !matches!(self, Self::NotAllowed { .. } | Self::Limited { .. })
    }

    /// Whether it concerns a model that there is: such requests are counted as the model's.
    pub(crate) fn is_of_a_model(&self) -> bool {
        matches!(
            self,
            Self::NotReady { .. }
                | Self::Unreachable { .. }
                | Self::Silent { .. }
                | Self::TooMany { .. }
                | Self::NoRoom { .. }
                | Self::NotAllowed { .. }
                | Self::Limited { .. }
        )
    }

    /// Seconds after which another try makes sense.
    pub fn retry_after(&self) -> Option<u32> {
        match self {
            Self::NotReady { .. } => Some(5),
            Self::Unreachable { .. } | Self::Draining => Some(1),
            Self::TooMany { .. } | Self::NoRoom { .. } | Self::Silent { .. } => Some(5),
            Self::Limited { seconds, .. } => Some(*seconds),
            _ => None,
        }
    }

    /// The body in the form of OpenAI's API.
    pub fn body(&self) -> String {
        let kind = match self.status() {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        };
        let param = matches!(self, Self::NoModel | Self::UnknownModel { .. }).then_some("model");
        json!({ "error": {
            "message": self.to_string(),
            "type": kind,
            "param": param,
            "code": self.code(),
        }})
        .to_string()
    }
}
