//! Engines on ports of their own, a gateway in front of them, and clients.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use berth_gateway::{Gateway, Instance, Settings, Table, UpstreamState};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;

/// Long enough for anything that should happen at all; nothing here waits for it to pass.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
pub(crate) const MAX_BODY: u64 = 4096;

/// What an engine does with a request.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Behaviour {
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
pub(crate) enum Seen {
    Request(String),
    Gone,
}

/// An engine on a port of its own.
pub(crate) struct Engine {
    pub(crate) address: SocketAddr,
    pub(crate) seen: mpsc::UnboundedReceiver<Seen>,
    pub(crate) go_on: mpsc::UnboundedSender<()>,
}

pub(crate) async fn engine(behaviour: Behaviour) -> Engine {
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

pub(crate) async fn answer(
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
pub(crate) async fn read_message(stream: &mut TcpStream) -> Option<String> {
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
pub(crate) struct Served {
    pub(crate) gateway: Gateway,
    pub(crate) address: SocketAddr,
    pub(crate) ended: JoinHandle<std::io::Result<()>>,
}

pub(crate) fn table(instances: impl IntoIterator<Item = Instance>) -> Table {
    Table { instances: instances.into_iter().collect(), ..Table::default() }
}

pub(crate) async fn serve(routes: &[(&str, &str, SocketAddr, UpstreamState)]) -> Served {
    let routes = routes.iter();
    let routes =
        routes.map(|(model, id, address, state)| Instance::new(model, id, *address, *state));
    serve_table(table(routes), Settings::default()).await
}

pub(crate) async fn serve_table(table: Table, settings: Settings) -> Served {
    let gateway = Gateway::new(Settings { max_body: MAX_BODY, ..settings });
    gateway.set_table(table);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = gateway.clone();
    let ended = tokio::spawn(async move { serving.serve(listener, PATIENCE).await });
    Served { gateway, address, ended }
}

pub(crate) fn request(method: &str, path: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: berth\r\nx-custom: kept\r\nconnection: close, x-hop\r\nx-hop: dropped\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

pub(crate) async fn send(address: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

/// The whole answer to one request.
pub(crate) async fn ask(address: SocketAddr, text: &str) -> String {
    let mut stream = send(address, text).await;
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8(answer).unwrap()
}

/// What comes of a request, however it ends.
pub(crate) async fn whatever_comes(address: SocketAddr) -> String {
    let text = request("POST", "/v1/completions", r#"{"model":"tiny"}"#);
    let (mut stream, mut answer) = (send(address, &text).await, Vec::new());
    drop(tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap());
    String::from_utf8(answer).unwrap()
}

/// The status and the body of what is read at a path.
pub(crate) async fn get(address: SocketAddr, path: &str) -> (String, String) {
    let answer = ask(address, &request("GET", path, "")).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().to_owned(), body.to_owned())
}

pub(crate) async fn next(engine: &mut Engine) -> Seen {
    tokio::time::timeout(PATIENCE, engine.seen.recv())
        .await
        .expect("the engine saw nothing")
        .unwrap()
}

/// Reads until the text is there; what comes after it stays unread or comes along.
pub(crate) async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(text) {
        let mut buffer = [0; 1024];
        let n = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(n > 0, "ended after {seen:?}");
        seen.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
    }
    seen
}
