//! Who is answered, and what is told as it changes.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener as Std, TcpStream};
use std::sync::{Arc, Mutex};

use berth_dashboard::{Act, Live, Read, Refusal, Settings, Source, serve};
use tokio::sync::watch;

/// What was done.
#[derive(Default)]
struct Fake(Mutex<Vec<Act>>);

impl Source for Fake {
    fn read(&self, what: &Read) -> Result<String, Refusal> {
        match what {
            Read::Plan => Err(Refusal { status: 404, error: "none".to_owned(), hint: None }),
            Read::Ledger => panic!("it breaks off"),
            Read::Proof(name) => Ok(format!("<p>{name}</p>")),
            other => Ok(format!("\"{other:?}\"")),
        }
    }

    fn act(&self, act: &Act) -> Result<(), Refusal> {
        self.0.lock().unwrap().push(act.clone());
        Ok(())
    }
}

struct Served {
    address: SocketAddr,
    fake: Arc<Fake>,
    seen: watch::Sender<Arc<str>>,
    status: watch::Sender<Arc<str>>,
}

fn served(password: Option<&str>) -> Served {
    let listener = Std::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let settings =
        Settings { password: password.map(str::to_owned), gateway: address, version: "1" };
    let (seen, seen_by) = watch::channel(Arc::from(""));
    let (status, status_by) = watch::channel(Arc::from(""));
    let (fake, live) = (Arc::new(Fake::default()), Live { seen: seen_by, status: status_by });
    let source: Arc<Fake> = Arc::clone(&fake);
    std::thread::spawn(move || {
        tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            serve(listener, settings, source, live).await.unwrap();
        });
    });
    Served { address, fake, seen, status }
}

/// Sends a request as it stands, and gives the answer's status and all of its text.
fn ask(address: SocketAddr, request: &str, headers: &[&str], body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    let host = headers.iter().any(|header| header.starts_with("host:"));
    let host = if host { String::new() } else { format!("host: {address}\r\n") };
    let more: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    write!(
        stream,
        "{request} HTTP/1.1\r\n{host}{more}connection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, text)
}

#[test]
fn this_machine_alone_is_answered_without_a_password() {
    let served = served(None);
    let own = "x-berth: 1";
    for (request, headers, body, status) in [
        ("GET /", &[][..], "", 200),
        ("GET /app.js", &[], "", 200),
        ("GET /../Cargo.toml", &[], "", 404),
        ("GET /api/session", &[], "", 200),
        ("GET /api/changes", &[], "", 200),
        ("GET /api/changes", &["host: localhost:1"], "", 200),
        ("GET /api/changes", &["host: [::1]:1"], "", 200),
        // A page elsewhere whose name leads here.
        ("GET /api/changes", &["host: evil.example"], "", 403),
        ("GET /", &["host: evil.example:80"], "", 403),
        ("GET /api/plan", &[], "", 404),
        ("GET /api/ledger", &[], "", 500),
        ("GET /api/nonsense", &[], "", 404),
        ("GET /api/changes", &["sec-fetch-site: cross-site"], "", 403),
        ("GET /api/changes", &["sec-fetch-site: same-origin"], "", 200),
        // A form of another site.
        ("POST /api/apply", &[], "{}", 403),
        ("POST /api/apply", &[own], "{}", 202),
        ("POST /api/apply", &[own], "nonsense", 400),
        ("POST /api/rollback", &[own], "{\"seq\": 7}", 202),
        ("POST /api/advice", &[own], "{\"digest\": \"ab\", \"approve\": true}", 202),
        ("POST /api/advice", &[own], "{\"digest\": \"ab\"}", 422),
    ] {
        assert_eq!(ask(served.address, request, headers, body).0, status, "{request} {headers:?}");
    }
    let done = served.fake.0.lock().unwrap();
    assert!(matches!(
        done.as_slice(),
        [
            Act::Apply { strategy: None, .. },
            Act::RollBack { seq: 7 },
            Act::Advice { approve: true, .. }
        ]
    ));
}

#[test]
fn whoever_knows_the_password_is_let_in_and_nobody_else() {
    let served = served(Some("correct horse"));
    let ask =
        |request: &str, headers: &[&str], body: &str| ask(served.address, request, headers, body);
    let own = "x-berth: 1";
    for path in ["/api/changes", "/api/live", "/proofs/a", "/v1/chat/completions"] {
        let request = if path.starts_with("/v1") { "POST" } else { "GET" };
        assert_eq!(ask(&format!("{request} {path}"), &[own], "").0, 401, "{path}");
    }
    assert_eq!(ask("GET /", &["host: gpu.example"], "").0, 200, "by any name");
    assert_eq!(ask("POST /api/session", &[own], "{\"password\": \"wrong\"}").0, 401);
    let (status, text) = ask("POST /api/session", &[own], "{\"password\": \"correct horse\"}");
    assert_eq!(status, 204);
    let cookie = text.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    let cookie = format!("cookie: other=1; {}", cookie.split(';').next().unwrap());
    assert_eq!(ask("GET /api/changes", &[&cookie], "").0, 200);
    let (status, page) = ask("GET /proofs/one", &[&cookie], "");
    assert!(status == 200 && page.contains("<p>one</p>") && page.contains("default-src 'none'"));
    assert_eq!(ask("POST /api/apply", &[&cookie], "{}").0, 403, "not from another site");
    assert_eq!(ask("DELETE /api/session", &[&cookie, own], "").0, 204);
    assert_eq!(ask("GET /api/changes", &[&cookie], "").0, 401);
}

#[test]
fn what_changes_is_told_at_once() {
    let served = served(None);
    served.seen.send_replace(Arc::from("{\"at_ms\":1}"));
    let mut stream = TcpStream::connect(served.address).unwrap();
    write!(stream, "GET /api/live HTTP/1.1\r\nhost: {}\r\n\r\n", served.address).unwrap();
    let lines = BufReader::new(stream).lines().map_while(Result::ok);
    let mut events = lines.filter(|line| line.starts_with("event:") || line.starts_with("data:"));
    let mut next = || [events.next().unwrap(), events.next().unwrap()];
    assert_eq!(next(), ["event: seen", "data: {\"at_ms\":1}"]);
    served.status.send_replace(Arc::from("{\"a\":2}"));
    assert_eq!(next(), ["event: status", "data: {\"a\":2}"]);
    served.seen.send_replace(Arc::from("{\"at_ms\":3}"));
    assert_eq!(next(), ["event: seen", "data: {\"at_ms\":3}"]);
}
