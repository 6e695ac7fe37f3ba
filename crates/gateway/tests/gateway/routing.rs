//! Which instance a request goes to, what waits, and who may ask.

use std::time::Duration;

use berth_gateway::{Instance, Rule, Settings, Table, UpstreamState};

use crate::harness::{
    Behaviour, Seen, ask, engine, get, next, read_until, request, send, serve, serve_table, table,
};

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
