//! Drawings of results, in black and white, as SVG: the same for the same numbers, wherever they are made.

#![forbid(unsafe_code)]

pub mod canvas;
pub mod heat;

/// A figure could not be drawn.
#[derive(Debug, thiserror::Error)]
pub enum FigureError {
    /// The plotting library failed.
    #[error("the plotting library failed: {0}")]
    Draw(String),
}
