//! Which processes are an engine's: its supervisor keeps a list beside its log. It seldom changes, so it is read when
//! an engine is new, and again where a process holds memory that nobody is known to own.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::thread;

use berth_cluster::ray::Ray;
use berth_cluster::ray::serve::{self, Replica, Serving};
use berth_core::emit::ray as emit;
use berth_core::inventory::{InstanceId, Inventory};

/// A list is not read again before this.
const AGAIN_MS: u64 = 10 * 1000;
/// Lists that are read at once.
const AT_ONCE: usize = 8;

/// The processes of engines, as they were last listed.
#[derive(Clone, Debug, Default)]
pub struct Processes(BTreeMap<InstanceId, Known>);

#[derive(Clone, Debug)]
struct Known {
    of: Replica,
    read_ms: u64,
    pids: Vec<u32>,
}

impl Processes {
    /// Fills in the processes of an inventory's instances.
    pub(super) fn fill(
        &mut self,
        ray: &Ray,
        serving: &Serving,
        inventory: &mut Inventory,
        now_ms: u64,
    ) {
        let replicas: HashMap<InstanceId, &Replica> = inventory
            .instances
            .iter()
            .filter_map(|one| {
                let app = serving.applications.get(&emit::name(&one.id))?;
                Some((one.id.clone(), app.replicas.first()?))
            })
            .collect();
        self.0.retain(|id, known| replicas.get(id).is_some_and(|now| known.is_of(now)));
        let unclaimed = self.nodes_with_unclaimed(inventory);
        let is_due = |id: &InstanceId| match self.0.get(id) {
            None => true,
            Some(known) => {
                let node = known.of.node_id.as_ref();
                let is_unclaimed = node.is_some_and(|node| unclaimed.contains(node));
                is_unclaimed && known.read_ms + AGAIN_MS <= now_ms
            }
        };
        let due: Vec<(&InstanceId, &&Replica)> =
            replicas.iter().filter(|(id, _)| is_due(id)).collect();
        for some in due.chunks(AT_ONCE) {
            let read = thread::scope(|scope| {
                let reading = some.iter().map(|(id, replica)| {
                    scope.spawn(|| serve::processes(ray, &id.0, replica).unwrap_or_default())
                });
                let reading: Vec<_> = reading.collect();
                reading.into_iter().map(|one| one.join().unwrap_or_default()).collect::<Vec<_>>()
            });
            for ((id, replica), pids) in some.iter().zip(read) {
                let known = Known { of: (**replica).clone(), read_ms: now_ms, pids };
                self.0.insert((*id).clone(), known);
            }
        }
        for instance in &mut inventory.instances {
            let known = self.0.get(&instance.id).map(|known| known.pids.clone());
            instance.pids = known.unwrap_or_default();
        }
    }

    /// Nodes, by Ray's ids, where a process holds memory of a GPU and is no engine's that is known.
    fn nodes_with_unclaimed(&self, inventory: &Inventory) -> HashSet<String> {
        let claimed: HashSet<(&str, u32)> = self
            .0
            .values()
            .filter_map(|known| Some((known.of.node_id.as_deref()?, &known.pids)))
            .flat_map(|(node, pids)| pids.iter().map(move |pid| (node, *pid)))
            .collect();
        let has_unclaimed = |id: &str, node: &berth_core::inventory::Node| {
            let processes = node.devices.iter().flat_map(|one| one.processes.iter().flatten());
            processes.into_iter().any(|process| !claimed.contains(&(id, process.pid)))
        };
        let nodes = inventory.nodes.iter().filter_map(|node| Some((node.id.clone()?, node)));
        nodes.filter(|(id, node)| has_unclaimed(id, node)).map(|(id, _)| id).collect()
    }
}

impl Known {
    /// Whether it is of the replica that runs now.
    fn is_of(&self, replica: &Replica) -> bool {
        self.of.pid == replica.pid && self.of.node_id == replica.node_id
    }
}
