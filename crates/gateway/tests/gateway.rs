//! The gateway over real sockets, in front of engines that do what a test says.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::net::SocketAddr;
use std::time::Duration;

use berth_gateway::{Gateway, Instance, Routes, UpstreamState};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Long enough for anything that should happen at all; nothing here waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(10);
const MAX_BODY: u64 = 4096;

/// What an engine does with a request.
#[derive(Clone, Copy, PartialEq)]
enum Behaviour {
    /// Answers with the request as it came, head and body.
    Echo,
    /// Sends one event, waits to be told, sends the last one.
    Stream,
    /// Says nothing.
    Silent,
    /// Ends the connection in the middle of a stream.
    Cut,
}

/// What an engine saw.
#[derive(Debug, PartialEq)]
enum Seen {
    Request(String),
    Gone,
}

/// An engine on a port of its own. It takes one connection after the other.
struct Engine {
    address: SocketAddr,
    seen: mpsc::UnboundedReceiver<Seen>,
    go_on: mpsc::UnboundedSender<()>,
}

async fn engine(behaviour: Behaviour) -> Engine {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, seen) = mpsc::unbounded_channel();
    let (go_on, mut told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            while let Some(request) = read_message(&mut stream).await {
                drop(tell.send(Seen::Request(request.clone())));
                answer(behaviour, &mut stream, &request, &mut told, &tell).await;
            }
        }
    });
    Engine { address, seen, go_on }
}

async fn answer(
    behaviour: Behaviour,
    stream: &mut TcpStream,
    request: &str,
    told: &mut mpsc::UnboundedReceiver<()>,
    tell: &mpsc::UnboundedSender<Seen>,
) {
    const HEAD: &str =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    match behaviour {
        Behaviour::Echo => {
            let head = format!(
                "HTTP/1.1 200 OK\r\nx-engine: yes\r\ncontent-length: {}\r\n\r\n",
                request.len()
            );
            stream.write_all(format!("{head}{request}").as_bytes()).await.unwrap();
        }
        Behaviour::Stream | Behaviour::Cut => {
            stream.write_all(format!("{HEAD}9\r\ndata: a\n\n\r\n").as_bytes()).await.unwrap();
            if behaviour == Behaviour::Cut {
                drop(stream.shutdown().await);
                return;
            }
            let mut byte = [0];
            tokio::select! {
                _ = told.recv() => stream.write_all(b"9\r\ndata: b\n\n\r\n0\r\n\r\n").await.unwrap(),
                read = stream.read(&mut byte) => {
                    assert!(matches!(read, Ok(0) | Err(_)));
                    drop(tell.send(Seen::Gone));
                }
            }
        }
        Behaviour::Silent => {
            let mut byte = [0];
            assert!(matches!(stream.read(&mut byte).await, Ok(0) | Err(_)));
            drop(tell.send(Seen::Gone));
        }
    }
}

/// Reads a head, and a body by its content-length; `None` at the end of the connection.
async fn read_message(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let n = stream.read(&mut buffer).await.ok().filter(|n| *n > 0)?;
        bytes.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.trim().parse::<usize>().ok())?
            });
            if body.len() >= length.unwrap_or(0) {
                return Some(text);
            }
        }
    }
}

/// A gateway that serves until it is drained.
struct Served {
    gateway: Gateway,
    address: SocketAddr,
    ended: JoinHandle<std::io::Result<()>>,
}

/// An instance that knows the model by the name that clients use.
fn to(model: &str, id: &str, address: SocketAddr, state: UpstreamState) -> Instance {
    Instance { model: model.into(), id: id.into(), address, state, name: None }
}

