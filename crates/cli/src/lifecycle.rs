//! The controller's loop as the commands need it: until all is settled, or until a signal.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_cluster::local::StateDir;
use berth_control::controller::{InFlight, Turn};
use berth_control::watch::Told;
use berth_control::{Controller, Event, InstanceState, watch};
use berth_core::Plan;
use berth_core::adjust::Wish;
use berth_core::spec::{GatewaySpec, TlsFiles};
use berth_core::watch::{Alarm, Look};
use berth_gateway::spans::Spans;
use berth_gateway::{Gateway, Settings, tls};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::advise::{self, Came};
use crate::cmd::apply;
use crate::dashboard::feed::Feed;
use crate::failure::Failure;
use crate::files;
use crate::in_flight::{self, Counted};
use crate::learn::Learner;
use crate::output;
use crate::publish::{Served, publish};
use crate::webhook::Webhook;

/// Between two turns of the loop.
const TURN: Duration = Duration::from_millis(250);
/// After the journal couldn't be used.
const WATCH_AGAIN: Duration = Duration::from_secs(10);
/// Requests that run may take this long when the gateway stops.
pub(crate) const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// The asynchronous runtime of the long-running commands.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::new)
}

/// A controller for a plan, whose events are told on stderr, or `None` where another berth has the state.
pub(crate) fn controller(
    dir: &StateDir,
    plan: Option<&Plan>,
    gateway: Option<&Gateway>,
) -> Result<Option<Controller>, Failure> {
    let (events, mut told) = mpsc::unbounded_channel::<Event>();
    let learner = Learner::new(dir.clone());
    tokio::spawn(async move {
        while let Some(event) = told.recv().await {
            learner.tell(&event);
            output::talk(&output::event(&event));
        }
    });
    let folder = in_flight::folder(&dir.routes());
    let counted = gateway.cloned().map(|gateway| Arc::new(Counted { gateway, folder }) as InFlight);
    Ok(Controller::open(dir.clone(), plan, counted, events)?)
}

/// A gateway as a plan has it.
pub(crate) fn gateway(spec: &GatewaySpec) -> Result<Gateway, Failure> {
    gateway_of(spec, None)
}

/// The same, with a number of threads.
pub(crate) fn gateway_of(spec: &GatewaySpec, workers: Option<usize>) -> Result<Gateway, Failure> {
    let tls = |files: &TlsFiles| {
        let tls = tls::acceptor(Path::new(&files.certificate), Path::new(&files.key));
        tls.map_err(|error| {
            Failure::bad_spec(anyhow::Error::new(error)).hint(
                "name a certificate and its key as PEM files: tls = { certificate = ..., key = ... } in [gateway]",
            )
        })
    };
    let spans = Spans::by_environment().map_err(|error| {
        Failure::bad_spec(anyhow::Error::new(error)).hint(
            "the collector takes OTLP over HTTP, as in OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318",
        )
    })?;
    let gateway = Gateway::new(Settings {
        spans,
        max_body: spec.max_body.0,
        access_log: spec.access_log,
        workers,
        tls: spec.tls.as_ref().map(tls).transpose()?,
        ..Settings::default()
    });
    if let Some(keys) = &spec.keys {
        read_keys(&gateway, Path::new(keys))?;
    }
    Ok(gateway)
}

/// Where clients find it.
pub(crate) fn url(spec: &GatewaySpec) -> String {
    let scheme = if spec.tls.is_some() { "https" } else { "http" };
    format!("{scheme}://{}", spec.listen)
}

/// Reads a file of keys into a gateway.
fn read_keys(gateway: &Gateway, file: &Path) -> Result<(), Failure> {
    gateway.read_keys(file).map_err(|error| {
        Failure::bad_spec(anyhow::Error::new(error))
            .hint("`berth key NAME` prints a new key and its entry")
    })
}

/// Takes up a file of keys whenever it changes. One that is broken changes nothing.
pub(crate) async fn follow_keys(gateway: Gateway, file: Option<PathBuf>) {
    if let Some(file) = file {
        files::follow(&file, "the keys", |file| read_keys(&gateway, file)).await;
    }
}

