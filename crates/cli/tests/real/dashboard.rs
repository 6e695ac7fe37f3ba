//! The dashboard of a real berth with real engines, in a real Chromium.

use std::process::Command;

use crate::harness::{Berth, SMOLLM, fetched, root};

const PASSWORD: &str = "correct horse";

/// What `crates/dashboard/e2e` asks of the page, with the server that people get.
#[test]
#[ignore = "cargo xtask test runs it where there is a browser"]
fn the_page_in_a_browser() {
    let berth = Berth::new(12);
    let model = fetched(&format!("models/{SMOLLM}"));
    berth.spec(&format!(
        "[models.smol]\nsource = \"{}\"\nreplicas = 2\n\
         flags = {{ ctx-size = 1024, parallel = 1, threads = 1, no-warmup = true }}\n\
         [strategies.shorter.models.smol]\nflags = {{ ctx-size = 512 }}\n",
        model.display()
    ));
    let up = berth.up_with(&[("BERTH_DASHBOARD_PASSWORD", PASSWORD)]);
    let (_, after) = up.said.split_once("dashboard at ").expect("it says where");
    let address = after.lines().next().unwrap().trim();
    for script in ["dashboard.test.mjs", "apply.test.mjs"] {
        let folder = fetched("browser");
        std::fs::copy(root().join("crates/dashboard/e2e").join(script), folder.join(script))
            .unwrap();
        let mut node = Command::new(folder.join("node"));
        node.args(["--test", script]).current_dir(&folder);
        node.env("BERTH_DASHBOARD", address).env("BERTH_DASHBOARD_PASSWORD", PASSWORD);
        node.env("BERTH_STRATEGY", "shorter");
        node.env("SCREENSHOTS", root().join("target/dashboard"));
        let ran = node.output().unwrap();
        assert!(ran.status.success(), "{script}:\n{}", String::from_utf8_lossy(&ran.stdout));
    }
}
