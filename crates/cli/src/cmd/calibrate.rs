//! `berth calibrate`: from vLLM's own log to what berth expects next time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use berth_core::memory::TermKind;
use berth_core::memory::vllm::calibration::Entry;
use berth_core::memory::vllm::learning::{self, Compared, StartLog};
use berth_core::memory::vllm::{self, Calibration};
use berth_core::perf::Speeds;
use berth_engines::source::{Hub, transformer};
use serde::Serialize;

use crate::args::CalibrateArgs;
use crate::failure::Failure;
use crate::output;

pub(crate) mod load;

/// Where a person's own calibration is kept.
fn path(state: &Path) -> PathBuf {
    state.join("calibration.json")
}

/// A person's own calibration; empty where there is none.
fn own(state: &Path) -> Result<Calibration, Failure> {
    let path = path(state);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Calibration::default());
        }
        Err(error) => return Err(unreadable(&path, error)),
    };
    let own: Calibration = serde_json::from_str(&text).map_err(|error| unreadable(&path, error))?;
    match own.problem() {
        Some(problem) => Err(unreadable(&path, anyhow::anyhow!(problem))),
        None => Ok(own),
    }
}

fn unreadable(path: &Path, error: impl Into<anyhow::Error>) -> Failure {
    let text = format!("{} can't be read", path.display());
    Failure::new(error.into().context(text))
        .hint("mend or remove it; `berth calibrate` writes it anew")
}

/// Where what was fitted to load tests is kept.
fn speeds_path(state: &Path) -> PathBuf {
    state.join("speeds.json")
}

/// What was fitted to a person's own load tests.
pub(crate) fn speeds(state: &Path) -> Result<Speeds, Failure> {
    let path = speeds_path(state);
    let speeds: Speeds = match fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).map_err(|error| unreadable(&path, error))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Speeds::default(),
        Err(error) => return Err(unreadable(&path, error)),
    };
    match speeds.problem() {
        Some(problem) => Err(unreadable(&path, anyhow::anyhow!(problem))),
        None => Ok(speeds),
    }
}

/// What comes with berth, and a person's own.
pub(crate) fn with_builtin(state: &Path) -> Result<Calibration, Failure> {
    Ok(Calibration::with(own(state)?))
}

pub(crate) fn run(state: &Path, args: &CalibrateArgs) -> Result<ExitCode, Failure> {
    if let Some(points) = &args.load {
        return load::run(state, points, args);
    }
    let mut entries = Vec::new();
    for log in &args.log {
        entries.extend(one(log, args)?);
    }
    let learnt: usize = entries.iter().map(|entry: &Entry| entry.terms.len()).sum();
    match (learnt, args.dry_run) {
        (0, _) => output::talk("nothing new learnt"),
        (_, true) => output::talk("nothing changed (--dry-run)"),
        _ => {
            for entry in entries {
                keep(state, entry)?;
            }
            output::talk(&format!("learnt {learnt} figures; kept in {}", path(state).display()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes a lesson into a person's own calibration; says how many of its figures are new there.
pub(crate) fn keep(state: &Path, entry: Entry) -> Result<usize, Failure> {
    let _alone = alone(state)?;
    let mut own = own(state)?;
    let before = own.clone();
    let count = entry.terms.len();
    own.add(entry);
    if own == before {
        return Ok(0);
    }
    write(&path(state), &own)?;
    Ok(count)
}

/// Who changes what is kept has it to himself, until what this gives is dropped: of two changes at once one would be lost.
fn alone(state: &Path) -> Result<fs::File, Failure> {
    let path = state.join("calibration.lock");
    let locked = fs::create_dir_all(state)
        .and_then(|()| fs::OpenOptions::new().create(true).append(true).open(&path))
        .and_then(|file| file.lock().map(|()| file));
    locked.map_err(|error| {
        let text = format!("{} can't be locked", path.display());
        Failure::new(anyhow::Error::new(error).context(text))
    })
}

/// Compares one log, and gives what it teaches.
fn one(log: &Path, args: &CalibrateArgs) -> Result<Option<Entry>, Failure> {
    let text = fs::read(log).map_err(|error| {
        let text = format!("{} can't be read", log.display());
        Failure::bad_spec(anyhow::Error::new(error).context(text))
    })?;
    let start = berth_engines::vllm::log::read(&String::from_utf8_lossy(&text));
    let Some(version) = &start.engine_version else {
        let text = format!("{} has no line with vLLM's version", log.display());
        return Err(Failure::bad_spec(anyhow::anyhow!(text))
            .hint("give the whole log, from `Initializing a V1 LLM engine (v0.26.0)` on"));
    };
    let model = transformer(&args.model, &Hub::from_env()).map_err(Failure::from)?;
    let flags = super::fit::flags(&args.flags)?;
    let gpu = super::fit::gpu(&args.gpu)?;
    // By what comes with berth alone: the same log then teaches the same again.
    let engine = vllm::Engine::of_version(version);
    let fit = vllm::fit(&model.transformer, &flags, &[gpu], &engine);
    if fit.stages.is_empty() {
        let message = fit.message.unwrap_or_default();
        return Err(Failure::bad_spec(anyhow::anyhow!(
            "by its flags it would not start: {message}"
        ))
        .hint("give the flags that it was started with after `--`"));
    }
    let source = format!("{}, {}", log.display(), describe(&start));
    let lesson = learning::learn(&start, &fit, &model.transformer, &gpu, source);
    output::data(&format!("{}\n{}\n", log.display(), table(&lesson.compared)));
    if let Some(mismatch) = lesson.mismatch {
        output::talk(&format!("warning: {}: not of this start: {mismatch}", log.display()));
        output::talk("hint: give the model, the GPU and the flags that it was started with");
    }
    Ok(lesson.entry)
}

fn describe(start: &StartLog) -> String {
    let version = start.engine_version.as_deref().unwrap_or("?");
    let (tensor, stages) = (start.tensor_parallel.unwrap_or(1), start.stages.unwrap_or(1));
    format!("vLLM {version}, tensor_parallel_size {tensor}, pipeline_parallel_size {stages}")
}

fn table(compared: &[Compared]) -> String {
    let mut rows = vec![["figure", "logged", "expected", "kind", ""].map(str::to_owned).to_vec()];
    for one in compared {
        let figure = |value: f64| match one.name.contains("tokens") {
            true => format!("{value:.0}"),
            false => format!("{value:.2} GiB"),
        };
        let note = match (one.learnt, one.kind) {
            (Some(_), _) => "learnt",
            (None, TermKind::Exact)
                if (one.logged - one.predicted).abs() > 0.01 * one.logged.max(1.0) =>
            {
                "differs: is this the model, are these the flags?"
            }
            _ => "",
        };
        let kind = if one.kind == TermKind::Exact { "exact" } else { "calibrated" };
        let cells = [one.name.to_owned(), figure(one.logged), figure(one.predicted)];
        rows.push([&cells[..], &[kind.to_owned(), note.to_owned()]].concat());
    }
    output::table(&rows)
}

/// The old file stays until the new one is whole.
fn write(path: &Path, calibration: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(calibration).map_err(Failure::new)?;
    let part = path.with_extension(format!("json.{}", std::process::id()));
    let written = fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))
        .and_then(|()| fs::write(&part, text + "\n"))
        .and_then(|()| fs::File::open(&part)?.sync_all())
        .and_then(|()| fs::rename(&part, path));
    written.map_err(|error| {
        let text = format!("{} can't be written", path.display());
        Failure::new(anyhow::Error::new(error).context(text))
    })
}
