//! OpenAI's completions as all engines give them: whole, or token by token.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::engine::Engine;
use crate::fault::Fault;
use crate::http::Answer;

/// What it says, a word a token.
const WORDS: [&str; 8] =
    ["this ", "answer ", "is ", "emulated ", "and ", "means ", "nothing ", "at all. "];
const LEAK: u64 = 64 << 20;

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) is_chat: bool,
    pub(crate) is_streamed: bool,
    /// Tokens of the prompt.
    pub(crate) prompt: u64,
    /// Tokens of the answer.
    pub(crate) answer: u64,
}

impl Request {
    pub(crate) fn new(body: &Value, is_chat: bool) -> Self {
        let asked = body["max_completion_tokens"].as_u64().or(body["max_tokens"].as_u64());
        Self {
            is_chat,
            is_streamed: body["stream"].as_bool() == Some(true),
            prompt: tokens_of(body, is_chat),
            answer: asked.unwrap_or(if is_chat { 128 } else { 16 }),
        }
    }
}

/// What a picture becomes (Gemma 3).
const PICTURE: u64 = 256;

fn tokens_of(body: &Value, is_chat: bool) -> u64 {
    if !is_chat {
        return tokens_in(&body["prompt"]);
    }
    let messages = body["messages"].as_array().into_iter().flatten();
    messages.map(|message| tokens_in(&message["content"])).sum::<u64>().max(1)
}

/// Some four characters a token; of a list each part by itself.
pub(crate) fn tokens_in(content: &Value) -> u64 {
    match content {
        Value::String(text) => (text.len() as u64 / 4).max(1),
        Value::Array(parts) if parts.iter().all(Value::is_number) => parts.len() as u64,
        Value::Array(parts) => parts.iter().map(tokens_in).sum(),
        Value::Object(part) if part.get("type").is_some_and(|kind| kind == "image_url") => PICTURE,
        Value::Object(part) => part.get("text").map_or(0, tokens_in),
        _ => 0,
    }
}

/// Answers a request that the engine takes.
pub(crate) async fn answer(engine: &Arc<Engine>, request: Request) -> Answer {
    {
        let mut state = engine.state();
        if state.fault == Fault::Leak {
            state.leaked += LEAK;
        }
    }
    let Request { is_chat, is_streamed, prompt, answer } = request;
    match is_streamed {
        true => stream(Arc::clone(engine), prompt, answer, is_chat),
        false => whole(engine, prompt, answer, is_chat).await,
    }
}

fn usage(prompt: u64, answer: u64) -> Value {
    json!({ "prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer })
}

async fn whole(engine: &Engine, prompt: u64, answer: u64, is_chat: bool) -> Answer {
    let room = engine.admit(prompt, answer).await;
    engine.prefill(prompt).await;
    let mut text = String::new();
    for at in 0..answer {
        engine.token().await;
        text.push_str(word(at));
    }
    drop(room);
    engine.state().requests += 1;
    let (object, choice) = match is_chat {
        true => (
            "chat.completion",
            json!({ "index": 0, "message": { "role": "assistant", "content": text }, "finish_reason": "length" }),
        ),
        false => {
            ("text_completion", json!({ "index": 0, "text": text, "finish_reason": "length" }))
        }
    };
    Answer::json(
        200,
        &json!({
            "id": "emulated", "object": object, "created": 0, "model": engine.model, "choices": [choice],
            "usage": usage(prompt, answer),
        }),
    )
}

pub(crate) fn word(at: u64) -> &'static str {
    WORDS[at as usize % WORDS.len()]
}

fn stream(engine: Arc<Engine>, prompt: u64, answer: u64, is_chat: bool) -> Answer {
    let (sender, chunks) = mpsc::channel(16);
    tokio::spawn(async move {
        // Whoever has gone wants no more tokens.
        tokio::select! {
            () = tokens(&engine, prompt, answer, is_chat, &sender) => {}
            () = sender.closed() => {}
        }
    });
    Answer::Stream { kind: "text/event-stream; charset=utf-8", chunks }
}

type Chunks = mpsc::Sender<Result<Bytes, io::Error>>;

async fn tokens(engine: &Engine, prompt: u64, answer: u64, is_chat: bool, chunks: &Chunks) {
    let room = engine.admit(prompt, answer).await;
    engine.prefill(prompt).await;
    for at in 0..answer {
        engine.token().await;
        if at == answer / 2 && engine.state().fault == Fault::CrashInStream {
            drop(chunks.send(Err(io::ErrorKind::ConnectionReset.into())).await);
            engine.end(
                "it crashed in a stream",
                -11,
                "Fatal Python error: Segmentation fault (emulated)",
            );
            return;
        }
        let reason = if at + 1 == answer { json!("length") } else { Value::Null };
        let choice = match is_chat {
            true => {
                json!({ "index": 0, "delta": { "content": word(at) }, "finish_reason": reason })
            }
            false => json!({ "index": 0, "text": word(at), "finish_reason": reason }),
        };
        let object = if is_chat { "chat.completion.chunk" } else { "text_completion" };
        let chunk = json!({
            "id": "emulated", "object": object, "created": 0, "model": engine.model, "choices": [choice],
        });
        if chunks.send(Ok(Bytes::from(format!("data: {chunk}\n\n")))).await.is_err() {
            return;
        }
    }
    drop(room);
    engine.state().requests += 1;
    drop(chunks.send(Ok(Bytes::from_static(b"data: [DONE]\n\n"))).await);
}
