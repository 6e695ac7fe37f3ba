//! `berth agent`: who holds this machine's memory, for Prometheus. One small process that needs nothing else of
//! berth: it looks when it is asked, and never more than once a second.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use berth_cluster::local::{self, StateDir};
use berth_control::Journal;
use berth_control::clock::now_ms;
use berth_control::watch::STALE_MS;
use berth_core::watch::{Alarm, Look};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};

use crate::args::AgentArgs;
use crate::failure::Failure;
use crate::{lifecycle, output};

/// A look that is younger is good enough.
const FRESH_MS: u64 = 1000;
/// Connections at once; more wait.
const MOST_CONNECTIONS: usize = 16;
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(crate) fn run(state: &Path, args: &AgentArgs) -> Result<ExitCode, Failure> {
    if !args.listen.ip().is_loopback() && !args.allow_remote {
        let error = anyhow::anyhow!("{} is reachable from other machines", args.listen);
        return Err(Failure::bad_spec(error).hint(
            "say --allow-remote if whoever reaches it may see which processes hold memory here",
        ));
    }
    lifecycle::runtime()?.block_on(async {
        let listener = TcpListener::bind(args.listen).await.map_err(|error| {
            let what = format!("the agent can't listen on {}", args.listen);
            Failure::new(anyhow::Error::new(error).context(what))
                .hint("stop what listens there, or name another port with --listen")
        })?;
        output::talk(&format!("memory of this machine at http://{}/metrics", args.listen));
        tokio::select! {
            () = serve(listener, Arc::new(state.to_path_buf())) => {}
            () = lifecycle::signal() => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn serve(listener: TcpListener, state: Arc<PathBuf>) {
    let (last, room) =
        (Arc::new(Mutex::new(Look::default())), Arc::new(Semaphore::new(MOST_CONNECTIONS)));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors: go on after a breath.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let (last, state) = (Arc::clone(&last), Arc::clone(&state));
        tokio::spawn(async move {
            connection(stream, last, state).await;
            drop(permit);
        });
    }
}

async fn connection(stream: TcpStream, last: Arc<Mutex<Look>>, state: Arc<PathBuf>) {
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        let (last, state) = (Arc::clone(&last), Arc::clone(&state));
        async move { Ok::<_, Infallible>(answer(request.uri().path(), &last, &state).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = serving.await {
        tracing::debug!(%error, "connection ended");
    }
}

async fn answer(path: &str, last: &Mutex<Look>, state: &Path) -> Response<Full<Bytes>> {
    let (status, kind, body) = match path {
        "/metrics" => (StatusCode::OK, METRICS, page(&*look(last).await, &alarms(state))),
        "/health" => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "text/plain", "there are /metrics and /health\n".to_owned()),
    };
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    answer
}

/// The last look, or a new one where that is too old.
async fn look(last: &Mutex<Look>) -> impl std::ops::Deref<Target = Look> {
    let mut last = last.lock().await;
    if now_ms().saturating_sub(last.at_ms) >= FRESH_MS {
        let looking = tokio::task::spawn_blocking(|| local::look(None, now_ms()));
        *last = looking.await.unwrap_or_default();
    }
    last
}

/// What a controller with this state folder says is wrong; nothing where there is none.
fn alarms(state: &Path) -> Vec<Alarm> {
    let journal = StateDir::existing(state).and_then(|dir| Journal::open(&dir.journal()).ok());
    let after_ms = now_ms().saturating_sub(STALE_MS);
    journal.and_then(|journal| journal.alarms(after_ms).ok()).unwrap_or_default()
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfAlarm {
    kind: &'static str,
    subject: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfDevice {
    node: String,
    device: String,
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfHolder {
    node: String,
    device: String,
    pid: u32,
    process: String,
    instance: String,
}

/// A look as Prometheus reads it. What was not seen has no line.
fn page(look: &Look, alarms: &[Alarm]) -> String {
    let (total, used) =
        (Family::<OfDevice, Gauge>::default(), Family::<OfDevice, Gauge>::default());
    let (holders, at) = (Family::<OfHolder, Gauge>::default(), Gauge::<i64>::default());
    let signed = |bytes: berth_core::Bytes| i64::try_from(bytes.0).unwrap_or(i64::MAX);
    for one in &look.devices {
        let (node, device) = (one.node.clone(), one.device.to_string());
        let labels =
            OfDevice { node: node.clone(), device: device.clone(), name: one.name.clone() };
        total.get_or_create(&labels).set(signed(one.total));
        if let Some(bytes) = one.used {
            used.get_or_create(&labels).set(signed(bytes));
        }
        for holder in one.holders.iter().flatten() {
            let labels = OfHolder {
                node: node.clone(),
                device: device.clone(),
                pid: holder.pid,
                process: holder.name.clone(),
                instance: holder.instance.as_ref().map(ToString::to_string).unwrap_or_default(),
            };
            holders.get_or_create(&labels).set(signed(holder.bytes));
        }
    }
    let wrong = Family::<OfAlarm, Gauge>::default();
    for Alarm { kind, subject, .. } in alarms {
        wrong.get_or_create(&OfAlarm { kind: kind.as_str(), subject: subject.clone() }).set(1);
    }
    at.set(i64::try_from(look.at_ms / 1000).unwrap_or(i64::MAX));
    let mut registry = Registry::default();
    registry.register("berth_device_total_bytes", "All memory of a device", total);
    registry.register("berth_device_used_bytes", "What can't be had of it, whoever holds it", used);
    registry.register("berth_holder_bytes", "What a process holds of a device", holders);
    registry.register("berth_alarm", "What a controller here says is wrong", wrong);
    registry.register("berth_look_timestamp_seconds", "When it was seen, since 1970", at);
    let mut page = String::new();
    // Writing to memory doesn't fail.
    _ = text::encode(&mut page, &registry);
    page
}
