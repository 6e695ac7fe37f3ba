//! A start of vLLM, step by step: what it takes, and where it would end.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::activations::{Passes, cublas_workspace};
use super::caching_allocator::Allocator;
use super::calibration::{Calibration, Constants, Estimate, Subject, Term};
use super::communicators::{self, Communicators};
use super::graphs::Graphs;
use super::kv_cache::{self, Group, Requests};
use super::terms::{self, Held};
use super::version::{self, EngineFacts};
use super::{
    Card, EntryPoint, Gpu, StageFit, VllmArgs, VllmFit, graphs, loading, messages, refusals,
};
use crate::memory::Verdict;
use crate::model::hf_config::Transformer;
use crate::units::Bytes;

/// Whether compiled code is there from an earlier start of the same model and arguments. Compiling
/// takes memory that the profile counts, so a first start has a smaller cache than a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CompileCache {
    /// It compiles.
    #[default]
    Cold,
    /// It doesn't.
    Warm,
}

/// The engine, apart from the model and its arguments.
#[derive(Clone, Copy, Debug)]
pub struct Engine<'a> {
    /// Its version, as in `0.26.0`.
    pub version: &'a str,
    /// How it is started.
    pub entry_point: EntryPoint,
    /// What it has compiled.
    pub compile_cache: CompileCache,
    /// What was measured.
    pub calibration: &'a Calibration,
    /// Which end of what was measured.
    pub estimate: Estimate,
}

impl<'a> Engine<'a> {
    /// `vllm serve` of a version, with what comes with berth.
    pub fn of_version(version: &'a str) -> Self {
        Self {
            version,
            entry_point: EntryPoint::Serve,
            compile_cache: CompileCache::Cold,
            calibration: Calibration::builtin(),
            estimate: Estimate::Likely,
        }
    }
}

/// A stage on its way.
pub(super) struct Stage<'a> {
    pub(super) gpu: Gpu,
    pub(super) passes: Passes<'a>,
    pub(super) layers: std::ops::Range<usize>,
    pub(super) loaded: loading::Loaded,
    /// Sampler and input state.
    pub(super) state: u64,
    pub(super) activation_peak: u64,
    pub(super) graphs: Graphs,
    pub(super) load_peak: Bytes,
    /// The most while it profiles; compiling apart, whose peak is above it at most by what it logs.
    pub(super) profile_peak: Bytes,
    /// What is there before vLLM first looks, PyTorch's segments apart.
    pub(super) before: Bytes,
    /// Links to the stages beside it.
    pub(super) links: Bytes,
    pub(super) block_bytes: u64,
    pub(super) available: i64,
}

/// What stays the same through a start.
pub(super) struct Start<'a> {
    pub(super) model: &'a Transformer,
    pub(super) args: &'a VllmArgs,
    pub(super) facts: EngineFacts,
    pub(super) gpus: &'a [Gpu],
    pub(super) card: Card,
    pub(super) compile_cache: CompileCache,
    pub(super) communicators: Communicators,
    pub(super) constants: Constants<'a>,
}

