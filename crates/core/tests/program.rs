//! The integer program against brute force, on random small clusters, and its promises on larger ones.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::collections::BTreeSet;

use berth_core::placement::program::{
    Beside, Block, Class, Domains, Model, Objective, OnNode, Placed, Problem, Spread, place,
};
use proptest::prelude::*;
use proptest::sample::select;

fn block(models: usize) -> impl Strategy<Value = Block> {
    let serves = prop::collection::vec((0..models, 1_u64..3, 1_u32..6), 1..3);
    let figures = (0_u32..3, 0_u64..4);
    (figures, serves, any::<bool>(), 0_usize..3).prop_map(
        |((power, host), serves, is_tight, kinds)| Block {
            gpus: 1 << power,
            host,
            kinds: [vec![0], vec![1], vec![0, 1]][kinds].clone(),
            serves: serves
                .into_iter()
                .map(|(model, count, each)| (model, count, f64::from(each) * count as f64))
                .collect(),
            is_tight,
        },
    )
}

fn domains() -> impl Strategy<Value = Domains> {
    select(vec![
        Domains::Nodes,
        Domains::Kinds(vec![vec![0], vec![1]]),
        Domains::Kinds(vec![vec![0, 1]]),
        Domains::Kinds(vec![vec![1]]),
    ])
}

/// Rules are for some of the models only, so that most problems are not all rules.
fn model(models: usize) -> impl Strategy<Value = Model> {
    let spread = (domains(), 1_u64..4).prop_map(|(domains, most)| Spread { domains, most });
    let beside = (0..models, domains()).prop_map(|(model, domains)| Beside { model, domains });
    let rules = (prop::option::weighted(0.3, spread), prop::option::weighted(0.2, beside));
    (0_u32..12, 0_u64..3, 1_u64..5, 1_u32..3, rules).prop_map(
        |(need, min, more, priority, (spread, beside))| Model {
            need: f64::from(need),
            min,
            max: min + more,
            priority: f64::from(priority),
            spread,
            beside,
        },
    )
}

fn problem() -> impl Strategy<Value = Problem> {
    (1_usize..4).prop_flat_map(|models| {
        let class = (
            1_u64..3,
            select(vec![1, 2, 3, 4, 6]),
            0_usize..2,
            prop::option::of((0_usize..3, 1_u64..3)),
            prop::option::weighted(0.3, 0_u64..10),
        );
        (
            prop::collection::vec(class, 1..3),
            prop::collection::vec(model(models), models),
            prop::collection::vec(block(models), 1..4),
        )
            .prop_map(|(classes, models, blocks)| {
                let class = |(nodes, gpus, kind, running, host): (
                    u64,
                    u64,
                    usize,
                    Option<(usize, u64)>,
                    Option<u64>,
                )| {
                    // Only what has room, and may be there, runs.
                    let running = running.filter(|(block, count)| {
                        blocks.get(*block).is_some_and(|block| {
                            block.gpus * count <= gpus && block.kinds.contains(&kind)
                        })
                    });
                    Class { nodes, gpus, host, kind, running: running.into_iter().collect() }
                };
                let classes = classes.into_iter().map(class).collect();
                Problem { classes, models, blocks }
            })
    })
}

/// What a node may have: of each block how many, how many of these ran before, and what is stopped.
#[derive(Clone)]
struct Pattern {
    have: Vec<u64>,
    kept: Vec<u64>,
    stopped: u64,
}

/// All that a node may have.
fn patterns(problem: &Problem, class: &Class) -> Vec<Pattern> {
    let none = vec![0; problem.blocks.len()];
    let mut all = vec![Pattern { have: none.clone(), kept: none, stopped: 0 }];
    for (block, count) in &class.running {
        let with = |pattern: &Pattern| {
            let keep = |keep: u64| {
                let mut pattern = pattern.clone();
                pattern.have[*block] += keep;
                pattern.kept[*block] += keep;
                pattern.stopped += (count - keep) * problem.blocks[*block].size();
                pattern
            };
            (0..=*count).map(keep).collect::<Vec<_>>()
        };
        all = all.iter().flat_map(with).collect();
    }
    for (index, block) in problem.blocks.iter().enumerate() {
        if !block.kinds.contains(&class.kind) {
            continue;
        }
        let with = |pattern: &Pattern| {
            let counts = pattern.have.iter().zip(&problem.blocks);
            let taken: u64 = counts.map(|(count, block)| count * block.gpus).sum();
            let add = |more: u64| {
                let mut pattern = pattern.clone();
                pattern.have[index] += more;
                pattern
            };
            let more = class.gpus.saturating_sub(taken) / block.gpus;
            (0..=more).map(add).collect::<Vec<_>>()
        };
        all = all.iter().flat_map(with).collect();
    }
    all.retain(|pattern| node_rules(problem, class, pattern).is_ok());
    all
}

