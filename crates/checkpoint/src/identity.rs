//! Digests of what lies beside the weights: the configuration as far as it is computed with, and the tokenizer.
//!
//! With the content digest they say whether two silos would measure the same model on the same text. The
//! configuration's digest:
//!
//! ```text
//! BLAKE3( "fedprune forward configuration v1\0" ‖ model type name length: u32 ‖ model type name
//!         ‖ hidden size ‖ intermediate size ‖ blocks ‖ attention heads ‖ key/value heads
//!         ‖ head dimensions ‖ vocabulary: u64 each
//!         ‖ RMS norm ε ‖ rope θ: bits of an f64 each
//!         ‖ rope scaling: u8 (0 none, 1 linear, 2 llama3)
//!             ‖ linear: factor: f64
//!             ‖ llama3: factor ‖ low ‖ high frequency factor: f64 each ‖ original positions: u64
//!         ‖ tied head: u8 ‖ attention bias: u8 (0 none, 1 qkv, 2 qkvo) ‖ MLP bias: u8 ‖ query/key norm: u8
//!         ‖ sliding window: u8 (0 none, 1) ‖ its tokens if there is one: u64 )        all little-endian
//! ```
//!
//! Not part of it: the longest sequence, which bounds the windows and changes nothing inside one, and the
//! tokens that begin and end a sequence, which the tokenizer places.

use std::fs::File;
use std::io::{ErrorKind, Read};

use fedprune_mask::Digest;

use crate::checkpoint::Checkpoint;
use crate::config::{AttentionBias, ModelConfig};
use crate::error::{CheckpointError, reading};
use crate::rope::{Rope, RopeScaling};

/// Separates this digest from every other use of BLAKE3 here; its version changes with the encoding above.
const DOMAIN: &[u8] = b"fedprune forward configuration v1\0";
/// Largest `tokenizer.json` that is hashed, in bytes; that of Llama 3 has 17 MB.
pub const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
/// Bytes read at a time.
const BUFFER_BYTES: usize = 1 << 16;

impl ModelConfig {
    /// Digest of every field that the forward pass reads; see the module's source for the encoding.
    pub fn forward_digest(&self) -> Digest {
        // Taken apart by name, so that a new field does not compile until somebody decides about it.
        let Self {
            model_type,
            hidden_size,
            intermediate_size,
            blocks,
            attention_heads,
            key_value_heads,
            head_dim,
            vocab_size,
            rms_norm_eps,
            rope: Rope { theta, scaling },
            max_position_embeddings: _,
            tie_word_embeddings,
            attention_bias,
            mlp_bias,
            query_key_norm,
            sliding_window,
            bos_token_id: _,
            eos_token_ids: _,
        } = self;
        let mut hasher = blake3::Hasher::new();
        hasher.update(DOMAIN);
        let name = model_type.name();
        hasher.update(&(name.len() as u32).to_le_bytes()).update(name.as_bytes());
        for size in [hidden_size, intermediate_size, blocks, attention_heads, key_value_heads, head_dim, vocab_size] {
            hasher.update(&(*size as u64).to_le_bytes());
        }
        let float = |hasher: &mut blake3::Hasher, value: f64| {
            hasher.update(&value.to_bits().to_le_bytes());
        };
        float(&mut hasher, *rms_norm_eps);
        float(&mut hasher, *theta);
        match *scaling {
            RopeScaling::None => {
                hasher.update(&[0]);
            }
            RopeScaling::Linear { factor } => {
                hasher.update(&[1]);
                float(&mut hasher, factor);
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                hasher.update(&[2]);
                float(&mut hasher, factor);
                float(&mut hasher, low_freq_factor);
                float(&mut hasher, high_freq_factor);
                hasher.update(&(original_max_position_embeddings as u64).to_le_bytes());
            }
        }
        let bias = match attention_bias {
            AttentionBias::None => 0,
            AttentionBias::Qkv => 1,
            AttentionBias::Qkvo => 2,
        };
        hasher.update(&[u8::from(*tie_word_embeddings), bias, u8::from(*mlp_bias), u8::from(*query_key_norm)]);
        match sliding_window {
            None => hasher.update(&[0]),
            Some(tokens) => hasher.update(&[1]).update(&(*tokens as u64).to_le_bytes()),
        };
        hasher.finalize().into()
    }
}

impl Checkpoint {
    /// Digest of the configuration as far as the forward pass reads it.
    pub fn configuration_digest(&self) -> Digest {
        self.config().forward_digest()
    }

    /// BLAKE3 of `tokenizer.json`; of no bytes at all when the folder has none.
    ///
    /// # Errors
    /// [`CheckpointError::TooLarge`] above [`MAX_TOKENIZER_BYTES`], [`CheckpointError::Io`] when it is no regular
    /// file or cannot be read.
    pub fn tokenizer_digest(&self) -> Result<Digest, CheckpointError> {
        let path = self.dir().join("tokenizer.json");
        // A pipe or device would block or never end; what is not a regular file is not opened.
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Digest::of(&[])),
            Err(error) => return Err(reading("read", &path)(error)),
            Ok(metadata) if !metadata.is_file() => {
                return Err(reading("read", &path)(std::io::Error::other("it is not a regular file")));
            }
            Ok(_) => {}
        }
        let file = File::open(&path).map_err(reading("read", &path))?;
        let mut file = file.take(MAX_TOKENIZER_BYTES + 1);
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut bytes = 0u64;
        loop {
            let read = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(reading("read", &path)(error)),
            };
            hasher.update(&buffer[..read]);
            bytes += read as u64;
        }
        if bytes > MAX_TOKENIZER_BYTES {
            let bytes = std::fs::metadata(&path).map_or(bytes, |metadata| metadata.len().max(bytes));
            return Err(CheckpointError::TooLarge { path, bytes, limit: MAX_TOKENIZER_BYTES });
        }
        Ok(hasher.finalize().into())
    }
}
