//! What passes, and what is answered from here.

use berth_gateway::{Instance, Settings, UpstreamState};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::harness::{
    Behaviour, MAX_BODY, ask, engine, get, read_until, request, send, serve, serve_table, table,
};

#[tokio::test]
async fn bytes_pass_untouched() {
    let engine = engine(Behaviour::Echo).await;
    let served = serve(&[("tiny", "tiny-0", engine.address, UpstreamState::Ready)]).await;
    let body = r#"{ "unknown":{"deep":[1,2.50,null]}, "model" :"tiny","n":1e3 }"#;
    let answer = ask(served.address, &request("POST", "/v1/chat/completions?x=1", body)).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("x-engine: yes"), "{answer}");
    let (_, forwarded) = answer.split_once("\r\n\r\n").unwrap();
    assert!(forwarded.starts_with("POST /v1/chat/completions?x=1 HTTP/1.1\r\n"), "{forwarded}");
    assert!(forwarded.ends_with(body), "{forwarded}");
    assert!(forwarded.contains("x-custom: kept"), "{forwarded}");
    assert!(!forwarded.contains("x-hop"), "{forwarded}");
}

#[tokio::test]
async fn errors_have_openais_shape() {
    let engine = engine(Behaviour::Echo).await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let served = serve(&[
        ("tiny", "tiny-0", engine.address, UpstreamState::Ready),
        ("late", "late-0", engine.address, UpstreamState::Starting),
        ("broken", "broken-0", engine.address, UpstreamState::Failed),
        ("gone", "gone-0", nobody, UpstreamState::Ready),
    ])
    .await;
    let large = format!(r#"{{"model":"tiny","x":"{}"}}"#, "x".repeat(MAX_BODY as usize));
    for (method, path, body, status, code, says) in [
        (
            "POST",
            "/v1/chat/completions",
            r#"{"model":"nope"}"#,
            404,
            "model_not_found",
            "there are: broken, gone, late, tiny",
        ),
        (
            "POST",
            "/v1/completions",
            r#"{"model":"late"}"#,
            503,
            "model_not_ready",
            "it is starting",
        ),
        (
            "POST",
            "/v1/completions",
            r#"{"model":"broken"}"#,
            503,
            "model_not_ready",
            "berth status",
        ),
        (
            "POST",
            "/v1/completions",
            r#"{"model":"gone"}"#,
            502,
            "upstream_unreachable",
            "try again",
        ),
        ("POST", "/v1/embeddings", r#"{"model":"tiny""#, 400, "invalid_json", "not valid JSON"),
        ("POST", "/v1/embeddings", r#"{"input":""}"#, 400, "model_missing", "no `model`"),
        ("POST", "/v1/chat/completions", &large, 413, "body_too_large", "larger than 4096 bytes"),
        (
            "GET",
            "/v1/chat/completions",
            "",
            404,
            "endpoint_not_found",
            "no GET /v1/chat/completions",
        ),
        ("GET", "/nothing", "", 404, "endpoint_not_found", "no GET /nothing"),
    ] {
        let answer = ask(served.address, &request(method, path, body)).await;
        let (head, json) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert_eq!(head.contains("retry-after: "), matches!(status, 502 | 503), "{head}");
        let json: Value = serde_json::from_str(json).unwrap();
        assert_eq!(json["error"]["code"], code, "{json}");
        assert!(json["error"]["message"].as_str().unwrap().contains(says), "{json}");
    }
}

/// A body whose length is not said is cut off at the limit too.
#[tokio::test]
async fn chunked_bodies_have_the_same_limit() {
    let served = serve(&[]).await;
    let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
    let text = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: berth\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n"
    );
    let mut stream = send(served.address, &text).await;
    let head = read_until(&mut stream, "body_too_large").await;
    assert!(head.starts_with("HTTP/1.1 413 "), "{head}");
}

#[tokio::test]
async fn streams_arrive_as_they_are_made() {
    let engine = engine(Behaviour::Stream).await;
    let served = serve(&[("tiny", "tiny-0", engine.address, UpstreamState::Ready)]).await;
    let mut client =
        send(served.address, &request("POST", "/v1/completions", r#"{"model":"tiny"}"#)).await;
    // The engine holds the second event back until the first has come through.
    read_until(&mut client, "data: a\n\n").await;
    engine.go_on.send(()).unwrap();
    let rest = read_until(&mut client, "0\r\n\r\n").await;
    assert!(rest.contains("data: b\n\n"), "{rest}");
}

/// A file's name and a model's stand in the same form.
#[tokio::test]
async fn forms_with_files_name_their_model_too() {
    let engine = engine(Behaviour::Echo).await;
    let mut instance = Instance::new("ear", "ear-0", engine.address, UpstreamState::Ready);
    instance.name = Some("owner/ear".to_owned());
    let served = serve_table(table([instance]), Settings::default()).await;
    let body = "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF\r\n\
                --x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\near\r\n--x--\r\n";
    let text = request("POST", "/v1/audio/transcriptions", body);
    let text = text.replace("x-custom: kept", "content-type: multipart/form-data; boundary=x");
    let answer = ask(served.address, &text).await;
    assert!(answer.contains("\r\n\r\nowner/ear\r\n--x--"), "{answer}");
}

#[tokio::test]
async fn models_health_readiness_and_metrics_are_told() {
    let engine = engine(Behaviour::Echo).await;
    let ready = ("tiny", "tiny-0", engine.address, UpstreamState::Ready);
    let served = serve(&[ready, ("late", "late-0", engine.address, UpstreamState::Starting)]).await;
    let get = |path| get(served.address, path);
    let (status, models) = get("/v1/models").await;
    let models: Value = serde_json::from_str(&models).unwrap();
    let names: Vec<_> =
        models["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!((status.as_str(), names), ("200", vec!["late", "tiny"]));
    assert_eq!(get("/health").await.0, "200");
    assert_eq!(get("/ready").await.0, "503", "late is not ready");
    served.gateway.set_table(table([Instance::new(
        "tiny",
        "tiny-0",
        engine.address,
        UpstreamState::Ready,
    )]));
    assert_eq!(get("/ready").await.0, "200");
    ask(served.address, &request("POST", "/v1/completions", r#"{"model":"tiny"}"#)).await;
    let (_, metrics) = get("/metrics").await;
    assert!(
        metrics.contains("berth_gateway_requests_total{model=\"tiny\",outcome=\"ok\"} 1"),
        "{metrics}"
    );
}
