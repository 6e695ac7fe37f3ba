//! Spans of requests, as a collector and an engine see them.

use berth_gateway::spans::Spans;
use berth_gateway::{Instance, Settings, UpstreamState};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::harness::{Behaviour, PATIENCE, ask, engine, request, serve_table, table};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENTS_SPAN: &str = "b7ad6b7169203331";

/// A collector that takes one batch and gives it, head and body.
async fn collector() -> (String, oneshot::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut seen = Vec::new();
        let length = |seen: &[u8]| {
            let text = String::from_utf8_lossy(seen).to_ascii_lowercase();
            let (head, _) = text.split_once("\r\n\r\n")?;
            let line = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
            Some(head.len() + 4 + line.trim().parse::<usize>().ok()?)
        };
        while length(&seen).is_none_or(|length| seen.len() < length) {
            assert!(stream.read_buf(&mut seen).await.unwrap() > 0, "the batch is not whole");
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        tell.send(seen).unwrap();
    });
    (address, told)
}

fn bytes(hex: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_a_span_between_the_clients_and_the_engines() {
    let (engine, (address, told)) = (engine(Behaviour::Echo).await, collector().await);
    let spans = Spans::to(Some(&address)).unwrap();
    let settings = Settings { spans: spans.clone(), ..Settings::default() };
    let tiny = Instance::new("tiny", "tiny-0", engine.address, UpstreamState::Ready);
    let served = serve_table(table([tiny]), settings).await;
    let parent = format!("x-custom: kept\r\ntraceparent: 00-{TRACE}-{CLIENTS_SPAN}-01");
    let text = request("POST", "/v1/completions", r#"{"model":"tiny","prompt":"a secret"}"#);
    let answer = ask(served.address, &text.replace("x-custom: kept", &parent)).await;

    let (_, seen) = answer.split_once("\r\n\r\n").unwrap();
    let of_engine: Vec<&str> =
        seen.lines().filter_map(|line| line.strip_prefix("traceparent: ")).collect();
    let [of_engine] = of_engine.as_slice() else { panic!("one, not {of_engine:?}") };
    let parts: Vec<&str> = of_engine.split('-').collect();
    let [_, trace, own, sampled] = parts.as_slice() else { panic!("{of_engine}") };
    assert_eq!((*trace, *sampled), (TRACE, "01"));
    assert_ne!(*own, CLIENTS_SPAN, "the engine's parent is the gateway's span");

    tokio::task::spawn_blocking(move || spans.flush()).await.unwrap();
    let batch = tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap();
    let has = |wanted: &[u8]| batch.windows(wanted.len()).any(|window| window == wanted);
    for id in [TRACE, own, CLIENTS_SPAN] {
        assert!(has(&bytes(id)), "{id}");
    }
    for text in ["berth-gateway", "POST /v1/completions", "gen_ai.request.model", "tiny-0"] {
        assert!(has(text.as_bytes()), "{text}");
    }
    assert!(!has(b"a secret"), "what was asked is in no span");
}
