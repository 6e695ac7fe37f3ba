//! A systemd unit for each instance. A unit counts as started only once its engine is ready, so that those on
//! the same GPUs come up one after the other.

use super::ray::before;
use super::{environment, loading};
use crate::inventory::Inventory;
use crate::plan::Plan;

/// All units, each with the node and the file that it belongs to.
pub fn units(plan: &Plan, inventory: &Inventory) -> String {
    let mut text = String::new();
    for instance in &plan.instances {
        let Some(node) = inventory.nodes.iter().find(|node| node.name == instance.node) else {
            continue;
        };
        let unit = |id: &crate::inventory::InstanceId| format!("berth-{id}.service");
        let earlier: Vec<String> = before(plan, instance).into_iter().map(unit).collect();
        let after = ["network-online.target"].into_iter().map(str::to_owned).chain(earlier);
        let after = after.collect::<Vec<_>>().join(" ");
        let environment = environment(instance, node);
        let environment: String = environment
            .iter()
            .map(|(name, value)| format!("Environment={name}={value}\n"))
            .collect();
        let loading: String = loading(instance)
            .iter()
            .map(|line| format!("ExecStartPost=/bin/sh -c {}\n", quoted(line)))
            .collect();
        let command: Vec<String> = std::iter::once(&instance.binary)
            .chain(&instance.args)
            .map(|word| quoted(word))
            .collect();
        text.push_str(&format!(
            "# {node}: /etc/systemd/system/{file}\n\
             [Unit]\n\
             Description={model} ({id}), plan {digest}\n\
             Wants=network-online.target\n\
             After={after}\n\n\
             [Service]\n\
             Type=exec\n\
             {environment}\
             ExecStart=/usr/bin/env {command}\n\
             ExecStartPost=/bin/sh -c 'until curl -fsS -o /dev/null http://{host}:{port}{health}; do sleep 1; done'\n\
             {loading}\
             TimeoutStartSec={limit}\n\
             TimeoutStopSec=60\n\
             Restart=on-failure\n\
             RestartSec=10\n\n\
             [Install]\n\
             WantedBy=multi-user.target\n\n",
            node = instance.node,
            file = unit(&instance.id),
            model = instance.model,
            id = instance.id,
            digest = plan.digest(),
            command = command.join(" "),
            host = instance.host,
            port = instance.port,
            health = instance.engine.health_path(),
            limit = if instance.library.is_some() { "infinity" } else { "900" },
        ));
    }
    text
}

/// A word as systemd reads it (`systemd.service(5)`, quoting; `%` and `$` are its own).
fn quoted(word: &str) -> String {
    let escaped =
        word.replace('\\', r"\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    let is_plain =
        !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || "\"'\\;".contains(c));
    if is_plain { escaped } else { format!("\"{escaped}\"") }
}
