//! What the gateway is told of every turn: where instances are, and which requests go to them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use berth_control::controller::Turn;
use berth_control::{ExternalStatus, InstanceState, InstanceStatus};
use berth_core::spec::{EngineKind, External, GatewaySpec, HeaderIs, RouteRule};
use berth_gateway::{Gateway, Instance, Rule, Table, UpstreamState};

use crate::files::write_whole;

/// A gateway, and the file that others of their own go by.
#[derive(Clone, Copy)]
pub(crate) struct Served<'a> {
    pub(crate) gateway: &'a Gateway,
    pub(crate) routes: &'a Path,
}

/// Tells a gateway what a turn came to, and others of their own by the file.
pub(crate) fn publish(served: Served<'_>, turn: &Turn) {
    let Served { gateway, routes: file } = served;
    let upstream = |instance: &InstanceStatus| {
        let host = instance.host.parse().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let address = SocketAddr::from((host, instance.port));
        let (model, id) = (&instance.model, &instance.id.0);
        Instance {
            name: renamed(&instance.served_name, model),
            deployment: instance.deployment.clone(),
            weight: instance.weight,
            cache_tokens: instance.cache_tokens,
            health_path: instance.engine.map(|engine| engine.health_path().to_owned()),
            keeps_alive: instance.engine != Some(EngineKind::LlamaServer),
            ..Instance::new(model, id, address, state(instance))
        }
    };
    let own = turn.instances.iter().map(upstream).collect();
    let table = table(own, &turn.externals, &turn.gateway);
    if !gateway.set_table(table) && file.exists() {
        return;
    }
    let text = serde_json::to_string_pretty(&gateway.table()).unwrap_or_default();
    if let Err(error) = write_whole(file, &text) {
        tracing::warn!(%error, file = %file.display(), "the routes can't be written");
    }
}

/// Routes to berth's own instances and to servers that somebody else runs.
pub(crate) fn table(
    own: Vec<Instance>,
    externals: &[ExternalStatus],
    gateway: &GatewaySpec,
) -> Table {
    let others = externals.iter().filter_map(external);
    let GatewaySpec { aliases, rules, .. } = gateway;
    Table {
        instances: own.into_iter().chain(others).collect(),
        aliases: aliases.clone(),
        rules: rules.iter().map(rule).collect(),
    }
}

fn rule(rule: &RouteRule) -> Rule {
    let RouteRule { path_prefix, header, model, to } = rule.clone();
    let header = header.map(|HeaderIs { name, value }| (name, value));
    Rule { path_prefix, header, model, to }
}

/// A route to a server that somebody else runs; none before its host was found.
fn external(status: &ExternalStatus) -> Option<Instance> {
    let External { model, name, .. } = &status.external;
    let state = if status.is_ready { UpstreamState::Ready } else { UpstreamState::Failed };
    Some(Instance {
        name: renamed(name, model),
        deployment: format!("{model}@elsewhere"),
        ..Instance::new(model, &status.external.id(), status.address?, state)
    })
}

/// What a model is called at an engine, where that is another name than clients use.
fn renamed(served_name: &str, model: &str) -> Option<String> {
    (served_name != model).then(|| served_name.to_owned())
}

fn state(instance: &InstanceStatus) -> UpstreamState {
    match instance.state {
        InstanceState::Ready if instance.is_on_trial => UpstreamState::OnTrial,
        InstanceState::Ready => UpstreamState::Ready,
        InstanceState::Asleep => UpstreamState::Asleep,
        InstanceState::Planned
        | InstanceState::Spare
        | InstanceState::Starting
        | InstanceState::Backoff => UpstreamState::Starting,
        InstanceState::Failed => UpstreamState::Failed,
        InstanceState::Stopping => UpstreamState::Draining,
    }
}
