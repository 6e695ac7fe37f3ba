//! The shape of a context: slots, streams, cells and batch sizes.

use super::LlamaFlags;
use crate::model::ModelFacts;
use crate::units::Bytes;

/// KV caches are allocated in steps of this many cells (`llama_context` constructor).
const CELL_STEP: u64 = 256;
/// Slots where `--parallel` is auto (`tools/server/server.cpp`).
const AUTO_SLOTS: u64 = 4;

/// What a server's flags come to for one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Requests at once (`n_seq_max`).
    pub slots: u64,
    /// Separate parts of the KV cache: 1 where the slots share it.
    pub streams: u64,
    /// Cells of a stream, for layers that attend to everything.
    pub cells: u64,
    /// Cells of a stream, for layers with a sliding window.
    pub sliding_cells: u64,
    /// Tokens of the largest graph.
    pub graph_tokens: u64,
    /// Rows of the largest graph that give logits.
    pub graph_outputs: u64,
}

fn pad(n: u64, step: u64) -> u64 {
    n.checked_next_multiple_of(step).unwrap_or(u64::MAX)
}

impl Context {
    /// From flags and model (`src/llama-context.cpp`: constructor and `sched_reserve`;
    /// `src/llama-kv-cache-iswa.cpp` for the cells of sliding layers).
    pub fn new(facts: &ModelFacts, flags: &LlamaFlags) -> Self {
        let slots = flags.parallel.unwrap_or(AUTO_SLOTS);
        let unified = flags.parallel.is_none() || flags.kv_unified == Some(true);
        let streams = if unified { 1 } else { slots };
        let tokens = if flags.ctx_size == 0 { facts.context_length } else { flags.ctx_size };
        // With embeddings a prompt has to go through in one piece.
        let batch = if flags.embedding {
            flags.batch_size.min(flags.ubatch_size.max(1))
        } else {
            flags.batch_size
        };
        let batch = batch.min(tokens);
        let ubatch = if flags.ubatch_size == 0 { batch } else { flags.ubatch_size.min(batch) };

        let cells = pad((tokens / streams).max(1), CELL_STEP);
        let window = facts.sliding_window.saturating_mul(if unified { slots } else { 1 });
        let sliding_cells = match flags.swa_full {
            true => cells,
            false => cells.min(pad(window.saturating_add(ubatch), CELL_STEP)),
        };

        let graph_tokens = cells.saturating_mul(streams).min(ubatch);
        let all_rows = flags.embedding || flags.pooling.is_some();
        let graph_outputs = graph_tokens.min(if all_rows { batch } else { slots });
        let uneven = graph_tokens % slots != 0;
        Self {
            slots,
            streams,
            cells,
            sliding_cells,
            graph_tokens: if uneven { pad(graph_tokens, slots) } else { graph_tokens },
            graph_outputs: if uneven { graph_outputs.max(slots) } else { graph_outputs },
        }
    }

    /// The buffer for results (`llama_context::output_reserve`): a row of f32 logits a slot, with
    /// embeddings one of those too, and for sampling in the graph three more rows and a token.
    pub fn output_buffer(&self, facts: &ModelFacts, flags: &LlamaFlags) -> Bytes {
        let row = match flags.backend_sampling {
            true => 4 * facts.vocab_size + 1,
            false => facts.vocab_size + if flags.embedding { facts.embedding_length } else { 0 },
        };
        Bytes(row * 4) * self.slots
    }

    /// The tokens of one slot's context.
    pub fn slot_tokens(&self, facts: &ModelFacts) -> u64 {
        self.cells.min(facts.context_length)
    }
}
