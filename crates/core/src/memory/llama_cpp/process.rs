//! What the process takes beside the buffers that it logs.
//!
//! The coefficients are fitted to llama-server b10434 on x86-64 Linux: 34 rows of
//! `data/llamacpp-host.jsonl` and 109 starts of our own, with vocabularies of 4k to 256k tokens
//! and files of 30 MiB to 5.5 GB. Resident memory when ready came out between 0.3 % under and
//! 1.4 % over on the real models.

use super::{Context, LlamaFlags, kv_cache, weights};
use crate::memory::Footprint;
use crate::model::ModelFacts;
use crate::units::Bytes;

/// Shared libraries that are resident, whatever the model.
const LIBRARIES: Bytes = Bytes::kib(23_450);
/// Heap, stacks and tables that every server has: with merges in the header (BPE), and without.
const HEAP_WITH_MERGES: Bytes = Bytes::kib(6_450);
const HEAP: Bytes = Bytes::kib(4_915);
/// Bytes for a token of the vocabulary: with merges, and without.
const TOKEN_WITH_MERGES: u64 = 190;
const TOKEN: u64 = 176;
/// Bytes for a merge of the tokenizer, and for a token too long for a short string.
const MERGE: u64 = 124;
const LONG_TOKEN: u64 = 142;
/// Bytes of bookkeeping for a cell of the KV cache.
const CELL: u64 = 48;
/// For a layer.
const LAYER: Bytes = Bytes::kib(77);
/// For a slot.
const SLOT: Bytes = Bytes::kib(154);
/// Candidates of the sampler: 12 bytes for a token of the vocabulary and a slot.
const CANDIDATE: u64 = 12;
/// What the first requests take for good.
const FIRST_REQUESTS: Bytes = Bytes::mib(1);
/// A context checkpoint is made at both ends of a prompt's last batch and every so many tokens.
const CHECKPOINT_STEP: u64 = 8192;

/// What is resident at the stages of a server's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Resident {
    /// Once it is ready: the compute buffer is not touched yet.
    pub ready: Bytes,
    /// The most until it is ready.
    pub ready_peak: Bytes,
    /// After requests that filled its slots.
    pub served: Bytes,
}

/// Adds the terms beside the buffers that `footprint` already has, so that its total is the most
/// that the process can come to hold.
pub fn add(
    footprint: &mut Footprint,
    facts: &ModelFacts,
    flags: &LlamaFlags,
    context: &Context,
) -> Resident {
    let buffers = footprint.total();
    let compute = footprint.get("compute");
    let runtime = runtime(facts, context);
    let work = work(facts, flags, context);
    let checkpoint = checkpoint(facts, flags, context);
    let usual = usual_checkpoints(facts, flags, context);
    let loading = LIBRARIES
        + runtime
        + footprint.get("weights")
        + footprint.get("weights_repacked")
        + weights::while_loading(facts, flags);

    footprint.calibrated("libraries", LIBRARIES, "resident code of b10434".to_owned());
    footprint.calibrated("runtime", runtime, runtime_formula(facts, context));
    footprint.calibrated(
        "work",
        work,
        "matrix work area and sampler, touched under load".to_owned(),
    );
    if checkpoint > Bytes::ZERO && flags.ctx_checkpoints > 0 {
        let count = context.slots * flags.ctx_checkpoints;
        let formula = format!("{count} checkpoints of sliding layers, {checkpoint} each");
        footprint.exact("context_checkpoints", checkpoint * count, formula);
    }
    if flags.cache_ram_mib != 0 {
        let limit = u64::try_from(flags.cache_ram_mib).map_or(Bytes(u64::MAX), Bytes::mib);
        let formula = format!("--cache-ram {}", flags.cache_ram_mib);
        footprint.exact("prompt_cache", limit, formula);
    }
    let transient = loading - footprint.total();
    if transient > Bytes::ZERO {
        footprint.exact("loading", transient, "the file while it is read".to_owned());
    }

    let ready = buffers - compute + LIBRARIES + runtime;
    let ready_peak = ready.max(loading);
    let served = ready + compute + work + checkpoint * usual * context.slots;
    Resident { ready, ready_peak, served: served.max(ready_peak) }
}

/// What a server holds of its own on the host when its layers and caches are on GPUs.
pub fn on_host(facts: &ModelFacts, context: &Context) -> Bytes {
    LIBRARIES + runtime(facts, context)
}

/// Heap, tokenizer and bookkeeping.
fn runtime(facts: &ModelFacts, context: &Context) -> Bytes {
    let has_merges = facts.tokenizer_merges > 0;
    let (heap, token) =
        if has_merges { (HEAP_WITH_MERGES, TOKEN_WITH_MERGES) } else { (HEAP, TOKEN) };
    heap + Bytes(token) * facts.vocab_size
        + Bytes(MERGE) * facts.tokenizer_merges
        + Bytes(LONG_TOKEN) * facts.long_tokens
        + Bytes(CELL) * context.cells * context.streams
        + LAYER * facts.layers.len() as u64
        + (SLOT + Bytes(facts.vocab_size * 6 / 10)) * context.slots
}

fn runtime_formula(facts: &ModelFacts, context: &Context) -> String {
    format!(
        "heap, {} tokens, {} merges, {} cells, {} layers, {} slots",
        facts.vocab_size,
        facts.tokenizer_merges,
        context.cells.saturating_mul(context.streams),
        facts.layers.len(),
        context.slots
    )
}

/// What requests touch beside the compute buffer.
fn work(facts: &ModelFacts, flags: &LlamaFlags, context: &Context) -> Bytes {
    use super::flags::FlashAttention;
    let tokens = context.graph_tokens;
    let matrices = Bytes(tokens) * facts.feed_forward_length;
    let matrices = matrices + Bytes(matrices.0 / 100 * 14);
    let heads = facts.layers.iter().map(|layer| layer.heads).max().unwrap_or(0);
    let scores = match flags.flash_attn {
        FlashAttention::Off => Bytes(2) * heads * tokens * context.cells,
        _ => Bytes::ZERO,
    };
    let candidates = Bytes(CANDIDATE) * facts.vocab_size * context.slots;
    matrices + scores + candidates + FIRST_REQUESTS
}

/// One checkpoint: the sliding layers' part of the cache for one window.
fn checkpoint(facts: &ModelFacts, flags: &LlamaFlags, context: &Context) -> Bytes {
    let window = facts.sliding_window.min(context.slot_tokens(facts));
    let sliding = facts.layers.iter().filter(|layer| layer.is_sliding);
    let rows: Bytes = sliding.map(|layer| kv_cache::layer_row(facts, flags, layer)).sum();
    rows * window
}

/// The checkpoints of a slot whose context was filled by one prompt.
fn usual_checkpoints(facts: &ModelFacts, flags: &LlamaFlags, context: &Context) -> u64 {
    let tokens = context.slot_tokens(facts);
    let made = if tokens > context.graph_tokens { 2 + tokens / CHECKPOINT_STEP } else { 1 };
    made.min(flags.ctx_checkpoints)
}
