//! What drives the dashboard in a real browser: Debian's Chromium, and Playwright with its own Node.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::fetch;

const PLAYWRIGHT: &str = "playwright==1.65.2";
const CHROMIUM: &str = "/usr/bin/chromium";

/// Brings both; says whether there is a browser then. Nobody but root can install one.
pub(crate) fn fetch() -> Result<bool> {
    if !Path::new(CHROMIUM).exists() {
        eprintln!("installing Debian's chromium for the tests (BSD-3-Clause)");
        let install = || apt(&["install", "--yes", "--no-install-recommends", "chromium"]);
        if !(install() || apt(&["update"]) && install()) {
            return Ok(false);
        }
    }
    playwright()?;
    Ok(Path::new(CHROMIUM).exists())
}

fn apt(args: &[&str]) -> bool {
    let mut apt = Command::new("apt-get");
    let quiet = apt.arg("--quiet=2").args(args).env("DEBIAN_FRONTEND", "noninteractive");
    quiet.stdout(std::io::stderr()).status().is_ok_and(|status| status.success())
}

/// The folder that tests run in: `node`, and `node_modules` with Playwright.
fn folder() -> PathBuf {
    fetch::dir().join("browser")
}

fn playwright() -> Result<()> {
    let done = folder().join("done");
    if fs::read_to_string(&done).is_ok_and(|there| there == PLAYWRIGHT) {
        return Ok(());
    }
    eprintln!("fetching Playwright for the tests (Apache-2.0)");
    fetch::remove(&folder())?;
    let driver = fetch::unpack(PLAYWRIGHT, None)?.join("playwright").join("driver");
    fs::create_dir_all(folder().join("node_modules"))?;
    symlink(driver.join("package"), folder().join("node_modules").join("playwright-core"))?;
    fetch::make_executable(&driver.join("node"))?;
    symlink(driver.join("node"), folder().join("node"))?;
    fs::write(done, PLAYWRIGHT)?;
    Ok(())
}
