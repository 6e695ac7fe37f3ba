//! Instances as a shell's lines, in the order in which they start.

use super::{environment, loading, quoted};
use crate::inventory::{Inventory, Node};
use crate::plan::{Plan, PlannedInstance};

/// A script to read and copy from: each line belongs to the node that its comment names. On a GPU the next one
/// starts once the one before it is ready.
pub fn commands(plan: &Plan, inventory: &Inventory) -> String {
    let mut text = format!("# Plan {}, in the order of starts.\n", plan.digest());
    for instance in &plan.instances {
        let Some(node) = inventory.nodes.iter().find(|node| node.name == instance.node) else {
            continue;
        };
        text.push_str(&format!("\n# {} on {}\n", instance.id, instance.node));
        text.push_str(&line(instance, node));
        text.push('\n');
        let then = loading(instance);
        if !then.is_empty() {
            text.push_str(&format!("# and once it answers\n{}\n", then.join("\n")));
        }
    }
    text
}

fn line(instance: &PlannedInstance, node: &Node) -> String {
    let environment = environment(instance, node);
    let mut words: Vec<String> =
        environment.iter().map(|(name, value)| format!("{name}={}", quoted(value))).collect();
    words.push(quoted(&instance.binary));
    words.extend(instance.args.iter().map(|word| quoted(word)));
    words.join(" ")
}
