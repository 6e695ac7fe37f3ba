//! What is wanted on the GPUs: models with their flags, each for its engine.

use std::path::Path;

use berth_core::gpu::{self, GpuKind};
use berth_core::memory::llama_cpp::LlamaFlags;
use berth_core::memory::llama_cpp::graph::Backend;
use berth_core::memory::llama_cpp::offload::{DeviceFlags, Offload, OffloadFit, Outside};
use berth_core::memory::ollama::{self, Decision, Request};
use berth_core::memory::vllm::{Gpu, flags};
use berth_core::model::ModelFacts;
use berth_core::units::Bytes;
use berth_engines::source::{self, Hub, LocatedTransformer, transformer};
use serde_json::Value;

use crate::failure::Failure;
use crate::output;

/// A model for one engine.
pub(super) enum Wanted {
    /// For vLLM.
    Vllm(ForVllm),
    /// For llama.cpp's server.
    LlamaCpp(ForLlamaCpp),
    /// For Ollama.
    Ollama(ForOllama),
}

/// A model with vLLM's arguments.
pub(super) struct ForVllm {
    pub(super) model: LocatedTransformer,
    pub(super) args: Value,
}

/// A model with llama-server's flags.
pub(super) struct ForLlamaCpp {
    pub(super) name: String,
    facts: ModelFacts,
    flags: LlamaFlags,
    devices: DeviceFlags,
}

/// A model with Ollama's parameters.
pub(super) struct ForOllama {
    pub(super) name: String,
    facts: ModelFacts,
    request: Request,
}

/// No parameter of Ollama's is more: products of two must still be llama-server's to read.
const MAX_OLLAMA: u64 = 1 << 22;
const MAX_PARALLEL: u64 = 256;
/// What marks a model that Ollama runs.
pub(super) const OLLAMA: &str = "ollama:";

impl Wanted {
    /// A model and its engine's flags: `NAME` for vLLM, `FILE.gguf` for llama.cpp, `ollama:FILE.gguf`.
    pub(super) fn new(name: &str, words: &[String]) -> Result<Self, Failure> {
        if let Some(file) = name.strip_prefix(OLLAMA) {
            return Ok(Self::Ollama(ForOllama::new(file, words)?));
        }
        match is_gguf(name) {
            true => Ok(Self::LlamaCpp(ForLlamaCpp::new(name, words)?)),
            false => Ok(Self::Vllm(ForVllm::new(name, words)?)),
        }
    }

    /// GPUs that it needs.
    pub(super) fn ranks(&self) -> usize {
        match self {
            Self::Vllm(vllm) => vllm.ranks(),
            _ => 1,
        }
    }
}

pub(super) fn is_gguf(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with(".gguf")
}

impl ForVllm {
    fn new(name: &str, words: &[String]) -> Result<Self, Failure> {
        let model = transformer(name, &Hub::from_env()).map_err(Failure::from)?;
        if let Some(warning) = &model.warning {
            output::talk(&format!("warning: {}: {warning}", model.name));
        }
        Ok(Self { model, args: arguments(words)? })
    }

    /// GPUs that its layout needs.
    pub(super) fn ranks(&self) -> usize {
        let size = |name: &str| self.args[name].as_u64().unwrap_or(1).clamp(1, 1024) as usize;
        size("tensor_parallel_size") * size("pipeline_parallel_size")
    }
}

impl ForLlamaCpp {
    fn new(name: &str, words: &[String]) -> Result<Self, Failure> {
        let facts = source::read_facts(Path::new(name))?;
        let hint = "llama-server's flags follow; `llama-server --help` lists them";
        let (devices, others) =
            DeviceFlags::from_args(words).map_err(|error| Failure::bad_spec(error).hint(hint))?;
        let flags =
            LlamaFlags::from_args(&others).map_err(|error| Failure::bad_spec(error).hint(hint))?;
        if let Some(word) = flags.unmodelled.first() {
            return Err(Failure::bad_spec(anyhow::anyhow!(
                "the memory that `{word}` takes is not modelled"
            )));
        }
        Ok(Self { name: name.to_owned(), facts, flags, devices })
    }

    /// What it takes of GPUs with so much free.
    pub(super) fn fit(&self, free: &[Bytes]) -> OffloadFit {
        let (facts, flags, devices) = (&self.facts, &self.flags, &self.devices);
        Offload { facts, flags, devices, backend: Backend::Cuda, outside: Outside::CUDA }.fit(free)
    }
}

impl ForOllama {
    fn new(file: &str, words: &[String]) -> Result<Self, Failure> {
        let facts = source::read_facts(Path::new(file))?;
        let mut request = Request::default();
        let mut rest = words.iter();
        while let Some(word) = rest.next() {
            let number = rest.next().and_then(|value| value.parse::<u64>().ok());
            let number = number.filter(|number| (1..=MAX_OLLAMA).contains(number));
            let known = match (word.as_str(), number) {
                ("--num-ctx", Some(number)) => request.num_ctx.replace(number).is_none(),
                ("--num-batch", Some(number)) => request.num_batch.replace(number).is_none(),
                ("--num-parallel", Some(number)) => {
                    request.num_parallel = number.min(MAX_PARALLEL);
                    number <= MAX_PARALLEL
                }
                _ => false,
            };
            if !known {
                return Err(Failure::bad_spec(anyhow::anyhow!(
                    "`{word}` is no parameter of Ollama's with a number"
                ))
                .hint("known are --num-ctx, --num-parallel and --num-batch, each once"));
            }
        }
        Ok(Self { name: format!("{OLLAMA}{file}"), facts, request })
    }

    /// What Ollama decides, and what llama.cpp then takes of GPUs with so much free.
    pub(super) fn fit(&self, gpus: &[Gpu], free: &[Bytes]) -> (Decision, OffloadFit) {
        let total = gpus.iter().map(|gpu| gpu.total).sum();
        ollama::fit(&self.facts, self.request, free, total)
    }
}

/// vLLM's command line as arguments.
pub(crate) fn arguments(words: &[String]) -> Result<Value, Failure> {
    flags::from_words(words).map_err(|error| {
        Failure::bad_spec(error).hint("flags come after `--`; `vllm serve --help` lists them")
    })
}

/// A GPU by its kind or its size.
pub(crate) fn gpu(text: &str) -> Result<Gpu, Failure> {
    if let Some(kind) = GpuKind::find(text) {
        return Ok(Gpu::of_kind(kind));
    }
    let size: Option<Bytes> = text.parse().ok().filter(|size| *size >= Bytes::gib(1));
    size.map(Gpu::of_size).ok_or_else(|| {
        let known: Vec<&str> = gpu::kinds().iter().map(|kind| kind.name.as_str()).collect();
        let hint = format!(
            "known are {}; or give its size as CUDA sees it, as in 22.06GiB",
            known.join(", ")
        );
        Failure::bad_spec(anyhow::anyhow!("`{text}` is no kind of GPU that berth knows")).hint(hint)
    })
}
