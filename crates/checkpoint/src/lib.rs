//! A Hugging Face checkpoint on disk, read in place and written as a pruned copy.
//!
//! A checkpoint is a folder: `config.json`, and `model.safetensors` or `model.safetensors.index.json`
//! with its shards. [`Checkpoint::open`] reads and checks the configuration and the headers; the
//! weights stay in the files and are mapped into memory, so that a model larger than memory can be
//! opened, and one decoder block at a time is resident.
//!
//! | module | what it answers |
//! |---|---|
//! | [`config`] | what the model is: `config.json`, normalised and bounded |
//! | [`rope`] | how positions are rotated, in both of the forms that `config.json` has for it |
//! | `architecture` | which tensors such a model has, of which shapes, and which are pruned |
//! | `header`, `shards` | what the safetensors files and their index say, checked before it is believed |
//! | [`checkpoint`] | the folder opened: tensors, layout, release of resident pages |
//! | `content` | the digest of the weights, whatever their sharding |
//! | `identity` | the digests of configuration and tokenizer |
//! | [`write`](mod@write) | the pruned copy: all of it or nothing |
//! | `carry`, `staging` | its other files, the temporary folder it grows in |
//! | `read_ahead`, `write_behind` | the threads that read the next matrix and write the last |
//! | `unbuffered` | how large files are written |
//! | [`error`] | everything that can be wrong, with file, tensor and remedy |
//!
//! # Memory-mapped files that change
//!
//! The files are mapped, not copied: whoever truncates or overwrites a weight file while it is open
//! ends this process with a bus error, or changes the weights under it. Nothing here can detect
//! that. Programs that replace checkpoints do so by writing a new file and renaming it, as
//! [`write_pruned`] and the Hugging Face libraries do, which leaves an open mapping intact.

pub mod checkpoint;
pub mod config;
pub mod error;
pub mod rope;
pub mod write;

mod architecture;
mod carry;
mod content;
mod header;
mod identity;
mod read_ahead;
mod shards;
mod staging;
mod unbuffered;
mod write_behind;

pub use carry::{AGREEMENT_PICTURE_FILE, PROVENANCE_FILE, is_weight_file};
pub use checkpoint::{Checkpoint, StoredTensor, TensorView};
pub use config::{AttentionBias, ModelConfig, ModelType};
pub use content::DigestAlong;
pub use error::{BoxError, CheckpointError};
pub use identity::MAX_TOKENIZER_BYTES;
pub use rope::{Rope, RopeScaling};
pub use staging::available_bytes;
pub use write::{Extra, ExtraFile, Pruned, Skipped, Written, check_copyable, check_out, write_pruned};
