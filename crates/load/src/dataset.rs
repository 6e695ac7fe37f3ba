//! Requests from a file: conversations as ShareGPT has them, or the lines of a batch as OpenAI takes it.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// What an element of an array should be.
const CONVERSATION: &str = "{\"conversations\": [{\"from\": \"human\", \"value\": ...}, {\"from\": \"gpt\", \"value\": ...}]}";
/// What a line should be.
const BATCH: &str = "{\"custom_id\": ..., \"method\": \"POST\", \"url\": \"/v1/chat/completions\", \"body\": {...}}";
/// English in most tokenizers.
const WORDS_PER_TOKEN: f64 = 0.75;

/// A request.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// A question, and how long its answer was.
    Chat {
        /// The question.
        prompt: String,
        /// How long the answer is to be at most.
        answer_tokens: u32,
    },
    /// A body to send as it is, but for the model's name and that it be streamed.
    Batch {
        /// Where to.
        endpoint: Endpoint,
        /// The body.
        body: Map<String, Value>,
    },
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
}

impl Endpoint {
    /// Its path.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
        }
    }

    fn of(path: &str) -> Option<Self> {
        [Self::Chat, Self::Completions].into_iter().find(|endpoint| endpoint.path() == path)
    }
}

/// Why there are no requests.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The file can't be read.
    #[error("{path} can't be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It isn't JSON.
    #[error("{path}:{line}: expected {expected}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What should be there.
        expected: &'static str,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// It is JSON of another form.
    #[error("{path}:{line}: {found}; expected {expected}")]
    Form {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong.
        found: String,
        /// What should be there.
        expected: &'static str,
    },
    /// It has no request.
    #[error("{path} has no requests: expected an array of {CONVERSATION}, or lines of {BATCH}")]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// Reads a file of either form.
pub fn read(path: &Path) -> Result<Vec<Request>, DatasetError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| DatasetError::Read { path: path.to_owned(), source })?;
    parse(&text, path)
}

/// Reads a file's text; its path is for messages.
pub fn parse(text: &str, path: &Path) -> Result<Vec<Request>, DatasetError> {
    let requests = match text.trim_start().starts_with('[') {
        true => conversations(text, path)?,
        false => batch(text, path)?,
    };
    match requests.is_empty() {
        true => Err(DatasetError::Empty { path: path.to_owned() }),
        false => Ok(requests),
    }
}

#[derive(Deserialize)]
struct Conversation {
    conversations: Vec<Turn>,
}

#[derive(Deserialize)]
struct Turn {
    from: String,
    value: String,
}

fn conversations(text: &str, path: &Path) -> Result<Vec<Request>, DatasetError> {
    let json = |line, source| DatasetError::Json {
        path: path.to_owned(),
        line,
        expected: CONVERSATION,
        source,
    };
    let elements: Vec<&RawValue> =
        serde_json::from_str(text).map_err(|source| json(source.line(), source))?;
    let mut requests = Vec::with_capacity(elements.len());
    for element in elements {
        let read: Conversation = serde_json::from_str(element.get())
            .map_err(|source| json(line_of(text, element.get()) + source.line() - 1, source))?;
        requests.extend(chat(read));
    }
    Ok(requests)
}

/// A conversation's first question and answer; none where nobody asks, or nobody answers.
fn chat(read: Conversation) -> Option<Request> {
    let is = |turn: &Turn, names: [&str; 2]| names.contains(&turn.from.as_str());
    let mut turns = read.conversations.into_iter();
    let question = turns.find(|turn| is(turn, ["human", "user"]))?;
    let answer = turns.find(|turn| is(turn, ["gpt", "assistant"]))?;
    let words = answer.value.split_whitespace().count();
    let answer_tokens = (words as f64 / WORDS_PER_TOKEN).ceil() as u32;
    Some(Request::Chat { prompt: question.value, answer_tokens: answer_tokens.max(1) })
}

