//! What all blocks share: the configuration, the device, the rotary tables, the embeddings.

use std::sync::Arc;

use candle_core::{DType, Device};
use fedprune_checkpoint::{Checkpoint, ModelConfig, TensorView};

use crate::accelerator::Accelerator;
use crate::error::Doing;
use crate::hidden::{Hidden, States, batches};
use crate::rope::RopeTables;
use crate::upload::{upload_bytes, widen};
use crate::{Block, Head, ModelError};

/// Longest sequence accepted, in tokens, whatever a configuration claims: bounds the rotary tables.
pub const MAX_SEQUENCE_TOKENS: usize = 1 << 20;

/// Runs the blocks of one checkpoint. Holds no weights.
pub struct Decoder {
    config: ModelConfig,
    device: Device,
    dtype: DType,
    max_sequence_tokens: usize,
    rope: RopeTables,
    accelerator: Option<Arc<Accelerator>>,
}

impl Decoder {
    /// A decoder of `checkpoint` on `device`, computing in `dtype`, for sequences up to `max_sequence_tokens`.
    ///
    /// # Errors
    /// [`ModelError::SequenceTooLong`] beyond the model's positions, [`ModelError::Config`] when its numbers make
    /// no model, [`ModelError::DTypeName`] for a `dtype` other than f32, bf16 and f16, [`ModelError::Gpu`] when the device
    /// takes no kernels of ours.
    pub fn new(
        checkpoint: &Checkpoint,
        device: &Device,
        dtype: DType,
        max_sequence_tokens: usize,
    ) -> Result<Self, ModelError> {
        let config = checkpoint.config().clone();
        check_sequence(&config, max_sequence_tokens)?;
        if !matches!(dtype, DType::F32 | DType::BF16 | DType::F16) {
            return Err(ModelError::DTypeName(dtype.as_str().to_owned()));
        }
        let even = config.head_dim.is_multiple_of(2);
        if config.head_dim == 0 || !even || config.key_value_heads == 0 {
            return Err(ModelError::Config(format!(
                "rotary attention needs an even `head_dim` and at least one key-value head, not {} and {}",
                config.head_dim, config.key_value_heads
            )));
        }
        if !config.attention_heads.is_multiple_of(config.key_value_heads) {
            return Err(ModelError::Config(format!(
                "`num_attention_heads` {} is no multiple of `num_key_value_heads` {}",
                config.attention_heads, config.key_value_heads
            )));
        }
        let rope = RopeTables::new(&config.rope, config.head_dim, max_sequence_tokens, dtype, device)?;
        let accelerator = Accelerator::of(device)?.map(Arc::new);
        Ok(Self { config, device: device.clone(), dtype, max_sequence_tokens, rope, accelerator })
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The compute dtype.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Longest sequence that it runs, in tokens.
    pub fn max_sequence_tokens(&self) -> usize {
        self.max_sequence_tokens
    }

    pub(crate) fn rope(&self) -> &RopeTables {
        &self.rope
    }

    pub(crate) fn accelerator(&self) -> Option<&Arc<Accelerator>> {
        self.accelerator.as_ref()
    }

    /// Bytes that can be allocated on the device, and bytes that it has; none on the processor.
    ///
    /// # Errors
    /// [`ModelError::Gpu`].
    pub fn device_memory(&self) -> Result<Option<(u64, u64)>, ModelError> {
        self.accelerator().map(|accelerator| accelerator.memory()).transpose()
    }

    /// The most bytes of device memory that were allocated at once; none on the processor.
    ///
    /// # Errors
    /// [`ModelError::Gpu`].
    pub fn most_device_bytes(&self) -> Result<Option<u64>, ModelError> {
        self.accelerator().map_or(Ok(None), |accelerator| accelerator.most_used_bytes())
    }

    pub(crate) fn check_length(&self, tokens: usize) -> Result<(), ModelError> {
        let limit = self.max_sequence_tokens;
        if tokens > limit { Err(ModelError::SequenceOverDecoder { tokens, limit }) } else { Ok(()) }
    }

    /// Whether blocks run on plain slices: on the processor in f32.
    pub(crate) fn on_slices(&self) -> bool {
        self.device.is_cpu() && self.dtype == DType::F32
    }

    /// Whether the next block should be loaded while one runs: where running is queued on a device with memory of its own.
    pub fn loads_ahead(&self) -> bool {
        !self.device.is_cpu()
    }

    /// Whether a block's weights are chosen and pruned where they lie: [`Block::choose_and_prune`].
    pub fn chooses(&self) -> bool {
        self.accelerator.is_some()
    }

    /// The embeddings of `windows` as one batch. Reads only the rows that are used.
    ///
    /// # Errors
    /// [`ModelError::TokenOutOfRange`] for ids outside the vocabulary, [`ModelError::SequenceOverDecoder`].
    pub fn embed(&self, checkpoint: &Checkpoint, windows: &[Vec<u32>]) -> Result<Hidden, ModelError> {
        let view = checkpoint.tensor("model.embed_tokens.weight")?;
        let lengths = windows.iter().map(Vec::len).collect();
        let states = if self.on_slices() {
            let mut states = Vec::new();
            for tokens in windows {
                states.extend(widen(view.dtype, &self.rows_of(&view, tokens)?));
            }
            States::Slice(states)
        } else {
            let tensor = |tokens: &Vec<u32>| {
                let (rows, shape) = (self.rows_of(&view, tokens)?, (tokens.len(), self.config.hidden_size));
                upload_bytes(view.dtype, &rows, shape, self.dtype, &self.device)
                    .doing(|| format!("embedding {} tokens", tokens.len()))
            };
            States::Tensors(windows.iter().map(tensor).collect::<Result<_, _>>()?)
        };
        Ok(Hidden { lengths, states })
    }

    /// The embeddings of `windows`, in batches of as many as are best run through a block together.
    ///
    /// # Errors
    /// As [`Decoder::embed`].
    pub fn embed_in_batches(&self, checkpoint: &Checkpoint, windows: &[Vec<u32>]) -> Result<Vec<Hidden>, ModelError> {
        batches(self, windows).into_iter().map(|windows| self.embed(checkpoint, windows)).collect()
    }

    /// The stored rows of the embeddings of `tokens`.
    fn rows_of(&self, view: &TensorView<'_>, tokens: &[u32]) -> Result<Vec<u8>, ModelError> {
        self.check_length(tokens.len())?;
        let row_bytes = self.config.hidden_size * view.dtype.bytes();
        let mut rows = Vec::with_capacity(tokens.len() * row_bytes);
        for (position, token) in tokens.iter().enumerate() {
            let vocabulary = self.config.vocab_size;
            let start = (*token as usize).checked_mul(row_bytes);
            let row = start.and_then(|start| view.bytes.get(start..start.checked_add(row_bytes)?));
            match row {
                Some(row) if (*token as usize) < vocabulary => rows.extend_from_slice(row),
                _ => return Err(ModelError::TokenOutOfRange { token: *token, position, vocabulary }),
            }
        }
        Ok(rows)
    }

    /// Loads one block onto the device in the compute dtype.
    ///
    /// # Errors
    /// [`ModelError::NoSuchBlock`], [`ModelError::Checkpoint`] for a missing tensor, [`ModelError::Compute`]
    /// when the device is out of memory.
    pub fn load_block(&self, checkpoint: &Checkpoint, block: usize) -> Result<Block, ModelError> {
        Block::load(self, checkpoint, block)
    }

    /// The final norm and the vocabulary projection; the latter stays in the checkpoint until used.
    ///
    /// # Errors
    /// [`ModelError::Checkpoint`] for a missing tensor.
    pub fn load_head<'a>(&self, checkpoint: &'a Checkpoint) -> Result<Head<'a>, ModelError> {
        Head::load(self, checkpoint)
    }
}

/// Refuses sequences that are empty or longer than the model's positions.
pub(crate) fn check_sequence(config: &ModelConfig, tokens: usize) -> Result<(), ModelError> {
    let positions = config.max_position_embeddings.min(MAX_SEQUENCE_TOKENS);
    match tokens {
        0 => Err(ModelError::Zero("--seqlen")),
        asked if asked > positions => Err(ModelError::SequenceTooLong { asked, positions }),
        _ => Ok(()),
    }
}
