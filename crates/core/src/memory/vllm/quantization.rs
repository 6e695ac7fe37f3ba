//! The tensors of a linear layer under each way to quantise, and what converting them takes.
//!
//! `vllm/model_executor/layers/quantization` and `vllm/model_executor/kernels/linear` (0.26). Which
//! kernel runs follows from the card: Machete on Hopper, Marlin elsewhere; 8-bit floats are native
//! from 8.9 on and unpacked by Marlin before.

use super::Card;
use super::caching_allocator::{Allocator, BlockId};
use crate::model::hf_config::{Fp8Scales, IntegerFormat, Quantization};

/// A linear layer on one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// Width of what goes in.
    pub inputs: u64,
    /// Width of what comes out.
    pub outputs: u64,
    /// Whether it has a bias.
    pub bias: bool,
    /// Bytes of an activation.
    pub element: u64,
    /// How its weights are kept.
    pub quantization: Option<Quantization>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    Machete,
    AllSpark,
    Marlin,
}

/// Tensors that are there before conversion.
#[derive(Debug, Default)]
pub struct Loaded {
    blocks: Vec<BlockId>,
}

impl Linear {
    fn weights(&self) -> u64 {
        self.inputs * self.outputs
    }

    fn groups(&self, group: u64) -> u64 {
        self.inputs.checked_div(group).unwrap_or(1).max(1)
    }

    /// `kernels/linear/__init__.py`, `choose_mp_linear_kernel`: the first that can.
    fn kernel(&self, card: Card, bits: u64, group: u64, zero_points: bool) -> Kernel {
        let (major, minor) = card.compute_capability;
        let is_machete = (major, minor) == (9, 0)
            && self.inputs.is_multiple_of(64)
            && self.outputs.is_multiple_of(128)
            && matches!(group, 0 | 64 | 128);
        if is_machete {
            return Kernel::Machete;
        }
        match major == 8 && bits == 8 && group == 0 && !zero_points {
            true => Kernel::AllSpark,
            false => Kernel::Marlin,
        }
    }

    /// Whether 8-bit floats are multiplied as they are.
    fn is_native_fp8(card: Card) -> bool {
        card.compute_capability >= (8, 9)
    }

    /// Bytes of each tensor that stays.
    pub fn tensors(&self, card: Card) -> Vec<u64> {
        let (weights, element) = (self.weights(), self.element);
        let workspace = 4 * card.multiprocessors;
        let mut tensors = match self.quantization {
            None => vec![weights * element],
            Some(Quantization::Int8) => vec![weights, 4 * self.outputs],
            Some(Quantization::Fp8 { scales, .. }) if Self::is_native_fp8(card) => {
                vec![weights, 4 * self.scale_count(scales)]
            }
            Some(Quantization::Fp8 { scales, .. }) => {
                let groups = match scales {
                    Fp8Scales::Block(_, columns) => self.groups(columns),
                    _ => 1,
                };
                vec![weights, groups * self.outputs * element, workspace]
            }
            Some(Quantization::Integer { bits, group, zero_points, format }) => {
                self.integer_tensors(card, bits, group, zero_points, format)
            }
        };
        if self.bias {
            tensors.push(self.outputs * element);
        }
        tensors
    }

    /// Bytes of each tensor that conversion concerns.
    fn without_bias(&self, card: Card) -> Vec<u64> {
        Self { bias: false, ..*self }.tensors(card)
    }

    fn scale_count(&self, scales: Fp8Scales) -> u64 {
        match scales {
            Fp8Scales::Tensor => 1,
            Fp8Scales::Channel => self.outputs,
            Fp8Scales::Block(rows, columns) => {
                self.outputs.div_ceil(rows) * self.inputs.div_ceil(columns)
            }
        }
    }

