//! Files from a hub, over a real socket.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};

use berth_engines::source::Hub;

/// A hub that answers every request with these bytes, and tells what it was asked.
fn hub(answer: &'static [u8]) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (asked, requests) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let head: Vec<String> =
                lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            drop(asked.send(head.join("\n")));
            drop(stream.write_all(answer));
        }
    });
    (endpoint, requests)
}

fn fetch(endpoint: &str, cache: &std::path::Path) -> (Result<String, String>, u64) {
    let token = Some("secret".to_owned());
    let hub = Hub { endpoint: endpoint.to_owned(), token, cache: cache.to_path_buf() };
    let mut seen = 0;
    let got = hub.fetch("owner/name", "tiny.gguf", &mut |bytes, _| seen = bytes);
    let read = got.map(|path| std::fs::read_to_string(path).unwrap());
    (read.map_err(|error| error.to_string()), seen)
}

#[test]
fn a_file_is_fetched_once_and_kept() {
    let cache = tempfile::tempdir().unwrap();
    let (endpoint, requests) =
        hub(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nGGUF!");
    assert_eq!(fetch(&endpoint, cache.path()), (Ok("GGUF!".into()), 5));
    let request = requests.recv().unwrap().to_lowercase();
    assert!(request.starts_with("get /owner/name/resolve/main/tiny.gguf http/1.1"), "{request}");
    assert!(request.contains("authorization: bearer secret"), "{request}");
    assert_eq!(
        fetch("http://127.0.0.1:1", cache.path()),
        (Ok("GGUF!".into()), 0),
        "it is here already"
    );
}

#[test]
fn what_a_hub_refuses_or_breaks_off_is_told_and_not_kept() {
    for (answer, says) in [
        (
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".as_slice(),
            "404",
        ),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\nconnection: close\r\n\r\nGGUF",
            "can't be fetched",
        ),
        (b"nonsense\r\n\r\n", "can't be fetched"),
    ] {
        let cache = tempfile::tempdir().unwrap();
        let (endpoint, _requests) = hub(answer);
        let (got, _) = fetch(&endpoint, cache.path());
        let error = got.unwrap_err();
        assert!(error.contains(says), "{error}");
        assert!(!error.contains("secret"), "{error}");
        let kept = cache.path().join("owner/name");
        let files = kept.read_dir().map_or(0, Iterator::count);
        assert_eq!(files, 0, "half a file is no file");
    }
    let cache = tempfile::tempdir().unwrap();
    let (got, _) = fetch("http://127.0.0.1:1", cache.path());
    assert!(got.unwrap_err().contains("can't be fetched"));
}
