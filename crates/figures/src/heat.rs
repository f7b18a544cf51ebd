//! A share for each matrix, by block and layer type, in shades of grey with the number in each cell.

use crate::FigureError;
use crate::canvas::{Anchor, Canvas};

const LEFT: i32 = 110;
const TOP: i32 = 60;
const ROW: i32 = 30;
/// Most columns with numbers in them.
const MOST_NUMBERED: usize = 32;
/// Most blocks and layer types: larger tables are nobody's figures.
const MOST: usize = 512;

/// One cell: a matrix and its share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cell<'a> {
    /// Decoder block, from 0.
    pub block: u32,
    /// What it is, such as `q_proj`.
    pub kind: &'a str,
    /// From 0 to 1; what is no number is not drawn.
    pub share: f64,
}

/// The drawing; none if there is nothing to draw, or too much.
///
/// # Errors
/// [`FigureError`].
pub fn map(title: &str, cells: &[Cell<'_>]) -> Result<Option<String>, FigureError> {
    let mut kinds: Vec<&str> = Vec::new();
    let mut blocks: Vec<u32> = Vec::new();
    let known: Vec<&Cell<'_>> = cells.iter().filter(|cell| cell.share.is_finite()).collect();
    for matrix in &known {
        if !kinds.contains(&matrix.kind) {
            kinds.push(matrix.kind);
        }
        if !blocks.contains(&matrix.block) {
            blocks.push(matrix.block);
        }
        if kinds.len() > MOST || blocks.len() > MOST {
            return Ok(None);
        }
    }
    let (least, largest) = known
        .iter()
        .map(|cell| cell.share)
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), share| (a.min(share), b.max(share)));
    if known.is_empty() {
        return Ok(None);
    }
    blocks.sort_unstable();
    let numbered = blocks.len() <= MOST_NUMBERED;
    let column = if numbered { 40 } else { (1200 / blocks.len() as i32).max(3) };
    let (right, bottom) = (LEFT + column * blocks.len() as i32, TOP + ROW * kinds.len() as i32);
    // dark is much, from white at the least
    let shade = |share: f64| if largest > least { 1.0 - 0.85 * (share - least) / (largest - least) } else { 0.8 };
    let size = ((right.max(LEFT + 420) + 120) as u32, (bottom + 70) as u32);
    let svg = Canvas::draw(size, |canvas| {
        canvas.text(title, (LEFT, 22), 16, Anchor::Left)?;
        for matrix in &known {
            let row = kinds.iter().position(|kind| *kind == matrix.kind).unwrap_or_default() as i32;
            let at = blocks.iter().position(|block| *block == matrix.block).unwrap_or_default() as i32;
            let corner = (LEFT + at * column, TOP + row * ROW);
            let shade = shade(matrix.share);
            canvas.rectangle([corner, (corner.0 + column, corner.1 + ROW)], shade)?;
            if numbered {
                let middle = (corner.0 + column / 2, corner.1 + ROW / 2);
                let ink = if shade < 0.55 { 1.0 } else { 0.0 };
                canvas.shaded(&format!("{:.1}", matrix.share * 100.0), middle, 12, ink)?;
            }
        }
        for (row, kind) in kinds.iter().enumerate() {
            canvas.text(kind, (LEFT - 8, TOP + ROW * row as i32 + ROW / 2), 13, Anchor::Right)?;
        }
        let every = blocks.len().div_ceil(40).max(1);
        for (at, block) in blocks.iter().enumerate().step_by(every) {
            let x = LEFT + column * at as i32 + column / 2;
            canvas.text(&block.to_string(), (x, bottom + 14), 12, Anchor::Centre)?;
        }
        canvas.text("decoder block", ((LEFT + right) / 2, bottom + 38), 14, Anchor::Centre)?;
        let scale = |share: f64| format!("{:.1} %", share * 100.0);
        canvas.rectangle([(right + 20, TOP), (right + 40, TOP + 20)], shade(largest))?;
        canvas.text(&scale(largest), (right + 46, TOP + 10), 12, Anchor::Left)?;
        canvas.rectangle([(right + 20, TOP + 30), (right + 40, TOP + 50)], shade(least))?;
        canvas.line((right + 20, TOP + 50), (right + 40, TOP + 50), 1, 0.6)?;
        canvas.text(&scale(least), (right + 46, TOP + 40), 12, Anchor::Left)
    });
    svg.map(Some)
}
