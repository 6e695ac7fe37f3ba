//! https and HTTP/2, as a client that knows the certificate speaks them.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::sync::Arc;
use std::time::Duration;

use berth_gateway::{Gateway, Instance, Settings, Table, UpstreamState, tls};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// An engine that answers every request with as many bytes as it got of it.
async fn engine() -> Instance {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 8192];
                while let Ok(1..) = stream.read(&mut buffer).await {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
                    stream.write_all(answer).await.unwrap();
                }
            });
        }
    });
    Instance::new("tiny", "tiny-0", address, UpstreamState::Ready)
}

#[tokio::test]
async fn https_with_http2() {
    let folder = tempfile::tempdir().unwrap();
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&certificate, pair.cert.pem()).unwrap();
    std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();

    let acceptor = tls::acceptor(&certificate, &key).unwrap();
    let gateway = Gateway::new(Settings { tls: Some(acceptor), ..Settings::default() });
    gateway.set_table(Table { instances: vec![engine().await], ..Table::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { gateway.serve(listener, Duration::from_secs(1)).await });

    let mut roots = RootCertStore::empty();
    roots.add(pair.cert.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    // Several at once over one connection.
    let asked = (0..8).map(|_| {
        let mut sender = sender.clone();
        async move {
            let body = Full::new(Bytes::from_static(br#"{"model":"tiny"}"#));
            let request = Request::post("https://localhost/v1/completions").body(body).unwrap();
            let answer = sender.send_request(request).await.unwrap();
            assert_eq!((answer.status(), answer.version()), (StatusCode::OK, Version::HTTP_2));
            answer.into_body().collect().await.unwrap().to_bytes()
        }
    });
    let asked: Vec<_> = asked.map(tokio::spawn).collect();
    for answer in asked {
        assert_eq!(answer.await.unwrap(), "hello");
    }

    let error = tls::acceptor(&key, &key).err().unwrap().to_string();
    assert!(error.contains("holds no certificate in PEM"), "{error}");
    let error = tls::acceptor(&certificate, &certificate).err().unwrap().to_string();
    assert!(error.contains("holds no key in PEM"), "{error}");
}
