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
            Self::NotReady { .. } => StatusCode::SERVICE_UNAVAILABLE,
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
            Self::TooLarge { .. } => "body_too_large",
            Self::BodyBroken => "body_broken",
            Self::BodySlow => "body_slow",
            Self::NoEndpoint { .. } => "endpoint_not_found",
            Self::Unreachable { .. } => "upstream_unreachable",
        }
    }

    /// Seconds after which another try makes sense.
    pub fn retry_after(&self) -> Option<u32> {
        match self {
            Self::NotReady { .. } => Some(5),
            Self::Unreachable { .. } => Some(1),
            _ => None,
        }
    }

    /// The body in the form of OpenAI's API.
    pub fn body(&self) -> String {
        let kind = match self.status() {
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
