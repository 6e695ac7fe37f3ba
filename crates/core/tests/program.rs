//! The integer program against brute force, on random small clusters, and its promises on larger ones.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use berth_core::placement::program::greedy::greedy;
use berth_core::placement::program::linear::Unknown;
use berth_core::placement::program::{
    Block, Class, Linear, Model, Objective, OnNode, Problem, Solved, solve, unpack,
};
use proptest::prelude::*;
use proptest::sample::select;

fn block(models: usize) -> impl Strategy<Value = Block> {
    let serves = prop::collection::vec((0..models, 1_u64..3, 1_u32..6), 1..3);
    (0_u32..3, serves, any::<bool>(), 0_usize..3).prop_map(|(power, serves, is_tight, kinds)| {
        Block {
            gpus: 1 << power,
            kinds: [vec![0], vec![1], vec![0, 1]][kinds].clone(),
            serves: serves
                .into_iter()
                .map(|(model, count, each)| (model, count, f64::from(each) * count as f64))
                .collect(),
            is_tight,
        }
    })
}

fn model() -> impl Strategy<Value = Model> {
    (0_u32..12, 0_u64..3, 1_u64..5, 1_u32..3).prop_map(|(need, min, more, priority)| Model {
        need: f64::from(need),
        min,
        max: min + more,
        priority: f64::from(priority),
    })
}

fn problem() -> impl Strategy<Value = Problem> {
    (1_usize..4).prop_flat_map(|models| {
        let class = (
            1_u64..3,
            select(vec![1, 2, 3, 4, 6]),
            0_usize..2,
            prop::option::of((0_usize..3, 1_u64..3)),
        );
        (
            prop::collection::vec(class, 1..3),
            prop::collection::vec(model(), models),
            prop::collection::vec(block(models), 1..4),
        )
            .prop_map(|(classes, models, blocks)| {
                let class =
                    |(nodes, gpus, kind, running): (u64, u64, usize, Option<(usize, u64)>)| {
                        // Only what has room, and may be there, runs.
                        let running = running.filter(|(block, count)| {
                            blocks.get(*block).is_some_and(|block| {
                                block.gpus * count <= gpus && block.kinds.contains(&kind)
                            })
                        });
                        Class { nodes, gpus, kind, running: running.into_iter().collect() }
                    };
                let classes = classes.into_iter().map(class).collect();
                Problem { classes, models, blocks }
            })
    })
}

/// All counts that keep to the rows, by trying every one.
fn brute_force(problem: &Problem, linear: &Linear) -> Objective {
    let gpus: u64 = problem.classes.iter().map(|class| class.nodes * class.gpus).sum();
    let most = |unknown: &Unknown| match unknown {
        Unknown::Keep { class, .. } => problem.classes[*class].nodes,
        Unknown::New { block, .. } => gpus / problem.blocks[*block].gpus,
    };
    let most: Vec<u64> = linear.unknowns.iter().map(most).collect();
    let mut counts = vec![0; most.len()];
    let mut best: Option<Objective> = None;
    loop {
        if linear.is_feasible(&counts) {
            let found = linear.objective(&counts);
            best = Some(best.map_or(found, |best| best.min(found)));
        }
        let Some(at) = (0..counts.len()).find(|at| counts[*at] < most[*at]) else { break };
        counts[at] += 1;
        counts[..at].fill(0);
    }
    best.unwrap()
}

