//! A strategy laid over a spec: what it has takes the place of what the spec has, key by key.
//!
//! It happens to the raw types, so that every problem still names the line where it was written.

use std::collections::BTreeMap;

use toml::Spanned;

use super::raw::{EngineKind, RawModel};

/// The models of a spec with those of a strategy over them. A deployment of the strategy is laid over
/// the spec's of the same name.
pub(super) fn models(
    base: &BTreeMap<Spanned<String>, RawModel>,
    over: &BTreeMap<Spanned<String>, RawModel>,
    inherited: EngineKind,
) -> BTreeMap<Spanned<String>, RawModel> {
    let mut models = base.clone();
    for (name, over) in over {
        let merged = match base.get(name) {
            Some(base) => model(base, over, inherited),
            None => over.clone(),
        };
        models.insert(name.clone(), merged);
    }
    models
}

/// One model over another, whose engine is `inherited` where it says none.
pub(super) fn model(base: &RawModel, over: &RawModel, inherited: EngineKind) -> RawModel {
    let engine = base.engine.unwrap_or(inherited);
    // Another engine has other flags, and other facts.
    if over.engine.is_some_and(|other| other != engine) {
        let (flags, extra_args, facts) = Default::default();
        let bare = RawModel { engine: None, flags, extra_args, facts, ..base.clone() };
        return model(&bare, over, over.engine.unwrap_or(engine));
    }
    let mut flags = base.flags.clone();
    flags.extend(over.flags.clone());
    RawModel {
        source: over.source.clone().or_else(|| base.source.clone()),
        facts: over.facts.clone().or_else(|| base.facts.clone()),
        engine: over.engine.or(base.engine),
        replicas: over.replicas.or(base.replicas),
        scale: over.scale.clone().or_else(|| base.scale.clone()),
        nodes: over.nodes.clone().or_else(|| base.nodes.clone()),
        spread: over.spread.clone().or_else(|| base.spread.clone()),
        beside: over.beside.clone().or_else(|| base.beside.clone()),
        devices: over.devices.clone().or_else(|| base.devices.clone()),
        flags,
        extra_args: over.extra_args.clone().or_else(|| base.extra_args.clone()),
        demand: over.demand.clone().or_else(|| base.demand.clone()),
        weight: over.weight.or(base.weight),
        sleep_level: over.sleep_level.clone().or_else(|| base.sleep_level.clone()),
        external: over.external.clone().or_else(|| base.external.clone()),
        deployments: models(&base.deployments, &over.deployments, over.engine.unwrap_or(engine)),
        running: over.running.clone().or_else(|| base.running.clone()),
    }
}
