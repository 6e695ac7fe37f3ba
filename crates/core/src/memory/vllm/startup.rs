//! A start of vLLM, step by step: what it takes, and where it would end.

use serde::Serialize;
use serde_json::Value;

use super::activations::Passes;
use super::caching_allocator::Allocator;
use super::kv_cache::{self, Group};
use super::version::{self, EngineFacts};
use super::{VllmArgs, calibration, graphs, loading};
use crate::memory::{Footprint, Verdict};
use crate::model::hf_config::Transformer;
use crate::units::Bytes;

/// The device that an engine starts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// All its memory as CUDA sees it.
    pub total: Bytes,
    /// What other processes hold.
    pub used_by_others: Bytes,
}

impl Gpu {
    /// The device of a measured row: `nvml_total_bytes`, `idle_used_bytes` (what the driver keeps),
    /// `cuda_total_gib` (as logged, two decimals) and `used_by_others_bytes`. CUDA's total is NVML's
    /// less what the driver keeps, as far as that agrees with the log.
    pub fn from_row(gpu: &Value) -> Option<Self> {
        let nvml = gpu["nvml_total_bytes"].as_u64();
        let kept = gpu["idle_used_bytes"].as_u64().unwrap_or(0);
        let derived = nvml.map(|total| total.saturating_sub(kept));
        let logged = gpu["cuda_total_gib"].as_f64().filter(|gib| (0.1..1e6).contains(gib));
        let bytes = |gib: f64| (gib * (1_u64 << 30) as f64) as u64;
        let total = match (derived, logged) {
            (Some(derived), Some(gib)) => derived.clamp(bytes(gib - 0.005), bytes(gib + 0.005)),
            (Some(derived), None) => derived,
            (None, logged) => bytes(logged?),
        };
        let used_by_others = Bytes(gpu["used_by_others_bytes"].as_u64().unwrap_or(0));
        Some(Self { total: Bytes(total), used_by_others })
    }
}

/// The answer for a model in vLLM.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VllmFit {
    /// What vLLM does.
    pub verdict: Verdict,
    /// Its message, where it doesn't start.
    pub message: Option<String>,
    /// What it takes on the GPUs of each pipeline stage; empty where it ends before it takes any.
    pub stages: Vec<StageFit>,
    /// Tokens that the KV cache holds, as logged.
    pub kv_cache_tokens: u64,
    /// Requests of the longest length at once, as logged.
    pub max_concurrency: f64,
}

/// What a rank of one pipeline stage takes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StageFit {
    /// Bytes of tensors, as logged.
    pub weights: Bytes,
    /// "Peak activation", as logged.
    pub activation_peak: Bytes,
    /// "Non-torch memory", as logged.
    pub non_torch: Bytes,
    /// Captured graphs.
    pub cuda_graphs: Bytes,
    /// The KV cache; below zero where there is no room for it, so signed.
    pub kv_cache: i64,
    /// What the process holds once it is ready.
    pub ready: Bytes,
    /// What it holds after load.
    pub served: Bytes,
    /// The most that it ever holds, loading included.
    pub peak: Bytes,
    /// The bytes by term.
    pub terms: Footprint,
}

/// A stage on its way.
struct Stage<'a> {
    passes: Passes<'a>,
    layers: std::ops::Range<usize>,
    loaded: loading::Loaded,
    /// Sampler and input state.
    state: u64,
    /// Segments once the state is there.
    segments: u64,
    activation_peak: u64,
    graphs: u64,
    load_peak: Bytes,
    block_bytes: u64,
    available: i64,
}

/// What a stage holds of its cache and of torch's segments, when ready and after load.
struct Held {
    blocks: u64,
    cache_segments: Bytes,
    ready: u64,
    served: u64,
}

