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
/// Rows are rearranged in groups of this many.
const ROW_GROUP: u64 = 8;
const EMBEDDING: &str = "token_embd.weight";

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
    let repacked: Bytes = buffers.repacked.iter().map(|tensor| Bytes(tensor.bytes)).sum();
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
    buffers.repacked.iter().map(|tensor| Bytes(tensor.bytes)).max().unwrap_or(Bytes::ZERO)
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
        let repack = flags.repack && is_repackable(tensor);
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
