//! A server that streams tokens at known times; the model's name says what it does. Its requests are
//! read by hand, so that it costs little beside the generator that is measured.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// When tokens come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) first: Duration,
    pub(crate) gap: Duration,
    pub(crate) tokens: u32,
}

/// Starts a server in a thread of its own, which ends with the process.
pub(crate) fn start(pace: Pace) -> SocketAddr {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            tell.send(listener.local_addr().expect("an address")).expect("somebody waits");
            loop {
                let (stream, _) = listener.accept().await.expect("a client");
                stream.set_nodelay(true).expect("a connection");
                tokio::spawn(serve(stream, pace));
            }
        });
    });
    told.recv().expect("it started")
}

async fn serve(mut stream: TcpStream, pace: Pace) {
    while let Some((head, body)) = request(&mut stream).await {
        if answer(&mut stream, &head, &body, pace).await.is_none() {
            return;
        }
    }
}

async fn request(stream: &mut TcpStream) -> Option<(String, String)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
            let length = head.split_once("content-length: ")?.1.split("\r\n").next()?;
            let length: usize = length.parse().ok()?;
            let mut body = bytes.split_off(end + 4);
            let already = body.len();
            body.resize(length, 0);
            stream.read_exact(&mut body[already..]).await.ok()?;
            return Some((head, String::from_utf8(body).ok()?));
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

/// Answers; nothing where the connection is to be closed.
async fn answer(stream: &mut TcpStream, head: &str, body: &str, pace: Pace) -> Option<()> {
    let does = |what: &str| body.contains(&format!("\"model\":\"{what}\""));
    if head.starts_with("post /tokenize ") {
        let body: serde_json::Value = serde_json::from_str(body).ok()?;
        let words = body["prompt"].as_str()?.split(' ').count();
        return plain(stream, "200 OK", &format!("{{\"count\":{words}}}")).await;
    }
    if does("locked") && !head.contains("authorization: bearer key\r\n") {
        return plain(stream, "401 Unauthorized", "{}").await;
    }
    if does("wrong") {
        return plain(stream, "500 Internal Server Error", "{\"error\":\"boom\"}").await;
    }
    if does("full") {
        let status = "503 Service Unavailable\r\nretry-after: 1";
        return plain(stream, status, "{\"error\":{}}").await;
    }
    if does("queued") {
        return plain(stream, "429 Too Many Requests", "{\"error\":{\"code\":\"queue_full\"}}")
            .await;
    }
    if does("loading") {
        return plain(stream, "503 Service Unavailable", "{\"error\":\"Loading model\"}").await;
    }
    if does("silent") {
        std::future::pending::<()>().await;
    }
    tokens(stream, &does, pace).await
}

async fn plain(stream: &mut TcpStream, status: &str, body: &str) -> Option<()> {
    let length = body.len();
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}");
    stream.write_all(answer.as_bytes()).await.ok()
}

async fn tokens(stream: &mut TcpStream, does: &impl Fn(&str) -> bool, pace: Pace) -> Option<()> {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.ok()?;
    let role = event("{\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}");
    let token = event(
        "{\"id\":\"chatcmpl-0123456789\",\"object\":\"chat.completion.chunk\",\"created\":1,\
         \"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\
         \"logprobs\":null,\"finish_reason\":null}]}",
    );
    stream.write_all(role.as_bytes()).await.ok()?;
    let start = tokio::time::Instant::now() + pace.first;
    for nth in 0..pace.tokens {
        tokio::time::sleep_until(start + pace.gap * nth).await;
        if nth == 3 && does("cut") {
            return None;
        }
        if nth == 3 && does("sorry") {
            stream.write_all(event("{\"error\":{\"message\":\"OOM\"}}").as_bytes()).await.ok()?;
            return stream.write_all(b"0\r\n\r\n").await.ok();
        }
        if nth == 3 && does("short") {
            return stream.write_all(b"0\r\n\r\n").await.ok();
        }
        if nth == 3 && does("stuck") {
            std::future::pending::<()>().await;
        }
        stream.write_all(token.as_bytes()).await.ok()?;
    }
    let usage = format!(
        "{{\"choices\":[],\"usage\":{{\"prompt_tokens\":7,\"completion_tokens\":{}}}}}",
        pace.tokens
    );
    let end = format!("{}{}0\r\n\r\n", event(&usage), event("[DONE]"));
    stream.write_all(end.as_bytes()).await.ok()
}

fn event(data: &str) -> String {
    let event = format!("data: {data}\n\n");
    format!("{:x}\r\n{event}\r\n", event.len())
}
