//! What is wrong with a Serve config that Ray would take without a word.
//!
//! Serve ignores keys that it doesn't know, and some values fail only once a replica is placed. The keys are
//! those of Ray 2.60.0 (`ray/serve/schema.py`, `ray/serve/_private/config.py`).

use berth_core::spec::error::nearest;
use serde_json::Value;

const TOP: &[&str] = &[
    "applications",
    "controller_options",
    "grpc_options",
    "http_options",
    "logging_config",
    "proxy_location",
    "target_capacity",
    "tracing_config",
];
const APPLICATION: &[&str] = &[
    "args",
    "autoscaling_policy",
    "deployments",
    "external_scaler_enabled",
    "host",
    "import_path",
    "logging_config",
    "name",
    "port",
    "route_prefix",
    "runtime_env",
];
const DEPLOYMENT: &[&str] = &[
    "autoscaling_config",
    "backpressure_config",
    "deployment_actors",
    "gang_scheduling_config",
    "graceful_shutdown_timeout_s",
    "graceful_shutdown_wait_loop_s",
    "health_check_period_s",
    "health_check_timeout_s",
    "logging_config",
    "max_ongoing_requests",
    "max_queued_requests",
    "max_replicas_per_node",
    "max_surge_percent",
    "name",
    "num_replicas",
    "placement_group_bundle_label_selector",
    "placement_group_bundles",
    "placement_group_strategy",
    "ray_actor_options",
    "request_router_config",
    "rolling_update_percentage",
    "user_config",
];
const ACTOR: &[&str] = &[
    "accelerator_type",
    "fallback_strategy",
    "label_selector",
    "memory",
    "num_cpus",
    "num_gpus",
    "resources",
    "runtime_env",
];
const AUTOSCALING: &[&str] = &[
    "aggregation_function",
    "downscale_delay_s",
    "downscale_to_zero_delay_s",
    "downscaling_factor",
    "initial_replicas",
    "look_back_period_s",
    "max_replicas",
    "metrics_interval_s",
    "min_replicas",
    "policy",
    "target_ongoing_requests",
    "upscale_delay_s",
    "upscaling_factor",
];

/// Something that Ray doesn't say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// Where: an application, and a deployment of it.
    pub at: String,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub hint: String,
}

/// All that is wrong with a whole config.
pub fn flaws(config: &Value) -> Vec<Flaw> {
    let mut flaws = Vec::new();
    unknown_keys("the config", config, TOP, &mut flaws);
    for application in config["applications"].as_array().into_iter().flatten() {
        application_flaws(application, &mut flaws);
    }
    flaws
}

/// All that is wrong with one application.
pub fn application_flaws(application: &Value, flaws: &mut Vec<Flaw>) {
    let app = application["name"].as_str().unwrap_or("default");
    unknown_keys(app, application, APPLICATION, flaws);
    for deployment in application["deployments"].as_array().into_iter().flatten() {
        let at = format!("{app}#{}", deployment["name"].as_str().unwrap_or_default());
        unknown_keys(&at, deployment, DEPLOYMENT, flaws);
        unknown_keys(&at, &deployment["ray_actor_options"], ACTOR, flaws);
        unknown_keys(&at, &deployment["autoscaling_config"], AUTOSCALING, flaws);
        resources(&at, &deployment["ray_actor_options"]["resources"], flaws);
        selectors(&at, deployment, flaws);
    }
}

fn unknown_keys(at: &str, value: &Value, known: &[&str], flaws: &mut Vec<Flaw>) {
    let keys = value.as_object().into_iter().flat_map(|object| object.keys());
    for key in keys.filter(|key| !known.contains(&key.as_str())) {
        let hint = match nearest(key, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("there are: {}", known.join(", ")),
        };
        let message = format!("Ray ignores `{key}` without a word");
        flaws.push(Flaw { at: at.to_owned(), message, hint });
    }
}

/// A rule over labels written as a resource: Ray compares it with a number, and fails.
fn resources(at: &str, resources: &Value, flaws: &mut Vec<Flaw>) {
    for (key, value) in resources.as_object().into_iter().flatten() {
        if let Some(text) = value.as_str() {
            flaws.push(Flaw {
                at: at.to_owned(),
                message: format!(
                    "resources are numbers: `{key}: \"{text}\"` ends in \"TypeError: '<' not supported between \
                     instances of 'str' and 'int'\""
                ),
                hint: format!("write \"label_selector\": {{ \"{key}\": \"{text}\" }}, and give nodes the label"),
            });
        }
    }
}

/// Values that Ray takes for names of labels, or refuses late.
fn selectors(at: &str, deployment: &Value, flaws: &mut Vec<Flaw>) {
    let of_actor = &deployment["ray_actor_options"]["label_selector"];
    let of_bundles = &deployment["placement_group_bundle_label_selector"];
    let all = of_bundles.as_array().into_iter().flatten().chain([of_actor]);
    for (key, value) in all.filter_map(Value::as_object).flatten() {
        let text = value.as_str().unwrap_or_default();
        let inner = text.strip_prefix('!').unwrap_or(text);
        let list = inner.strip_prefix("in(").and_then(|rest| rest.strip_suffix(')'));
        let is_plain = |text: &str| {
            !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || "=!()".contains(c))
        };
        let is_fine = match list {
            Some(list) => list.split(',').all(|value| is_plain(value.trim())),
            None => is_plain(inner),
        };
        if !is_fine {
            flaws.push(Flaw {
                at: at.to_owned(),
                message: format!(
                    "`{key}: \"{text}\"` is no selector of Ray's: nothing would ever match it"
                ),
                hint: "write x, !x, in(x, y) or !in(x, y)".to_owned(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_ray_swallows_is_said() {
        let app = |deployment: Value| json!({ "applications": [{ "name": "a", "deployments": [deployment] }] });
        for (config, says) in [
            (json!({ "aplications": [] }), Some("`aplications`")),
            (app(json!({ "name": "d", "num_replica": 2 })), Some("`num_replica`")),
            (
                app(json!({ "ray_actor_options": { "resources": { "node_id": "!node_0" } } })),
                Some("TypeError"),
            ),
            (
                app(json!({ "ray_actor_options": { "label_selector": { "zone": "not in(a)" } } })),
                Some("no selector"),
            ),
            (
                app(json!({ "placement_group_bundle_label_selector": [{ "zone": "!=a" }] })),
                Some("no selector"),
            ),
            (
                app(json!({ "ray_actor_options": { "label_selector": { "zone": "!in(a, b)" } } })),
                None,
            ),
            (
                app(
                    json!({ "autoscaling_config": { "target_ongoing_requests": 5, "max_replicas": 15 } }),
                ),
                None,
            ),
        ] {
            let found = flaws(&config);
            match says {
                Some(says) => {
                    assert_eq!(found.len(), 1, "{config}");
                    assert!(found[0].message.contains(says), "{found:?}");
                }
                None => assert_eq!(found, [], "{config}"),
            }
        }
    }
}