async fn serve(routes: &[(&str, &str, SocketAddr, UpstreamState)]) -> Served {
    let gateway = Gateway::new(MAX_BODY);
    let owned = routes.iter().map(|(model, id, address, state)| to(model, id, *address, *state));
    gateway.set_routes(Routes::new(owned, &gateway.routes()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = gateway.clone();
    let ended = tokio::spawn(async move { serving.serve(listener, PATIENCE).await });
    Served { gateway, address, ended }
}

fn request(method: &str, path: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: berth\r\nx-custom: kept\r\nconnection: close, x-hop\r\nx-hop: dropped\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn send(address: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

/// The whole answer to one request.
async fn ask(address: SocketAddr, text: &str) -> String {
    let mut stream = send(address, text).await;
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8(answer).unwrap()
}

async fn next(engine: &mut Engine) -> Seen {
    tokio::time::timeout(PATIENCE, engine.seen.recv())
        .await
        .expect("the engine saw nothing")
        .unwrap()
}

/// Reads until the text is there; what comes after it stays unread or comes along.
async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(text) {
        let mut buffer = [0; 1024];
        let n = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(n > 0, "ended after {seen:?}");
        seen.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
    }
    seen
}

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

#[tokio::test]
async fn engines_learn_that_the_client_left() {
    for (behaviour, first_byte) in [(Behaviour::Silent, false), (Behaviour::Stream, true)] {
        let mut engine = engine(behaviour).await;
        let served = serve(&[("tiny", "tiny-0", engine.address, UpstreamState::Ready)]).await;
        let mut client =
            send(served.address, &request("POST", "/v1/completions", r#"{"model":"tiny"}"#)).await;
        assert!(matches!(next(&mut engine).await, Seen::Request(_)));
        assert_eq!(served.gateway.routes().in_flight("tiny-0"), 1);
        if first_byte {
            read_until(&mut client, "data: a\n\n").await;
        }
        drop(client);
        assert_eq!(next(&mut engine).await, Seen::Gone, "first byte sent: {first_byte}");
        while served.gateway.routes().in_flight("tiny-0") > 0 {
            tokio::task::yield_now().await;
        }
    }
}

/// A stream that the engine cuts is never ended as if it were complete.
#[tokio::test]
async fn a_cut_stream_is_cut() {
    let engine = engine(Behaviour::Cut).await;
    let served = serve(&[("tiny", "tiny-0", engine.address, UpstreamState::Ready)]).await;
    let mut client =
        send(served.address, &request("POST", "/v1/completions", r#"{"model":"tiny"}"#)).await;
    let mut answer = Vec::new();
    drop(tokio::time::timeout(PATIENCE, client.read_to_end(&mut answer)).await.unwrap());
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.contains("data: a"), "{answer}");
    assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn the_idle_instance_is_chosen() {
    let mut busy = engine(Behaviour::Silent).await;
    let mut idle = engine(Behaviour::Silent).await;
    let served = serve(&[
        ("tiny", "tiny-0", busy.address, UpstreamState::Ready),
        ("tiny", "tiny-1", idle.address, UpstreamState::Ready),
    ])
    .await;
    let text = request("POST", "/v1/completions", r#"{"model":"tiny"}"#);
    let _first = send(served.address, &text).await;
    assert!(matches!(next(&mut busy).await, Seen::Request(_)));
    let _second = send(served.address, &text).await;
    assert!(matches!(next(&mut idle).await, Seen::Request(_)));
}

/// What takes no connection has seen nothing of a request: it goes to another, and the next ones at once.
#[tokio::test]
async fn another_instance_answers_for_one_that_is_gone() {
    let mut here = engine(Behaviour::Echo).await;
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let served = serve(&[
        ("tiny", "tiny-0", gone, UpstreamState::Ready),
        ("tiny", "tiny-1", here.address, UpstreamState::Ready),
    ])
    .await;
    for _ in 0..3 {
        let answer =
            ask(served.address, &request("POST", "/v1/completions", r#"{"model":"tiny"}"#)).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        next(&mut here).await;
    }
}

#[tokio::test]
async fn models_health_readiness_and_metrics_are_told() {
    let engine = engine(Behaviour::Echo).await;
    let ready = ("tiny", "tiny-0", engine.address, UpstreamState::Ready);
    let served = serve(&[ready, ("late", "late-0", engine.address, UpstreamState::Starting)]).await;
    let get = |path: &'static str| {
        let address = served.address;
        async move {
            let answer = ask(address, &request("GET", path, "")).await;
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            (head.split(' ').nth(1).unwrap().to_owned(), body.to_owned())
        }
    };
    let (status, models) = get("/v1/models").await;
    let models: Value = serde_json::from_str(&models).unwrap();
    let names: Vec<_> =
        models["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!((status.as_str(), names), ("200", vec!["late", "tiny"]));
    assert_eq!(get("/health").await.0, "200");
    assert_eq!(get("/ready").await.0, "503", "late is not ready");
    served.gateway.set_routes(Routes::new(
        [to("tiny", "tiny-0", engine.address, UpstreamState::Ready)],
        &served.gateway.routes(),
    ));
    assert_eq!(get("/ready").await.0, "200");
    ask(served.address, &request("POST", "/v1/completions", r#"{"model":"tiny"}"#)).await;
    let (_, metrics) = get("/metrics").await;
    assert!(
        metrics.contains("berth_gateway_requests_total{model=\"tiny\",outcome=\"ok\"} 1"),
        "{metrics}"
    );
}

#[tokio::test]
async fn draining_finishes_what_runs() {
    let engine = engine(Behaviour::Stream).await;
    let served = serve(&[("tiny", "tiny-0", engine.address, UpstreamState::Ready)]).await;
    let mut client =
        send(served.address, &request("POST", "/v1/completions", r#"{"model":"tiny"}"#)).await;
    read_until(&mut client, "data: a\n\n").await;
    served.gateway.drain();
    while TcpStream::connect(served.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(!served.ended.is_finished(), "a request still runs");
    engine.go_on.send(()).unwrap();
    read_until(&mut client, "data: b\n\n").await;
    tokio::time::timeout(PATIENCE, served.ended).await.unwrap().unwrap().unwrap();
}

/// A request in flight on an instance that left the routes still counts, so that it is not stopped
/// under it.
#[tokio::test]
async fn requests_on_a_leaving_instance_are_counted() {
    let mut engine = engine(Behaviour::Stream).await;
    let served = serve(&[("tiny", "tiny-0", engine.address, UpstreamState::Ready)]).await;
    let mut client =
        send(served.address, &request("POST", "/v1/completions", r#"{"model":"tiny"}"#)).await;
    assert!(matches!(next(&mut engine).await, Seen::Request(_)));
    served.gateway.set_routes(Routes::new([], &served.gateway.routes()));
    assert_eq!(served.gateway.routes().in_flight("tiny-0"), 1);
    let answer =
        ask(served.address, &request("POST", "/v1/completions", r#"{"model":"tiny"}"#)).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    engine.go_on.send(()).unwrap();
    read_until(&mut client, "0\r\n\r\n").await;
    served.gateway.set_routes(Routes::new([], &served.gateway.routes()));
    assert_eq!(served.gateway.routes().names(), Vec::<String>::new());
}