/// The answer for a model, its arguments (vLLM's own names) and a version, on `gpu`.
pub fn fit(model: &Transformer, args: &Value, gpu: Gpu, engine_version: &str) -> VllmFit {
    let Some(version) = version::parse(engine_version) else {
        return ended(Verdict::Unsupported, format!("`{engine_version}` is no version of vLLM"));
    };
    let args = match VllmArgs::resolve(args, model, gpu.total, version) {
        Ok(args) => args,
        Err(error) => return ended(Verdict::Unsupported, error.to_string()),
    };
    if let Some(message) = not_divisible(model, &args) {
        return ended(Verdict::HeadsNotDivisible, message);
    }
    let context = match gpu.used_by_others {
        Bytes::ZERO => calibration::CONTEXT,
        _ => calibration::CONTEXT - calibration::CONTEXT_SHARED,
    };
    let free = gpu.total - gpu.used_by_others - context;
    let requested = Bytes((gpu.total.0 as f64 * args.utilization).ceil() as u64);
    if free < requested {
        return ended(
            Verdict::FreeBelowRequested,
            free_below_requested(free, gpu.total, &args, requested),
        );
    }
    let facts = EngineFacts::new(version, model);
    let start = Start { model, args: &args, facts, gpu, context, requested };
    start.run()
}

/// What stays the same through a start.
struct Start<'a> {
    model: &'a Transformer,
    args: &'a VllmArgs,
    facts: EngineFacts,
    gpu: Gpu,
    context: Bytes,
    requested: Bytes,
}

