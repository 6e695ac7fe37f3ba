//! The gateway over real sockets, in front of engines that do what a test says.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use berth_gateway::{Gateway, Instance, Rule, Settings, Table, UpstreamState};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};
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
    /// Ends the connection before the length that it said.
    Short,
    /// Reads the request, and ends the connection without a word.
    Mute,
}

/// What an engine saw.
#[derive(Debug, PartialEq)]
enum Seen {
    Request(String),
    Gone,
}

/// An engine on a port of its own.
struct Engine {
    address: SocketAddr,
    seen: mpsc::UnboundedReceiver<Seen>,
    go_on: mpsc::UnboundedSender<()>,
}

async fn engine(behaviour: Behaviour) -> Engine {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, seen) = mpsc::unbounded_channel();
    let (go_on, told) = mpsc::unbounded_channel();
    let told = Arc::new(Mutex::new(told));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (tell, told) = (tell.clone(), Arc::clone(&told));
            tokio::spawn(async move {
                while let Some(request) = read_message(&mut stream).await {
                    drop(tell.send(Seen::Request(request.clone())));
                    answer(behaviour, &mut stream, &request, &told, &tell).await;
                }
            });
        }
    });
    Engine { address, seen, go_on }
}

async fn answer(
    behaviour: Behaviour,
    stream: &mut TcpStream,
    request: &str,
    told: &Mutex<mpsc::UnboundedReceiver<()>>,
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
            let mut told = told.lock().await;
            tokio::select! {
                _ = told.recv() => stream.write_all(b"9\r\ndata: b\n\n\r\n0\r\n\r\n").await.unwrap(),
                read = stream.read(&mut byte) => {
                    assert!(matches!(read, Ok(0) | Err(_)));
                    drop(tell.send(Seen::Gone));
                }
            }
        }
        Behaviour::Short => {
            let head = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this";
            stream.write_all(head.as_bytes()).await.unwrap();
            drop(stream.shutdown().await);
        }
        Behaviour::Mute => drop(stream.shutdown().await),
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

fn table(instances: impl IntoIterator<Item = Instance>) -> Table {
    Table { instances: instances.into_iter().collect(), ..Table::default() }
}

async fn serve(routes: &[(&str, &str, SocketAddr, UpstreamState)]) -> Served {
    let routes = routes.iter();
    let routes =
        routes.map(|(model, id, address, state)| Instance::new(model, id, *address, *state));
    serve_table(table(routes), Settings::default()).await
}