/// Turns until there is nothing left to do.
pub(crate) async fn settle(
    controller: &mut Controller,
    served: Option<Served<'_>>,
) -> Result<Turn, Failure> {
    let started = Instant::now();
    loop {
        let turn = controller.turn().await?;
        if let Some(served) = served {
            publish(served, &turn);
        }
        if turn.is_settled {
            output::end_progress();
            return Ok(turn);
        }
        show_progress(&turn, started.elapsed());
        tokio::time::sleep(TURN).await;
    }
}

/// Says what is waited for, once it takes longer than a moment.
fn show_progress(turn: &Turn, waited: Duration) {
    let is_done = |state| state == InstanceState::Failed || apply::is_up(state);
    let open: Vec<String> = turn
        .instances
        .iter()
        .filter(|instance| !is_done(instance.state))
        .map(|instance| match &instance.doing {
            Some(doing) => format!("{} ({}: {doing})", instance.id, instance.state.as_str()),
            None => format!("{} ({})", instance.id, instance.state.as_str()),
        })
        .collect();
    if waited > Duration::from_secs(1) {
        let open = if open.is_empty() { "what stops".to_owned() } else { open.join(", ") };
        output::progress(&format!("{} s: waiting for {open}", waited.as_secs()));
    }
}

/// Turns for ever, keeping the gateway's routes up to date.
pub(crate) async fn keep(controller: &mut Controller, served: Served<'_>) -> Result<(), Failure> {
    loop {
        let turn = controller.turn().await?;
        publish(served, &turn);
        tokio::time::sleep(TURN).await;
    }
}

/// Looks at memory beside the loop for as long as the command runs, and tells what is wrong.
pub(crate) async fn watch(dir: StateDir, feed: Option<Feed>) {
    let webhook = Webhook::by_environment();
    let tell = |told: Told| {
        webhook.tell(&told);
        match told {
            Told::Changes(changes) => output::talk(&output::memory::changes(&changes)),
            Told::Death(report) => output::talk(&output::memory::death(&report).join("\n")),
            Told::Wish(wish, look) => {
                let state = dir.root().to_path_buf();
                tokio::task::spawn_blocking(move || grant(&state, &wish, &look));
            }
        }
    };
    let show = |plan: &Plan, look: &Look, alarms: &[Alarm]| {
        if let Some(feed) = &feed {
            feed.show(plan, look, alarms);
        }
    };
    loop {
        if let Err(error) = watch::watch(&dir, &tell, &show).await {
            tracing::warn!(%error, "memory can't be watched; trying again");
        }
        tokio::time::sleep(WATCH_AGAIN).await;
    }
}

/// Plans for what is wished, and says what came of it.
fn grant(state: &Path, wish: &Wish, look: &Look) {
    let which = &wish.deployment;
    match advise::answer(state, wish, look) {
        Ok(Came::Advised(advice)) => output::talk(&output::memory::advice(&advice)),
        Ok(Came::Applied(advice)) => output::talk(&output::memory::applied(&advice)),
        Ok(Came::Nothing(why)) => {
            output::talk(&format!("{which} should be adjusted ({}), but {why}", wish.why));
        }
        Err(failure) => {
            output::talk(&format!("{which} should be adjusted ({}), but:", wish.why));
            failure.report();
        }
    }
}

/// Binds the gateway's address, before anything is started.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        let text = format!("the gateway can't listen on {address}");
        Failure::new(anyhow::Error::new(error).context(text))
            .hint("stop what listens there, or set listen in [gateway] to another port")
    })
}

/// Waits for Ctrl-C, SIGTERM, or the end of the terminal.
pub(crate) async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [SignalKind::terminate(), SignalKind::hangup()].map(signal);
    let [Ok(mut terminate), Ok(mut hangup)] = kinds else {
        return drop(tokio::signal::ctrl_c().await);
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
}