impl<'a> Start<'a> {
    fn run(&self) -> VllmFit {
        let (model, args) = (self.model, self.args);
        let groups = kv_cache::groups(model, args);
        let mut stages: Vec<Stage<'a>> =
            (0..args.stages()).map(|stage| self.up_to_profile(stage, &groups)).collect();
        let failed =
            stages.iter().find_map(|stage| stage.passes.allocator.failed.map(|size| (stage, size)));
        if let Some((stage, size)) = failed {
            let message = self.out_of_memory(size, &stage.passes.allocator);
            return self.refused(Verdict::OomOnLoad, message, &stages);
        }
        if stages.iter().any(|stage| stage.available <= 0) {
            return self.refused(Verdict::NoMemoryForKvCache, NO_MEMORY.to_owned(), &stages);
        }
        let room = |stage: &Stage<'_>| stage.available.unsigned_abs();
        let longest = |stage: &Stage<'_>, room: u64| {
            kv_cache::longest(model, args, &groups, stage.block_bytes, room, args.max_model_len)
        };
        let mut length = args.max_model_len;
        if args.auto_length {
            length = stages.iter().map(|stage| longest(stage, room(stage))).min().unwrap_or(0);
        }
        let per_request = kv_cache::blocks_for(model, args, &groups, length);
        for stage in &stages {
            let held_back = if self.facts.holds_back_a_block { stage.block_bytes } else { 0 };
            let usable = room(stage).saturating_sub(held_back);
            let need = per_request.saturating_mul(stage.block_bytes);
            if need > usable {
                let message = too_long(length, need, room(stage), longest(stage, usable));
                return self.refused(Verdict::MaxModelLenTooLong, message, &stages);
            }
        }
        let blocks =
            stages.iter().map(|stage| room(stage) / stage.block_bytes.max(1)).min().unwrap_or(0);
        let mut fits = Vec::new();
        let mut trouble = None;
        for stage in &mut stages {
            let (fit, verdict) = self.to_the_end(stage, blocks, &groups);
            trouble = trouble.or(verdict);
            fits.push(fit);
        }
        let (verdict, message) = match trouble {
            Some((verdict, message)) => (verdict, Some(message)),
            None => (Verdict::Ready, None),
        };
        let concurrency = blocks as f64 / per_request.max(1) as f64;
        VllmFit {
            verdict,
            message,
            stages: fits,
            kv_cache_tokens: (concurrency * length as f64) as u64,
            max_concurrency: concurrency,
        }
    }

    /// Loads a stage and profiles it.
    fn up_to_profile(&self, stage: usize, groups: &[Group]) -> Stage<'a> {
        let (model, args) = (self.model, self.args);
        let device = self.gpu.total - self.gpu.used_by_others - self.context;
        let is_last = stage + 1 == args.stages();
        let mut allocator = Allocator::new((device - calibration::WHILE_LOADING).0);
        let loaded = loading::load(model, args, stage, &mut allocator);
        let state: Vec<u64> = self.state(stage, is_last);
        for bytes in &state {
            allocator.allocate(*bytes);
        }
        let segments = allocator.reserved;
        allocator.limit = (device - calibration::NON_TORCH).0;
        let allocated = allocator.allocated;
        let mut passes = Passes::new(model, args, self.facts, is_last, allocator);
        let activation_peak = passes.profile(stage == 0);
        passes.allocator.empty_cache();

        let layers = args.stage_layers(stage);
        let graphs = graphs::bytes(model, args, layers.len());
        let transient = (allocated + activation_peak).saturating_sub(passes.allocator.allocated);
        let torch = match self.facts.charges_device_delta {
            true => passes.allocator.reserved.saturating_add(transient),
            false => loaded.weights.saturating_add(activation_peak),
        };
        let charged = torch.saturating_add(calibration::NON_TORCH.0);
        let charged = charged.saturating_add(if self.facts.charges_graphs { graphs } else { 0 });
        let block_bytes = kv_cache::block_bytes(model, args, groups, &layers);
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let available = match (args.blocks_override, args.kv_cache_bytes) {
            (Some(blocks), _) => signed(blocks.saturating_mul(block_bytes)),
            (None, Some(bytes)) => signed(bytes.0),
            (None, None) => signed(self.requested.0).saturating_sub(signed(charged)),
        };
        Stage {
            load_peak: self.context + Bytes(loaded.peak) + calibration::WHILE_LOADING,
            state: state.iter().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes)),
            passes,
            layers,
            loaded,
            segments,
            activation_peak,
            graphs,
            block_bytes,
            available,
        }
    }

    /// Buffers of the runner that live as long as the process: the sampler's counts and masks for
    /// every sequence, and inputs that come as embeddings.
    fn state(&self, stage: usize, is_last: bool) -> Vec<u64> {
        let (model, args) = (self.model, self.args);
        let (sequences, vocab) = (args.sequences, model.vocab);
        let hidden = args.batched_tokens * model.hidden * args.dtype_bytes;
        let mut state = Vec::new();
        if is_last && !self.facts.is_v1_runner {
            let words = vocab.div_ceil(32) * 4;
            state.extend([sequences * vocab * 4, sequences * words, sequences * words]);
            state.extend([sequences * 1024 * 4; 3]);
            state.extend([sequences * 128 * 4; 2]);
            state.push(sequences * (1024 + 129) * 4);
        }
        if args.with_vision && stage == 0 {
            state.push(hidden);
        }
        if stage > 0 {
            state.extend([hidden; 2]);
        }
        state
    }

    /// Gives a profiled stage its cache, warms it up and puts it under load.
    fn to_the_end(
        &self,
        stage: &mut Stage<'_>,
        blocks: u64,
        groups: &[Group],
    ) -> (StageFit, Option<(Verdict, String)>) {
        const GRANULE: u64 = 2 << 20;
        let (model, args) = (self.model, self.args);
        let page = kv_cache::page_bytes(model, args);
        let cache = blocks.saturating_mul(stage.block_bytes);
        let tensors = stage.block_bytes / page.max(1);
        let segments = Bytes(blocks.saturating_mul(page)).align_up(GRANULE) * tensors;
        let fixed = self.context
            + calibration::NON_TORCH
            + calibration::LATE_KERNELS
            + Bytes(stage.graphs)
            + segments;
        let passes = &mut stage.passes;
        passes.allocator.limit = (self.gpu.total - self.gpu.used_by_others - fixed).0;
        for bytes in self.attention_buffers(groups) {
            passes.allocator.allocate(bytes);
        }
        let requests = ((blocks.saturating_sub(1)) / groups.len().max(1) as u64).max(1);
        passes.warm_up(requests.min(args.batched_tokens / 2).min(args.sequences).max(1));
        let (ready, failed_before) = (passes.allocator.reserved, passes.allocator.failed);
        passes.serve();
        let served = passes.allocator.reserved;
        let trouble = passes.allocator.failed.map(|size| {
            let verdict =
                if failed_before.is_some() { Verdict::OomOnLoad } else { Verdict::OomAtRuntime };
            (verdict, self.out_of_memory(size, &passes.allocator))
        });

        let terms =
            self.all_terms(stage, &Held { blocks, cache_segments: segments, ready, served });
        let (ready, served) =
            (fixed + Bytes(ready), fixed + Bytes(served) + calibration::FIRST_REQUESTS);
        let fit = StageFit {
            kv_cache: i64::try_from(cache).unwrap_or(i64::MAX),
            ready,
            served,
            peak: ready.max(served).max(stage.load_peak),
            terms,
            ..self.figures(stage)
        };
        (fit, trouble)
    }

    /// Every term of a stage; their sum is what it holds after load.
    fn all_terms(&self, stage: &Stage<'_>, held: &Held) -> Footprint {
        let args = self.args;
        let Held { blocks, cache_segments, ready, served } = *held;
        let cache = blocks.saturating_mul(stage.block_bytes);
        let mut terms = self.first_terms(stage);
        // Cached segments may have been given back since.
        let with_state = stage.segments.min(ready);
        terms.exact(
            "sampler_state",
            Bytes(with_state) - Bytes(stage.loaded.segments),
            format!("{} bytes for {} sequences, in segments", stage.state, args.sequences),
        );
        let kept = Bytes(ready) - Bytes(with_state);
        terms.calibrated(
            "retained_activations",
            kept,
            "replay of the warm-up through the allocator".to_owned(),
        );
        let grown = Bytes(served) - Bytes(ready) + calibration::FIRST_REQUESTS;
        terms.calibrated(
            "served_growth",
            grown,
            format!("a batch of {} tokens", args.batched_tokens),
        );
        terms.calibrated(
            "cuda_graphs",
            Bytes(stage.graphs),
            "graphs x layers, and their pool".to_owned(),
        );
        terms.calibrated(
            "late_kernels",
            calibration::LATE_KERNELS,
            "loaded after profiling".to_owned(),
        );
        terms.exact(
            "kv_cache",
            Bytes(cache),
            format!("{blocks} blocks of {} bytes", stage.block_bytes),
        );
        terms.exact(
            "kv_cache_segments",
            cache_segments - Bytes(cache),
            "rounding of its tensors".to_owned(),
        );
        terms
    }

    /// Block tables, slot mappings, and with vision the split softmax of Triton's attention.
    fn attention_buffers(&self, groups: &[Group]) -> Vec<u64> {
        let (model, args) = (self.model, self.args);
        let count = groups.len() as u64;
        let mut blocks = args.max_model_len.div_ceil(args.block_size);
        if args.block_size <= 128 {
            blocks = blocks.next_multiple_of((128 / args.block_size).max(1));
        }
        let mut buffers = Vec::new();
        if args.with_vision {
            let heads = model.heads / args.tensor_parallel;
            let sequences = 128 / super::weights::rank_kv_heads(model, args);
            let softmax = sequences * heads * 16 * model.head_dim.next_power_of_two() * 4;
            buffers.extend(std::iter::repeat_n(softmax, groups.len()));
        }
        let table = args.sequences.saturating_mul(blocks).saturating_mul(4);
        buffers.extend(std::iter::repeat_n(table, 2 * groups.len()));
        buffers.push(count * args.batched_tokens * 8);
        buffers
    }

    fn first_terms(&self, stage: &Stage<'_>) -> Footprint {
        let mut terms = Footprint::default();
        let layers = stage.layers.len();
        terms.exact(
            "weights",
            Bytes(stage.loaded.weights),
            format!("tensors of {layers} layers on a rank"),
        );
        let rounding = Bytes(stage.loaded.segments) - Bytes(stage.loaded.weights);
        terms.exact("weight_segments", rounding, "rounding by the caching allocator".to_owned());
        terms.calibrated("context", self.context, "total less free on an H100".to_owned());
        terms.calibrated("non_torch", calibration::NON_TORCH, "logged in every row".to_owned());
        terms
    }

    fn figures(&self, stage: &Stage<'_>) -> StageFit {
        StageFit {
            weights: Bytes(stage.loaded.weights),
            activation_peak: Bytes(stage.activation_peak),
            non_torch: calibration::NON_TORCH,
            cuda_graphs: Bytes(stage.graphs),
            kv_cache: stage.available,
            ..StageFit::default()
        }
    }

    /// A start that ends before the cache is there: what it held until then.
    fn refused(&self, verdict: Verdict, message: String, stages: &[Stage<'_>]) -> VllmFit {
        let limit = self.gpu.total - self.gpu.used_by_others;
        let fit = |stage: &Stage<'_>| {
            let profile = self.context
                + calibration::NON_TORCH
                + Bytes(stage.segments)
                + Bytes(stage.activation_peak);
            let peak = stage.load_peak.max(profile).min(limit);
            StageFit { peak, terms: self.first_terms(stage), ..self.figures(stage) }
        };
        VllmFit {
            verdict,
            message: Some(message),
            stages: stages.iter().map(fit).collect(),
            kv_cache_tokens: 0,
            max_concurrency: 0.0,
        }
    }

    fn out_of_memory(&self, size: u64, allocator: &Allocator) -> String {
        let free = Bytes(allocator.limit) - Bytes(allocator.reserved);
        format!(
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {} GiB. GPU 0 has a total \
             capacity of {} GiB of which {} GiB is free.",
            gib(Bytes(size)),
            gib(self.gpu.total),
            gib(free)
        )
    }
}

