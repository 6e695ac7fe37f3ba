//! From phases to single requests: made before the first is sent, as there is no time for it later.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::body::Pieces;
use crate::dataset::{Endpoint, Request};
use crate::images::Images;
use crate::phase::{ModelPhase, Phase, Shape};
use crate::prompts::Prompt;

/// Where a text goes in a body, and pictures.
const TEXT: &str = "\u{1}text\u{1}";
const PICTURES: &str = "\u{1}pictures\u{1}";

/// A request that is to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) phase: Arc<str>,
    pub(crate) is_overload: bool,
    pub(crate) model: Arc<str>,
    /// When, since the phase's start.
    pub(crate) due: Duration,
    pub(crate) endpoint: Endpoint,
    pub(crate) body: Pieces,
    /// Zero where that is not known.
    pub(crate) prompt_tokens: u32,
}

/// Letters from one beginning of a text to the next: some words, and a prime, so that they seldom meet.
const STEP: usize = 97;
/// A text's first beginning is before so many letters.
const MOST_START: u64 = 10_007;

/// A body, and how long its question is where that is known.
type Made = (Endpoint, Pieces, u32);

/// The requests of a phase in the order that they are due.
pub(crate) fn of(phase: &Phase) -> VecDeque<Ask> {
    let name: Arc<str> = phase.name.as_str().into();
    let mut asks: Vec<Ask> =
        phase.loads.iter().flat_map(|load| of_model(phase, &name, load)).collect();
    // Stable: those of one model stay in order.
    asks.sort_by_key(|ask| ask.due);
    asks.into()
}

fn of_model(phase: &Phase, name: &Arc<str>, load: &ModelPhase) -> Vec<Ask> {
    let times = load.arrivals.times(phase.limit, load.seed);
    let model: Arc<str> = load.model.as_str().into();
    let ask = |due, (endpoint, body, prompt_tokens)| Ask {
        phase: name.clone(),
        is_overload: phase.is_overload,
        model: model.clone(),
        due,
        endpoint,
        body,
        prompt_tokens,
    };
    times.into_iter().zip(bodies(load)).map(|(due, made)| ask(due, made)).collect()
}

/// Bodies without an end; none where there is nothing to ask.
fn bodies(load: &ModelPhase) -> Box<dyn Iterator<Item = Made> + '_> {
    match &load.shape {
        Shape::Made { prompts, answer_tokens, images, ignore_eos } => {
            let frame = Frame::new(&load.model, *answer_tokens, *images, *ignore_eos);
            let pictures = (*images > 0).then(|| Images::new(load.seed));
            let per_round = prompts.len().max(1);
            let start = (load.seed % MOST_START) as usize;
            let made = move |(nth, prompt): (usize, &Prompt)| {
                // Another beginning in each round, and with each seed.
                let text = prompt.rotated(start + (nth / per_round) * STEP);
                let first = nth as u64 * u64::from(*images);
                let shown: Vec<[Bytes; 2]> = pictures
                    .iter()
                    .flat_map(|pictures| (0..*images).map(|of| pictures.nth(first + u64::from(of))))
                    .collect();
                (Endpoint::Chat, frame.body(text, &shown), prompt.tokens)
            };
            Box::new(prompts.iter().cycle().enumerate().map(made))
        }
        Shape::Dataset { requests, ignore_eos } => {
            let made: Vec<Made> = requests
                .iter()
                .map(|request| from_file(request, &load.model, *ignore_eos))
                .collect();
            let count = made.len();
            Box::new((0..count).cycle().map(move |nth| made[nth].clone()))
        }
    }
}

/// A body but for its text and pictures.
struct Frame {
    before: Bytes,
    /// Between the text and the first picture, or the body's end.
    middle: Bytes,
    /// After the pictures; nothing where there are none.
    after: Bytes,
}

const PICTURE: &str = r#"{"type":"image_url","image_url":{"url":""#;
const NEXT_PICTURE: &str = r#""}},{"type":"image_url","image_url":{"url":""#;
const END_OF_PICTURE: &str = r#""}}"#;

impl Frame {
    fn new(model: &str, answer_tokens: u32, images: u32, ignore_eos: bool) -> Self {
        let content = match images {
            0 => json!(TEXT),
            _ => json!([{ "type": "text", "text": TEXT }, PICTURES]),
        };
        let body = chat(model, &content, answer_tokens, ignore_eos).to_string();
        let text = json!(TEXT).to_string();
        let pictures = json!(PICTURES).to_string();
        let (before, rest) = body.split_once(text.trim_matches('"')).unwrap_or((&body, ""));
        let (middle, after) = rest.split_once(&pictures).unwrap_or((rest, ""));
        Self {
            before: before.to_owned().into(),
            middle: middle.to_owned().into(),
            after: after.to_owned().into(),
        }
    }

