//! The buffers that a model's tensors go to on a CPU.
//!
//! A file is mapped as it is. Matrices of some types are also kept rearranged for the processor's
//! vector units (`ggml/src/ggml-cpu/repack.cpp`), in a buffer of their own: such a model takes
//! nearly twice its size while it is mapped, and once its size with `--no-mmap`.

use super::LlamaFlags;
use crate::memory::Footprint;
use crate::model::{ModelFacts, TensorInfo};
use crate::units::Bytes;

/// Types that are rearranged on x86 with AVX2 (`q2_K` only with AVX-512; counted all the same).
const REPACKED: &[&str] = &["q4_0", "q4_K", "q2_K", "iq4_nl", "mxfp4"];
/// Types that are kept for AMX on processors that have it (`ggml-cpu/amx`), and by what their rows
/// must divide.
const AMX: &[(&str, u64)] = &[
    ("q4_0", 32),
    ("q4_1", 32),
    ("q8_0", 32),
    ("q4_K", 256),
    ("q5_K", 256),
    ("q6_K", 256),
    ("iq4_xs", 256),
    ("f16", 16),
];
/// AMX takes outputs by this many.
const AMX_OUTPUTS: u64 = 32;
/// Rows are rearranged in groups of this many.
const ROW_GROUP: u64 = 8;
/// The embedding, which a tied model has as its head too.
pub(super) const EMBEDDING: &str = "token_embd.weight";

/// A model's tensors by the buffer that they go to.
struct Buffers<'a> {
    plain: Vec<&'a TensorInfo>,
    repacked: Vec<&'a TensorInfo>,
}

/// Adds `weights` and, where there are any, `weights_repacked`.
pub fn add(footprint: &mut Footprint, facts: &ModelFacts, flags: &LlamaFlags) {
    let buffers = buffers(facts, flags);
    if flags.mmap {
        let bytes = mapped(&buffers.plain);
        footprint.exact("weights", bytes, "the file's tensors as they are mapped".to_owned());
    } else {
        let bytes = buffers.plain.iter().map(|tensor| Bytes(tensor.bytes).align_up(32)).sum();
        footprint.exact("weights", bytes, "the tensors that are not rearranged".to_owned());
    }
    let repacked: Bytes = buffers.repacked.iter().map(|tensor| repacked_bytes(tensor, flags)).sum();
    if repacked > Bytes::ZERO {
        let formula = format!("{} tensors rearranged for the processor", buffers.repacked.len());
        footprint.exact("weights_repacked", repacked, formula);
    }
}

/// Memory beside the final buffers while the file is read: mapped, all of it is resident until the
/// parts that are not needed are unmapped; read, there is a buffer for the largest tensor that is
/// rearranged.
pub fn while_loading(facts: &ModelFacts, flags: &LlamaFlags) -> Bytes {
    let buffers = buffers(facts, flags);
    if flags.mmap {
        return facts.file_bytes - mapped(&buffers.plain);
    }
    let repacked = buffers.repacked.iter().map(|tensor| repacked_bytes(tensor, flags));
    repacked.max().unwrap_or(Bytes::ZERO)
}

/// What stays mapped: from the first plain tensor to the end of the last.
fn mapped(plain: &[&TensorInfo]) -> Bytes {
    let first = plain.iter().map(|tensor| tensor.offset).min().unwrap_or(0);
    let end = plain.iter().map(|tensor| tensor.offset.saturating_add(tensor.bytes)).max();
    Bytes(end.unwrap_or(0)) - Bytes(first)
}

fn buffers<'a>(facts: &'a ModelFacts, flags: &LlamaFlags) -> Buffers<'a> {
    let is_tied = !facts.has_tensor("output.weight");
    let mut buffers = Buffers { plain: Vec::new(), repacked: Vec::new() };
    for tensor in &facts.tensors {
        let repack = flags.repack && (is_repackable(tensor) || is_for_amx(tensor, flags));
        // Tokens are looked up in the embedding, which needs it plain; as the output head of a tied
        // model it is there a second time.
        if !repack || tensor.name == EMBEDDING {
            buffers.plain.push(tensor);
        }
        if repack && (tensor.name != EMBEDDING || is_tied) {
            buffers.repacked.push(tensor);
        }
    }
    buffers
}

fn is_repackable(tensor: &TensorInfo) -> bool {
    REPACKED.contains(&tensor.ty.name())
        && tensor.name.ends_with(".weight")
        && matches!(tensor.dims.len(), 2 | 3)
        && tensor.ne(1).is_multiple_of(ROW_GROUP)
}

fn is_for_amx(tensor: &TensorInfo, flags: &LlamaFlags) -> bool {
    let step = AMX.iter().find(|(name, _)| *name == tensor.ty.name()).map(|(_, step)| *step);
    flags.cpu.amx
        && step.is_some_and(|step| tensor.ne(0).is_multiple_of(step))
        && tensor.name.ends_with(".weight")
        && tensor.dims.len() == 2
        && tensor.ne(1).is_multiple_of(AMX_OUTPUTS)
}

/// AMX's layout has a sum beside each block of some types (`ggml-cpu/amx/mmq.cpp`, `get_row_size`).
fn repacked_bytes(tensor: &TensorInfo, flags: &LlamaFlags) -> Bytes {
    let (block, sum) = match tensor.ty.name() {
        "q8_0" => (32, 4),
        "q4_K" | "q5_K" => (256, 4),
        "iq4_xs" => (256, 2),
        _ => (1, 0),
    };
    let sums = match is_for_amx(tensor, flags) {
        true => (tensor.ne(0) / block).saturating_mul(tensor.ne(1)).saturating_mul(sum),
        false => 0,
    };
    Bytes(tensor.bytes) + Bytes(sums)
}
