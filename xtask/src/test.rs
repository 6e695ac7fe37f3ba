//! `cargo xtask test`: formatting, lints, all tests, docs.

use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use crate::{cargo, fetch};

/// Everything that a change has to pass.
pub(crate) fn run() -> Result<()> {
    let started = Instant::now();
    step("formatting", || crate::run(&mut cargo(&["fmt", "--all", "--check"])))?;
    step("lints", || {
        crate::run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    })?;
    step("what the tests need", fetch::everything)?;
    step("tests", || {
        let mut tests = match has("nextest") {
            true => cargo(&["nextest", "run", "--workspace"]),
            false => cargo(&["test", "--workspace", "--all-targets"]),
        };
        crate::run(&mut tests)
    })?;
    step("documentation's examples", || crate::run(&mut cargo(&["test", "--workspace", "--doc"])))?;
    step("documentation", || {
        let mut doc = cargo(&["doc", "--workspace", "--no-deps"]);
        crate::run(doc.env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    if has("deny") {
        step("licences and advisories", || crate::run(&mut cargo(&["deny", "check"])))?;
    } else {
        eprintln!("\n== cargo deny is not installed: licences and advisories were not checked");
    }
    eprintln!("\nall passed in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn step(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("\n== {name}");
    work()
}

/// Whether cargo has this subcommand.
fn has(subcommand: &str) -> bool {
    let mut probe: Command = cargo(&[subcommand, "--version"]);
    probe.output().is_ok_and(|output| output.status.success())
}
