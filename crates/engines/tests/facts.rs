//! The facts of the models that the memory rows were measured with, as files of the project.
//!
//! `BERTH_MODELS=DIR cargo test -p berth-engines --test facts -- --ignored` writes them anew from
//! the .gguf files of a folder.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::path::{Path, PathBuf};

use berth_core::model::ModelFacts;
use berth_engines::source::read_facts;

fn facts_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/models")
}

#[test]
#[ignore = "writes data/models; needs BERTH_MODELS"]
fn write_facts() {
    let models = PathBuf::from(std::env::var_os("BERTH_MODELS").expect("BERTH_MODELS is set"));
    for entry in models.read_dir().unwrap() {
        let path = entry.unwrap().path();
        let facts = read_facts(&path).unwrap();
        let name = format!("{}.json", path.file_stem().unwrap().to_string_lossy());
        std::fs::write(facts_dir().join(name), serde_json::to_string(&facts).unwrap()).unwrap();
    }
}

/// A model that `cargo xtask fetch` brought.
fn demo_model(name: &str) -> PathBuf {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/demo/models");
    let path = demo.join(format!("{name}.gguf"));
    assert!(path.exists(), "{} is not here: run `cargo xtask fetch` first", path.display());
    path
}

/// The two real models are here in whole; their files must say what was kept of them.
#[test]
fn kept_facts_are_those_of_the_files() {
    for name in ["SmolLM2-135M-Instruct.Q4_1", "gemma-3-270m-q4_k_m"] {
        let path = demo_model(name);
        let kept = std::fs::read_to_string(facts_dir().join(format!("{name}.json"))).unwrap();
        let kept: ModelFacts = serde_json::from_str(&kept).unwrap();
        assert_eq!(read_facts(&path).unwrap(), kept);
    }
}

/// Real headers, damaged in many places: a model, or an error, and never a panic.
#[test]
fn damaged_real_files_are_refused_or_read() {
    let path = demo_model("SmolLM2-135M-Instruct.Q4_1");
    let mut file = std::fs::read(path).unwrap();
    let len = file.len() as u64;
    // The header alone; the data is not read.
    file.truncate(2 << 20);
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state >> 33
    };
    for _ in 0..300 {
        let changes: Vec<(usize, u8)> =
            (0..4).map(|_| ((next() % file.len() as u64) as usize, next() as u8)).collect();
        let saved: Vec<u8> = changes.iter().map(|(at, _)| file[*at]).collect();
        for (at, value) in &changes {
            file[*at] = *value;
        }
        if let Ok(gguf) = berth_core::model::gguf::parse(&file, len) {
            drop(ModelFacts::from_gguf(gguf));
        }
        for ((at, _), value) in changes.iter().zip(saved) {
            file[*at] = value;
        }
    }
    assert!(berth_core::model::gguf::parse(&file, len).is_ok(), "undamaged again");
}
