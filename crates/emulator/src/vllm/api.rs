//! vLLM's HTTP (0.26): OpenAI's routes, health, metrics, sleep; and faults on command.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::engine::{Engine, State};
use crate::fault;
use crate::http::{Answer, Answers, Asked};
use crate::openai::{self, Request};

/// An engine as its clients see it.
pub(crate) struct Api(pub(crate) Arc<Engine>);

impl Answers for Api {
    async fn answer(&self, asked: Asked) -> Answer {
        let engine = &self.0;
        if let Some(answer) = fault::meet(engine, &asked).await {
            return answer;
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
            "/tokenize" => Answer::json(200, &tokens(engine, &asked.json())),
            "/v1/chat/completions" => complete(engine, &asked.json(), true).await,
            "/v1/completions" => complete(engine, &asked.json(), false).await,
            _ => Answer::json(404, &json!({ "detail": "Not Found" })),
        }
    }
}

fn sleep(engine: &Engine, asleep: bool) -> Answer {
    engine.set_asleep(asleep);
    Answer::text(200, "")
}

/// Only how many there are.
fn tokens(engine: &Engine, body: &Value) -> Value {
    let count = openai::tokens_in(&body["prompt"]);
    json!({ "count": count, "max_model_len": engine.pace.longest, "tokens": vec![0; count as usize] })
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
    let State {
        running,
        waiting,
        used_tokens,
        prompt_tokens,
        generated_tokens,
        requests,
        is_asleep,
        ..
    } = *engine.state();
    let usage = used_tokens as f64 / engine.pace.cache_tokens.max(1) as f64;
    let labels = format!("{{engine=\"0\",model_name=\"{}\"}}", engine.model);
    let gauge =
        |name: &str, value: f64| format!("# TYPE vllm:{name} gauge\nvllm:{name}{labels} {value}\n");
    let counter = |name: &str, value: u64| {
        format!("# TYPE vllm:{name} counter\nvllm:{name}_total{labels} {value}\n")
    };
    let asleep = |state: &str, value: bool| {
        let labels = labels.replace('}', &format!(",sleep_state=\"{state}\"}}"));
        format!("vllm:engine_sleep_state{labels} {}\n", f64::from(u8::from(value)))
    };
    [
        "# TYPE vllm:engine_sleep_state gauge\n".to_owned(),
        asleep("awake", !is_asleep),
        asleep("weights_offloaded", is_asleep),
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

async fn complete(engine: &Arc<Engine>, body: &Value, is_chat: bool) -> Answer {
    let named = body["model"].as_str().unwrap_or_default();
    if named != engine.model {
        let message = format!("The model `{named}` does not exist.");
        let error =
            json!({ "message": message, "type": "NotFoundError", "param": "model", "code": 404 });
        return Answer::json(404, &json!({ "error": error }));
    }
    let request = Request::new(body, is_chat);
    let Request { prompt, answer, .. } = request;
    let longest = engine.pace.longest;
    if prompt.saturating_add(answer) > longest {
        return bad_request(format!(
            "This model's maximum context length is {longest} tokens. However, you requested {} tokens ({prompt} in \
             the messages, {answer} in the completion). Please reduce the length of the messages or completion.",
            prompt.saturating_add(answer)
        ));
    }
    openai::answer(engine, request).await
}
