//! The decoder, run one block at a time from a memory-mapped checkpoint, with *taps* on the inputs of
//! the seven linear layers; and what feeds it: text, tokens, windows.
//!
//! A local pruner needs the sum of squares of every input channel of every linear layer, from inputs
//! that went through the pruned blocks before it. So the forward pass belongs to us rather than to a
//! model library: a block is loaded, run with taps, pruned in place, run again and dropped, and memory
//! stays near one block whatever the size of the model.
//!
//! | module | what it answers |
//! |---|---|
//! | [`device`] | `cpu` or `cuda:N`, and in which floating-point format to compute |
//! | [`mod@devices`] | what can compute on this machine |
//! | [`memory`] | how much memory a device of its own takes |
//! | [`decoder`] | what all blocks share: configuration, rotary tables, embeddings |
//! | [`block`] | one decoder block: load, measure, prune, scale, run |
//! | [`hidden`] | what travels from block to block, in batches of windows |
//! | [`taps`] | sums of squares per input channel |
//! | [`head`] | the final norm and the vocabulary projection, streamed in slices |
//! | [`perplexity`](mod@perplexity) | how well the model predicts given windows |
//! | [`text`] | `.txt` and `.jsonl` files, folders of them, the model's tokenizer |
//! | [`gguf`] | a GGUF file as a checkpoint folder |
//! | [`calibration`] | files to windows of tokens, the same on every machine |
//!
//! Shapes are written (rows, columns). Tensors have the compute dtype unless a line says otherwise.

#![forbid(unsafe_code)]

pub mod block;
pub mod calibration;
pub mod decoder;
pub mod device;
pub mod devices;
pub mod error;
pub mod gguf;
pub mod head;
pub mod hidden;
pub mod memory;
pub mod perplexity;
pub mod taps;
pub mod text;

mod accelerator;
mod attention;
mod cpu;
mod kernels;
mod rope;
mod tensors;
mod upload;

pub use accelerator::Choice;
pub use block::Block;
pub use calibration::{Bos, Document, Sampling, WindowRequest, Windows, calibration_windows, evaluation_windows};
pub use cpu::Workspace;
pub use decoder::Decoder;
pub use device::{ComputeDType, DeviceName};
pub use devices::{Devices, GpuDevice, GpuDriver, devices};
pub use error::ModelError;
pub use head::Head;
pub use hidden::Hidden;
pub use memory::DeviceNeed;
pub use perplexity::{Perplexity, logits, perplexity};
pub use taps::{BlockSums, Taps};
pub use text::Tokenizer;
