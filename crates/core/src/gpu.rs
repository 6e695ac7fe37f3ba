//! Kinds of GPU: what is known of a card from its name.

use std::sync::LazyLock;

use serde::Deserialize;

use crate::units::Bytes;

/// A kind of GPU.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuKind {
    /// What it is called here.
    pub name: String,
    /// The words of a driver's name that mean it.
    words: Vec<String>,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u64,
    nvml_mib: u64,
    cuda_mib: u64,
    /// Memory bandwidth, in GB/s.
    pub bandwidth_gb_s: f64,
    /// Arithmetic in 16 bits, dense, in Tflop/s.
    pub tflops_16bit: f64,
    /// What an all-reduce gets between cards of a node, in GB/s.
    pub link_gb_s: f64,
    /// Where its figures are from.
    pub source: String,
}

static KINDS: LazyLock<Vec<GpuKind>> = LazyLock::new(|| {
    // The table is part of the program; a test reads it.
    serde_json::from_str(include_str!("../data/gpus.json")).unwrap_or_default()
});

/// All kinds that are known.
pub fn kinds() -> &'static [GpuKind] {
    &KINDS
}

impl GpuKind {
    /// The kind that a driver's name (`NVIDIA A100-SXM4-80GB`) or a person means: the one of whose
    /// words most are in it.
    pub fn find(name: &str) -> Option<&'static Self> {
        let name = name.to_ascii_lowercase();
        let said: Vec<&str> = name.split(|c: char| !c.is_ascii_alphanumeric()).collect();
        // Other cards than those whose names they share.
        if ["nvl", "laptop", "mig", "3e"].iter().any(|word| said.contains(word)) {
            return None;
        }
        let is_meant =
            |kind: &&GpuKind| kind.words.iter().all(|word| said.contains(&word.as_str()));
        KINDS.iter().filter(is_meant).max_by_key(|kind| kind.words.len())
    }

    /// All its memory as NVML counts it.
    pub fn nvml_total(&self) -> Bytes {
        Bytes::mib(self.nvml_mib)
    }

    /// All its memory as CUDA sees it: NVML's less what the driver keeps.
    pub fn cuda_total(&self) -> Bytes {
        Bytes::mib(self.cuda_mib)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_drivers_are_known() {
        for (name, kind) in [
            ("NVIDIA A10", Some("A10")),
            ("NVIDIA A10G", Some("A10G")),
            ("a10", Some("A10")),
            ("NVIDIA A100-SXM4-80GB", Some("A100-80GB")),
            ("NVIDIA A100-PCIE-40GB", Some("A100-40GB")),
            ("NVIDIA H100 80GB HBM3", Some("H100-80GB")),
            ("H100-80GB", Some("H100-80GB")),
            ("NVIDIA GeForce RTX 4090", Some("RTX-4090")),
            ("NVIDIA RTX A6000", Some("A6000")),
            ("NVIDIA RTX PRO 6000 Blackwell Server Edition", Some("RTX-PRO-6000")),
            ("A100", None),
            ("NVIDIA H100 NVL", None),
            ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
            ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
            ("Radeon", None),
        ] {
            assert_eq!(GpuKind::find(name).map(|kind| kind.name.as_str()), kind, "{name}");
        }
    }

    #[test]
    fn cuda_sees_less_than_nvml() {
        assert!(kinds().len() > 10);
        for kind in kinds() {
            assert!(kind.cuda_total() < kind.nvml_total(), "{}", kind.name);
            assert_eq!(GpuKind::find(&kind.name), Some(kind));
        }
    }
}
