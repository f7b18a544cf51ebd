//! A drawing as pixels.

use std::sync::Arc;

use resvg::{tiny_skia, usvg};

use super::FigureError;

/// The only font: in the program, so that a figure looks the same everywhere.
const FONT: &[u8] = include_bytes!("../../fonts/DejaVuSans-subset.ttf");
/// Pixels of the PNG for each of the SVG.
const PNG_SCALE: f32 = 2.0;

fn failed<E: std::fmt::Display>(error: E) -> FigureError {
    FigureError::Draw(error.to_string())
}

/// Rasterises a drawing.
pub(super) fn png(svg: &str) -> Result<Vec<u8>, FigureError> {
    let mut fonts = usvg::fontdb::Database::new();
    fonts.load_font_data(FONT.to_vec());
    let options = usvg::Options { fontdb: Arc::new(fonts), ..usvg::Options::default() };
    let tree = usvg::Tree::from_str(svg, &options).map_err(failed)?;
    let pixels = |length: f32| (length * PNG_SCALE).ceil() as u32;
    let (width, height) = (pixels(tree.size().width()), pixels(tree.size().height()));
    let mut pixmap = tiny_skia::Pixmap::new(width, height)
        .ok_or_else(|| FigureError::Draw(format!("no picture has {width} × {height} pixels")))?;
    let scale = tiny_skia::Transform::from_scale(PNG_SCALE, PNG_SCALE);
    resvg::render(&tree, scale, &mut pixmap.as_mut());
    pixmap.encode_png().map_err(failed)
}
