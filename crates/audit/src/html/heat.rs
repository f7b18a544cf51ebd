//! How far the ballots agree, by block and matrix, as one drawing.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::text::{Escaped, count};
use crate::report::MatrixAgreement;

/// Sizes in pixels: a phone shows the seven matrices of a block side by side.
const LEFT: usize = 42;
const TOP: usize = 24;
const COLUMN: usize = 45;
const ROW: usize = 24;
/// More blocks or kinds than any model has are not drawn.
const MOST_BLOCKS: usize = 1024;
const MOST_KINDS: usize = 16;

/// What the ballots would come to if each were drawn at random, of the same sparsity.
fn chance(matrices: &[MatrixAgreement]) -> f64 {
    let sum = |part: fn(&MatrixAgreement) -> u64| matrices.iter().map(part).fold(0u64, u64::saturating_add);
    let (pruned, weights) = (sum(|matrix| matrix.pruned), sum(|matrix| matrix.weights));
    if weights == 0 {
        return 0.0;
    }
    let sparsity = pruned as f64 / weights as f64;
    1.0 - 2.0 * sparsity * (1.0 - sparsity)
}

/// Mean over the weights of some matrices.
fn mean<'m>(matrices: impl Iterator<Item = &'m MatrixAgreement>) -> f64 {
    let (mut agreed, mut weights) = (0.0, 0.0);
    for matrix in matrices {
        agreed += matrix.agreement * matrix.weights as f64;
        weights += matrix.weights as f64;
    }
    if weights > 0.0 { agreed / weights } else { 1.0 }
}

/// Writes the drawing with its caption.
pub(super) fn write(out: &mut dyn Write, matrices: &[MatrixAgreement]) -> io::Result<()> {
    let mut kinds: Vec<&str> = Vec::new();
    let mut blocks: BTreeMap<u32, Vec<&MatrixAgreement>> = BTreeMap::new();
    for matrix in matrices {
        if !kinds.contains(&matrix.kind.as_str()) {
            kinds.push(&matrix.kind);
        }
        blocks.entry(matrix.block).or_default().push(matrix);
        if kinds.len() > MOST_KINDS || blocks.len() > MOST_BLOCKS {
            return writeln!(out, "<p>The model has more blocks or kinds of matrices than can be drawn.</p>");
        }
    }
    let least = chance(matrices);
    let shade = |share: f64| if least < 1.0 { ((share - least) / (1.0 - least)).clamp(0.0, 1.0) } else { 1.0 };
    let columns = kinds.len().saturating_add(1);
    let width = LEFT.saturating_add(columns.saturating_mul(COLUMN)).saturating_add(8);
    let height = TOP.saturating_add(blocks.len().saturating_mul(ROW)).saturating_add(2);
    writeln!(out, "<figure><svg role=\"img\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\">")?;
    writeln!(out, "<title>Agreement of the ballots by block and matrix, in per cent</title>")?;
    // the last column stands apart: it is the mean of those before
    let x_of = |column: usize| {
        let gap = if column.saturating_add(1) == columns { 6 } else { 0 };
        LEFT.saturating_add(column.saturating_mul(COLUMN)).saturating_add(gap)
    };
    for (column, kind) in kinds.iter().copied().chain(["block"]).enumerate() {
        let x = x_of(column).saturating_add(COLUMN / 2);
        let kind = kind.trim_end_matches("_proj");
        writeln!(out, "<text class=\"axis\" x=\"{x}\" y=\"16\" text-anchor=\"middle\">{}</text>", Escaped(kind))?;
    }
    for (row, (block, matrices)) in blocks.iter().enumerate() {
        let y = TOP.saturating_add(row.saturating_mul(ROW));
        let base = y.saturating_add(16);
        let x = LEFT.saturating_sub(8);
        writeln!(out, "<text class=\"axis\" x=\"{x}\" y=\"{base}\" text-anchor=\"end\">{block}</text>")?;
        let mut cell = |column: usize, share: f64, title: &dyn std::fmt::Display| {
            let (x, shade) = (x_of(column), shade(share));
            let middle = x.saturating_add(COLUMN / 2);
            let ink = if shade > 0.55 { " class=\"inverse\"" } else { "" };
            writeln!(
                out,
                "<g><title>{title}</title><rect class=\"frame\" x=\"{x}\" y=\"{y}\" width=\"{COLUMN}\" height=\"{ROW}\"/>\
                 <rect class=\"cell\" x=\"{x}\" y=\"{y}\" width=\"{COLUMN}\" height=\"{ROW}\" fill-opacity=\"{shade:.3}\"/>\
                 <text{ink} x=\"{middle}\" y=\"{base}\" text-anchor=\"middle\">{:.1}</text></g>",
                share * 100.0
            )
        };
        for matrix in matrices {
            let column = kinds.iter().position(|kind| *kind == matrix.kind).unwrap_or_default();
            let title = format!(
                "block {block}, {}: agreement {:.2} %, {} of {} weights unanimous, {} pruned",
                matrix.kind,
                matrix.agreement * 100.0,
                count(matrix.unanimous),
                count(matrix.weights),
                count(matrix.pruned)
            );
            cell(column, matrix.agreement, &Escaped(&title))?;
        }
        let share = mean(matrices.iter().copied());
        cell(kinds.len(), share, &format_args!("block {block}: agreement {:.2} %", share * 100.0))?;
    }
    let unanimous: u64 = matrices.iter().map(|matrix| matrix.unanimous).fold(0, u64::saturating_add);
    let weights: u64 = matrices.iter().map(|matrix| matrix.weights).fold(0, u64::saturating_add);
    writeln!(
        out,
        "</svg><figcaption><p>Share of weights and pairs of votes that say the same, in per cent: {:.2} in all. \
         <span class=\"key\"></span> from {:.1}, what ballots drawn at random would come to, to 100. \
         {} of {} weights are unanimous. A vote of tally weight w counts as w votes.</p></figcaption></figure>",
        mean(matrices.iter()) * 100.0,
        least * 100.0,
        count(unanimous),
        count(weights)
    )
}