    fn body(&self, text: [Bytes; 3], pictures: &[[Bytes; 2]]) -> Pieces {
        let mut pieces = vec![self.before.clone()];
        pieces.extend(text);
        pieces.push(self.middle.clone());
        for (nth, picture) in pictures.iter().enumerate() {
            let before = if nth == 0 { PICTURE } else { NEXT_PICTURE };
            pieces.push(Bytes::from_static(before.as_bytes()));
            pieces.extend_from_slice(picture);
        }
        if !pictures.is_empty() {
            pieces.push(Bytes::from_static(END_OF_PICTURE.as_bytes()));
        }
        pieces.push(self.after.clone());
        pieces.into_iter().collect()
    }
}

fn chat(model: &str, content: &Value, answer_tokens: u32, ignore_eos: bool) -> Value {
    let body = json!({
        "model": model,
        "messages": [{ "role": "user", "content": content }],
        "max_tokens": answer_tokens,
    });
    streamed(body, ignore_eos)
}

/// A body whose answer comes as a stream that ends with the count of its tokens.
fn streamed(mut body: Value, ignore_eos: bool) -> Value {
    body["stream"] = json!(true);
    body["stream_options"] = json!({ "include_usage": true });
    if ignore_eos {
        body["ignore_eos"] = json!(true);
    }
    body
}

fn from_file(request: &Request, model: &str, ignore_eos: bool) -> Made {
    match request {
        Request::Chat { prompt, answer_tokens } => {
            let body = chat(model, &json!(prompt), *answer_tokens, ignore_eos);
            (Endpoint::Chat, Pieces::from_iter([body.to_string()]), 0)
        }
        Request::Batch { endpoint, body } => {
            let mut body = Value::Object(body.clone());
            body["model"] = json!(model);
            let body = streamed(body, ignore_eos);
            (*endpoint, Pieces::from_iter([body.to_string()]), 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::arrivals::Arrivals;
    use crate::prompts;

    fn prompts() -> Vec<Prompt> {
        let made = std::pin::pin!(prompts::make(None, 2, 40, 5));
        match made.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(made) => made.unwrap(),
            Poll::Pending => panic!("it waits"),
        }
    }

    fn made(images: u32, count: u32) -> Vec<Value> {
        let shape =
            Shape::Made { prompts: prompts(), answer_tokens: 9, images, ignore_eos: images == 0 };
        bodies_of(shape, count)
    }

    fn bodies_of(shape: Shape, count: u32) -> Vec<Value> {
        let arrivals = Arrivals::Burst { count };
        let load = ModelPhase { model: "a \"b\"".to_owned(), arrivals, seed: 1, shape };
        let phase = Phase {
            name: "p".to_owned(),
            loads: vec![load],
            limit: Duration::from_secs(1),
            grace: Duration::ZERO,
            is_overload: false,
        };
        let json = |ask: Ask| serde_json::from_slice(&Vec::from(ask.body.0).concat()).unwrap();
        of(&phase).into_iter().map(json).collect()
    }

    #[test]
    fn a_body_is_what_an_engine_takes() {
        for images in [0, 1, 3] {
            let bodies = made(images, 5);
            assert_eq!(bodies.len(), 5);
            for body in &bodies {
                assert_eq!(body["model"], "a \"b\"");
                assert_eq!(body["max_tokens"], 9);
                assert_eq!(body["stream"], true);
                assert_eq!(body["stream_options"]["include_usage"], true);
                assert_eq!(body.get("ignore_eos").is_some(), images == 0);
                let content = &body["messages"][0]["content"];
                let text = if images == 0 { content } else { &content[0]["text"] };
                assert_eq!(text.as_str().unwrap().split(' ').count(), 30, "{images}");
                let urls = content.as_array().map_or(0, |parts| parts.len() - 1);
                assert_eq!(urls, images as usize);
                for nth in 1..=urls {
                    let url = content[nth]["image_url"]["url"].as_str().unwrap();
                    assert!(url.starts_with("data:image/bmp;base64,Qk"));
                }
            }
            for (nth, body) in bodies.iter().enumerate() {
                assert!(!bodies[..nth].contains(body), "{images} images, body {nth} comes twice");
            }
        }
    }

    #[test]
    fn a_line_of_a_batch_is_sent_as_it_is_but_for_model_and_stream() {
        let body = json!({ "model": "x", "temperature": 0.5, "stream": false });
        let Value::Object(body) = body else { panic!("an object") };
        let requests = vec![Request::Batch { endpoint: Endpoint::Completions, body }];
        let bodies = bodies_of(Shape::Dataset { requests, ignore_eos: false }, 2);
        let want = json!({
            "model": "a \"b\"",
            "temperature": 0.5,
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        assert_eq!(bodies, [want.clone(), want]);
        assert!(
            bodies_of(Shape::Dataset { requests: Vec::new(), ignore_eos: false }, 2).is_empty()
        );
    }
}