fn ended(verdict: Verdict, message: String) -> VllmFit {
    let (stages, kv_cache_tokens, max_concurrency) = (Vec::new(), 0, 0.0);
    VllmFit { verdict, message: Some(message), stages, kv_cache_tokens, max_concurrency }
}

/// GiB as Python prints them: two decimals, without needless zeros but at least one.
fn gib(bytes: Bytes) -> String {
    let text = format!("{:.2}", bytes.0 as f64 / (1_u64 << 30) as f64);
    text.strip_suffix('0').map_or(text.clone(), str::to_owned)
}

/// Whether tensor parallelism divides what it must, in vLLM's order (`vllm/config/model.py`,
/// `distributed/utils.py`).
fn not_divisible(model: &Transformer, args: &VllmArgs) -> Option<String> {
    let ranks = args.tensor_parallel;
    if !model.heads.is_multiple_of(ranks) {
        return Some(format!(
            "ValueError: Total number of attention heads ({}) must be divisible by tensor parallel size ({ranks}).",
            model.heads
        ));
    }
    let heads = match ranks <= model.kv_heads {
        true => (model.kv_heads, ranks),
        false => (ranks, model.kv_heads),
    };
    let vocab = super::weights::padded_vocab(model);
    let mut checks = vec![heads, (vocab, ranks), (model.intermediate, ranks)];
    checks.extend(model.experts.as_ref().map(|experts| (experts.intermediate, ranks)));
    if let Some(vision) = model.vision.filter(|_| args.with_vision) {
        checks.extend([(vision.heads, ranks), (vision.intermediate, ranks)]);
    }
    let bad = checks.into_iter().find(|(whole, part)| whole % part != 0);
    bad.map(|(whole, part)| format!("AssertionError: {whole} is not divisible by {part}"))
}