/// On which line a part of a text begins, from 1.
fn line_of(text: &str, part: &str) -> usize {
    let offset = (part.as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
    let before = text.as_bytes().get(..offset).unwrap_or_default();
    1 + memchr::memchr_iter(b'\n', before).count()
}

#[derive(Deserialize)]
struct BatchLine {
    #[serde(default)]
    method: Option<String>,
    url: String,
    body: Map<String, Value>,
}

fn batch(text: &str, path: &Path) -> Result<Vec<Request>, DatasetError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(index, line)| batch_line(line, path, index + 1)).collect()
}

fn batch_line(text: &str, path: &Path, line: usize) -> Result<Request, DatasetError> {
    let path = path.to_owned();
    let read: BatchLine = match serde_json::from_str(text) {
        Ok(read) => read,
        Err(source) => return Err(DatasetError::Json { path, line, expected: BATCH, source }),
    };
    let form = |found| DatasetError::Form { path, line, found, expected: BATCH };
    if let Some(method) = read.method.filter(|method| method != "POST") {
        return Err(form(format!("the method is {method}")));
    }
    match Endpoint::of(&read.url) {
        Some(endpoint) => Ok(Request::Batch { endpoint, body: read.body }),
        None => Err(form(format!("{} has no stream of tokens to measure", read.url))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[\n {\"id\":1,\"conversations\":[{\"from\":\"human\",\"value\":\"hi\"},\
        {\"from\":\"gpt\",\"value\":\"one two three\"},{\"from\":\"human\",\"value\":\"x\"}]},\n";

    fn check(text: &str, want: Result<usize, &str>) {
        match (parse(text, Path::new("d.json")), want) {
            (Ok(requests), Ok(want)) => assert_eq!(requests.len(), want, "{text}"),
            (Err(error), Err(want)) => assert!(error.to_string().contains(want), "{text}: {error}"),
            (got, want) => panic!("{text}: {got:?}, not {want:?}"),
        }
    }

    #[test]
    fn datasets() {
        let line = |url: &str| format!("{{\"custom_id\":\"a\",\"url\":\"{url}\",\"body\":{{}}}}\n");
        let chat = line("/v1/chat/completions");
        for (text, want) in [
            (format!("{GOOD} {{\"conversations\":[]}}]"), Ok(1)),
            (
                format!("{GOOD} {{\"conversations\":[{{\"from\":\"gpt\",\"value\":\"only\"}}]}}]"),
                Ok(1),
            ),
            (format!("{chat}\n{}", line("/v1/completions")), Ok(2)),
            (format!("{GOOD} {{\"turns\":[]}}]"), Err("d.json:3: expected {\"conversations\"")),
            (
                format!("{GOOD} {{\"conversations\":[\n{{\"from\":1}}]}}]"),
                Err("d.json:4: expected"),
            ),
            (format!("{GOOD} oops]"), Err("d.json:3: expected {\"conversations\"")),
            (format!("{chat}{{\"body\":{{}}}}\n"), Err("d.json:2: expected {\"custom_id\"")),
            (format!("{chat}{{\"url\":"), Err("d.json:2: expected {\"custom_id\"")),
            (line("/v1/embeddings"), Err("d.json:1: /v1/embeddings has no stream")),
            (chat.replace("\"url\"", "\"method\":\"GET\",\"url\""), Err("the method is GET")),
            ("[]".to_owned(), Err("d.json has no requests")),
            (String::new(), Err("d.json has no requests")),
            ("\u{feff}nonsense".to_owned(), Err("d.json:1: expected")),
        ] {
            check(&text, want);
        }
    }

    #[test]
    fn an_answer_is_as_long_as_it_was() {
        let requests = parse(&format!("{GOOD} {{\"conversations\":[]}}]"), Path::new("d")).unwrap();
        assert_eq!(requests, [Request::Chat { prompt: "hi".to_owned(), answer_tokens: 4 }]);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read(Path::new("/nonexistent/d.json")).unwrap_err();
        assert_eq!(error.to_string(), "/nonexistent/d.json can't be read");
    }
}