    fn integer_tensors(
        &self,
        card: Card,
        bits: u64,
        group: u64,
        zero_points: bool,
        format: IntegerFormat,
    ) -> Vec<u64> {
        let packed = self.weights() * bits / 8;
        let scaled = self.groups(group) * self.outputs;
        let kernel = self.kernel(card, bits, group, zero_points);
        let mut tensors = vec![packed, scaled * self.element];
        if zero_points {
            // Machete keeps them multiplied by the scale, in the scale's type.
            let is_machete = kernel == Kernel::Machete;
            tensors.push(if is_machete { scaled * self.element } else { scaled * bits / 8 });
        }
        match format {
            IntegerFormat::CompressedTensors => tensors.push(16),
            IntegerFormat::Gptq { desc_act: true } => tensors.extend([4 * self.inputs; 2]),
            // Neither kernel takes its unused zero points and indices away.
            IntegerFormat::Gptq { desc_act: false } if kernel != Kernel::Marlin => {
                tensors.extend([scaled * bits / 8, 4 * self.inputs]);
            }
            _ => {}
        }
        if kernel == Kernel::Marlin {
            tensors.push(4 * card.multiprocessors);
        }
        tensors
    }

    /// The tensors that a checkpoint is read into. On-line quantisation makes them only as it
    /// converts.
    pub fn construct(&self, card: Card, allocator: &mut Allocator) -> Loaded {
        let mut loaded = Loaded::default();
        match self.quantization {
            None => {
                allocator.allocate(self.weights() * self.element);
            }
            Some(Quantization::Fp8 { online: true, .. }) => {}
            Some(Quantization::Integer { bits, group, zero_points, .. }) => {
                let scaled = self.groups(group) * self.outputs;
                let zeros = if zero_points { scaled * bits / 8 } else { 16 };
                let parts = [self.weights() * bits / 8, zeros, scaled * self.element];
                loaded.blocks.extend(parts.map(|bytes| allocator.allocate(bytes)));
            }
            _ => {
                for bytes in self.without_bias(card) {
                    loaded.blocks.push(allocator.allocate(bytes));
                }
            }
        }
        if self.bias {
            allocator.allocate(self.outputs * self.element);
        }
        loaded
    }

    /// `process_weights_after_loading`: from what was read to what is kept. Others live beside it for
    /// a while, which makes the peak, and decides which free blocks the new tensors end up in.
    pub fn convert(&self, card: Card, loaded: Loaded, allocator: &mut Allocator) {
        match self.quantization {
            Some(Quantization::Integer { format: IntegerFormat::Awq, group, .. }) => {
                self.convert_awq(card, group, &loaded.blocks, allocator);
            }
            Some(Quantization::Integer { bits, group, zero_points, .. }) => {
                let kept = self.without_bias(card);
                let is_machete = self.kernel(card, bits, group, zero_points) == Kernel::Machete;
                let copy =
                    allocator.allocate(if is_machete { 1 } else { self.weights() * bits / 8 });
                for (bytes, old) in kept.iter().zip(&loaded.blocks) {
                    allocator.allocate(*bytes);
                    allocator.release(*old);
                }
                for bytes in kept.iter().skip(loaded.blocks.len()) {
                    allocator.allocate(*bytes);
                }
                for old in loaded.blocks.iter().skip(kept.len()) {
                    allocator.release(*old);
                }
                allocator.release(copy);
            }
            Some(Quantization::Fp8 { online: true, .. }) => {
                let original = allocator.allocate(self.weights() * self.element);
                for bytes in self.without_bias(card) {
                    allocator.allocate(bytes);
                }
                allocator.release(original);
            }
            Some(Quantization::Fp8 { .. }) if !Self::is_native_fp8(card) => {
                let copies = allocator.allocate(2 * self.weights());
                allocator.release(copies);
            }
            _ => {}
        }
    }