/// The answer for a model and its arguments (vLLM's own names) on `gpus`: one for all ranks, or one
/// for each, stage by stage.
pub fn fit(model: &Transformer, args: &Value, gpus: &[Gpu], engine: &Engine<'_>) -> VllmFit {
    let Some(first) = gpus.first() else {
        return VllmFit::ended(Verdict::Unsupported, "vLLM needs a GPU".to_owned());
    };
    let Some(version) = version::parse(engine.version) else {
        let message = format!("`{}` is no version of vLLM; write one as in 0.26.0", engine.version);
        return VllmFit::ended(Verdict::Unsupported, message);
    };
    if !version::MODELLED.contains(&version) {
        let message = format!("vLLM {} is not modelled; 0.26 to 0.33 are", engine.version);
        return VllmFit::ended(Verdict::Unsupported, message);
    }
    let args = match VllmArgs::resolve(args, model, first, version, engine.entry_point) {
        Ok(args) => args,
        Err(error) => return VllmFit::ended(Verdict::Unsupported, error.to_string()),
    };
    let ranks = args.tensor_parallel.saturating_mul(args.stages() as u64);
    if gpus.len() > 1 && gpus.len() as u64 != ranks {
        let message = format!("{ranks} GPUs are needed, {} are given", gpus.len());
        return VllmFit::ended(Verdict::Unsupported, message);
    }
    if let Some((verdict, message)) = refusals::refusal(model, &args, first, version) {
        return VllmFit::ended(verdict, message);
    }
    let subject = Subject {
        gpu: first.kind.map(|kind| kind.name.as_str()),
        version,
        model,
        tensor_parallel: args.tensor_parallel,
        stages: args.stages(),
        transport: communicators::transport(first, args.forbidden),
    };
    let start = Start {
        model,
        args: &args,
        facts: EngineFacts::new(version, model),
        gpus,
        card: first.card,
        compile_cache: engine.compile_cache,
        communicators: Communicators::new(model, &args, first),
        constants: engine.calibration.constants(&subject, engine.estimate),
    };
    let mut fit = start.run();
    fit.is_measured = start.constants.is_measured();
    fit
}

/// Blocks that one request of `tokens` tokens holds; none where the arguments can't be read.
pub fn blocks_for(
    model: &Transformer,
    args: &Value,
    gpu: &Gpu,
    engine: &Engine<'_>,
    tokens: u64,
) -> Option<u64> {
    let version = version::parse(engine.version)?;
    let args = VllmArgs::resolve(args, model, gpu, version, engine.entry_point).ok()?;
    let (groups, facts) = (kv_cache::groups(model, &args), EngineFacts::new(version, model));
    Some(Requests { model, args: &args, groups: &groups, facts }.blocks_for(tokens))
}

impl<'a> Start<'a> {
    fn run(&self) -> VllmFit {
        let (model, args) = (self.model, self.args);
        if let Some(message) = self.free_below_requested() {
            return VllmFit::ended(Verdict::FreeBelowRequested, message);
        }
        if let Some((verdict, message)) = refusals::while_building(model, args, &self.gpus[0]) {
            return VllmFit::ended(verdict, message);
        }
        let groups = kv_cache::groups(model, args);
        let mut stages: Vec<Stage<'a>> =
            (0..args.stages()).map(|stage| self.up_to_profile(stage, &groups)).collect();
        let requests = Requests { model, args, groups: &groups, facts: self.facts };
        let length = match self.check_cache(&stages, &requests) {
            Ok(length) => length,
            Err((verdict, message)) => return self.refused(verdict, message, &stages),
        };
        let blocks = stages.iter().map(|stage| stage.room() / stage.block_bytes.max(1)).min();
        let blocks = blocks.unwrap_or(0);
        let mut fits = Vec::new();
        let mut trouble = None;
        for stage in &mut stages {
            let (fit, found) = self.to_the_end(stage, blocks, &groups);
            trouble = trouble.or(found);
            fits.push(fit);
        }
        let (verdict, message) = match trouble {
            Some((verdict, message)) => (verdict, Some(message)),
            None => (Verdict::Ready, None),
        };
        let concurrency = blocks as f64 / requests.blocks_for(length).max(1) as f64;
        VllmFit {
            verdict,
            message,
            stages: fits,
            tensor_parallel: args.tensor_parallel,
            kv_cache_blocks: blocks,
            kv_cache_tokens: (concurrency * length as f64) as u64,
            max_concurrency: concurrency,
            max_model_len: length,
            is_measured: false,
        }
    }

    /// The fullest GPU of a stage.
    fn stage_gpu(&self, stage: usize) -> Gpu {
        let ranks = self.args.tensor_parallel as usize;
        let here = match self.gpus.len() {
            1 => self.gpus,
            _ => self.gpus.get(stage * ranks..(stage + 1) * ranks).unwrap_or(self.gpus),
        };
        let free = |gpu: &&Gpu| gpu.total - gpu.used_by_others;
        *here.iter().min_by_key(free).unwrap_or(&self.gpus[0])
    }

