//! What a model file says about itself, before anything loads it.
//!
//! - [`assumed`]: a GGUF that isn't here, as the converter would make it
//! - [`ggml_type`]: the element types of GGML and how many bytes a row of each takes
//! - [`gguf`]: the header of a GGUF file, read defensively
//! - [`hf_config`]: a transformer as its config.json describes it
//! - [`safetensors`]: a checkpoint's headers
//! - [`known`]: models that are known by name, without a network
//! - [`facts`]: the architecture behind a header, as the memory model needs it

pub mod assumed;
pub mod facts;
pub mod ggml_type;
pub mod gguf;
pub mod hf_config;
pub mod known;
pub mod safetensors;

pub use facts::{FactsError, ModelFacts};
pub use ggml_type::GgmlType;
pub use gguf::{Gguf, GgufError, TensorInfo};
