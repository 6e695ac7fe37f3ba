//! Requests that nobody would write: whatever comes, the gateway answers or closes, stays up, and sends nothing to a
//! model that wasn't named.
//!
//! `BERTH_FUZZ=1000000 cargo test -p berth-gateway --release --test fuzz` sends as many; by default it is some thousands.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use berth_gateway::{Gateway, Instance, Settings, Table, UpstreamState};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const DEFAULT: u64 = 4000;
const AT_ONCE: u64 = 64;
/// What has no answer after this long gets none: it has no end.
const PATIENCE: Duration = Duration::from_millis(500);

/// An engine that answers with its own name, and counts what reaches it.
async fn engine(name: &'static str, reached: Arc<AtomicU64>) -> Instance {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let reached = Arc::clone(&reached);
            tokio::spawn(async move {
                let (mut all, mut buffer) = (Vec::new(), [0; 8192]);
                while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    all.extend_from_slice(&buffer[..n]);
                    // What the gateway sends is well-formed, whatever it was sent.
                    while let Some(end) = whole(&all) {
                        all.drain(..end);
                        reached.fetch_add(1, Ordering::Relaxed);
                        let body = format!("engine {name}");
                        let head =
                            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                        if stream.write_all(format!("{head}{body}").as_bytes()).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    Instance::new(name, &format!("{name}-0"), address, UpstreamState::Ready)
}

/// Where the first request ends.
fn whole(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text =
        std::str::from_utf8(&bytes[..head]).expect("the head of a request to an engine is text");
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.expect("the gateway says how long a body is").parse().unwrap();
    (bytes.len() >= head + length).then_some(head + length)
}

/// A body with `model` somewhere, and the model that it names, if a parser finds one.
fn body(chance: &mut fastrand::Rng) -> Vec<u8> {
    const PARTS: &[&str] = &[
        r#""model":"a""#,
        r#""model":"b""#,
        r#""mod\u0065l":"a""#,
        r#""model" : "\u0061""#,
        r#""x":{"model":"b"}"#,
        r#""messages":[{"role":"user","content":"\"model\":\"b\""}]"#,
        r#""prompt":"é\\\" 漢字 \ud83d\ude00""#,
        r#""max_tokens":1e9"#,
        r#""stream":true"#,
        r#""n":[[[[]]],{}]"#,
        r#""model":null"#,
        r#""model":["a"]"#,
        r#""":0"#,
    ];
    let count = chance.usize(0..5);
    let parts: Vec<&str> = (0..count).map(|_| PARTS[chance.usize(..PARTS.len())]).collect();
    let mut body =
        format!("{{{}}}", parts.join([",", " ,\n", ",,"][chance.usize(0..9) / 4])).into_bytes();
    match chance.u32(0..8) {
        0 => body.truncate(chance.usize(..=body.len())),
        1 if !body.is_empty() => {
            let at = chance.usize(..body.len());
            body[at] = chance.u8(..);
        }
        2 => body = "[".repeat(chance.usize(1..2000)).into_bytes(),
        3 => body
            .splice(
                ..1,
                format!("{{\"deep\":{}0{},", "[".repeat(130), "]".repeat(130)).into_bytes(),
            )
            .for_each(drop),
        _ => {}
    }
    body
}

fn request(chance: &mut fastrand::Rng, body: &[u8]) -> Vec<u8> {
    const PATHS: &[&str] =
        &["/v1/completions", "/v1/chat/completions?a=%00", "/v1/embeddings", "/v1//x", "*"];
    let mut headers = vec![
        "host: x".to_owned(),
        "content-type: application/json".to_owned(),
        "connection: keep-alive, x-hop".to_owned(),
        "x-hop: 1".to_owned(),
        format!("x-long: {}", "y".repeat(chance.usize(0..5000))),
    ];
    headers.retain(|_| chance.u32(0..4) > 0);
    if chance.u32(0..20) == 0 {
        headers.push("x-\u{7f}odd: 1".to_owned());
    }
    chance.shuffle(&mut headers);
    let is_chunked = chance.bool();
    headers.push(match (is_chunked, chance.u32(0..20)) {
        (_, 0) => "content-length: 7\r\ntransfer-encoding: chunked".to_owned(),
        (_, 1) => "content-length: -1".to_owned(),
        (true, _) => "transfer-encoding: chunked".to_owned(),
        (false, _) => format!("content-length: {}", body.len()),
    });
    let path = PATHS[chance.usize(..PATHS.len()).min(chance.usize(..PATHS.len()))];
    let mut out = format!("POST {path} HTTP/1.1\r\n{}\r\n\r\n", headers.join("\r\n")).into_bytes();
    if !is_chunked {
        out.extend_from_slice(body);
        return out;
    }
    let mut rest = body;
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(chance.usize(1..=rest.len()));
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
        rest = after;
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

/// The model that a body names, where serde_json reads it: it takes the last of two, which the gateway refuses.
fn named(body: &[u8]) -> Option<String> {
    let map: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(body).ok()?;
    map.get("model")?.as_str().map(str::to_owned)
}

/// What became of a request.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    /// A model's engine answered.
    answered: u64,
    /// Nothing came in time, as where a request has no end.
    given_up: u64,
}

/// Sends one request and reads what comes; where a model's engine answered, it is the one that was named.
async fn one(address: std::net::SocketAddr, seed: u64) -> Counts {
    let mut chance = fastrand::Rng::with_seed(seed);
    let body = body(&mut chance);
    let request = request(&mut chance, &body);
    let Ok(mut stream) = TcpStream::connect(address).await else {
        panic!("seed {seed}: the gateway is gone")
    };
    for part in request.chunks(chance.usize(1..=request.len())) {
        if stream.write_all(part).await.is_err() {
            break;
        }
    }
    let (mut answer, mut buffer) = (Vec::new(), [0; 8192]);
    while !is_answer(&answer) {
        match tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await {
            Ok(Ok(n @ 1..)) => answer.extend_from_slice(&buffer[..n]),
            Ok(_) => break,
            Err(_) => return Counts { given_up: 1, ..Counts::default() },
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    for model in ["a", "b"] {
        if answer.contains(&format!("engine {model}")) {
            // Inside of other fields the gateway leaves it to the engine to find what is broken.
            let named = named(&body);
            assert!(named.is_none_or(|named| named == model), "seed {seed}: {answer}");
            return Counts { answered: 1, ..Counts::default() };
        }
    }
    Counts::default()
}

/// Whether an answer is all there.
fn is_answer(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    body.len() >= length.unwrap_or(0)
}

#[test]
fn nothing_makes_it_fall_over() {
    let count =
        std::env::var("BERTH_FUZZ").ok().and_then(|text| text.parse().ok()).unwrap_or(DEFAULT);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let reached = Arc::new(AtomicU64::new(0));
        let gateway = Gateway::new(Settings { max_body: 4096, ..Settings::default() });
        let instances =
            vec![engine("a", Arc::clone(&reached)).await, engine("b", Arc::clone(&reached)).await];
        gateway.set_table(Table { instances, ..Table::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = gateway.clone();
        let served =
            tokio::spawn(async move { serving.serve(listener, Duration::from_secs(5)).await });
        let senders = (0..AT_ONCE).map(|sender| {
            tokio::spawn(async move {
                let mut all = Counts::default();
                for seed in (sender..count).step_by(AT_ONCE as usize) {
                    let Counts { answered, given_up } = one(address, seed).await;
                    all = Counts {
                        answered: all.answered + answered,
                        given_up: all.given_up + given_up,
                    };
                }
                all
            })
        });
        let (mut answered, mut given_up) = (0, 0);
        for sender in senders.collect::<Vec<_>>() {
            let counts = sender.await.unwrap();
            (answered, given_up) = (answered + counts.answered, given_up + counts.given_up);
        }
        assert!(answered > count / 50, "of {count} only {answered} were good: nothing was tried");
        let reached = reached.load(Ordering::Relaxed);
        assert!(
            reached <= answered + given_up,
            "{reached} reached an engine, and {answered} were answered"
        );
        gateway.drain();
        served.await.unwrap().unwrap();
    });
}
