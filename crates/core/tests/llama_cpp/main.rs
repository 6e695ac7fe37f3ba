//! llama.cpp's memory model: against what was measured, and against what must always hold.

mod data;
mod properties;
mod rows;
