//! `cargo xtask test`: formatting, lints, all tests, docs.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::{browser, cargo, fetch};

/// Everything that a change has to pass.
pub(crate) fn run() -> Result<()> {
    let started = Instant::now();
    step("formatting", || crate::run(&mut cargo(&["fmt", "--all", "--check"])))?;
    step("lints", || {
        crate::run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    })?;
    step("edges between crates", core_is_pure)?;
    step("what the tests need", fetch::everything)?;
    step("tests", || {
        let mut tests = match has("nextest") {
            true => cargo(&["nextest", "run", "--workspace"]),
            false => cargo(&["test", "--workspace", "--all-targets"]),
        };
        crate::run(&mut tests)
    })?;
    step("the dashboard in a browser", || {
        if !browser::fetch()? {
            eprintln!(
                "no Chromium, and it can't be installed: the dashboard was not tested in a browser"
            );
            return Ok(());
        }
        let test = ["test", "-p", "berth", "--test", "real", "in_a_browser", "--", "--ignored"];
        crate::run(&mut cargo(&test))
    })?;
    step("spans, which are a feature", || {
        let of_gateway = ["--package", "berth-gateway", "--features", "otel"];
        let mut lints = cargo(&["clippy"]);
        crate::run(lints.args(of_gateway).args(["--all-targets", "--", "-D", "warnings"]))?;
        crate::run(cargo(&["test"]).args(of_gateway).args(["--test", "gateway", "spans"]))
    })?;
    step("documentation's examples", || crate::run(&mut cargo(&["test", "--workspace", "--doc"])))?;
    step("documentation", || {
        let mut doc = cargo(&["doc", "--workspace", "--no-deps"]);
        crate::run(doc.env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    if has("deny") {
        // Advisories come over the network, and change without a change of ours.
        let deny = ["deny", "check", "bans", "licenses", "sources"];
        step("licences and dependencies", || crate::run(&mut cargo(&deny)))?;
    } else {
        eprintln!("\n== cargo deny is not installed: licences were not checked");
    }
    eprintln!("\nall passed in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// The core does no I/O: none of what would do it may be among its dependencies.
fn core_is_pure() -> Result<()> {
    const IMPURE: &[&str] =
        &["hyper", "nvml-wrapper", "procfs", "rusqlite", "rustix", "tokio", "ureq"];
    let tree = cargo(&["tree", "--package", "berth-core", "--edges", "normal", "--prefix", "none"]);
    let output = { tree }.output()?;
    let tree = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() || !tree.starts_with("berth-core ") {
        bail!("cargo tree failed");
    }
    for line in tree.lines().filter_map(|line| line.split(' ').next()) {
        if IMPURE.contains(&line) || (line.starts_with("berth-") && line != "berth-core") {
            bail!("berth-core depends on {line}");
        }
    }
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
