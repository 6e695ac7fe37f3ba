//! Rows for host memory, for failure domains and for models that stay together.
//!
//! A row is over all nodes of a kind. Where every node counts for itself that is necessary and not
//! sufficient: what unpacks the counts checks it, and [`place`](super::place()) tells nodes apart where
//! it must.

use super::linear::{Linear, Row, Unknown, each};
use super::{Beside, Class, Domains, Problem, Spread};

/// Whether a node may have so many instances of each model.
pub(super) fn within_node(problem: &Problem, instances: impl Fn(usize) -> u64) -> bool {
    problem.models.iter().enumerate().all(|(model, asked)| match &asked.spread {
        Some(Spread { domains: Domains::Nodes, most }) => instances(model) <= *most,
        _ => true,
    })
}

/// Whether every model that a node has instances of has there what it is kept together with.
pub(super) fn has_partners(problem: &Problem, instances: impl Fn(usize) -> u64) -> bool {
    problem.models.iter().enumerate().all(|(model, asked)| match &asked.beside {
        Some(Beside { domains: Domains::Nodes, model: other }) => {
            instances(model) == 0 || instances(*other) > 0
        }
        _ => true,
    })
}

/// Instances of a model among what a node of a class keeps.
pub(super) fn kept_instances(problem: &Problem, class: &Class, kept: &[u64], model: usize) -> u64 {
    let running = class.running.iter().zip(kept);
    running.map(|((block, _), kept)| problem.blocks[*block].instances(model) * kept).sum()
}

/// The rows of all rules.
pub(super) fn rows(problem: &Problem, linear: &Linear, kinds: &[usize]) -> Vec<Row> {
    let mut rows: Vec<Row> = kinds.iter().filter_map(|kind| host(problem, linear, *kind)).collect();
    for (model, asked) in problem.models.iter().enumerate() {
        if let Some(spread) = &asked.spread {
            rows.extend(spread_rows(problem, linear, kinds, model, spread));
        }
        if let Some(beside) = &asked.beside {
            rows.extend(beside_rows(problem, linear, kinds, model, beside));
        }
    }
    rows
}

/// Of each model that is spread over domains of several nodes, its instances in each.
pub(super) fn spreads(problem: &Problem, linear: &Linear) -> Vec<Vec<Vec<(usize, f64)>>> {
    let of = |(model, asked): (usize, &super::Model)| match &asked.spread {
        Some(Spread { domains: Domains::Kinds(domains), .. }) => Some(
            domains.iter().map(|domain| instances_in(problem, linear, model, domain)).collect(),
        ),
        _ => None,
    };
    problem.models.iter().enumerate().filter_map(of).collect()
}

/// The kind of an unknown's nodes.
fn kind(problem: &Problem, unknown: &Unknown) -> usize {
    match unknown {
        Unknown::New { kind, .. } => *kind,
        Unknown::Keep { class, .. } => problem.classes[*class].kind,
    }
}

fn instances_in(
    problem: &Problem,
    linear: &Linear,
    model: usize,
    domain: &[usize],
) -> Vec<(usize, f64)> {
    linear.terms(|unknown| match domain.contains(&kind(problem, unknown)) {
        true => each(unknown, problem, |block| block.instances(model) as f64),
        false => 0.0,
    })
}

/// New blocks take no more than what nodes have beside what they keep.
fn host(problem: &Problem, linear: &Linear, kind: usize) -> Option<Row> {
    let mut of_kind = problem.classes.iter().filter(|class| class.kind == kind);
    if of_kind.any(|class| class.host.is_none()) {
        return None;
    }
    let terms = linear.terms(|unknown| match unknown {
        Unknown::New { kind: of, block } if *of == kind => problem.blocks[*block].host as f64,
        Unknown::Keep { class, kept } if problem.classes[*class].kind == kind => {
            -(host_left(problem, &problem.classes[*class], kept).unwrap_or(0) as f64)
        }
        _ => 0.0,
    });
    Some(Row { terms, limit: 0.0, is_exact: false })
}

/// Host memory of a node beside what it keeps; none where it isn't known.
pub(super) fn host_left(problem: &Problem, class: &Class, kept: &[u64]) -> Option<u64> {
    let held = class.running.iter().zip(kept);
    let held: u64 = held.map(|((block, _), kept)| problem.blocks[*block].host * kept).sum();
    Some(class.host?.saturating_sub(held))
}

fn spread_rows(
    problem: &Problem,
    linear: &Linear,
    kinds: &[usize],
    model: usize,
    spread: &Spread,
) -> Vec<Row> {
    let row = |domain: &[usize], limit: f64| Row {
        terms: instances_in(problem, linear, model, domain),
        limit,
        is_exact: false,
    };
    let most = spread.most as f64;
    match &spread.domains {
        Domains::Kinds(domains) => domains.iter().map(|domain| row(domain, most)).collect(),
        Domains::Nodes => {
            let nodes = |kind| {
                let of = problem.classes.iter().filter(|class| class.kind == kind);
                of.map(|class| class.nodes).sum::<u64>()
            };
            kinds.iter().map(|kind| row(&[*kind], most * nodes(*kind) as f64)).collect()
        }
    }
}

/// `instances <= many * instances of the other`, where `many` is more than there can ever be.
fn beside_rows(
    problem: &Problem,
    linear: &Linear,
    kinds: &[usize],
    model: usize,
    beside: &Beside,
) -> Vec<Row> {
    let densest = problem.blocks.iter().map(|one| one.instances(model).div_ceil(one.gpus.max(1)));
    let densest = densest.max().unwrap_or(0).max(1);
    let row = |domain: &[usize], of_one_node: bool| {
        let classes = problem.classes.iter().filter(|class| domain.contains(&class.kind));
        let gpus = |class: &Class| class.gpus * if of_one_node { 1 } else { class.nodes };
        let gpus = classes
            .map(gpus)
            .fold(0, |sum, gpus| if of_one_node { gpus.max(sum) } else { gpus + sum });
        let many = (gpus * densest).min(problem.models[model].max) as f64;
        let terms = linear.terms(|unknown| match domain.contains(&kind(problem, unknown)) {
            true => each(unknown, problem, |block| {
                block.instances(model) as f64 - many * block.instances(beside.model) as f64
            }),
            false => 0.0,
        });
        Row { terms, limit: 0.0, is_exact: false }
    };
    match &beside.domains {
        Domains::Kinds(domains) => domains.iter().map(|domain| row(domain, false)).collect(),
        Domains::Nodes => kinds.iter().map(|kind| row(&[*kind], true)).collect(),
    }
}
