//! vLLM's HTTP (0.26): OpenAI's routes, health, metrics, sleep; and faults on command.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::engine::{Engine, State};
use crate::fault::Fault;
use crate::http::{Answer, Answers, Asked};

/// What it says, a word a token.
const WORDS: [&str; 8] =
    ["this ", "answer ", "is ", "emulated ", "and ", "means ", "nothing ", "at all. "];
const LEAK: u64 = 64 << 20;

/// An engine as its clients see it.
pub(crate) struct Api(pub(crate) Arc<Engine>);

impl Answers for Api {
    async fn answer(&self, asked: Asked) -> Answer {
        let engine = &self.0;
        if asked.path == "/emulator/fault" {
            return set_fault(engine, &asked.json());
        }
        let fault = engine.state().fault;
        match fault {
            Fault::Hang => std::future::pending().await,
            Fault::Crash => {
                engine.end(
                    "it was told to crash",
                    -11,
                    "Fatal Python error: Segmentation fault (emulated)",
                );
                return Answer::Nothing;
            }
            Fault::OutOfMemory if asked.method == Method::POST => {
                let line = "torch.OutOfMemoryError: CUDA out of memory. (emulated)";
                engine.end("it ran out of memory", 1, line);
                return Answer::Nothing;
            }
            Fault::Refuse => return Answer::text(503, ""),
            _ => {}
        }
        let path = asked.path.split('?').next().unwrap_or_default().to_owned();
        match path.as_str() {
            "/health" | "/ping" => Answer::text(200, ""),
            "/version" => Answer::json(200, &json!({ "version": "0.26.0+emulated" })),
            "/v1/models" => Answer::json(200, &models(engine)),
            "/metrics" => Answer::text(200, metrics(engine)),
            "/is_sleeping" => {
                Answer::json(200, &json!({ "is_sleeping": engine.state().is_asleep }))
            }
            "/sleep" => sleep(engine, true),
            "/wake_up" => sleep(engine, false),
            "/v1/chat/completions" => complete(engine, &asked.json(), true).await,
            "/v1/completions" => complete(engine, &asked.json(), false).await,
            _ => Answer::json(404, &json!({ "detail": "Not Found" })),
        }
    }
}

fn set_fault(engine: &Engine, body: &Value) -> Answer {
    match body["fault"].as_str().and_then(Fault::from_name) {
        Some(fault) => {
            engine.state().fault = fault;
            Answer::text(200, "")
        }
        None => Answer::text(
            400,
            "fault: none, refuse, hang, crash, crash_in_stream, slow, leak or out_of_memory\n",
        ),
    }
}

fn sleep(engine: &Engine, asleep: bool) -> Answer {
    engine.state().is_asleep = asleep;
    Answer::text(200, "")
}

fn models(engine: &Engine) -> Value {
    json!({
        "object": "list",
        "data": [{
            "id": engine.model, "object": "model", "owned_by": "vllm (emulated)",
            "max_model_len": engine.pace.longest,
        }],
    })
}

/// The gauges and counters that watchers read.
fn metrics(engine: &Engine) -> String {
    let State { running, waiting, used_tokens, prompt_tokens, generated_tokens, requests, .. } =
        *engine.state();
    let usage = used_tokens as f64 / engine.pace.cache_tokens.max(1) as f64;
    let labels = format!("{{engine=\"0\",model_name=\"{}\"}}", engine.model);
    let gauge =
        |name: &str, value: f64| format!("# TYPE vllm:{name} gauge\nvllm:{name}{labels} {value}\n");
    let counter = |name: &str, value: u64| {
        format!("# TYPE vllm:{name} counter\nvllm:{name}_total{labels} {value}\n")
    };
    [
        gauge("num_requests_running", running as f64),
        gauge("num_requests_waiting", waiting as f64),
        gauge("kv_cache_usage_perc", usage.min(1.0)),
        counter("num_preemptions", 0),
        counter("prompt_tokens", prompt_tokens),
        counter("generation_tokens", generated_tokens),
        counter("request_success", requests),
    ]
    .concat()
}

fn bad_request(message: String) -> Answer {
    let error =
        json!({ "message": message, "type": "BadRequestError", "param": null, "code": 400 });
    Answer::json(400, &json!({ "error": error }))
}

/// Some four characters a token.
fn tokens_of(body: &Value, is_chat: bool) -> u64 {
    let text = if is_chat { body["messages"].to_string() } else { body["prompt"].to_string() };
    (text.len() as u64 / 4).max(1)
}

async fn complete(engine: &Arc<Engine>, body: &Value, is_chat: bool) -> Answer {
    let named = body["model"].as_str().unwrap_or_default();
    if named != engine.model {
        let message = format!("The model `{named}` does not exist.");
        let error =
            json!({ "message": message, "type": "NotFoundError", "param": "model", "code": 404 });
        return Answer::json(404, &json!({ "error": error }));
    }
    let prompt = tokens_of(body, is_chat);
    let asked = body["max_completion_tokens"].as_u64().or(body["max_tokens"].as_u64());
    let answer = asked.unwrap_or(if is_chat { 128 } else { 16 });
    let longest = engine.pace.longest;
    if prompt.saturating_add(answer) > longest {
        return bad_request(format!(
            "This model's maximum context length is {longest} tokens. However, you requested {} tokens ({prompt} in \
             the messages, {answer} in the completion). Please reduce the length of the messages or completion.",
            prompt.saturating_add(answer)
        ));
    }
    {
        let mut state = engine.state();
        if state.fault == Fault::Leak {
            state.leaked += LEAK;
        }
    }
    match body["stream"].as_bool() {
        Some(true) => stream(Arc::clone(engine), prompt, answer, is_chat),
        _ => whole(engine, prompt, answer, is_chat).await,
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

fn word(at: u64) -> &'static str {
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
