//! How far the votes of a round agree, matrix by matrix: measured while a tally is applied, or handed over with a mask
//! that has no votes in it any more, as that of an iterative round.

use std::path::Path;

use anyhow::{Context, bail};
use fedprune_figures::heat::{self, Cell};
use fedprune_mask::{Digest, Layout, Sparsity};
use serde::Deserialize;

use super::model_card::matrix_kind;
use super::recipe::plain;
use crate::files::read_small;

/// Name of the picture in a pruned folder.
pub(super) const PICTURE_FILE: &str = fedprune_checkpoint::AGREEMENT_PICTURE_FILE;
/// Most bytes of a file with shares; 100,000 matrices have 2 MB.
const LIMIT: usize = 16 << 20;

/// Of each matrix, in layout order, the share of (weight, pair of votes) in which both say the same.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Agreement(Vec<f64>);

/// What a node hands over.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    layout: Digest,
    agreement: Vec<f64>,
}

impl Agreement {
    /// Of the shares of all matrices.
    pub fn of(shares: Vec<f64>) -> Self {
        Self(shares)
    }

    /// Reads what was handed over for a model of this layout.
    pub fn read(path: &Path, layout: &Layout) -> anyhow::Result<Self> {
        let unusable = || format!("`{}` cannot be used", path.display());
        let Document { layout: of, agreement } =
            serde_json::from_slice(&read_small(path, LIMIT)?).with_context(unusable)?;
        if of != layout.digest() || agreement.len() != layout.matrices().len() {
            bail!("`{}` is of another model; leave out --agreement", path.display());
        }
        if !agreement.iter().all(|share| (0.0..=1.0).contains(share)) {
            return Err(anyhow::anyhow!("its shares are not from 0 to 1")).with_context(unusable);
        }
        Ok(Self(agreement))
    }

    /// Over all weights.
    pub fn mean(&self, layout: &Layout) -> f64 {
        let weights: f64 = layout.matrices().iter().map(|matrix| matrix.weights() as f64).sum();
        let shares = layout.matrices().iter().zip(&self.0);
        shares.map(|(matrix, share)| share * matrix.weights() as f64).sum::<f64>() / weights.max(1.0)
    }

    /// Blocks across, kinds downwards; nothing where there are more than can be drawn.
    pub fn picture(&self, layout: &Layout) -> anyhow::Result<Option<String>> {
        let kind = |name: &str| {
            let kind = matrix_kind(name);
            plain(kind.rsplit_once('.').map_or(kind, |(_, last)| last))
        };
        let kinds: Vec<String> = layout.matrices().iter().map(|matrix| kind(&matrix.name)).collect();
        let matrices = layout.matrices().iter().zip(&kinds).zip(&self.0);
        let cells: Vec<Cell<'_>> =
            matrices.map(|((matrix, kind), share)| Cell { block: matrix.block, kind, share: *share }).collect();
        Ok(heat::map("Agreement of the votes, in percent, by block and matrix", &cells)?)
    }
}

/// What votes drawn at random would come to.
pub(super) fn by_chance(sparsity: Sparsity) -> f64 {
    let pruned = sparsity.as_f64();
    pruned * pruned + (1.0 - pruned) * (1.0 - pruned)
}

#[cfg(test)]
mod tests {
    use fedprune_mask::{Matrix, Tap};

    use super::*;

    fn layout() -> Layout {
        let matrix = |block: u32, name: &str, rows: u32| Matrix {
            name: format!("model.layers.{block}.{name}.weight"),
            block,
            tap: Tap::AttentionInput,
            rows,
            columns: 4,
        };
        let matrices = [matrix(0, "self_attn.q_proj", 4), matrix(1, "self_attn.q_proj", 12)];
        Layout::new(matrices.to_vec()).unwrap()
    }

    #[test]
    fn a_picture_has_a_number_for_each_matrix_and_a_mean_counts_weights() {
        let agreement = Agreement::of(vec![1.0, 0.5]);
        assert!((agreement.mean(&layout()) - 0.625).abs() < 1e-12);
        let svg = agreement.picture(&layout()).unwrap().unwrap();
        for part in ["100.0", "50.0", "q_proj", "decoder block"] {
            assert!(svg.contains(part), "{part}: {svg}");
        }
        assert!((by_chance("0.5".parse().unwrap()) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn what_is_handed_over_is_of_this_model() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agreement.json");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Agreement::read(&path, &layout()).map_err(|error| format!("{error:#}"))
        };
        let of = |digest: Digest, shares: &str| format!("{{\"layout\": \"{digest}\", \"agreement\": [{shares}]}}");
        let ours = layout().digest();
        assert_eq!(read(&of(ours, "0.5, 1")), Ok(Agreement::of(vec![0.5, 1.0])));
        assert!(read(&of(Digest::of(b"x"), "0.5, 1")).unwrap_err().contains("of another model"));
        assert!(read(&of(ours, "0.5")).unwrap_err().contains("of another model"));
        assert!(read(&of(ours, "0.5, 1.5")).unwrap_err().contains("not from 0 to 1"));
        assert!(read("{}").unwrap_err().contains("cannot be used"));
    }
}