    /// The context alone.
    pub(super) fn context(&self, gpu: &Gpu) -> Bytes {
        let shared = match gpu.used_by_others {
            Bytes::ZERO => 0,
            _ => self.constants.get(Term::ContextShared),
        };
        let workspace = match self.facts.makes_workspace_first {
            true => cublas_workspace(self.card),
            false => 0,
        };
        Bytes(self.constants.get(Term::Context)) - Bytes(shared) + Bytes(workspace)
    }

    /// Context and communicators: what is there before vLLM first looks, PyTorch's segments apart.
    fn before(&self, gpu: &Gpu) -> Bytes {
        let [first, further] = self.communicators.nccl_bytes(&self.constants);
        self.context(gpu) + first + further + self.communicators.buffers()
    }

    /// PyTorch's memory before vLLM first looks.
    pub(super) fn allocator(&self) -> Allocator {
        let mut allocator = Allocator::new(u64::MAX);
        let tensors = self.communicators.tensors();
        if tensors > 0 {
            allocator.allocate(tensors);
        }
        allocator
    }

    fn requested(&self, gpu: &Gpu) -> Bytes {
        Bytes((gpu.total.0 as f64 * self.args.utilization).ceil() as u64)
    }

    pub(super) fn non_torch(&self) -> Bytes {
        let parts = [Term::NonTorch, Term::CommunicatorsCharged];
        parts.iter().map(|term| Bytes(self.constants.get(*term))).sum::<Bytes>()
            + self.capture_charged()
    }

    /// Where graphs are captured within the profile, to guess what they take.
    pub(super) fn capture_charged(&self) -> Bytes {
        match self.facts.charges_graphs && !self.args.eager {
            true => Bytes(self.constants.get(Term::CaptureCharged)),
            false => Bytes::ZERO,
        }
    }

    fn free_below_requested(&self) -> Option<String> {
        self.gpus.iter().enumerate().find_map(|(rank, gpu)| {
            let held = self.before(gpu) + Bytes(self.allocator().reserved);
            let free = gpu.total - gpu.used_by_others - held;
            let requested = self.requested(gpu);
            (free < requested)
                .then(|| messages::free_below_requested(rank, free, gpu, self.args, requested))
        })
    }

    /// Loads a stage and profiles it.
    fn up_to_profile(&self, stage: usize, groups: &[Group]) -> Stage<'a> {
        let (model, args) = (self.model, self.args);
        let gpu = self.stage_gpu(stage);
        let before = self.before(&gpu);
        let device = gpu.total - gpu.used_by_others - before;
        let while_loading = Bytes(self.constants.get(Term::WhileLoading));
        let mut allocator = self.allocator();
        let reserved_before = allocator.reserved;
        allocator.limit = (device - while_loading).0;
        let is_last = stage + 1 == args.stages();
        let state = self.state(stage, is_last);
        let loaded =
            loading::load(model, args, self.facts, self.card, (stage, &state), &mut allocator);
        allocator.limit = (device - self.non_torch()).0;
        let allocated = allocator.allocated;
        let mut passes = Passes::new(model, args, self.facts, self.card, allocator);
        passes.is_last = is_last;
        passes.compile_cache = self.compile_cache;
        let activation_peak = passes.profile(stage == 0);
        let profile_peak = before + self.non_torch() + Bytes(passes.allocator.peak_reserved);
        passes.allocator.empty_cache();

