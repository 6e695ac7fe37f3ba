//! The project's own commands: `cargo xtask demo`, `cargo xtask test`, `cargo xtask fetch`.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

mod browser;
mod demo;
mod fetch;
mod test;
mod vllm;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  demo [--once]   fetch an engine and two models, and run them beside each other under one budget;
                  --once stops after a request to each
  test            formatting, lints, all tests (real engines too), docs
  test --vllm     one test with real vLLM on the CPU, and none of the others: fetches 660 MB
  fetch           only what demo and test need, into target/demo
  compare         berth's memory model beside other estimators, on the measured rows
";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["demo"] => demo::run(false),
        ["demo", "--once"] => demo::run(true),
        ["test"] => test::run(),
        ["test", "--vllm"] => vllm::test(),
        ["fetch"] => fetch::everything(),
        ["compare"] => compare(),
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The folder of the workspace.
fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(PathBuf::from).unwrap_or(here)
}

/// Other estimators' formulas on the same rows (`docs/comparison.md`).
fn compare() -> Result<()> {
    run(Command::new("cargo").args(["build", "--release", "-p", "berth"]).current_dir(root()))?;
    let script = root().join("scripts/compare_estimators.py");
    let binary = root().join("target/release/berth");
    run(Command::new("python3").arg(script).arg("--berth").arg(binary))
}

/// Runs a command to its end and insists on success.
fn run(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}").replace('"', "");
    let status = command.status().with_context(|| format!("can't run {shown}"))?;
    if !status.success() {
        bail!("{shown} failed ({status})");
    }
    Ok(())
}

/// Cargo, in the workspace.
fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(args);
    // What cargo tells this program about itself would have some dependencies built anew.
    for (name, _) in std::env::vars_os() {
        let own = name.to_string_lossy();
        if own.starts_with("CARGO_PKG_") || own.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command
}
