//! Which paths there are, and how a request of each says which model it wants.

use hyper::Method;

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// An engine answers it; the body is JSON and names the model.
    Json,
    /// An engine answers it; the body is a form with files, and one of its fields names the model.
    Form,
    /// The models that there are, as OpenAI's API lists them.
    Models,
    /// The same, as Ollama's lists them.
    Tags,
    /// Whether the gateway is alive.
    Health,
    /// Whether every model can be used.
    Ready,
    /// For Prometheus.
    Metrics,
}

/// What engines answer (vLLM 0.26, llama-server b10434, Ollama fb30760). Who has what, the engine says.
const JSON: &[&str] = &[
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/rerank",
    "/v2/rerank",
    "/v1/score",
    "/v1/pooling",
    "/v1/classify",
    "/v1/audio/speech",
    "/v1/images/generations",
    "/rerank",
    "/score",
    "/pooling",
    "/classify",
    "/tokenize",
    "/detokenize",
    "/api/generate",
    "/api/chat",
    "/api/embed",
    "/api/embeddings",
    "/api/show",
];
const FORMS: &[&str] = &[
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/images/edits",
    "/v1/images/variations",
];

impl Endpoint {
    /// What a request's line asks for.
    pub(crate) fn of(method: &Method, path: &str) -> Option<Self> {
        match *method {
            Method::POST if JSON.contains(&path) => Some(Self::Json),
            Method::POST if FORMS.contains(&path) => Some(Self::Form),
            Method::GET | Method::HEAD => match path {
                "/v1/models" => Some(Self::Models),
                "/api/tags" => Some(Self::Tags),
                "/health" => Some(Self::Health),
                "/ready" => Some(Self::Ready),
                "/metrics" => Some(Self::Metrics),
                _ => None,
            },
            _ => None,
        }
    }
}
