//! What ranks take to talk to each other.
//!
//! NCCL's memory is calibrated, by how the cards are linked; what vLLM adds to it for its own
//! all-reduce follows from its source (`distributed/device_communicators` of 0.26, the same up to
//! 0.33) and was met to the MiB on two and four H200s.

use serde::{Deserialize, Serialize};

use super::calibration::{Constants, Term};
use super::{Gpu, VllmArgs};
use crate::model::hf_config::Transformer;
use crate::units::Bytes;

const MIB: u64 = 1 << 20;
/// The largest message of the custom all-reduce, twice in buffers of its own.
const CUSTOM_MESSAGE: u64 = 8 * MIB;
/// What its signals take, and the driver's rounding of shared buffers.
const SHARED_ROUNDING: u64 = 2 * MIB;
/// Its table of peers' buffers is a tensor (`rank_data`); PyTorch gives it a segment of 20 MiB.
pub(super) const PEER_TABLE: u64 = 8 * MIB;
/// Groups that the custom all-reduce is made for.
const CUSTOM_SIZES: [u64; 4] = [2, 4, 6, 8];
/// Links above this are no PCIe bus, in GB/s.
const FASTEST_BUS: f64 = 64.0;

/// How the cards of a node reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// Over the bus, or through the host's memory (`NCCL_P2P_DISABLE`).
    Bus,
    /// Over NVLink.
    NvLink,
    /// Over NVLink and a switch that adds up: Hopper and later, unless `NCCL_NVLS_ENABLE` is 0.
    Multicast,
}

/// What the environment and the arguments forbid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forbidden {
    /// `NCCL_P2P_DISABLE=1`.
    pub peers: bool,
    /// `NCCL_NVLS_ENABLE=0`.
    pub multicast: bool,
    /// `VLLM_ALLREDUCE_USE_SYMM_MEM=0`.
    pub symmetric: bool,
    /// `disable_custom_all_reduce`.
    pub custom: bool,
}

/// How GPUs of this kind reach each other; a kind that nothing is known of, over the bus.
pub fn transport(gpu: &Gpu, forbidden: Forbidden) -> Transport {
    let has_nvlink = gpu.kind.is_some_and(|kind| kind.link_gb_s > FASTEST_BUS);
    match () {
        () if !has_nvlink || forbidden.peers => Transport::Bus,
        () if gpu.card.compute_capability < (9, 0) || forbidden.multicast => Transport::NvLink,
        () => Transport::Multicast,
    }
}

/// The communicators of a rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Communicators {
    /// NCCL's that vLLM makes before it looks at the memory: one for each group of several ranks.
    pub nccl: u64,
    /// PyTorch's symmetric memory: made first, and kept where multicast turns out to be missing.
    pub symmetric: u64,
    /// vLLM's own all-reduce, outside PyTorch's segments.
    pub custom: u64,
}

impl Communicators {
    /// Those of a rank; none on one GPU.
    pub fn new(model: &Transformer, args: &VllmArgs, gpu: &Gpu) -> Self {
        let ranks = args.tensor_parallel;
        let groups = [ranks > 1, ranks > 1 && model.experts.is_some(), args.stages() > 1];
        let link = transport(gpu, args.forbidden);
        let symmetric = match args.forbidden.symmetric {
            true => 0,
            false => symmetric(gpu.card.compute_capability, ranks),
        };
        let reaches_all = link != Transport::Bus || ranks == 2;
        let has_custom = CUSTOM_SIZES.contains(&ranks) && reaches_all && !args.forbidden.custom;
        Self {
            nccl: groups.into_iter().filter(|has| *has).count() as u64,
            symmetric: if symmetric > 0 { symmetric + SHARED_ROUNDING } else { 0 },
            custom: if has_custom { 2 * CUSTOM_MESSAGE + SHARED_ROUNDING } else { 0 },
        }
    }

    /// NCCL's memory before vLLM first looks: of its first communicator, and of all others.
    pub fn nccl_bytes(self, constants: &Constants<'_>) -> [Bytes; 2] {
        let first = Bytes(constants.get(Term::Communicators));
        let further = Bytes(constants.get(Term::FurtherCommunicator));
        match self.nccl {
            0 => [Bytes::ZERO; 2],
            count => [first, further * (count - 1)],
        }
    }

    /// The buffers of vLLM's own.
    pub fn buffers(self) -> Bytes {
        Bytes(self.symmetric + self.custom)
    }

    /// Tensors that are there before vLLM first looks.
    pub fn tensors(self) -> u64 {
        if self.custom > 0 { PEER_TABLE } else { 0 }
    }
}

/// What a stage's links to its neighbours take: made by the first pass, so after the profile.
pub fn links(stage: usize, stages: usize, constants: &Constants<'_>) -> Bytes {
    let term = match stage {
        _ if stages < 2 => return Bytes::ZERO,
        0 => Term::LinksFirst,
        _ if stage + 1 == stages => Term::LinksLast,
        _ => Term::LinksMiddle,
    };
    Bytes(constants.get(term))
}

/// `SYMM_MEM_ALL_REDUCE_MAX_SIZES`, by compute capability and ranks.
fn symmetric(compute_capability: (u32, u32), ranks: u64) -> u64 {
    let by_two_four_six_eight = match compute_capability {
        (9, 0) => [64, 32, 64, 64],
        (10, 0) => [8, 32, 128, 128],
        (10, 3) => [4, 32, 32, 64],
        _ => return 0,
    };
    let at = CUSTOM_SIZES.iter().position(|size| *size == ranks);
    at.map_or(0, |at| by_two_four_six_eight[at] * MIB)
}
