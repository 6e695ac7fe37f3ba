//! The GPUs that an engine starts on.

use serde_json::Value;

use crate::gpu::GpuKind;
use crate::inventory::{Device, DeviceKind};
use crate::units::Bytes;

/// What kernels depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Card {
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u64,
}

impl Card {
    /// Hopper has kernels of its own.
    pub fn is_hopper(self) -> bool {
        self.compute_capability == (9, 0)
    }
}

/// A card that nothing is known of is taken for one of the cluster kind that is most common.
const UNKNOWN: Card = Card { compute_capability: (8, 0), multiprocessors: 108 };

/// One GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpu {
    /// Its kind, where the table knows it.
    pub kind: Option<&'static GpuKind>,
    /// What its kernels depend on.
    pub card: Card,
    /// All its memory as CUDA sees it.
    pub total: Bytes,
    /// What other processes hold.
    pub used_by_others: Bytes,
}

impl Gpu {
    /// An empty GPU of a kind.
    pub fn of_kind(kind: &'static GpuKind) -> Self {
        let card = Card {
            compute_capability: kind.compute_capability,
            multiprocessors: kind.multiprocessors,
        };
        Self { kind: Some(kind), card, total: kind.cuda_total(), used_by_others: Bytes::ZERO }
    }

    /// A device of an inventory, with what others hold; none for host memory.
    pub fn of_device(device: &Device) -> Option<Self> {
        let DeviceKind::Gpu { name, .. } = &device.kind else { return None };
        let base = GpuKind::find(name).map_or(Self::of_size(device.total), Self::of_kind);
        // NVML counts what the driver keeps, which CUDA doesn't see.
        Some(
            Self { total: base.total.min(device.total), ..base }.with_others(device.used_by_others),
        )
    }

    /// An empty GPU of which only the memory is known.
    pub fn of_size(total: Bytes) -> Self {
        Self { kind: None, card: UNKNOWN, total, used_by_others: Bytes::ZERO }
    }

    /// The same, with others on it.
    #[must_use]
    pub fn with_others(self, used_by_others: Bytes) -> Self {
        Self { used_by_others, ..self }
    }

    /// The device of a measured row: `name`, `nvml_total_bytes`, `idle_used_bytes` (what the driver
    /// keeps), `cuda_total_gib` (as logged, two decimals), `compute_capability` and
    /// `used_by_others_bytes`. CUDA's total is NVML's less what the driver keeps, as far as that
    /// agrees with the log.
    pub fn from_row(gpu: &Value) -> Option<Self> {
        let kind = gpu["name"].as_str().and_then(GpuKind::find);
        let nvml = gpu["nvml_total_bytes"].as_u64();
        let kept = gpu["idle_used_bytes"].as_u64().unwrap_or(0);
        let derived = nvml.map(|total| total.saturating_sub(kept));
        let logged = gpu["cuda_total_gib"].as_f64().filter(|gib| (0.1..1e6).contains(gib));
        let bytes = |gib: f64| (gib * (1_u64 << 30) as f64) as u64;
        let total = match (derived, logged) {
            (Some(derived), Some(gib)) => derived.clamp(bytes(gib - 0.005), bytes(gib + 0.005)),
            (Some(derived), None) => derived,
            (None, Some(gib)) => bytes(gib),
            (None, None) => kind?.cuda_total().0,
        };
        let used_by_others = Bytes(gpu["used_by_others_bytes"].as_u64().unwrap_or(0));
        let base = kind.map_or(Self::of_size(Bytes(total)), Self::of_kind);
        let said = gpu["compute_capability"].as_str().and_then(|text| {
            let (major, minor) = text.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        });
        let compute_capability = said.unwrap_or(base.card.compute_capability);
        let card = Card { compute_capability, ..base.card };
        Some(Self { card, total: Bytes(total), used_by_others, ..base })
    }
}
