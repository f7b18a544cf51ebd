//! Selection, tally and sums of squares on an NVIDIA GPU: CUDA kernels of our own for what candle has no operations for.
//!
//! From the same weights and norms the masks are those of [`fedprune_mask`], bit for bit: the same order (key, then |W|,
//! then flat index), the same ties, the same packed bits. Keys are exact: Wanda's product of a stored weight and a norm of
//! eight bits, RIA's sums in index order, divisions and product each rounded once, all as the processor does them.
//!
//! # How it is used
//!
//! With the feature `cuda`, on the stream of whoever computes the activations (such as candle's):
//!
//! ```ignore
//! let mut gpu = Gpu::new(stream)?;                           // Gpu is Engine<Cuda>; loads the kernels
//! let norms = gpu.upload_norms(pruner, &norms)?;             // &NormVector; once a tap
//! let weights = Weights::of(&gpu, &slice.as_view(), rows, columns)?; // borrowed: CudaView of half::bf16, half::f16 or f32
//! let mask = gpu.derive_mask(group, sparsity, &weights, &norms)?;    // packed bits, on the device
//! gpu.prune(&mask, &mut WeightsMut::of(&gpu, &mut slice.as_view_mut(), rows, columns)?)?; // zeroes what is pruned
//! let mask: MatrixMask = gpu.download_mask(&mask)?;
//! ```
//!
//! Several selections can be under way without waiting for each: [`Engine::start_mask`], later [`Engine::finish_mask`].
//! Weights on the host go by [`Engine::upload_weights`], whose result lends [`Weights`]. Sums of squares of activations are
//! added to a vector of float64 that stays on the device: [`Engine::sums`], `Gpu::add_squares`,
//! [`Engine::download_sums`]. A tally goes matrix by matrix: [`tally::DeviceTally`].
//!
//! Everything is queued on one stream, in order; what is downloaded waits for it. Weights that are not finite are refused
//! with the error of [`WeightsView::check_finite`](fedprune_mask::WeightsView::check_finite), found in the pass that reads
//! them anyway.
//!
//! # Without a GPU
//!
//! Without the feature nothing here needs CUDA, and [`Engine`] is there all the same: it runs on any [`Device`]. Tests
//! compile the very sources of `kernels/` as C++ for the processor, with an emulation of blocks, barriers, warps and shared
//! memory, and hold them against [`fedprune_mask`]. An emulation shows that the arithmetic, the indices and the order of
//! ties are right, and that no result depends on the order in which threads run. It says nothing of speed, of caches, or of
//! what NVIDIA's compiler makes of the sources: `tests/cuda.rs` asks a real device, where there is one.
//!
//! | module | what it answers |
//! |---|---|
//! | [`bytes`] | what must move at least, and how much device memory it takes |
//! | [`device`] | what the engine asks of a device |
//! | [`engine`] | selection, counting, pruning and sums of squares: what is launched, and in which order |
//! | [`error`] | what can go wrong |
//! | [`tally`] | ballots to the global mask, a matrix at a time |
//! | `cuda` | the device that is a GPU (feature `cuda`) |
//! | `found` | which GPUs there are, and their memory (feature `cuda`) |
//! | `upload` | weights to the device, beside what it computes (feature `cuda`) |

pub mod bytes;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod device;
#[cfg(all(feature = "cuda", target_os = "linux"))]
mod driver;
pub mod engine;
pub mod error;
#[cfg(feature = "cuda")]
pub mod found;
pub mod tally;
#[cfg(feature = "cuda")]
pub mod upload;

#[cfg(feature = "cuda")]
pub use cuda::{Cuda, Gpu};
pub use device::Device;
pub use engine::{Causal, Counts, Engine, Mask, Norms, OwnedWeights, Selection, Sums, Weights, WeightsMut};
pub use error::GpuError;
pub use tally::DeviceTally;
