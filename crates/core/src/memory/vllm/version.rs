//! What differs between versions of vLLM, as far as memory depends on it.

use crate::model::hf_config::Transformer;

/// A version's first two numbers.
pub type Version = (u64, u64);

/// The versions whose sources were read.
pub const MODELLED: std::ops::RangeInclusive<Version> = (0, 26)..=(0, 33);

/// Reads `0.26.0` or `v0.26`.
pub fn parse(text: &str) -> Option<Version> {
    let mut parts = text.trim_start_matches('v').split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

/// What a version does for a model. From the sources of 0.26 to 0.33.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineFacts {
    /// Charged to the fraction is what the device lost, segments and sampler state included (0.27);
    /// before: weights, activation peak and non-torch memory alone.
    pub charges_device_delta: bool,
    /// The profile runs the vision encoder (0.27).
    pub profiles_encoder: bool,
    /// Graphs are estimated and charged (0.29); before, the estimate is zero.
    pub charges_graphs: bool,
    /// One block is held back where lengths are checked (0.29).
    pub holds_back_a_block: bool,
    /// Whole graphs are captured on a stream of their own, so in segments of their own (before 0.29).
    pub own_capture_stream: bool,
    /// `max_num_seqs` itself is captured, whatever the steps are (0.29).
    pub captures_sequences: bool,
    /// The warm-up is before the capture, which empties the cache again (0.30).
    pub warms_up_before_capture: bool,
    /// Large blocks stay whole during the profile, too (0.31).
    pub profiles_unsplit: bool,
    /// cuBLAS' workspace is there before vLLM first looks (0.33).
    pub makes_workspace_first: bool,
    /// Every pipeline stage builds the vision tower (before 0.33, where it was read to be left out).
    pub has_vision_everywhere: bool,
    /// The profile samples with every feature on (0.33).
    pub profiles_sampler: bool,
    /// The model runs in the older runner, which has no sampler state of its own: Qwen 3 with experts
    /// before 0.29.
    pub is_v1_runner: bool,
}

impl EngineFacts {
    /// The facts of a version for a model.
    pub fn new(version: Version, model: &Transformer) -> Self {
        let is_v1_runner = version < (0, 29) && model.experts.is_some();
        Self {
            charges_device_delta: version >= (0, 27),
            profiles_encoder: version >= (0, 27) || is_v1_runner,
            charges_graphs: version >= (0, 29) || is_v1_runner,
            holds_back_a_block: version >= (0, 29),
            own_capture_stream: version < (0, 29) && !is_v1_runner,
            captures_sequences: version >= (0, 29),
            warms_up_before_capture: version >= (0, 30),
            profiles_unsplit: version >= (0, 31),
            makes_workspace_first: version >= (0, 33),
            has_vision_everywhere: version < (0, 33),
            profiles_sampler: version >= (0, 33),
            is_v1_runner,
        }
    }
}