    /// `auto_awq.py`: unpacked to 32 bits, reordered, packed again, then the kernel's own order.
    fn convert_awq(&self, card: Card, group: u64, old: &[BlockId], allocator: &mut Allocator) {
        let [weights, zeros, scales] = old else { return };
        let wide = |elements: u64| 4 * elements;
        let repack = |elements: u64, allocator: &mut Allocator| {
            let unpacked = allocator.allocate(wide(elements));
            let ordered = allocator.allocate(wide(elements));
            allocator.release(unpacked);
            let held = allocator.allocate(wide(elements));
            allocator.release(ordered);
            let shifted = allocator.allocate(wide(elements));
            let packed = allocator.allocate(elements / 2);
            allocator.release(shifted);
            (held, packed)
        };
        let scaled = self.groups(group) * self.outputs;
        let (held, packed) = repack(self.weights(), allocator);
        let (held_zeros, packed_zeros) = repack(scaled, allocator);
        let copy = allocator.allocate(scaled / 2);
        for block in [*weights, held, *zeros, held_zeros, packed_zeros] {
            allocator.release(block);
        }
        match self.kernel(card, 4, group, true) {
            Kernel::Machete => {
                let ordered = allocator.allocate(self.weights() / 2);
                allocator.allocate(self.weights() / 2);
                allocator.release(ordered);
                allocator.release(packed);
                let unpacked = allocator.allocate(wide(scaled));
                let steps = [(); 3].map(|()| allocator.allocate(scaled * self.element));
                for block in [steps[0], steps[1], unpacked, copy] {
                    allocator.release(block);
                }
            }
            _ => {
                allocator.allocate(scaled / 2);
                allocator.release(copy);
                allocator.allocate(self.weights() / 2);
                allocator.release(packed);
                allocator.allocate(scaled * self.element);
                allocator.release(*scales);
                allocator.allocate(4 * card.multiprocessors);
            }
        }
    }
}

/// The experts of a layer, fused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertWeights {
    /// How many there are.
    pub count: u64,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Width of one expert on this rank.
    pub inner: u64,
    /// Bytes of an activation.
    pub element: u64,
    /// How they are kept.
    pub quantization: Option<Quantization>,
}

impl ExpertWeights {
    /// Bytes of each tensor that stays.
    pub fn tensors(&self, card: Card) -> Vec<u64> {
        let Self { count, hidden, inner, element, quantization } = *self;
        let (up, down) = (count * 2 * inner * hidden, count * inner * hidden);
        match quantization {
            None => vec![up * element, down * element],
            Some(Quantization::Int8) => {
                vec![up, down, count * 2 * inner * 4, count * hidden * 4]
            }
            Some(Quantization::Fp8 { scales, .. }) => {
                let of = |outputs: u64, inputs: u64| match scales {
                    Fp8Scales::Tensor => count,
                    Fp8Scales::Channel => count * outputs,
                    Fp8Scales::Block(rows, columns) => {
                        count * outputs.div_ceil(rows) * inputs.div_ceil(columns)
                    }
                };
                vec![up, down, of(2 * inner, hidden) * 4, of(hidden, inner) * 4]
            }
            Some(Quantization::Integer { bits, group, zero_points, format }) => {
                let groups = |inputs: u64| inputs.checked_div(group).unwrap_or(1).max(1);
                let scaled = [groups(hidden) * 2 * inner, groups(inner) * hidden];
                let mut tensors = vec![up * bits / 8, down * bits / 8];
                tensors.extend(scaled.map(|elements| count * elements * element));
                if zero_points || matches!(format, IntegerFormat::Gptq { .. }) {
                    tensors.extend(scaled.map(|elements| count * elements * bits / 8));
                }
                tensors.push(16 * card.multiprocessors);
                tensors
            }
        }
    }

    /// Bytes that live beside the layer while it is converted.
    pub fn conversion(&self) -> u64 {
        let elements = self.count * 3 * self.inner * self.hidden;
        match self.quantization {
            Some(Quantization::Fp8 { online: true, .. }) => elements * self.element,
            Some(Quantization::Integer { bits, .. }) => elements * bits / 8,
            _ => 0,
        }
    }
}
