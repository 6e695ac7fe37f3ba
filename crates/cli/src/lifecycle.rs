//! The controller's loop as the commands need it: until all is settled, or until a signal.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_cluster::local::StateDir;
use berth_control::controller::{InFlight, Turn};
use berth_control::{Controller, Event, ExternalStatus, InstanceState, InstanceStatus};
use berth_core::Plan;
use berth_core::inventory::InstanceId;
use berth_core::spec::{External, GatewaySpec};
use berth_gateway::{Gateway, Instance, Settings, Table, UpstreamState};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::failure::Failure;
use crate::output;

/// Between two turns of the loop.
const TURN: Duration = Duration::from_millis(250);
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
    tokio::spawn(async move {
        while let Some(event) = told.recv().await {
            output::talk(&output::event(&event));
        }
    });
    let in_flight = gateway.cloned().map(|gateway| {
        let count = move |id: &InstanceId| gateway.routes().in_flight(&id.0);
        Arc::new(count) as InFlight
    });
    Ok(Controller::open(dir.clone(), plan, in_flight, events)?)
}

/// A gateway as a plan has it.
pub(crate) fn gateway(spec: &GatewaySpec) -> Result<Gateway, Failure> {
    Ok(Gateway::new(Settings { max_body: spec.max_body.0, ..Settings::default() }))
}

/// Turns until there is nothing left to do.
pub(crate) async fn settle(
    controller: &mut Controller,
    gateway: Option<&Gateway>,
) -> Result<Turn, Failure> {
    let started = Instant::now();
    loop {
        let turn = controller.turn().await?;
        publish(gateway, &turn);
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
    let is_done = |state| matches!(state, InstanceState::Ready | InstanceState::Failed);
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
pub(crate) async fn keep(controller: &mut Controller, gateway: &Gateway) -> Result<(), Failure> {
    loop {
        let turn = controller.turn().await?;
        publish(Some(gateway), &turn);
        tokio::time::sleep(TURN).await;
    }
}

fn publish(gateway: Option<&Gateway>, turn: &Turn) {
    let Some(gateway) = gateway else { return };
    let upstream = |instance: &InstanceStatus| {
        let host = instance.host.parse().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let address = SocketAddr::from((host, instance.port));
        let (model, id) = (&instance.model, &instance.id.0);
        Instance {
            name: renamed(&instance.served_name, model),
            ..Instance::new(model, id, address, state(instance.state))
        }
    };
    let own = turn.instances.iter().map(upstream);
    let others = turn.externals.iter().filter_map(external);
    let table = Table { instances: own.chain(others).collect(), ..Table::default() };
    gateway.set_table(table);
}

/// A route to a server that somebody else runs; none before its host was found.
fn external(status: &ExternalStatus) -> Option<Instance> {
    let External { model, name, .. } = &status.external;
    let state = if status.is_ready { UpstreamState::Ready } else { UpstreamState::Failed };
    Some(Instance {
        name: renamed(name, model),
        ..Instance::new(model, &status.external.id(), status.address?, state)
    })
}

/// What a model is called at an engine, where that is another name than clients use.
fn renamed(served_name: &str, model: &str) -> Option<String> {
    (served_name != model).then(|| served_name.to_owned())
}

fn state(state: InstanceState) -> UpstreamState {
    match state {
        InstanceState::Ready => UpstreamState::Ready,
        InstanceState::Planned
        | InstanceState::Spare
        | InstanceState::Starting
        | InstanceState::Backoff => UpstreamState::Starting,
        InstanceState::Failed => UpstreamState::Failed,
        InstanceState::Stopping => UpstreamState::Draining,
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
