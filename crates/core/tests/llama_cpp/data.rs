//! What several tests need: the measured rows and the facts of their models.

use std::collections::BTreeMap;
use std::path::PathBuf;

use berth_core::model::ModelFacts;
use serde_json::Value;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../data")
}

/// The rows of a file of `data/`.
pub(crate) fn rows(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder().join(file)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// All models of `data/models`, by name.
pub(crate) fn models() -> BTreeMap<String, ModelFacts> {
    let mut models = BTreeMap::new();
    for entry in folder().join("models").read_dir().unwrap() {
        let path = entry.unwrap().path();
        let facts = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        models.insert(path.file_stem().unwrap().to_string_lossy().into_owned(), facts);
    }
    models
}

/// The words of a row's command line.
pub(crate) fn words(row: &Value) -> Vec<String> {
    let text = row["args"].as_str().unwrap();
    text.split_whitespace().filter(|word| *word != "(defaults)").map(str::to_owned).collect()
}
