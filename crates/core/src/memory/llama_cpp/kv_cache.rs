//! The KV cache: a cell a token, a row of keys and one of values a layer.

use super::{Context, LlamaFlags};
use crate::model::ModelFacts;
use crate::model::facts::Layer;
use crate::units::Bytes;

/// One of the caches of a context: llama.cpp keeps sliding layers apart from the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvCache {
    /// Layers in it.
    pub layers: u64,
    /// Cells of each stream.
    pub cells: u64,
    /// Streams.
    pub streams: u64,
    /// Its bytes.
    pub bytes: Bytes,
}

impl KvCache {
    /// The formula with this cache's numbers in it.
    pub fn formula(&self, flags: &LlamaFlags) -> String {
        let Self { layers, cells, streams, .. } = self;
        let (keys, values) = (flags.cache_type_k.name(), flags.cache_type_v.name());
        format!("{layers} layers x {cells} cells x {streams} streams x rows of {keys} and {values}")
    }
}

/// A layer's keys and values of one cell.
pub fn layer_row(facts: &ModelFacts, flags: &LlamaFlags, layer: &Layer) -> Bytes {
    let keys = flags.cache_type_k.row_bytes(layer.kv_heads * facts.key_length);
    let values = flags.cache_type_v.row_bytes(layer.kv_heads * facts.value_length);
    Bytes(keys.unwrap_or(u64::MAX)) + Bytes(values.unwrap_or(u64::MAX))
}

/// The caches of a context (`src/llama-kv-cache.cpp`): for the layers that attend to everything,
/// and for those that slide where there are any. Bytes are
/// `streams * cells * sum over layers of (row of keys + row of values)`.
pub fn kv_caches(facts: &ModelFacts, flags: &LlamaFlags, context: &Context) -> Vec<KvCache> {
    let cache = |sliding: bool, cells: u64| {
        let layers = facts.layers.iter().filter(|layer| layer.is_sliding == sliding);
        let rows: Bytes = layers.clone().map(|layer| layer_row(facts, flags, layer)).sum();
        let layers = layers.count() as u64;
        KvCache { layers, cells, streams: context.streams, bytes: rows * cells * context.streams }
    };
    let all = [cache(false, context.cells), cache(true, context.sliding_cells)];
    all.into_iter().filter(|cache| cache.layers > 0).collect()
}
