//! From a load test to how fast berth expects an engine to be.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use berth_core::gpu::GpuKind;
use berth_core::memory::vllm::tenancy::Sharing;
use berth_core::memory::vllm::{Engine, Gpu};
use berth_core::perf::Constants;
use berth_core::perf::fit::{LEAST, Point, fit};
use berth_core::placement::gpus::{pace, prepare};
use berth_core::placement::{Found, LocatedModel};
use berth_core::spec::Spec;
use berth_engines::source::{Hub, transformer};

use super::{alone, speeds, speeds_path, with_builtin, write};
use serde_json::Value;

use crate::args::CalibrateArgs;
use crate::failure::Failure;
use crate::output;

const FORM: &str = "a line for each, as in {\"batch\": 8, \"prompt_tokens\": 1000, \
                    \"answer_tokens\": 250, \"token_ms\": 41.5}";

pub(super) fn run(state: &Path, file: &Path, args: &CalibrateArgs) -> Result<ExitCode, Failure> {
    let points = read(file)?;
    let gpu = super::super::fit::gpu(&args.gpu)?;
    let flags = super::super::fit::flags(&args.flags)?;
    let (kind, constants) = constants(state, &points, &args.model, gpu, &flags)?;
    output::data(&in_words(kind, &constants));
    if args.dry_run {
        output::talk("nothing changed (--dry-run)");
        return Ok(ExitCode::SUCCESS);
    }
    put(state, kind, constants)?;
    output::talk(&format!("kept in {}", speeds_path(state).display()));
    Ok(ExitCode::SUCCESS)
}

/// Takes points of a model on a kind of GPU into what plans go by; says what was found.
pub(crate) fn keep(
    state: &Path,
    points: &[Point],
    model: &str,
    gpu: Gpu,
    flags: &Value,
) -> Result<String, Failure> {
    let (kind, constants) = constants(state, points, model, gpu, flags)?;
    put(state, kind, constants)?;
    Ok(in_words(kind, &constants))
}

fn put(state: &Path, kind: &GpuKind, constants: Constants) -> Result<(), Failure> {
    let _alone = alone(state)?;
    let mut speeds = speeds(state)?;
    speeds.set(kind, constants);
    write(&speeds_path(state), &speeds)
}

fn in_words(kind: &GpuKind, constants: &Constants) -> String {
    format!(
        "{}: {:.0} % of the bandwidth, {:.0} % of the arithmetic, {:.1} ms a step, {:.0} us an \
         all-reduce; nine of ten points within {:.0} %",
        kind.name,
        constants.bandwidth * 100.0,
        constants.arithmetic * 100.0,
        constants.step * 1e3,
        constants.all_reduce * 1e6,
        constants.band * 100.0
    )
}

/// What fits the points of a model that is started with these flags.
fn constants(
    state: &Path,
    points: &[Point],
    model: &str,
    gpu: Gpu,
    flags: &Value,
) -> Result<(&'static GpuKind, Constants), Failure> {
    let Some(kind) = gpu.kind else {
        return Err(Failure::bad_spec(anyhow::anyhow!("speeds are kept by kind of GPU"))
            .hint("name a kind with --gpu, as in --gpu A10"));
    };
    let model = transformer(model, &Hub::from_env())?;
    // A spec of one model, so that it is read as it will be planned.
    let all = flags.as_object().into_iter().flatten();
    let inline: Vec<String> = all.map(|(name, value)| format!("{name} = {value}")).collect();
    let text = format!(
        "[models.m]\nsource = \"m\"\nengine = \"vllm\"\nflags = {{ {} }}\n",
        inline.join(", ")
    );
    let spec = Spec::parse("flags", &text)?;
    let deployment = &spec.deployments[0];
    let mut found = Found::default();
    let located = LocatedModel::transformer("m".to_owned(), model.transformer);
    found.models.insert(deployment.weights(), located);
    let wanted = prepare(deployment, &found).map_err(Failure::bad_spec)?;
    let gpus = vec![gpu; wanted.gpus.clamp(1, 64)];
    let calibration = with_builtin(state)?;
    let engine = Engine { calibration: &calibration, ..Engine::of_version(&spec.vllm_version) };
    let started = wanted.start("m", 0, &gpus, &mut Sharing::new(&gpus), &engine);
    if started.cache_tokens == 0 {
        let message = started.message.unwrap_or_default();
        return Err(Failure::bad_spec(anyhow::anyhow!(
            "by its flags it would not start: {message}"
        ))
        .hint("give the flags that it was started with after `--`"));
    }
    let workload = pace::workload(&started, &wanted, kind, 1.0);
    let constants = fit(&workload, points).map_err(|error| {
        Failure::bad_spec(error).hint(format!("at least {LEAST} points: {FORM}"))
    })?;
    Ok((kind, constants))
}

fn read(file: &Path) -> Result<Vec<Point>, Failure> {
    let text = fs::read_to_string(file).map_err(|error| {
        let text = format!("{} can't be read", file.display());
        Failure::bad_spec(anyhow::Error::new(error).context(text))
    })?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let point = |(at, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| {
            let text = format!("{}:{}: {error}", file.display(), at + 1);
            Failure::bad_spec(anyhow::anyhow!(text)).hint(FORM)
        })
    };
    lines.map(point).collect()
}
