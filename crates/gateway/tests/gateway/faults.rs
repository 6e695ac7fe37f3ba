//! What a client sees when an engine, a client or the gateway goes.

use std::time::Duration;

use berth_gateway::{Instance, Settings, Table, UpstreamState};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{
    Behaviour, PATIENCE, Seen, ask, engine, get, next, read_until, request, send, serve,
    serve_table, table, whatever_comes,
};

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
