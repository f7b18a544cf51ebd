//! A model of two blocks and a thousand weights, in each of the formats that weights are stored in.

use std::convert::Infallible;
use std::sync::LazyLock;

use fedprune_mask::ballot::{Encodings, MaskHeader, VoteHeader, encode_mask_smallest};
use fedprune_mask::{
    DType, Digest, Group, Layout, Matrix, MatrixMask, MatrixSource, NormVector, Pruner, Sparsity, Tap, WeightsView,
    encode_ballot,
};

/// All formats.
pub const DTYPES: [DType; 3] = [DType::BF16, DType::F16, DType::F32];

/// The model.
pub static MODEL: LazyLock<Model> = LazyLock::new(Model::new);

/// Its layout and its weights.
pub struct Model {
    /// Two blocks of seven matrices; the last feeds two outputs only, so that its bits are smaller than its norms.
    pub layout: Layout,
    weights: Vec<Weights>,
}

/// The weights of a layout in one format.
pub struct Weights {
    layout: Layout,
    dtype: DType,
    bytes: Vec<Vec<u8>>,
}

impl Weights {
    /// Weights of these stored bytes for each matrix.
    pub fn new(layout: &Layout, dtype: DType, bytes: Vec<Vec<u8>>) -> Self {
        Self { layout: layout.clone(), dtype, bytes }
    }
}

impl MatrixSource for Weights {
    fn matrix(&self, index: usize) -> WeightsView<'_> {
        let matrix = &self.layout.matrices()[index];
        WeightsView::new(self.dtype, matrix.rows as usize, matrix.columns as usize, &self.bytes[index])
            .expect("as many bytes as weights")
    }
}

/// Bytes that look random and are the same everywhere.
pub fn noise(seed: &str, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut out);
    out
}

/// A finite number as it is stored, from 32 bits: all exponents but the highest occur, and equal ones are frequent.
pub fn stored(dtype: DType, bits: u32) -> Vec<u8> {
    // one in four is of a few values, so that weights tie
    let bits = if bits.is_multiple_of(4) { (bits & 0xc000_0000) | 0x2000_0000 } else { bits };
    match dtype {
        // the highest exponent is infinity and NaN
        DType::BF16 => {
            let bits = (bits >> 16) as u16;
            (if bits & 0x7f80 == 0x7f80 { bits & !0x0080 } else { bits }).to_le_bytes().to_vec()
        }
        DType::F16 => {
            let bits = (bits >> 16) as u16;
            (if bits & 0x7c00 == 0x7c00 { bits & !0x0400 } else { bits }).to_le_bytes().to_vec()
        }
        DType::F32 => {
            (if bits & 0x7f80_0000 == 0x7f80_0000 { bits & !0x0080_0000 } else { bits }).to_le_bytes().to_vec()
        }
    }
}

impl Model {
    fn new() -> Self {
        let matrix = |block, tap, name: &str, rows, columns| Matrix {
            name: format!("{block}.{name}"),
            block,
            tap,
            rows,
            columns,
        };
        let block = |block, down| {
            [
                matrix(block, Tap::AttentionInput, "q", 6, 12),
                matrix(block, Tap::AttentionInput, "k", 3, 12),
                matrix(block, Tap::AttentionInput, "v", 3, 12),
                matrix(block, Tap::AttentionOutput, "o", 12, 8),
                matrix(block, Tap::MlpInput, "gate", 16, 12),
                matrix(block, Tap::MlpInput, "up", 16, 12),
                matrix(block, Tap::MlpOutput, "down", down, 16),
            ]
        };
        let layout = Layout::new([block(0, 12), block(1, 2)].concat()).expect("a sound layout");
        let weights = DTYPES.map(|dtype| {
            let bytes = layout.matrices().iter().map(|matrix| {
                let noise = noise(&matrix.name, matrix.weights() as usize * 4);
                let magnitude = |chunk: &[u8]| {
                    let bits = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
                    // as in a model: most of a few neighbouring exponents
                    let one = if dtype == DType::F16 { 0x3000_0000 } else { 0x3d80_0000 };
                    stored(dtype, (bits & 0x81ff_ffff) | one)
                };
                noise.chunks_exact(4).flat_map(magnitude).collect()
            });
            Weights::new(&layout, dtype, bytes.collect())
        });
        Self { layout, weights: weights.into() }
    }

    /// Its weights in one format.
    pub fn weights(&self, dtype: DType) -> &Weights {
        &self.weights[DTYPES.iter().position(|known| *known == dtype).expect("all formats are there")]
    }

    /// The norms of each tap for a text.
    pub fn norms(&self, text: &str) -> Vec<NormVector> {
        norms(&self.layout, text)
    }

    /// The header of a ballot.
    pub fn vote(&self, pruner: Pruner, group: Group) -> VoteHeader {
        vote(&self.layout, pruner, group, "0.5".parse().expect("a sparsity"))
    }

    /// A ballot.
    pub fn ballot(&self, dtype: DType, header: &VoteHeader, text: &str, encodings: Encodings) -> Vec<u8> {
        ballot(&self.layout, header, &self.norms(text), encodings, self.weights(dtype))
    }

    /// An explicit mask.
    pub fn mask(&self, dtype: DType, header: &VoteHeader, masks: &[MatrixMask]) -> Vec<u8> {
        let (group, sparsity) = (header.group, header.sparsity);
        let header = MaskHeader { model: header.model, layout: header.layout, group, sparsity, votes: 1 };
        explicit(&self.layout, &header, masks, self.weights(dtype))
    }
}

/// The norms of each tap of a layout for a text; one channel in sixteen is silent.
pub fn norms(layout: &Layout, text: &str) -> Vec<NormVector> {
    let tap = |range: &std::ops::Range<usize>| {
        let matrix = &layout.matrices()[range.start];
        let noise = noise(&format!("{text} {}", matrix.name), matrix.columns as usize);
        let sum = |byte: u8| if byte < 16 { 0.0 } else { f64::from(byte) };
        NormVector::from_sums(&noise.into_iter().map(sum).collect::<Vec<_>>(), 1).expect("sound sums")
    };
    layout.taps().iter().map(tap).collect()
}

/// The header of a ballot for a layout.
pub fn vote(layout: &Layout, pruner: Pruner, group: Group, sparsity: Sparsity) -> VoteHeader {
    VoteHeader {
        model: Digest::of(b"model"),
        layout: layout.digest(),
        pruner,
        group,
        sparsity: group.fixed_sparsity().unwrap_or(sparsity),
        samples: 1,
        sequence_tokens: 8,
    }
}

/// A ballot's bytes.
pub fn ballot(
    layout: &Layout,
    header: &VoteHeader,
    norms: &[NormVector],
    encodings: Encodings,
    weights: &dyn MatrixSource,
) -> Vec<u8> {
    collect(|sink| {
        encode_ballot(header, layout, norms, encodings, weights, sink).expect("a sound ballot");
    })
}

/// The bytes of an explicit mask, in its smallest encoding.
pub fn explicit(layout: &Layout, header: &MaskHeader, masks: &[MatrixMask], weights: &dyn MatrixSource) -> Vec<u8> {
    collect(|sink| {
        let mut masks = |index: usize| Ok(masks[index].clone());
        encode_mask_smallest(header, layout, &mut masks, weights, sink).expect("a sound mask");
    })
}

/// What something writes into a sink.
pub fn collect(write: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), Infallible>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut |part| {
        bytes.extend_from_slice(part);
        Ok(())
    });
    bytes
}
