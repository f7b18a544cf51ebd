//! What lies beside pruned weights for whoever makes them again: the recipe, and a picture of where the zeros are.
//!
//! The recipe names ballots by digest and weight, not by member: a folder that is published says no more about the silos
//! than its zeros do.

use std::fmt::Write;

use fedprune_mask::ballot::BallotHeader;
use fedprune_mask::{Digest, Matrix};

use super::mask_file::MaskFile;
use super::model_card::matrix_kind;
use crate::version;

/// Name of the recipe in a pruned folder.
pub(super) const RECIPE_FILE: &str = "pruning-recipe.toml";
/// Name of the picture.
pub(super) const PICTURE_FILE: &str = "pruning-sparsity.svg";

/// Width and height of a cell of the picture, in pixels.
const CELL: (usize, usize) = (76, 18);
/// What stands left of and above the cells, in pixels.
const MARGIN: (usize, usize) = (64, 64);

/// What the recipe is of.
pub(super) struct Recipe<'a> {
    pub mask: &'a MaskFile<'a>,
    pub base_digest: Digest,
    pub pruned_digest: Digest,
    pub layout_digest: Digest,
    pub mask_root: Digest,
    pub scaled: bool,
    pub mask_file: &'a str,
}

impl Recipe<'_> {
    /// The recipe, as TOML with the commands to type.
    pub fn text(&self) -> String {
        let scale = if self.scaled { " --scale support" } else { "" };
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "# How this model was made, and how to make it again. Digests are BLAKE3; `fedprune model inspect` and\n\
             # `fedprune mask show` print them. BASE is the base model's folder.\n\n\
             program = \"{}\"\n\
             base_model = \"{}\"\nlayout = \"{}\"\nmask_root = \"{}\"\npruned_model = \"{}\"\n\
             sparsity = \"{}\"\ngroup = \"{}\"\nscaling = \"{}\"\n",
            version::name(),
            self.base_digest,
            self.layout_digest,
            self.mask_root,
            self.pruned_digest,
            self.mask.sparsity(),
            self.mask.group(),
            if self.scaled { "support" } else { "none" },
        );
        let mut commands = Vec::new();
        if let MaskFile::Tally(tally) = self.mask {
            commands.push(format!(
                "fedprune tally BALLOT... --model BASE --global-group {} --out tally.fedprune   # the {} ballots below",
                tally.group(),
                tally.voters().len()
            ));
            commands.push(format!("fedprune apply --model BASE --mask tally.fedprune --out DIR{scale}"));
        }
        if !self.scaled {
            // without the ballots, from the bits alone
            commands.push(format!("fedprune apply --model BASE --mask {} --out DIR", self.mask_file));
        }
        let _ = writeln!(text, "commands = [");
        for command in commands {
            let _ = writeln!(text, "    '{command}',");
        }
        let _ = writeln!(text, "]");
        match self.mask {
            MaskFile::Ballot(ballot) => vote(&mut text, ballot.header(), None),
            MaskFile::Tally(tally) => {
                for voter in tally.voters() {
                    vote(&mut text, voter.ballot.header(), Some((voter.ballot.digest(), voter.weight)));
                }
            }
        }
        text
    }
}

/// One ballot: what it was made with.
fn vote(text: &mut String, header: &BallotHeader, identity: Option<(Digest, u32)>) {
    let _ = writeln!(text, "\n[[ballot]]");
    if let Some((digest, weight)) = identity {
        let _ = writeln!(text, "digest = \"{digest}\"\nweight = {weight}");
    }
    match header {
        BallotHeader::Vote(vote) => {
            let _ = writeln!(
                text,
                "pruner = \"{}\"\nlocal_group = \"{}\"\nsamples = {}\nwindow_tokens = {}",
                vote.pruner, vote.group, vote.samples, vote.sequence_tokens
            );
        }
        BallotHeader::Mask(mask) => {
            let _ = writeln!(text, "explicit_mask_group = \"{}\"\nvotes = {}", mask.group, mask.votes);
        }
    }
}

/// The share of zeros of each matrix, blocks downwards and kinds across, as an SVG.
pub(super) fn picture(matrices: &[(&Matrix, u64)]) -> String {
    let mut kinds: Vec<&str> = Vec::new();
    let mut blocks = 0usize;
    for (matrix, _) in matrices {
        let kind = matrix_kind(&matrix.name);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
        blocks = blocks.max(matrix.block as usize + 1);
    }
    let (width, height) = (MARGIN.0 + kinds.len() * CELL.0 + 8, MARGIN.1 + blocks * CELL.1 + 8);
    let mut svg = String::new();
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<title>Share of zeros of each matrix, in percent</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"8\" y=\"18\" font-size=\"13\">Share of zeros, in percent, by block and matrix</text>\n"
    );
    for (column, kind) in kinds.iter().enumerate() {
        let (group, name) = kind.split_once('.').unwrap_or(("", kind));
        let x = MARGIN.0 + column * CELL.0 + CELL.0 / 2;
        for (line, part) in [group, name].iter().enumerate() {
            let y = MARGIN.1 - 22 + line * 13;
            let _ = writeln!(svg, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">{}</text>", plain(part));
        }
    }
    for block in 0..blocks {
        let y = MARGIN.1 + block * CELL.1 + 13;
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">block {block}</text>", MARGIN.0 - 6);
    }
    for (matrix, pruned) in matrices {
        let kind = matrix_kind(&matrix.name);
        let column = kinds.iter().position(|known| *known == kind).unwrap_or(0);
        let (x, y) = (MARGIN.0 + column * CELL.0, MARGIN.1 + matrix.block as usize * CELL.1);
        let share = *pruned as f64 / matrix.weights().max(1) as f64;
        // white where nothing is zero, dark where everything is; the number is readable on either
        let shade = (255.0 - 200.0 * share).round() as u8;
        let ink = if share > 0.6 { "#fff" } else { "#000" };
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" fill=\"rgb({shade},{shade},255)\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"{ink}\">{:.1}</text>",
            CELL.0 - 2,
            CELL.1 - 2,
            x + CELL.0 / 2 - 1,
            y + 12,
            share * 100.0
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// Names come from files: only what cannot break the picture is repeated.
pub(super) fn plain(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).collect()
}

#[cfg(test)]
mod tests {
    use fedprune_mask::Tap;

    use super::*;

    #[test]
    fn a_picture_has_a_cell_for_each_matrix_and_nothing_from_outside() {
        let matrix = |block: u32, name: &str| Matrix {
            name: format!("model.layers.{block}.{name}.weight"),
            block,
            tap: Tap::AttentionInput,
            rows: 4,
            columns: 4,
        };
        let all = [matrix(0, "self_attn.q_proj"), matrix(0, "mlp.<b>"), matrix(1, "self_attn.q_proj")];
        let svg = picture(&[(&all[0], 8), (&all[1], 16), (&all[2], 0)]);
        assert_eq!(svg.matches("<rect x=").count(), 3);
        for part in [">50.0<", ">100.0<", ">0.0<", ">block 1<", ">q_proj<", ">b<"] {
            assert!(svg.contains(part), "{part}: {svg}");
        }
        assert!(!svg.contains("<b>"));
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }
}
