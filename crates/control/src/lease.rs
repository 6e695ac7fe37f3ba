//! One berth at a time on a cluster: an application of its own says whose it is, and until when.
//!
//! Its replica does nothing but keep the module in Ray's store, so that Ray can start engines again while no
//! berth is about.

use berth_cluster::ray::package;
use berth_cluster::ray::serve::{AppStatus, Serving};
use serde_json::{Value, json};

use crate::controller::ControllerError;

/// The application's name.
pub(crate) const NAME: &str = "berth-lease";
/// A lease that isn't renewed ends after this long.
const LENGTH_MS: u64 = 60 * 1000;
const RENEW_AFTER_MS: u64 = 20 * 1000;

/// Whose lease a config is.
pub(crate) fn holder(config: &Value) -> Option<&str> {
    if config["name"] != NAME {
        return None;
    }
    config["deployments"][0]["user_config"]["holder"].as_str()
}

fn until(config: &Value) -> u64 {
    config["deployments"][0]["user_config"]["until_ms"].as_u64().unwrap_or(0)
}

fn present(serving: &Serving) -> Option<&Value> {
    let app = serving.applications.get(NAME)?;
    app.config.as_ref().filter(|_| app.status != AppStatus::Deleting)
}

/// Refuses where somebody else's lease lives.
pub(crate) fn check(serving: &Serving, state_id: &str, now_ms: u64) -> Result<(), ControllerError> {
    let Some(config) = present(serving) else { return Ok(()) };
    let left = until(config).saturating_sub(now_ms);
    match holder(config) {
        Some(other) if other != state_id && left > 0 => {
            Err(ControllerError::Leased { holder: other.to_owned(), seconds: left.div_ceil(1000) })
        }
        _ => Ok(()),
    }
}

/// The lease as it shall be: as it is while it is fresh, renewed when it isn't, none where nothing runs.
pub(crate) fn next(
    serving: &Serving,
    state_id: &str,
    is_needed: bool,
    now_ms: u64,
) -> Option<Value> {
    if !is_needed {
        return None;
    }
    let own = present(serving).filter(|config| holder(config) == Some(state_id));
    let fresh = own.filter(|config| until(config) > now_ms + LENGTH_MS - RENEW_AFTER_MS);
    Some(fresh.cloned().unwrap_or_else(|| {
        // The module that it holds is changed only with the module: that restarts its replica.
        json!({
            "name": NAME,
            "route_prefix": null,
            "import_path": "berth_serve:lease",
            "runtime_env": { "working_dir": package::uri() },
            "args": {},
            "deployments": [{
                "name": "Lease",
                "num_replicas": 1,
                "user_config": { "holder": state_id, "until_ms": now_ms + LENGTH_MS },
                "ray_actor_options": { "num_cpus": 0 },
            }],
        })
    }))
}