/// Reads an answer node by node, as a stranger would, and says what is wrong with it.
fn check(problem: &Problem, nodes: &[OnNode], objective: &Objective) -> Result<(), String> {
    let mut placed = vec![(0_u64, 0.0_f64); problem.models.len()];
    let (mut stopped, mut taken) = (0, 0);
    for (class, at) in problem.classes.iter().enumerate() {
        if nodes.iter().filter(|node| node.class == class).count() as u64 != at.nodes {
            return Err(format!("class {class} has another number of nodes"));
        }
    }
    for node in nodes {
        let class = &problem.classes[node.class];
        let mut here: Vec<&Block> = Vec::new();
        for ((block, count), kept) in class.running.iter().zip(&node.kept) {
            if kept > count {
                return Err("more is kept than runs".to_owned());
            }
            stopped += (count - kept) * problem.blocks[*block].size();
            here.extend((0..*kept).map(|_| &problem.blocks[*block]));
        }
        for block in &node.new {
            let block = &problem.blocks[*block];
            if !block.kinds.contains(&class.kind) {
                return Err("a block is where it may not be".to_owned());
            }
            here.push(block);
        }
        let gpus: u64 = here.iter().map(|block| block.gpus).sum();
        if gpus > class.gpus {
            return Err(format!("{gpus} GPUs of {}", class.gpus));
        }
        taken += gpus;
        for (model, count, capacity) in here.iter().flat_map(|block| &block.serves) {
            placed[*model].0 += count;
            placed[*model].1 += capacity;
        }
    }
    let mut unserved = 0.0;
    for (model, (instances, capacity)) in problem.models.iter().zip(placed) {
        if instances > model.max {
            return Err(format!("{instances} instances, at most {}", model.max));
        }
        if model.need > 0.0 {
            unserved += model.priority * (1.0 - capacity / model.need).max(0.0);
        }
        if model.min > 0 {
            unserved += model.priority * (1.0 - instances as f64 / model.min as f64).max(0.0);
        }
    }
    let said = (objective.unserved as f64 / 1e6, objective.disruption, objective.gpus);
    match (said.0 - unserved).abs() < 1e-5 && said.1 == stopped && said.2 == taken {
        true => Ok(()),
        false => Err(format!("it says {said:?} and is {unserved}, {stopped}, {taken}")),
    }
}

fn solved(problem: &Problem) -> (Linear, Solved) {
    (Linear::new(problem), solve(problem, None))
}

proptest! {
    // `PROPTEST_CASES=100000` for the long run.
    #[test]
    fn the_plan_is_the_best_there_is(problem in problem()) {
        let (linear, solved) = solved(&problem);
        let best = brute_force(&problem, &linear);
        prop_assert_eq!(solved.objective, best, "{:?}", problem);
        prop_assert!(solved.objective <= solved.greedy);
        prop_assert!(solved.objective <= linear.objective(&greedy(&problem, &linear)));
        prop_assert!(solved.gap() < 1e-9, "it is proven: {:?}", solved);
        let nodes = unpack(&problem, &linear, &solved.counts).unwrap();
        prop_assert_eq!(check(&problem, &nodes, &solved.objective), Ok(()));
    }

    #[test]
    fn what_was_planned_is_left_alone_once_it_runs(problem in problem()) {
        let (linear, first) = solved(&problem);
        let nodes = unpack(&problem, &linear, &first.counts).unwrap();
        let again = Problem { classes: as_running(&problem, &nodes), ..problem.clone() };
        let (_, second) = solved(&again);
        prop_assert_eq!(second.objective.disruption, 0);
        prop_assert_eq!(second.objective.unserved, first.objective.unserved);
        prop_assert_eq!(second.objective.gpus, first.objective.gpus, "nothing is added either");
    }

    #[test]
    fn another_node_never_makes_it_worse(problem in problem()) {
        let (_, before) = solved(&problem);
        let mut more = problem.clone();
        more.classes.push(Class { nodes: 1, running: Vec::new(), ..problem.classes[0].clone() });
        let (_, after) = solved(&more);
        prop_assert!(after.objective.unserved <= before.objective.unserved);
        prop_assert!(after.objective <= before.objective);
    }

    #[test]
    fn the_order_of_classes_does_not_matter(problem in problem()) {
        let (_, before) = solved(&problem);
        let mut turned = problem.clone();
        turned.classes.reverse();
        let (_, after) = solved(&turned);
        prop_assert_eq!(after.objective, before.objective);
    }
}

/// The nodes as classes of their own, with all that was planned running.
fn as_running(problem: &Problem, nodes: &[OnNode]) -> Vec<Class> {
    let running = |node: &OnNode| {
        let class = &problem.classes[node.class];
        let mut counts = vec![0; problem.blocks.len()];
        for ((block, _), kept) in class.running.iter().zip(&node.kept) {
            counts[*block] += kept;
        }
        node.new.iter().for_each(|block| counts[*block] += 1);
        let running = counts.into_iter().enumerate().filter(|(_, count)| *count > 0);
        Class { nodes: 1, running: running.collect(), ..class.clone() }
    };
    nodes.iter().map(running).collect()
}
