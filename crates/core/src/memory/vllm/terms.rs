//! A stage's bytes by term.

use super::calibration::Term;
use super::startup::{Stage, Start};
use crate::memory::Footprint;
use crate::units::Bytes;

/// What a stage holds of its cache and of torch's segments, when ready and after load.
pub(super) struct Held {
    pub(super) blocks: u64,
    pub(super) cache_segments: Bytes,
    pub(super) ready: u64,
    pub(super) served: u64,
}

/// What is there before the cache.
pub(super) fn before_cache(start: &Start<'_>, stage: &Stage<'_>) -> Footprint {
    let mut terms = Footprint::default();
    let loaded = &stage.loaded;
    let layers = stage.layers.len();
    terms.exact(
        "weights",
        Bytes(loaded.weights),
        format!("tensors of {layers} layers on a rank, in multiples of 512 bytes"),
    );
    let communicators = start.communicators;
    // The segment of the peers' table, as far as weights have not filled it.
    let rounding = Bytes(loaded.segments) - Bytes(loaded.weights);
    let table = rounding.min(Bytes(start.allocator().reserved));
    let rounding = rounding - table;
    terms.exact("weight_segments", rounding, "rounding by the caching allocator".to_owned());
    let constants = &start.constants;
    let mut fitted = |name: &str, bytes: Bytes, what: &str, term: Term| {
        if bytes > Bytes::ZERO {
            terms.calibrated(name, bytes, format!("{what}; {}", constants.source(term)));
        }
    };
    let charged = Bytes(constants.get(Term::CommunicatorsCharged));
    let captured = start.capture_charged();
    fitted("context", start.context(&stage.gpu), "total less free", Term::Context);
    let [first, further] = communicators.nccl_bytes(constants);
    fitted("communicators", first, "NCCL's first", Term::Communicators);
    fitted("further_communicators", further, "NCCL's others", Term::FurtherCommunicator);
    let non_torch = start.non_torch() - charged - captured;
    fitted("non_torch", non_torch, "loaded between the snapshots", Term::NonTorch);
    fitted("communicators_charged", charged, "between the snapshots", Term::CommunicatorsCharged);
    let what = "left of the capture within the profile";
    fitted("capture_charged", captured, what, Term::CaptureCharged);
    let buffers = communicators.buffers() + table;
    if buffers > Bytes::ZERO {
        let how = "symmetric memory, and the custom all-reduce's buffers and table";
        terms.exact("all_reduce_buffers", buffers, how.to_owned());
    }
    terms
}

/// Every term of a stage; their sum is what it holds after load.
pub(super) fn all(start: &Start<'_>, stage: &Stage<'_>, held: &Held) -> Footprint {
    let (args, constants) = (start.args, &start.constants);
    let Held { blocks, cache_segments, ready, served } = *held;
    let cache = blocks.saturating_mul(stage.block_bytes);
    let mut terms = before_cache(start, stage);
    // Cached segments may have been given back since.
    let with_state = stage.loaded.with_state.min(ready);
    let state = stage.state;
    terms.exact(
        "sampler_state",
        Bytes(with_state) - Bytes(stage.loaded.segments),
        format!("{state} bytes for {} sequences, in segments", args.sequences),
    );
    terms.calibrated(
        "retained_activations",
        Bytes(ready) - Bytes(with_state),
        "replay of warm-up and capture through the allocator".to_owned(),
    );
    let first_requests = Bytes(constants.get(Term::FirstRequests));
    terms.calibrated(
        "served_growth",
        Bytes(served) - Bytes(ready) + first_requests,
        format!(
            "batches of up to {} tokens in the order that leaves most, and kernels",
            args.batched_tokens
        ),
    );
    if !args.eager {
        let graphs = stage.graphs;
        terms.exact(
            "cuda_graph_pool",
            Bytes(graphs.pool),
            "replay of the captures through the allocator".to_owned(),
        );
        let source = constants.source(Term::GraphExecutable);
        let how = format!("for each executable, and each layer of whole passes; {source}");
        terms.calibrated("cuda_graphs", Bytes(graphs.driver), how);
    }
    if stage.links > Bytes::ZERO {
        let source = constants.source(Term::LinksFirst);
        let how = format!("made by the first pass; {source}");
        terms.calibrated("pipeline_links", stage.links, how);
    }
    let late = Bytes(constants.get(Term::LateKernels));
    if late > Bytes::ZERO {
        let source = constants.source(Term::LateKernels);
        terms.calibrated("late_kernels", late, format!("loaded after profiling; {source}"));
    }
    let how = format!("{blocks} blocks of {} bytes", stage.block_bytes);
    terms.exact("kv_cache", Bytes(cache), how);
    let rounding = cache_segments - Bytes(cache);
    terms.exact("kv_cache_segments", rounding, "rounding of its tensors".to_owned());
    terms
}
