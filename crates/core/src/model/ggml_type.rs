//! GGML element types: numbers come in blocks, and a row is a whole number of blocks.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An element type of GGML (`ggml/include/ggml.h`, enum ggml_type), by its number in a file.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GgmlType {
    id: u32,
    name: &'static str,
    /// Elements in a block.
    pub block: u64,
    /// Bytes of a block.
    pub block_bytes: u64,
}

const fn ty(id: u32, name: &'static str, block: u64, block_bytes: u64) -> GgmlType {
    GgmlType { id, name, block, block_bytes }
}

/// Block sizes: `ggml/src/ggml-common.h` of llama.cpp b10434.
const TYPES: &[GgmlType] = &[
    ty(0, "f32", 1, 4),
    ty(1, "f16", 1, 2),
    ty(2, "q4_0", 32, 18),
    ty(3, "q4_1", 32, 20),
    ty(6, "q5_0", 32, 22),
    ty(7, "q5_1", 32, 24),
    ty(8, "q8_0", 32, 34),
    ty(9, "q8_1", 32, 36),
    ty(10, "q2_K", 256, 84),
    ty(11, "q3_K", 256, 110),
    ty(12, "q4_K", 256, 144),
    ty(13, "q5_K", 256, 176),
    ty(14, "q6_K", 256, 210),
    ty(15, "q8_K", 256, 292),
    ty(16, "iq2_xxs", 256, 66),
    ty(17, "iq2_xs", 256, 74),
    ty(18, "iq3_xxs", 256, 98),
    ty(19, "iq1_s", 256, 50),
    ty(20, "iq4_nl", 32, 18),
    ty(21, "iq3_s", 256, 110),
    ty(22, "iq2_s", 256, 82),
    ty(23, "iq4_xs", 256, 136),
    ty(24, "i8", 1, 1),
    ty(25, "i16", 1, 2),
    ty(26, "i32", 1, 4),
    ty(27, "i64", 1, 8),
    ty(28, "f64", 1, 8),
    ty(29, "iq1_m", 256, 56),
    ty(30, "bf16", 1, 2),
    ty(34, "tq1_0", 256, 54),
    ty(35, "tq2_0", 256, 66),
    ty(39, "mxfp4", 32, 17),
    ty(40, "nvfp4", 64, 36),
];

impl GgmlType {
    /// 32-bit float.
    pub const F32: Self = TYPES[0];
    /// 16-bit float, the default type of a KV cache.
    pub const F16: Self = TYPES[1];

    /// The type with this number in a GGUF file.
    pub fn from_id(id: u32) -> Option<Self> {
        TYPES.iter().copied().find(|ty| ty.id == id)
    }

    /// The type with this name, as flags such as `--cache-type-k` spell it.
    pub fn from_name(name: &str) -> Option<Self> {
        TYPES.iter().copied().find(|ty| ty.name.eq_ignore_ascii_case(name))
    }

    /// Its name, as llama.cpp spells it.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Whether elements share a scale, so that a value can't be read on its own.
    pub fn is_quantized(self) -> bool {
        self.block > 1
    }

    /// Bytes of a row of `n` elements (`ggml_row_size`), rounding a last partial block up;
    /// `None` on overflow.
    pub fn row_bytes(self, n: u64) -> Option<u64> {
        n.div_ceil(self.block).checked_mul(self.block_bytes)
    }
}

impl fmt::Debug for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Serialize for GgmlType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

impl<'de> Deserialize<'de> for GgmlType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::from_name(&name)
            .ok_or_else(|| serde::de::Error::custom(format!("unknown element type `{name}`")))
    }
}
