//! How long placement takes: `cargo bench -p berth-core --bench place`. Clusters come from a seed.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "criterion's macros; a bench that can't go on fails"
)]

use std::hint::black_box;
use std::time::Duration;

use berth_core::memory::vllm::Engine;
use berth_core::model::hf_config::Transformer;
use berth_core::model::known;
use berth_core::perf::Speeds;
use berth_core::placement::program::{Block, Class, Model, Problem, solve};
use berth_core::placement::{Found, LocatedModel};
use berth_core::spec::Spec;
use berth_core::strategy::{Cluster, compare};
use criterion::{Criterion, criterion_group, criterion_main};

/// The part of a cluster of the slowest kind that the models ask for.
const LOAD: f64 = 0.9;

/// Numbers that look random and are the same everywhere (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// A cluster of nodes with `gpus` GPUs of up to three kinds, with `models` that ask for a part of
/// what it can serve: a quarter of them hot, in layouts over 1, 2, 4 and 8 GPUs, alone and in pairs.
fn cluster(nodes: u64, gpus: u64, models: usize, kinds: usize, seed: u64) -> Problem {
    let mut numbers = Numbers(seed);
    let mut blocks = Vec::new();
    let mut singles: Vec<Vec<(u64, f64)>> = Vec::new();
    for model in 0..models {
        let smallest = 1 << (numbers.next() % 3);
        let speed = 1.0 + 9.0 * numbers.part();
        let mut layouts = Vec::new();
        let mut size: u64 = smallest;
        while size <= gpus {
            // More GPUs hold more than as many times the cache, and lose to their link.
            let capacity = speed * size as f64 * (0.7 + 0.5 * numbers.part());
            layouts.push((size, capacity));
            for kind in 0..kinds {
                let capacity = capacity * (1.0 + kind as f64 * 0.6);
                let serves = vec![(model, 1, capacity)];
                let kinds = vec![kind];
                blocks.push(Block { gpus: size, host: 0, kinds, serves, is_tight: false });
            }
            size *= 2;
        }
        singles.push(layouts);
    }
    // Small ones beside each other, at a part of their speed.
    for a in 0..models {
        for b in a + 1..models {
            if !numbers.next().is_multiple_of(4) {
                continue;
            }
            let ((size, one), (_, other)) = (singles[a][0], singles[b][0]);
            let serves = vec![(a, 1, one * 0.45), (b, 1, other * 0.45)];
            let gpus = size.max(singles[b][0].0);
            for kind in 0..kinds {
                blocks.push(Block {
                    gpus,
                    host: 0,
                    kinds: vec![kind],
                    serves: serves.clone(),
                    is_tight: false,
                });
            }
        }
    }
    let weights: Vec<f64> = (0..models)
        .map(|model| (0.2 + numbers.part()) * if model % 4 == 0 { 8.0 } else { 1.0 })
        .collect();
    let all: f64 = weights.iter().sum();
    let total = (nodes * gpus) as f64;
    let asked = |model: usize| {
        let best = singles[model].iter().map(|(size, capacity)| capacity / *size as f64);
        let best = best.fold(0.0, f64::max);
        Model {
            need: LOAD * total * weights[model] / all * best,
            min: 1,
            max: 1 << 20,
            ..Model::default()
        }
    };
    let models = (0..models).map(asked).collect();
    let each = nodes / kinds as u64;
    let count = |kind: usize| if kind == 0 { nodes - each * (kinds as u64 - 1) } else { each };
    let class = |kind| Class { nodes: count(kind), gpus, host: None, kind, running: Vec::new() };
    Problem { classes: (0..kinds).map(class).collect(), models, blocks }
}

fn places(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("place");
    group.sample_size(10).warm_up_time(Duration::from_millis(500));
    for (nodes, gpus, models, kinds) in
        [(16, 4, 2, 1), (16, 4, 8, 1), (256, 8, 8, 3), (4096, 8, 32, 3)]
    {
        let problem = cluster(nodes, gpus, models, kinds, 7);
        let solved = solve(&problem, None);
        let name = format!("{nodes}x{gpus}, {models} models");
        // The gap is a result too, and criterion has no place for it.
        #[expect(clippy::print_stderr, reason = "a bench speaks on stderr")]
        {
            eprintln!(
                "{name}: {} blocks, {} GPUs, greedy {}, bound {}, gap {:.2} %",
                problem.blocks.len(),
                solved.objective.gpus,
                solved.greedy.gpus,
                solved.bound.gpus,
                solved.gap() * 100.0
            );
        }
        group.bench_function(name, |bencher| bencher.iter(|| solve(black_box(&problem), None)));
    }
    group.finish();
}

/// The example's case: what `berth plan --compare` does, but for reading and printing.
fn compares(criterion: &mut Criterion) {
    let text = include_str!("../../../examples/medgemma-16x4.toml");
    let spec = Spec::parse("medgemma-16x4.toml", text).unwrap();
    let mut found = Found::default();
    let strategies = spec.strategies.iter().flat_map(|one| &one.spec.deployments);
    for one in spec.deployments.iter().chain(strategies) {
        let name = one.source.to_string();
        if let Some(known) = known::find(&name) {
            let model = Transformer::from_config(&known.config).unwrap();
            found.models.insert(one.weights(), LocatedModel::transformer(name, model));
        }
        found.assume(std::slice::from_ref(one));
    }
    let engine = Engine::of_version(&spec.vllm_version);
    let speeds = &Speeds::default();
    let cluster = Cluster { nodes: &[], found: &found, engine, speeds };
    let mut group = criterion.benchmark_group("compare");
    group.sample_size(20);
    group.bench_function("16 nodes of 4 A10, 17 strategies", |bencher| {
        bencher.iter(|| compare::compare(black_box(&spec), &cluster, &|| 0.0));
    });
    group.finish();
}

criterion_group!(benches, places, compares);
criterion_main!(benches);