fn free_below_requested(free: Bytes, total: Bytes, args: &VllmArgs, requested: Bytes) -> String {
    format!(
        "ValueError: Free memory on device cuda:0 ({}/{} GiB) on startup is less than desired GPU memory \
         utilization ({}, {} GiB). Decrease GPU memory utilization or reduce GPU memory used by other \
         processes.",
        gib(free),
        gib(total),
        args.utilization,
        gib(requested)
    )
}

const NO_MEMORY: &str = "ValueError: No available memory for the cache blocks. Try increasing \
    `gpu_memory_utilization` when initializing the engine (this flag also controls CPU memory reservation on \
    the CPU backend, despite its name). See https://docs.vllm.ai/en/latest/configuration/conserving_memory/ \
    for more details.";

fn too_long(length: u64, need: u64, room: u64, longest: u64) -> String {
    let hint = match longest {
        0 => String::new(),
        longest => format!(
            "Based on the available memory, the estimated maximum model length is {longest}. "
        ),
    };
    format!(
        "ValueError: To serve at least one request with the model's max seq len ({length}), ({} GiB KV cache is \
         needed, which is larger than the available KV cache memory ({} GiB). {hint}Try increasing \
         `gpu_memory_utilization` (which also controls CPU memory on the CPU backend) or decreasing \
         `max_model_len` when initializing the engine. See \
         https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more details.",
        gib(Bytes(need)),
        gib(Bytes(room))
    )
}