async fn serve_table(table: Table, settings: Settings) -> Served {
    let gateway = Gateway::new(Settings { max_body: MAX_BODY, ..settings });
    gateway.set_table(table);
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

/// What comes of a request, however it ends.
async fn whatever_comes(address: SocketAddr) -> String {
    let text = request("POST", "/v1/completions", r#"{"model":"tiny"}"#);
    let (mut stream, mut answer) = (send(address, &text).await, Vec::new());
    drop(tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap());
    String::from_utf8(answer).unwrap()
}

/// The status and the body of what is read at a path.
async fn get(address: SocketAddr, path: &str) -> (String, String) {
    let answer = ask(address, &request("GET", path, "")).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().to_owned(), body.to_owned())
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

/// A stream that the engine cuts is never ended as if it were complete: its last event is an error.
#[tokio::test]
async fn a_cut_stream_is_cut() {
    let engine = engine(Behaviour::Cut).await;
    let served = serve(&[("tiny", "tiny-0", engine.address, UpstreamState::Ready)]).await;
    let answer = whatever_comes(served.address).await;
    assert!(answer.contains("data: a"), "{answer}");
    assert!(
        answer.contains("data: {\"error\":{\"message\":\"the engine's answer broke off"),
        "{answer}"
    );
    assert!(!answer.contains("[DONE]"), "{answer}");
    let (_, metrics) = get(served.address, "/metrics").await;
    assert!(metrics.contains("outcome=\"upstream_broken\"} 1"), "{metrics}");
}

/// What is no stream of events can't say so: the connection breaks off.
#[tokio::test]
async fn a_cut_answer_is_cut() {
    let engine = engine(Behaviour::Short).await;
    let served = serve(&[("tiny", "tiny-0", engine.address, UpstreamState::Ready)]).await;
    let answer = whatever_comes(served.address).await;
    // Nothing, or less than was promised.
    assert!(answer.is_empty() || answer.contains("content-length: 100"), "{answer}");
}

#[tokio::test]
async fn the_idle_instance_is_chosen() {
    let mut engines = [engine(Behaviour::Silent).await, engine(Behaviour::Silent).await];
    let served = serve(&[
        ("tiny", "tiny-0", engines[0].address, UpstreamState::Ready),
        ("tiny", "tiny-1", engines[1].address, UpstreamState::Ready),
    ])
    .await;
    let text = request("POST", "/v1/completions", r#"{"model":"tiny"}"#);
    let in_flight = || ["tiny-0", "tiny-1"].map(|id| served.gateway.routes().in_flight(id));
    let _first = send(served.address, &text).await;
    while in_flight().iter().sum::<u64>() == 0 {
        tokio::task::yield_now().await;
    }
    let _second = send(served.address, &text).await;
    for engine in &mut engines {
        assert!(matches!(next(engine).await, Seen::Request(_)));
    }
}

/// As long as nothing was answered the client knows nothing of an instance that is gone, or goes just then.
#[tokio::test]
async fn another_instance_answers_for_one_that_can_not() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mute = engine(Behaviour::Mute).await;
    for gone in [nobody, mute.address] {
        let mut here = engine(Behaviour::Echo).await;
        let served = serve(&[
            ("tiny", "tiny-0", gone, UpstreamState::Ready),
            ("tiny", "tiny-1", here.address, UpstreamState::Ready),
        ])
        .await;
        let ready = "upstream_ready{model=\"tiny\",instance=\"tiny-0\"}";
        let passed_over = async {
            loop {
                let text = request("POST", "/v1/completions", r#"{"model":"tiny"}"#);
                let answer = ask(served.address, &text).await;
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                next(&mut here).await;
                // Which of the two is drawn is chance.
                let (_, metrics) = get(served.address, "/metrics").await;
                if metrics.contains(&format!("{ready} 0")) {
                    break;
                }
            }
        };
        tokio::time::timeout(PATIENCE, passed_over).await.expect("it is passed over");
    }
}

/// Neither one that takes requests and says nothing is waited for without end, nor one that falls silent in a stream.
#[tokio::test]
async fn a_silent_engine_is_given_up() {
    let short = Duration::from_millis(50);
    let first = Settings { first_byte_limit: short, ..Settings::default() };
    let then = Settings { idle_limit: short, ..Settings::default() };
    let rows = [
        (Behaviour::Silent, first, "HTTP/1.1 504", "upstream_silent"),
        (Behaviour::Stream, then, "data: a", "upstream_broken"),
    ];
    for (behaviour, settings, shows, says) in rows {
        let engine = engine(behaviour).await;
        let instance = Instance::new("tiny", "tiny-0", engine.address, UpstreamState::Ready);
        let served = serve_table(table([instance]), settings).await;
        let answer =
            ask(served.address, &request("POST", "/v1/completions", r#"{"model":"tiny"}"#)).await;
        assert!(answer.contains(shows) && answer.contains(says), "{answer}");
    }
}

/// What a cache holds is not exceeded: the next request waits in the gateway until there is room.
#[tokio::test]
async fn requests_wait_for_room() {
    let mut engine = engine(Behaviour::Stream).await;
    let instance = Instance {
        cache_tokens: Some(1000),
        ..Instance::new("tiny", "tiny-0", engine.address, UpstreamState::Ready)
    };
    let settings = Settings { queue_limit: Duration::from_secs(2), ..Settings::default() };
    let served = serve_table(table([instance]), settings).await;
    let large = request("POST", "/v1/completions", r#"{"model":"tiny","max_tokens":900}"#);
    let mut first = send(served.address, &large).await;
    assert!(matches!(next(&mut engine).await, Seen::Request(_)));
    let answer = ask(served.address, &large).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("queue_timeout"), "{answer}");
    assert!(answer.contains("retry-after: "), "{answer}");
    let mut second = send(served.address, &large).await;
    engine.go_on.send(()).unwrap();
    read_until(&mut first, "data: b").await;
    assert!(matches!(next(&mut engine).await, Seen::Request(_)), "it has its turn");
    engine.go_on.send(()).unwrap();
    read_until(&mut second, "data: b").await;
}

/// Where requests go: under another name, by rules, by weight.
#[tokio::test]
async fn requests_go_where_the_table_says() {
    let (large, small) = (engine(Behaviour::Echo).await, engine(Behaviour::Echo).await);
    let mut there = Instance::new("large", "large-0", large.address, UpstreamState::Ready);
    there.name = Some("owner/large:q8".to_owned());
    let here = Instance::new("small", "small-0", small.address, UpstreamState::Ready);
    let weighted = |deployment: &str, weight, address| Instance {
        deployment: deployment.to_owned(),
        weight,
        ..Instance::new("both", deployment, address, UpstreamState::Ready)
    };
    let table = Table {
        instances: vec![
            there,
            here,
            weighted("old", 1, large.address),
            weighted("new", 0, small.address),
        ],
        aliases: [("gpt-4".to_owned(), "large".to_owned())].into(),
        rules: vec![
            Rule {
                path_prefix: Some("/team".to_owned()),
                to: "small".to_owned(),
                ..Rule::default()
            },
            Rule {
                model: Some("nobody asks for it".to_owned()),
                to: "large".to_owned(),
                ..Rule::default()
            },
            Rule {
                header: Some(("x-custom".to_owned(), "kept".to_owned())),
                model: Some("canary".to_owned()),
                to: "small".to_owned(),
                ..Rule::default()
            },
        ],
    };
    let served = serve_table(table, Settings::default()).await;
    let rows = [
        ("/v1/completions", "large", r#"{"model":"owner/large:q8"}"#),
        ("/v1/completions", "gpt-4", r#"{"model":"owner/large:q8"}"#),
        ("/v1/completions", "small", r#"{"model":"small"}"#),
        ("/team/v1/completions", "large", r#"{"model":"small"}"#),
        ("/v1/rerank", "canary", r#"{"model":"small"}"#),
        ("/v1/completions", "both", r#"{"model":"both"}"#),
    ];
    for (path, model, expected) in rows {
        let body = format!(r#"{{"model":"{model}"}}"#);
        let answer = ask(served.address, &request("POST", path, &body)).await;
        assert!(answer.ends_with(expected), "{path} {model}: {answer}");
        assert!(!answer.contains("POST /team"), "{answer}");
        let is_large = answer.contains(&format!("host: {}", large.address));
        assert_eq!(
            is_large,
            matches!(model, "gpt-4" | "both") || expected.contains("large"),
            "{answer}"
        );
    }
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

/// Keys from a file: who may use what, and how much.
#[tokio::test]
async fn keys_open_and_limit() {
    let engine = engine(Behaviour::Echo).await;
    let ready = |model: &str| {
        Instance::new(model, &format!("{model}-0"), engine.address, UpstreamState::Ready)
    };
    let served = serve_table(table([ready("tiny"), ready("other")]), Settings::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    let entry = berth_gateway::keys::entry;
    let limits = "models = [\"tiny\"]\nrequests_per_minute = 2\n";
    std::fs::write(
        &file,
        format!("{}\n{}{limits}", entry("all", "secret-1"), entry("few", "secret-2")),
    )
    .unwrap();
    served.gateway.read_keys(&file).unwrap();
    let asked = |key: &str, model: &str| {
        let body = format!(r#"{{"model":"{model}"}}"#);
        request("POST", "/v1/completions", &body)
            .replace("x-custom: kept", &format!("authorization: Bearer {key}"))
    };
    let rows = [
        ("nobody", "tiny", "401", "invalid_api_key"),
        ("nobody", "unknown", "401", "invalid_api_key"),
        ("secret-1", "other", "200", ""),
        ("secret-1", "unknown", "404", "there are: other, tiny"),
        ("secret-2", "other", "403", "the key `few` may not use"),
        ("secret-2", "unknown", "404", "there are: tiny\""),
        ("secret-2", "tiny", "200", ""),
        ("secret-2", "tiny", "200", ""),
        ("secret-2", "tiny", "429", "has reached its limit of requests a minute"),
        ("secret-1", "tiny", "200", ""),
    ];
    for (key, model, status, says) in rows {
        let answer = ask(served.address, &asked(key, model)).await;
        assert!(!answer.contains("secret-"), "an engine doesn't see keys: {answer}");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{key} {model}: {answer}");
        assert!(answer.contains(says), "{answer}");
    }
    assert_eq!(get(served.address, "/v1/models").await.0, "401");
    let listed = request("GET", "/v1/models", "").replace("x-custom: kept", "x-api-key: secret-2");
    let listed = ask(served.address, &listed).await;
    assert!(listed.contains("\"tiny\"") && !listed.contains("\"other\""), "{listed}");
    assert_eq!(get(served.address, "/health").await.0, "200");
    std::fs::write(&file, "[[keys]]\nname = \"x\"\nsha256 = \"abc\"\n").unwrap();
    let error = served.gateway.read_keys(&file).unwrap_err().to_string();
    assert!(error.contains("the key `x` has no SHA-256 digest"), "{error}");
    let answer = ask(served.address, &asked("secret-1", "tiny")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "what was known stays: {answer}");
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

#[tokio::test]
async fn draining_finishes_what_runs() {
    let engine = engine(Behaviour::Stream).await;
    let served = serve(&[("tiny", "tiny-0", engine.address, UpstreamState::Ready)]).await;
    let mut client =
        send(served.address, &request("POST", "/v1/completions", r#"{"model":"tiny"}"#)).await;
    read_until(&mut client, "data: a\n\n").await;
    served.gateway.drain();
    let (status, ready) = get(served.address, "/ready").await;
    assert!(
        status == "503" && ready.contains("\"draining\":true"),
        "it says that it goes: {ready}"
    );
    let answer =
        ask(served.address, &request("POST", "/v1/completions", r#"{"model":"tiny"}"#)).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("gateway_draining"), "{answer}");
    assert!(!served.ended.is_finished(), "a request still runs");
    engine.go_on.send(()).unwrap();
    read_until(&mut client, "data: b\n\n").await;
    tokio::time::timeout(PATIENCE, served.ended).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(served.address).await.is_err(), "nobody listens any more");
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
    served.gateway.set_table(Table::default());
    assert_eq!(served.gateway.routes().in_flight("tiny-0"), 1);
    let answer =
        ask(served.address, &request("POST", "/v1/completions", r#"{"model":"tiny"}"#)).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_eq!(
        get(served.address, "/ready").await.0,
        "200",
        "what has left keeps nobody from being ready"
    );
    engine.go_on.send(()).unwrap();
    read_until(&mut client, "0\r\n\r\n").await;
    while served.gateway.routes().names() != Vec::<String>::new() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
