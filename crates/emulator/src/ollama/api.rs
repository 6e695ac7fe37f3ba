//! Ollama's HTTP.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::library::{Model, Ollama, digest, whole};
use super::when::rfc3339;
use crate::fault;
use crate::http::{Answer, Answers, Asked};
use crate::openai::{self, Request, word};

const NDJSON: &str = "application/x-ndjson";

/// A server as its clients see it.
pub(super) struct Api(pub(super) Arc<Ollama>);

impl Answers for Api {
    async fn answer(&self, asked: Asked) -> Answer {
        let ollama = &self.0;
        if let Some(answer) = fault::meet(&ollama.engine, &asked).await {
            return answer;
        }
        let body = asked.json();
        match (&asked.method, asked.path.as_str()) {
            (_, "/") => Answer::text(200, "Ollama is running"),
            (_, "/api/version") => Answer::json(200, &json!({ "version": "0.13.0-emulated" })),
            (_, "/api/tags") => Answer::json(200, &tags(ollama)),
            (_, "/api/ps") => Answer::json(200, &ps(ollama)),
            (_, "/v1/models") => Answer::json(200, &models(ollama)),
            (&Method::POST, "/api/show") => show(ollama, &body),
            (&Method::POST, "/api/pull") => pull(ollama, &body).await,
            (&Method::POST, "/api/generate") => native(ollama, &body, false).await,
            (&Method::POST, "/api/chat") => native(ollama, &body, true).await,
            (&Method::POST, "/v1/chat/completions") => complete(ollama, &body, true).await,
            (&Method::POST, "/v1/completions") => complete(ollama, &body, false).await,
            _ => Answer::text(404, "404 page not found"),
        }
    }
}

/// The name in a body; `name` is what it was called before.
fn named(body: &Value) -> &str {
    body["model"].as_str().or(body["name"].as_str()).unwrap_or_default()
}

fn error(status: u16, text: impl Into<String>) -> Answer {
    Answer::json(status, &json!({ "error": text.into() }))
}

fn not_found(name: &str) -> String {
    format!("model '{name}' not found")
}

fn tags(ollama: &Ollama) -> Value {
    let one = |(name, model): (String, &Model)| {
        json!({
            "name": name, "model": name, "modified_at": "2026-01-01T00:00:00Z", "size": model.size,
            "digest": digest(&name), "details": details(),
        })
    };
    json!({ "models": ollama.there().into_iter().map(one).collect::<Vec<_>>() })
}

fn details() -> Value {
    json!({
        "parent_model": "", "format": "gguf", "family": "emulated", "families": ["emulated"],
        "parameter_size": "4B", "quantization_level": "Q8_0",
    })
}

fn ps(ollama: &Ollama) -> Value {
    let shown = ollama.loaded().and_then(|loaded| {
        let model = ollama.model(&loaded.name)?;
        let left =
            loaded.until.map(|until| until.saturating_duration_since(std::time::Instant::now()));
        Some(json!({
            "name": loaded.name, "model": loaded.name, "size": model.size.max(model.vram),
            "size_vram": model.vram, "digest": digest(&loaded.name), "details": details(),
            "expires_at": rfc3339(left), "context_length": loaded.num_ctx,
        }))
    });
    json!({ "models": shown.into_iter().collect::<Vec<_>>() })
}

fn models(ollama: &Ollama) -> Value {
    let one = |(name, _): (String, &Model)| json!({ "id": name, "object": "model", "created": 0, "owned_by": "library" });
    json!({ "object": "list", "data": ollama.there().into_iter().map(one).collect::<Vec<_>>() })
}

fn show(ollama: &Ollama, body: &Value) -> Answer {
    let name = named(body);
    let Some(model) = ollama.model(name) else { return error(404, not_found(name)) };
    let line = |name: &str, value: Option<u64>| {
        value.map(|value| format!("{name:<30} {value}")).into_iter().collect::<Vec<_>>()
    };
    let lines = [line("num_ctx", model.num_ctx), line("num_batch", model.num_batch)].concat();
    Answer::json(
        200,
        &json!({
            "modelfile": "", "parameters": lines.join("\n"), "template": "", "details": details(),
            "model_info": { "general.architecture": "emulated" }, "capabilities": ["completion"],
        }),
    )
}