/// What a node breaks, of the rules that are about single nodes.
fn node_rules(problem: &Problem, class: &Class, pattern: &Pattern) -> Result<(), String> {
    let sum = |counts: &[u64], figure: &dyn Fn(&Block) -> u64| -> u64 {
        counts.iter().zip(&problem.blocks).map(|(count, block)| count * figure(block)).sum()
    };
    let instances = |model: usize| sum(&pattern.have, &|block| block.instances(model));
    let [all, kept] = [&pattern.have, &pattern.kept].map(|counts| sum(counts, &|block| block.host));
    // What runs may hold more than there is, but nothing comes to it then.
    if class.host.is_some_and(|limit| all > limit && all > kept) {
        return Err(format!("{all} of host memory"));
    }
    for (model, asked) in problem.models.iter().enumerate() {
        match &asked.spread {
            Some(Spread { domains: Domains::Nodes, most }) if instances(model) > *most => {
                return Err(format!("{} of model {model} on a node", instances(model)));
            }
            _ => {}
        }
        match &asked.beside {
            Some(Beside { domains: Domains::Nodes, model: other })
                if instances(model) > 0 && instances(*other) == 0 =>
            {
                return Err(format!("model {model} without {other} on a node"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// What all nodes come to: of each kind and block how many, and what is stopped and started.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Totals {
    blocks: [[u64; 4]; 2],
    new: [u64; 4],
    stopped: u64,
}

impl Totals {
    fn add(&mut self, class: &Class, pattern: &Pattern) {
        self.stopped += pattern.stopped;
        for (block, count) in pattern.have.iter().enumerate() {
            self.blocks[class.kind][block] += count;
            self.new[block] += count - pattern.kept[block];
        }
    }

    fn instances(&self, problem: &Problem, model: usize, kinds: &[usize]) -> u64 {
        let of = |kind: &usize| -> u64 {
            let blocks = self.blocks[*kind].iter().zip(&problem.blocks);
            blocks.map(|(count, block)| count * block.instances(model)).sum()
        };
        kinds.iter().map(of).sum()
    }

    /// What is broken of the rules that are about more than one node.
    fn check(&self, problem: &Problem) -> Result<(), String> {
        for (model, asked) in problem.models.iter().enumerate() {
            if self.instances(problem, model, &[0, 1]) > asked.max {
                return Err(format!("more than {} instances", asked.max));
            }
            if let Some(Spread { domains: Domains::Kinds(domains), most }) = &asked.spread
                && domains.iter().any(|kinds| self.instances(problem, model, kinds) > *most)
            {
                return Err(format!("more than {most} in a domain"));
            }
            if let Some(Beside { domains: Domains::Kinds(domains), model: other }) = &asked.beside {
                let is_alone = |kinds: &Vec<usize>| {
                    self.instances(problem, model, kinds) > 0
                        && self.instances(problem, *other, kinds) == 0
                };
                if domains.iter().any(is_alone) {
                    return Err(format!("model {model} without {other} in a domain"));
                }
            }
        }
        Ok(())
    }

    fn objective(&self, problem: &Problem) -> Objective {
        let sum = |figure: &dyn Fn(&Block) -> f64| -> f64 {
            let of = |counts: &[u64; 4]| -> f64 {
                counts
                    .iter()
                    .zip(&problem.blocks)
                    .map(|(count, one)| *count as f64 * figure(one))
                    .sum()
            };
            self.blocks.iter().map(of).sum()
        };
        let (mut unserved, mut spread) = (0.0, 0);
        for (model, asked) in problem.models.iter().enumerate() {
            let instances = self.instances(problem, model, &[0, 1]) as f64;
            if asked.need > 0.0 {
                let share = sum(&|block| block.capacity(model)) / asked.need;
                unserved += asked.priority * (1.0 - share).max(0.0);
            }
            if asked.min > 0 {
                unserved += asked.priority * (1.0 - instances / asked.min as f64).max(0.0);
            }
            if let Some(Spread { domains: Domains::Kinds(domains), .. }) = &asked.spread {
                let of = |kinds: &Vec<usize>| self.instances(problem, model, kinds);
                spread += domains.iter().map(of).max().unwrap_or(0);
            }
        }
        let new = || self.new.iter().enumerate();
        Objective {
            unserved: (unserved * 1e6).round() as u64,
            disruption: self.stopped,
            gpus: sum(&|block| block.gpus as f64) as u64,
            tight: new()
                .filter(|(at, _)| problem.blocks.get(*at).is_some_and(|one| one.is_tight))
                .map(|(_, count)| count)
                .sum(),
            spread,
            rank: new().map(|(at, count)| count * (at as u64 + 1)).sum(),
        }
    }
}

/// The best of all that nodes may have, by trying every one: node after node, whatever comes to the same
/// only once.
fn brute_force(problem: &Problem) -> Objective {
    let mut all = BTreeSet::from([Totals::default()]);
    for class in &problem.classes {
        let patterns = patterns(problem, class);
        for _ in 0..class.nodes {
            let mut next = BTreeSet::new();
            for totals in &all {
                for pattern in &patterns {
                    let mut totals = totals.clone();
                    totals.add(class, pattern);
                    let is_within = problem.models.iter().enumerate().all(|(model, asked)| {
                        totals.instances(problem, model, &[0, 1]) <= asked.max
                    });
                    if is_within {
                        next.insert(totals);
                    }
                }
            }
            all = next;
        }
    }
    let allowed = all.iter().filter(|totals| totals.check(problem).is_ok());
    allowed.map(|totals| totals.objective(problem)).min().unwrap()
}

/// Reads an answer node by node, as a stranger would, and says what is wrong with it.
fn check(problem: &Problem, nodes: &[OnNode], objective: &Objective) -> Result<(), String> {
    for (class, at) in problem.classes.iter().enumerate() {
        if nodes.iter().filter(|node| node.class == class).count() as u64 != at.nodes {
            return Err(format!("class {class} has another number of nodes"));
        }
    }
    let mut totals = Totals::default();
    for node in nodes {
        let class = &problem.classes[node.class];
        let mut kept = vec![0; problem.blocks.len()];
        let mut stopped = 0;
        for ((block, count), keeps) in class.running.iter().zip(&node.kept) {
            if keeps > count {
                return Err("more is kept than runs".to_owned());
            }
            stopped += (count - keeps) * problem.blocks[*block].size();
            kept[*block] += keeps;
        }
        let mut have = kept.clone();
        for block in &node.new {
            if !problem.blocks[*block].kinds.contains(&class.kind) {
                return Err("a block is where it may not be".to_owned());
            }
            have[*block] += 1;
        }
        let gpus: u64 = have.iter().zip(&problem.blocks).map(|(count, one)| count * one.gpus).sum();
        if gpus > class.gpus {
            return Err(format!("{gpus} GPUs of {}", class.gpus));
        }
        let pattern = Pattern { have, kept, stopped };
        node_rules(problem, class, &pattern)?;
        totals.add(class, &pattern);
    }
    totals.check(problem)?;
    let found = totals.objective(problem);
    match found == *objective {
        true => Ok(()),
        false => Err(format!("it says {objective:?} and is {found:?}")),
    }
}

fn placed(problem: &Problem) -> Placed {
    place(problem, None)
}

proptest! {
    // `PROPTEST_CASES=100000` for the long run.
    #[test]
    fn the_plan_is_the_best_there_is(problem in problem()) {
        let placed = placed(&problem);
        prop_assert_eq!(check(&problem, &placed.nodes, &placed.objective), Ok(()), "{:?}", problem);
        prop_assert_eq!(placed.objective, brute_force(&problem), "{:?}", problem);
        prop_assert!(placed.objective <= placed.greedy);
        prop_assert!(placed.gap() < 1e-9, "it is proven: {:?}", placed);
    }

    #[test]
    fn what_was_planned_is_left_alone_once_it_runs(problem in problem()) {
        let first = placed(&problem);
        let again = Problem { classes: as_running(&problem, &first.nodes), ..problem.clone() };
        let second = placed(&again);
        prop_assert_eq!(second.objective.disruption, 0);
        prop_assert_eq!(second.objective.unserved, first.objective.unserved);
        prop_assert_eq!(second.objective.gpus, first.objective.gpus, "nothing is added either");
    }

    #[test]
    fn another_node_never_makes_it_worse(problem in problem()) {
        let before = placed(&problem);
        let mut more = problem.clone();
        more.classes.push(Class { nodes: 1, running: Vec::new(), ..problem.classes[0].clone() });
        let after = placed(&more);
        prop_assert!(after.objective.unserved <= before.objective.unserved);
        prop_assert!(after.objective <= before.objective);
    }

    #[test]
    fn the_order_of_classes_does_not_matter(problem in problem()) {
        let before = placed(&problem);
        let mut turned = problem.clone();
        turned.classes.reverse();
        prop_assert_eq!(placed(&turned).objective, before.objective);
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
