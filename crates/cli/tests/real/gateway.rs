//! Gateways of their own, as a person starts them.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::harness::{Berth, Ran, SMOLLM, fetched, send, wait_until};

/// `berth gateway` on a port of its own.
struct Alone {
    child: Child,
    port: u16,
}

impl Alone {
    fn start(berth: &Berth, more: &[&str]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let listen = format!("127.0.0.1:{port}");
        let child = berth.command(&["gateway", "--listen", &listen]).args(more).spawn().unwrap();
        Self { child, port }
    }

    fn answers(&self, model: &str) -> bool {
        let body = json!({ "model": model, "max_tokens": 1, "prompt": "a" });
        let request = ureq::post(format!("http://127.0.0.1:{}/v1/completions", self.port));
        let request = request.config().timeout_global(Some(Duration::from_secs(20))).build();
        request.send(body.to_string()).is_ok()
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Two beside each other take up what the controller writes, and go on when that is killed.
#[test]
fn gateways_go_on_without_their_controller() {
    let berth = Berth::new(12);
    let model = fetched(&format!("models/{SMOLLM}"));
    let spec =
        format!("[models.smol]\nsource = \"{}\"\nflags = {{ ctx-size = 512 }}\n", model.display());
    berth.spec(&spec);
    berth
        .run(&["gateway"])
        .expect(1, &["can't be read", "`berth serve` or `berth up` writes them"]);
    berth.run(&["apply"]).expect(0, &["smol-0: ready"]);
    let mut serve = berth.command(&["serve"]).spawn().unwrap();
    let routes = berth.folder.path().join("state/routes.json");
    wait_until("the routes are written", || routes.exists());
    let mut alone = [Alone::start(&berth, &[]), Alone::start(&berth, &[])];
    wait_until("both answer", || alone.iter().all(|one| one.answers("smol")));
    send(i32::try_from(serve.id()).unwrap(), Signal::KILL);
    serve.wait().unwrap();
    assert!(alone.iter().all(|one| one.answers("smol")), "nobody looks after them, and they serve");
    std::fs::write(&routes, "{ broken").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(alone.iter().all(|one| one.answers("smol")), "what is broken changes nothing");
    for one in &mut alone {
        send(i32::try_from(one.child.id()).unwrap(), Signal::TERM);
        assert_eq!(one.child.wait().unwrap().code(), Some(0));
    }
    berth.run(&["down"]).expect(0, &["everything that berth started has stopped"]);
}

/// A spec of servers that run elsewhere needs nothing else: not even a state folder. One that is down is passed over,
/// and what is added to the spec is taken up.
#[test]
fn a_spec_of_servers_elsewhere_is_enough() {
    let berth = Berth::new(14);
    let (one, gone) = (model_server("one"), TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let down = gone.local_addr().unwrap();
    drop(gone);
    let file = berth.folder.path().join("elsewhere.toml");
    let model = |name: &str, address: SocketAddr| {
        format!("[models.{name}]\nexternal = [\"http://{address}\", \"http://{down}\"]\n")
    };
    std::fs::write(&file, model("one", one)).unwrap();
    let name = file.to_str().unwrap();
    let alone = Alone::start(&berth, &["-f", name, "--workers", "1"]);
    wait_until("it answers", || alone.answers("one"));
    assert!((0..20).all(|_| alone.answers("one")), "one server of two is enough");
    std::fs::write(&file, model("one", one) + &model("two", model_server("two"))).unwrap();
    wait_until("the spec is read again", || alone.answers("two"));
    std::fs::write(&file, "[models.one]\nexternal = 1\n").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(alone.answers("two"), "a spec that is broken changes nothing");

    berth.spec("[models.own]\nsource = \"hub:o/n/f.gguf\"\n");
    berth
        .run(&["gateway", "-f", "berth.toml"])
        .expect(2, &["berth itself runs models", "own", "`berth up`"]);
}

/// A server that lists a model and completes with a word.
fn model_server(model: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            drop(stream.read(&mut [0; 8192]));
            let body = format!("{{\"id\":\"x\",\"model\":\"{model}\"}}");
            let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: ";
            drop(stream.write_all(format!("{head}{}\r\n\r\n{body}", body.len()).as_bytes()));
        }
    });
    address
}

/// OpenAI's own client raises where a stream breaks off, and names the reason.
#[test]
fn openais_client_learns_that_a_stream_broke_off() {
    const CLIENT: &str = "import sys, openai\n\
        client = openai.OpenAI(base_url=sys.argv[1], api_key='none', max_retries=0)\n\
        parts = []\n\
        try:\n    \
            for event in client.completions.create(model='cut', prompt='a', stream=True): parts.append(event.choices[0].text)\n    \
            print('no error')\n\
        except openai.APIError as error: print(parts, error)\n";
    let berth = Berth::new(13);
    let engine = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = engine.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in engine.incoming() {
            let mut stream = stream.unwrap();
            drop(stream.read(&mut [0; 8192]));
            let event = "data: {\"id\":\"x\",\"object\":\"text_completion\",\"created\":0,\"model\":\"cut\",\
                         \"choices\":[{\"index\":0,\"text\":\"so\",\"finish_reason\":null}]}\n\n";
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            drop(stream.write_all(format!("{head}{:x}\r\n{event}\r\n", event.len()).as_bytes()));
        }
    });
    let routes = berth.folder.path().join("routes.json");
    let table = json!({ "instances": [{ "model": "cut", "id": "cut-0", "address": address, "state": "ready" }] });
    std::fs::write(&routes, table.to_string()).unwrap();
    let alone = Alone::start(&berth, &["--routes", routes.to_str().unwrap()]);
    wait_until("it answers", || alone.answers("cut"));
    let url = format!("http://127.0.0.1:{}/v1", alone.port);
    let client = Command::new(fetched("openai/bin/python")).args(["-c", CLIENT, &url]).output();
    Ran::from(client.unwrap()).expect(0, &["['so'] the engine's answer broke off; try again"]);
}