async fn pull(ollama: &Arc<Ollama>, body: &Value) -> Answer {
    let name = named(body).to_owned();
    if name.is_empty() {
        return error(400, "invalid model name");
    }
    let (lines, mut said) = mpsc::channel(16);
    let pulling = Arc::clone(ollama);
    tokio::spawn(async move { pulling.pull(&name, lines).await });
    if body["stream"].as_bool() != Some(false) {
        let (sender, chunks) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Some(line) = said.recv().await {
                if sender.send(ndjson(&line)).await.is_err() {
                    return;
                }
            }
        });
        return Answer::Stream { kind: NDJSON, chunks };
    }
    let mut last = Value::Null;
    while let Some(line) = said.recv().await {
        last = line;
    }
    Answer::json(if last["error"].is_null() { 200 } else { 500 }, &last)
}

fn ndjson(line: &Value) -> Result<Bytes, io::Error> {
    Ok(Bytes::from(format!("{line}\n")))
}

/// `/api/generate` and `/api/chat`: without a prompt the model is loaded, or let go.
async fn native(ollama: &Arc<Ollama>, body: &Value, is_chat: bool) -> Answer {
    let name = named(body);
    if name.is_empty() {
        return error(400, "model is required");
    }
    if ollama.model(name).is_none() {
        return error(404, not_found(name));
    }
    let is_empty = match is_chat {
        true => body["messages"].as_array().is_none_or(Vec::is_empty),
        false => body["prompt"].as_str().is_none_or(str::is_empty),
    };
    if is_empty && body["keep_alive"].as_f64() == Some(0.0) {
        ollama.unload(name);
        return Answer::json(200, &last(name, is_chat, "", "unload", (0, 0)));
    }
    ollama.load(name, body).await;
    if is_empty {
        return Answer::json(200, &last(name, is_chat, "", "load", (0, 0)));
    }
    let request = Request::new(body, is_chat);
    let answer = body["options"]["num_predict"].as_u64().unwrap_or(request.answer);
    let (sender, chunks) = mpsc::channel(16);
    let (ollama, name) = (Arc::clone(ollama), name.to_owned());
    let tokens = async move {
        let room = ollama.engine.admit(request.prompt, answer).await;
        ollama.engine.prefill(request.prompt).await;
        for at in 0..answer {
            ollama.engine.token().await;
            let mut line = said(&name, is_chat, word(at));
            line["done"] = json!(false);
            if sender.send(ndjson(&line)).await.is_err() {
                return;
            }
        }
        drop(room);
        let line = last(&name, is_chat, "", "length", (request.prompt, answer));
        drop(sender.send(ndjson(&line)).await);
    };
    if body["stream"].as_bool() != Some(false) {
        tokio::spawn(tokens);
        return Answer::Stream { kind: NDJSON, chunks };
    }
    let whole = async move {
        let (mut chunks, mut text, mut end) = (chunks, String::new(), Value::Null);
        while let Some(Ok(line)) = chunks.recv().await {
            end = serde_json::from_slice(&line).unwrap_or_default();
            let part = if is_chat { &end["message"]["content"] } else { &end["response"] };
            text.push_str(part.as_str().unwrap_or_default());
        }
        match is_chat {
            true => end["message"]["content"] = json!(text),
            false => end["response"] = json!(text),
        }
        end
    };
    let ((), end) = tokio::join!(tokens, whole);
    Answer::json(200, &end)
}

fn said(name: &str, is_chat: bool, text: &str) -> Value {
    let mut line = json!({ "model": name, "created_at": "2026-01-01T00:00:00Z" });
    match is_chat {
        true => line["message"] = json!({ "role": "assistant", "content": text }),
        false => line["response"] = json!(text),
    }
    line
}

fn last(
    name: &str,
    is_chat: bool,
    text: &str,
    reason: &str,
    (prompt, answer): (u64, u64),
) -> Value {
    let mut line = said(name, is_chat, text);
    line["done"] = json!(true);
    line["done_reason"] = json!(reason);
    if answer > 0 {
        line["prompt_eval_count"] = json!(prompt);
        line["eval_count"] = json!(answer);
    }
    line
}

async fn complete(ollama: &Arc<Ollama>, body: &Value, is_chat: bool) -> Answer {
    let name = named(body);
    if !ollama.load(name, &Value::Null).await {
        let message = format!("model \"{}\" not found, try pulling it first", whole(name));
        let error =
            json!({ "message": message, "type": "not_found_error", "param": null, "code": null });
        return Answer::json(404, &json!({ "error": error }));
    }
    openai::answer(&ollama.engine, Request::new(body, is_chat)).await
}
