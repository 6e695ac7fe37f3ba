//! Which processes are an engine's: its supervisor keeps a list beside its log. It seldom changes, so it is read when
//! an engine is new, and again where a process holds memory that nobody is known to own.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::thread;

use berth_cluster::ray::Ray;
use berth_cluster::ray::serve::{self, Replica, Serving};
use berth_core::emit::ray as emit;
use berth_core::inventory::{InstanceId, Inventory, Node};

/// A list is not read again before this, and each time that it is the same, only after twice as long.
const AGAIN_MS: u64 = 10 * 1000;
const AGAIN_AT_LEAST_MS: u64 = 10 * 60 * 1000;
/// Lists that are read at once.
const AT_ONCE: usize = 8;

/// The processes of engines, as they were last listed.
#[derive(Clone, Debug, Default)]
pub struct Processes(BTreeMap<InstanceId, Known>);

#[derive(Clone, Debug)]
struct Known {
    of: Replica,
    read_ms: u64,
    again_ms: u64,
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
                Some((one.id.clone(), app.replica()?))
            })
            .collect();
        self.0.retain(|id, known| replicas.get(id).is_some_and(|now| known.is_of(now)));
        let unclaimed = self.nodes_with_unclaimed(inventory);
        let is_due = |id: &InstanceId| match self.0.get(id) {
            None => true,
            Some(known) => {
                let node = known.of.node_id.as_ref();
                let is_unclaimed = node.is_some_and(|node| unclaimed.contains(node));
                is_unclaimed && known.read_ms + known.again_ms <= now_ms
            }
        };
        let due: Vec<(&InstanceId, &&Replica)> =
            replicas.iter().filter(|(id, _)| is_due(id)).collect();
        for some in due.chunks(AT_ONCE) {
            let read = thread::scope(|scope| {
                let reading = some
                    .iter()
                    .map(|(id, replica)| scope.spawn(|| serve::processes(ray, &id.0, replica)));
                let reading: Vec<_> = reading.collect();
                reading.into_iter().map(|one| one.join().unwrap_or_default()).collect::<Vec<_>>()
            });
            for ((id, replica), pids) in some.iter().zip(read) {
                let known = self.0.entry((*id).clone()).or_insert_with(|| Known {
                    of: (**replica).clone(),
                    read_ms: now_ms,
                    again_ms: AGAIN_MS,
                    pids: Vec::new(),
                });
                known.take(pids, now_ms);
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
        let has_unclaimed = |id: &str, node: &Node| {
            let processes = node.devices.iter().flat_map(|one| one.processes.iter().flatten());
            processes.into_iter().any(|process| !claimed.contains(&(id, process.pid)))
        };
        let nodes = inventory.nodes.iter().filter_map(|node| Some((node.id.clone()?, node)));
        nodes.filter(|(id, node)| has_unclaimed(id, node)).map(|(id, _)| id).collect()
    }
}

impl Known {
    /// Takes in what was read. Where nothing was, what is known stays.
    fn take(&mut self, read: Option<Vec<u32>>, now_ms: u64) {
        self.read_ms = now_ms;
        let read = read.unwrap_or_else(|| self.pids.clone());
        self.again_ms = match read == self.pids && !read.is_empty() {
            true => (2 * self.again_ms).min(AGAIN_AT_LEAST_MS),
            false => AGAIN_MS,
        };
        self.pids = read;
    }

    /// Whether it is of the replica that runs now.
    fn is_of(&self, replica: &Replica) -> bool {
        self.of.pid == replica.pid && self.of.node_id == replica.node_id
    }
}
