//! What a spec's names come to: models and programs, found and read.

use std::collections::BTreeMap;

use crate::model::assumed::as_gguf;
use crate::model::hf_config::{IntegerFormat, Quantization, Transformer};
use crate::model::{GgmlType, ModelFacts, known};
use crate::spec::{Deployment, EngineKind};
use crate::units::Bytes;

/// What a model is made of, as its engine's memory model needs it.
#[derive(Clone, Debug)]
pub enum Facts {
    /// A GGUF file's header, for llama.cpp and Ollama.
    Gguf(Box<ModelFacts>),
    /// A config, for vLLM.
    Transformer(Box<Transformer>),
}

impl Facts {
    /// The header, if it is a GGUF.
    pub fn gguf(&self) -> Option<&ModelFacts> {
        match self {
            Self::Gguf(facts) => Some(facts),
            Self::Transformer(_) => None,
        }
    }
}

/// A model, found and read.
#[derive(Clone, Debug)]
pub struct LocatedModel {
    /// What the engine is given: an absolute path, or a name that it knows.
    pub path: String,
    /// What it is made of.
    pub facts: Facts,
    /// Parameters that a token uses.
    pub active_parameters: u64,
    /// The vision tower where it is a file of its own.
    pub projector: Bytes,
}

impl LocatedModel {
    /// A GGUF file without a vision tower.
    pub fn gguf(path: String, facts: ModelFacts) -> Self {
        let elements = facts.tensors.iter().map(|tensor| tensor.dims.iter().product::<u64>());
        let active_parameters = elements.fold(0, u64::saturating_add);
        Self {
            path,
            facts: Facts::Gguf(Box::new(facts)),
            active_parameters,
            projector: Bytes::ZERO,
        }
    }

    /// A transformer for vLLM.
    pub fn transformer(path: String, model: Transformer) -> Self {
        let active_parameters = model.active_parameters();
        let facts = Facts::Transformer(Box::new(model));
        Self { path, facts, active_parameters, projector: Bytes::ZERO }
    }
}

/// What a spec's names come to on this machine.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The spec's folder: engines start there, so that relative paths in their flags work.
    pub folder: String,
    /// The engines' programs as they will be started.
    pub binaries: BTreeMap<EngineKind, String>,
    /// The models by [`Deployment::weights`].
    pub models: BTreeMap<String, LocatedModel>,
}

impl Found {
    /// Adds the models that a spec says only the names of.
    pub fn assume(&mut self, deployments: &[Deployment]) {
        for deployment in deployments {
            if let Some(located) = assumed(deployment) {
                self.models.entry(deployment.weights()).or_insert(located);
            }
        }
    }

    /// The model of a deployment.
    pub fn model(&self, deployment: &Deployment) -> Option<&LocatedModel> {
        self.models.get(&deployment.weights())
    }
}

/// What a deployment's `facts` come to.
pub fn assumed(deployment: &Deployment) -> Option<LocatedModel> {
    let facts = deployment.facts.as_ref()?;
    let config = &known::find(&facts.model)?.config;
    let mut model = Transformer::from_config(config).ok()?;
    let path = deployment.source.to_string();
    if deployment.engine == EngineKind::Vllm {
        model.quantization = Some(INT4);
        return Some(LocatedModel::transformer(path, model));
    }
    let tensor_type = GgmlType::from_name(&facts.tensor_type)?;
    let projector = model.vision.map_or(0, |vision| 2 * vision.parameters_to(model.hidden));
    let located = LocatedModel::gguf(path, as_gguf(&model, tensor_type));
    Some(LocatedModel { projector: Bytes(projector), ..located })
}

/// Four bits a weight in groups of 128, as compressed-tensors packs them.
const INT4: Quantization = Quantization::Integer {
    bits: 4,
    group: 128,
    zero_points: false,
    format: IntegerFormat::CompressedTensors,
};
