//! Models that are known by name, without a network: what their `config.json` says.
//!
//! The facts are those of each repository's config and of transformers' classes; that they are whole
//! is tested by counting parameters against what the publishers say.

use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::Value;

/// A model that is known.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownModel {
    /// Its name here.
    pub name: String,
    /// Its repositories.
    pub repos: Vec<String>,
    /// Its parameters, as published.
    pub parameters: Option<u64>,
    /// Its `config.json`, as far as memory depends on it.
    pub config: Value,
}

static MODELS: LazyLock<Vec<KnownModel>> = LazyLock::new(|| {
    // The table is part of the program; a test reads it.
    serde_json::from_str(include_str!("../../data/known-models.json")).unwrap_or_default()
});

/// All models that are known.
pub fn models() -> &'static [KnownModel] {
    &MODELS
}

/// The model of that name or repository, in any case of letters.
pub fn find(name: &str) -> Option<&'static KnownModel> {
    let is_meant = |model: &&KnownModel| {
        model.name.eq_ignore_ascii_case(name)
            || model.repos.iter().any(|repo| repo.eq_ignore_ascii_case(name))
    };
    MODELS.iter().find(is_meant)
}

/// The name that is most like `name`.
pub fn nearest(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    let likeness = |model: &&KnownModel| strsim::jaro_winkler(&model.name, &name);
    let nearest = MODELS.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(&nearest) > 0.8).then_some(nearest.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::GpuKind;
    use crate::memory::vllm::weights::{self, Part};
    use crate::memory::vllm::{EntryPoint, Gpu, VllmArgs};
    use crate::model::hf_config::Transformer;

    /// Parameters in what vLLM holds, without what no checkpoint has: scales of the cache, padding.
    fn held(model: &Transformer) -> u64 {
        let gpu = Gpu::of_kind(GpuKind::find("H100").unwrap());
        let none = serde_json::json!({});
        let args = VllmArgs::resolve(&none, model, &gpu, (0, 26), EntryPoint::Serve).unwrap();
        let bytes = |part: Part| match part {
            Part::Tensor(4) => 0,
            Part::Tensor(bytes) => bytes,
            Part::Linear(linear) => linear.tensors(gpu.card).iter().sum(),
            Part::Experts(experts) => experts.tensors(gpu.card).iter().sum(),
        };
        let layers = (0..model.layers())
            .flat_map(|index| weights::layer(model, &args, model.has_experts(index)));
        let all = layers.chain(weights::vision(model, &args)).map(bytes).sum::<u64>();
        let heads = if model.tied { 1 } else { 2 };
        all / 2 + heads * model.vocab * model.hidden + model.hidden
    }

    #[test]
    fn parameters_are_as_published() {
        assert!(models().len() > 30);
        for model in models() {
            let transformer = Transformer::from_config(&model.config).unwrap();
            assert_eq!(held(&transformer), transformer.parameters(), "{}", model.name);
            let published = model.parameters.unwrap_or(transformer.parameters());
            assert_eq!(transformer.parameters(), published, "{}", model.name);
        }
    }

    #[test]
    fn models_are_found_by_name_and_repository() {
        for (name, found) in [
            ("medgemma-27b", Some("medgemma-27b")),
            ("google/medgemma-27b-it", Some("medgemma-27b")),
            ("qwen/qwen3-8b", Some("qwen3-8b")),
            ("nobody/nothing", None),
        ] {
            assert_eq!(find(name).map(|model| model.name.as_str()), found);
        }
        assert_eq!(nearest("medgema-27b"), Some("medgemma-27b"));
        assert_eq!(nearest("xyz"), None);
    }
}
