//! A white sheet in pixels: lines, texts and marks that can be told apart without colours.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::FigureError;

/// The only font.
const FONT_NAME: &str = "DejaVu Sans";

/// Where a text lies at its point.
#[derive(Debug, Clone, Copy)]
pub enum Anchor {
    /// To its right.
    Left,
    /// Around it.
    Centre,
    /// To its left.
    Right,
}

/// How a series is drawn: mark, filled or hollow, and dashes of the line in pixels; none for no line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Look {
    /// At each point.
    pub mark: Mark,
    /// Whether it is black inside.
    pub filled: bool,
    /// Of the line between points.
    pub dashes: Option<&'static [i32]>,
}

/// A mark.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs, reason = "shapes are what they are called")]
pub enum Mark {
    None,
    Circle,
    Square,
    Triangle,
    Diamond,
    Cross,
}

/// A sheet that is being drawn on.
pub struct Canvas<'a>(DrawingArea<SVGBackend<'a>, Shift>);

fn failed<E: std::fmt::Display>(error: E) -> FigureError {
    FigureError::Draw(error.to_string())
}

/// A shade of grey, from 0 black to 1 white.
fn grey(shade: f64) -> RGBColor {
    let level = (shade.clamp(0.0, 1.0) * 255.0).round() as u8;
    RGBColor(level, level, level)
}

impl Canvas<'_> {
    /// Draws on a sheet of this size; the SVG.
    ///
    /// # Errors
    /// [`FigureError`].
    pub fn draw(
        size: (u32, u32),
        draw: impl FnOnce(&Canvas<'_>) -> Result<(), FigureError>,
    ) -> Result<String, FigureError> {
        let mut svg = String::new();
        {
            let canvas = Canvas(SVGBackend::with_string(&mut svg, size).into_drawing_area());
            canvas.0.fill(&WHITE).map_err(failed)?;
            draw(&canvas)?;
            canvas.0.present().map_err(failed)?;
        }
        Ok(svg)
    }

    /// A line in a shade of grey, from 0 black to 1 white.
    ///
    /// # Errors
    /// [`FigureError`].
    pub fn line(&self, from: (i32, i32), to: (i32, i32), width: u32, shade: f64) -> Result<(), FigureError> {
        let style = grey(shade).stroke_width(width);
        self.0.draw(&PathElement::new(vec![from, to], style)).map_err(failed)
    }

    /// A line of dashes and gaps in turn; a whole one if there are none.
    ///
    /// # Errors
    /// [`FigureError`].
    pub fn dashed(&self, points: &[(i32, i32)], dashes: &[i32]) -> Result<(), FigureError> {
        if dashes.is_empty() {
            let path = PathElement::new(points.to_vec(), BLACK.stroke_width(2));
            return self.0.draw(&path).map_err(failed);
        }
        let (mut which, mut left) = (0, f64::from(dashes[0]));
        for pair in points.windows(2) {
            let [(x0, y0), (x1, y1)] = [pair[0], pair[1]].map(|(x, y)| (f64::from(x), f64::from(y)));
            let length = (x1 - x0).hypot(y1 - y0);
            let mut at = 0.0;
            while at < length {
                let end = (at + left).min(length);
                if which % 2 == 0 {
                    let place = |t: f64| {
                        let share = t / length;
                        ((x0 + (x1 - x0) * share).round() as i32, (y0 + (y1 - y0) * share).round() as i32)
                    };
                    self.line(place(at), place(end), 2, 0.0)?;
                }
                left -= end - at;
                at = end;
                // what rounding leaves of a dash would never end
                if left < 1e-6 {
                    which = (which + 1) % dashes.len();
                    left = f64::from(dashes[which].max(1));
                }
            }
        }
        Ok(())
    }

    /// A filled rectangle in a shade of grey.
    ///
    /// # Errors
    /// [`FigureError`].
    pub fn rectangle(&self, corners: [(i32, i32); 2], shade: f64) -> Result<(), FigureError> {
        self.0.draw(&Rectangle::new(corners, grey(shade).filled())).map_err(failed)
    }

    /// A text of so many pixels' height, centred vertically on its point.
    ///
    /// # Errors
    /// [`FigureError`].
    pub fn text(&self, text: &str, at: (i32, i32), pixels: u32, anchor: Anchor) -> Result<(), FigureError> {
        self.styled(text, at, pixels, anchor, FontTransform::None, 0.0)
    }

    /// A text in a shade of grey.
    ///
    /// # Errors
    /// [`FigureError`].
    pub fn shaded(&self, text: &str, at: (i32, i32), pixels: u32, shade: f64) -> Result<(), FigureError> {
        self.styled(text, at, pixels, Anchor::Centre, FontTransform::None, shade)
    }

    /// A text that is read from below, centred on its point.
    ///
    /// # Errors
    /// [`FigureError`].
    pub fn upright(&self, text: &str, at: (i32, i32), pixels: u32) -> Result<(), FigureError> {
        self.styled(text, at, pixels, Anchor::Centre, FontTransform::Rotate270, 0.0)
    }

    fn styled(
        &self,
        text: &str,
        at: (i32, i32),
        pixels: u32,
        anchor: Anchor,
        transform: FontTransform,
        shade: f64,
    ) -> Result<(), FigureError> {
        let horizontal = match anchor {
            Anchor::Left => HPos::Left,
            Anchor::Centre => HPos::Center,
            Anchor::Right => HPos::Right,
        };
        let font = (FONT_NAME, pixels).into_font().transform(transform);
        let ink = grey(shade);
        let style = TextStyle::from(font).color(&ink).pos(Pos::new(horizontal, VPos::Center));
        self.0.draw(&Text::new(text.to_owned(), at, style)).map_err(failed)
    }

    /// A mark around its point.
    ///
    /// # Errors
    /// [`FigureError`].
    pub fn mark(&self, look: Look, (x, y): (i32, i32)) -> Result<(), FigureError> {
        let size = 5;
        let corners: Vec<(i32, i32)> = match look.mark {
            Mark::None => return Ok(()),
            Mark::Circle => {
                let inside = if look.filled { BLACK } else { WHITE };
                self.0.draw(&Circle::new((x, y), size, inside.filled())).map_err(failed)?;
                return self.0.draw(&Circle::new((x, y), size, BLACK.stroke_width(2))).map_err(failed);
            }
            Mark::Cross => {
                self.line((x - size, y - size), (x + size, y + size), 2, 0.0)?;
                return self.line((x - size, y + size), (x + size, y - size), 2, 0.0);
            }
            Mark::Square => {
                vec![(x - size, y - size), (x + size, y - size), (x + size, y + size), (x - size, y + size)]
            }
            Mark::Triangle => vec![(x, y - size - 1), (x + size + 1, y + size), (x - size - 1, y + size)],
            Mark::Diamond => vec![(x, y - size - 2), (x + size + 2, y), (x, y + size + 2), (x - size - 2, y)],
        };
        let inside = if look.filled { BLACK } else { WHITE };
        self.0.draw(&Polygon::new(corners.clone(), inside.filled())).map_err(failed)?;
        let outline: Vec<(i32, i32)> = corners.iter().chain(corners.first()).copied().collect();
        self.0.draw(&PathElement::new(outline, BLACK.stroke_width(2))).map_err(failed)
    }
}