        let layers = args.stage_layers(stage);
        let graphs =
            graphs::graphs(model, args, self.facts, self.card, layers.len(), &self.constants);
        let transient =
            allocated.saturating_add(activation_peak).saturating_sub(passes.allocator.allocated);
        let torch = match self.facts.charges_device_delta {
            true => (passes.allocator.reserved - reserved_before).saturating_add(transient),
            false => loaded.weights.saturating_add(activation_peak),
        };
        let charged = torch.saturating_add(self.non_torch().0).saturating_sub(self.unseen(&loaded));
        let estimated = if self.facts.charges_graphs { graphs.logged() } else { 0 };
        let charged = charged.saturating_add(estimated);
        let block_bytes = kv_cache::block_bytes(model, args, groups, &layers);
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let available = match (args.blocks_override, args.kv_cache_bytes) {
            (Some(blocks), _) => signed(blocks.saturating_mul(block_bytes)),
            (None, Some(bytes)) => signed(bytes.0),
            (None, None) => signed(self.requested(&gpu).0).saturating_sub(signed(charged)),
        };
        Stage {
            gpu,
            load_peak: before + Bytes(loaded.peak) + while_loading,
            profile_peak,
            before,
            links: communicators::links(stage, args.stages(), &self.constants),
            state: state.iter().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes)),
            passes,
            layers,
            loaded,
            activation_peak,
            graphs,
            block_bytes,
            available,
        }
    }

    /// What vLLM takes for free though it isn't: with sleep mode it gives what loading has left back to the device
    /// behind PyTorch's back, which still counts it as its own, so that "non-torch memory" comes out too small by it
    /// (`CuMemAllocator.use_memory_pool`, `memory_profiling`; 0.26).
    fn unseen(&self, loaded: &loading::Loaded) -> u64 {
        match self.args.can_sleep && !self.facts.charges_device_delta {
            true => loaded.given_back,
            false => 0,
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

    /// The checks between profile and cache; gives the longest length that is served.
    fn check_cache(
        &self,
        stages: &[Stage<'_>],
        requests: &Requests<'_>,
    ) -> Result<u64, (Verdict, String)> {
        let failed =
            stages.iter().find_map(|stage| stage.passes.allocator.failed.map(|size| (stage, size)));
        if let Some((stage, size)) = failed {
            let message = messages::out_of_memory(size, &stage.gpu, &stage.passes.allocator);
            return Err((Verdict::OomOnLoad, message));
        }
        let held_back =
            |stage: &Stage<'_>| if self.facts.holds_back_a_block { stage.block_bytes } else { 0 };
        let usable = |stage: &Stage<'_>| stage.room().saturating_sub(held_back(stage));
        if stages.iter().any(|stage| stage.available <= 0 || usable(stage) == 0) {
            return Err((Verdict::NoMemoryForKvCache, messages::NO_MEMORY.to_owned()));
        }
        let limit = self.args.max_model_len;
        let longest = |stage: &Stage<'_>| requests.longest(stage.block_bytes, usable(stage), limit);
        let shortest = stages.iter().map(longest).min().unwrap_or(0);
        let length = match self.args.auto_length {
            true if shortest == 0 => {
                let message = messages::NOT_EVEN_ONE_TOKEN.to_owned();
                return Err((Verdict::MaxModelLenTooLong, message));
            }
            true => shortest,
            false => limit,
        };
        for stage in stages {
            let need = requests.blocks_for(length).saturating_mul(stage.block_bytes);
            if need > usable(stage) {
                let message = messages::too_long(length, need, usable(stage), longest(stage));
                return Err((Verdict::MaxModelLenTooLong, message));
            }
        }
        Ok(length)
    }

    /// Gives a profiled stage its cache, warms it up and puts it under load.
    fn to_the_end(
        &self,
        stage: &mut Stage<'_>,
        blocks: u64,
        groups: &[Group],
    ) -> (StageFit, Option<(Verdict, String)>) {
        const GRANULE: u64 = 2 << 20;
        let (model, args, constants) = (self.model, self.args, &self.constants);
        let page = kv_cache::page_bytes(model, args);
        let cache = blocks.saturating_mul(stage.block_bytes);
        let tensors = stage.block_bytes / page.max(1);
        let segments = Bytes(blocks.saturating_mul(page)).align_up(GRANULE) * tensors;
        let graphs = stage.graphs.pool.saturating_add(stage.graphs.driver);
        let fixed = stage.before
            + stage.links
            + self.non_torch()
            + Bytes(constants.get(Term::LateKernels))
            + Bytes(graphs)
            + segments;
        stage.passes.allocator.limit = (stage.gpu.total - stage.gpu.used_by_others - fixed).0;
        for bytes in self.attention_buffers(groups) {
            stage.passes.allocator.allocate(bytes);
        }
        let requests = ((blocks.saturating_sub(1)) / groups.len().max(1) as u64).max(1);
        let requests = requests.min(args.batched_tokens / 2).min(args.sequences).max(1);
        self.warm_up_and_capture(&mut stage.passes, requests);
        let passes = &mut stage.passes;
        let (ready, failed_before) = (passes.allocator.reserved, passes.allocator.failed);
        passes.serve();
        let served = passes.allocator.reserved;
        passes.allocator.empty_cache();
        let awake_only = segments + Bytes(stage.loaded.with_state);
        let stays =
            fixed + Bytes(passes.allocator.reserved) + Bytes(constants.get(Term::FirstRequests));
        let asleep = args.can_sleep.then_some(stays - awake_only);
        let trouble = passes.allocator.failed.map(|size| {
            let verdict =
                if failed_before.is_some() { Verdict::OomOnLoad } else { Verdict::OomAtRuntime };
            (verdict, messages::out_of_memory(size, &stage.gpu, &passes.allocator))
        });
        let held = Held { blocks, cache_segments: segments, ready, served };
        let first_requests = Bytes(constants.get(Term::FirstRequests));
        let (ready, served) = (fixed + Bytes(ready), fixed + Bytes(served) + first_requests);
        let pool = segments + Bytes(stage.graphs.pool);
        let fit = StageFit {
            kv_cache: i64::try_from(cache).unwrap_or(i64::MAX),
            reserved_ready: pool + Bytes(held.ready),
            reserved_served: pool + Bytes(held.served),
            ready,
            served,
            peak: ready.max(served).max(stage.load_peak),
            asleep,
            terms: terms::all(self, stage, &held),
            ..self.figures(stage)
        };
        (fit, trouble)
    }

    /// A capture leaves no cache behind, so it matters what comes first.
    fn warm_up_and_capture(&self, passes: &mut Passes<'_>, requests: u64) {
        if self.args.eager {
            passes.warm_up(requests);
            return;
        }
        if self.facts.warms_up_before_capture {
            passes.warm_up(requests);
        }
        let retained = self.constants.get(Term::AfterCapture);
        let outside = graphs::outside_pool(self.model, self.args, self.facts, self.card);
        for bytes in outside.into_iter().chain([retained]).filter(|bytes| *bytes > 0) {
            passes.allocator.allocate(bytes);
        }
        passes.allocator.empty_cache();
        if !self.facts.warms_up_before_capture {
            passes.warm_up(requests);
        }
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

    fn figures(&self, stage: &Stage<'_>) -> StageFit {
        StageFit {
            weights: Bytes(stage.loaded.weights),
            activation_peak: Bytes(stage.activation_peak),
            non_torch: self.non_torch(),
            cuda_graphs: Bytes(stage.graphs.logged()),
            kv_cache: stage.available,
            load_peak: stage.load_peak,
            pinned: if self.args.can_sleep { Bytes(stage.loaded.pinned) } else { Bytes::ZERO },
            ..StageFit::default()
        }
    }

    /// A start that ends before the cache is there: what it held until then.
    fn refused(&self, verdict: Verdict, message: String, stages: &[Stage<'_>]) -> VllmFit {
        let fit = |stage: &Stage<'_>| {
            let limit = stage.gpu.total - stage.gpu.used_by_others;
            let peak = stage.load_peak.max(stage.profile_peak).min(limit);
            StageFit { peak, terms: terms::before_cache(self, stage), ..self.figures(stage) }
        };
        VllmFit {
            stages: stages.iter().map(fit).collect(),
            tensor_parallel: self.args.tensor_parallel,
            ..VllmFit::ended(verdict, message)
        }
    }
}

impl Stage<'_> {
    /// Bytes for the cache.
    fn room(&self) -> u64 {
        self.available.max(0).unsigned_abs()
    }
}
