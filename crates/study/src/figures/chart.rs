//! Perplexity, on a logarithmic axis, by something: series of points with error bars, and a legend beside them.

use super::FigureError;
use fedprune_figures::canvas::{Anchor, Canvas, Look, Mark};

/// A mean with its standard deviation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    pub x: f64,
    pub y: f64,
    pub deviation: f64,
}

/// Points that belong together.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series {
    pub name: String,
    pub look: Look,
    pub points: Vec<Point>,
}

/// What points lie at.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Axis {
    /// Names; x counts them from 0. No line is drawn from a name before place `gap` to one from there on: they are
    /// of different kinds.
    Names { names: Vec<String>, gap: usize },
    /// Numbers in ascending order, on a logarithmic axis.
    Powers(Vec<usize>),
}

/// A chart.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chart {
    pub title: String,
    pub x_title: String,
    pub x: Axis,
    pub series: Vec<Series>,
}

const SIZE: (u32, u32) = (900, 480);
const LEFT: i32 = 90;
const RIGHT: i32 = 600;
const TOP: i32 = 50;
const BOTTOM: i32 = 410;
/// Perplexities above this are drawn at it: the axis would show nothing else.
const HIGHEST: f64 = 1e5;
/// Pixels between series at one x, so that their error bars do not cover each other.
const STEP: i32 = 9;

impl Chart {
    /// The drawing; none if there is nothing to draw.
    pub fn draw(&self) -> Result<Option<String>, FigureError> {
        let series: Vec<&Series> = self.series.iter().filter(|series| series.points.iter().any(drawable)).collect();
        let ends = series.iter().flat_map(|series| series.points.iter().filter(|point| drawable(point)));
        let ends = ends.flat_map(|point| [point.y - point.deviation, point.y + point.deviation]);
        let (mut least, mut largest) = (f64::INFINITY, 0.0f64);
        for end in ends.filter(|end| end.is_finite() && *end > 0.0) {
            least = least.min(end.min(HIGHEST));
            largest = largest.max(end.min(HIGHEST));
        }
        if series.is_empty() || least > largest {
            return Ok(None);
        }
        let (least, largest) = (least / 1.03, largest * 1.03);
        let height = |y: f64| {
            let share = (y.clamp(least, largest) / least).ln() / (largest / least).ln();
            BOTTOM - (share * f64::from(BOTTOM - TOP)).round() as i32
        };
        let svg = Canvas::draw(SIZE, |canvas| {
            canvas.text(&self.title, (LEFT, 22), 16, Anchor::Left)?;
            for (tick, label) in ticks(least, largest) {
                canvas.line((LEFT, height(tick)), (RIGHT, height(tick)), 1, 0.85)?;
                canvas.text(&label, (LEFT - 8, height(tick)), 13, Anchor::Right)?;
            }
            canvas.upright("perplexity (logarithmic)", (24, (TOP + BOTTOM) / 2), 14)?;
            for (x, label) in self.x_ticks() {
                canvas.line((x, BOTTOM), (x, BOTTOM + 6), 1, 0.0)?;
                canvas.text(&label, (x, BOTTOM + 18), 13, Anchor::Centre)?;
            }
            canvas.text(&self.x_title, ((LEFT + RIGHT) / 2, BOTTOM + 44), 14, Anchor::Centre)?;
            canvas.line((LEFT, TOP), (LEFT, BOTTOM), 1, 0.0)?;
            canvas.line((LEFT, BOTTOM), (RIGHT, BOTTOM), 1, 0.0)?;
            if let Some(x) = self.gap() {
                canvas.line((x, TOP), (x, BOTTOM), 1, 0.85)?;
            }
            let marked = series.iter().filter(|series| series.look.mark != Mark::None).count();
            let (mut place, middle) = (0, (marked as i32 - 1) / 2);
            for (number, series) in series.iter().enumerate() {
                let aside = if series.look.mark == Mark::None { 0 } else { (place - middle) * STEP };
                place += i32::from(series.look.mark != Mark::None);
                let mut points: Vec<(i32, &Point)> = series
                    .points
                    .iter()
                    .filter(|point| drawable(point))
                    .map(|point| (self.across(point.x) + aside, point))
                    .collect();
                points.sort_by(|(_, one), (_, other)| one.x.total_cmp(&other.x));
                if let Some(dashes) = series.look.dashes {
                    for line in self.lines(series, &points) {
                        let line: Vec<(i32, i32)> = line.iter().map(|(x, point)| (*x, height(point.y))).collect();
                        canvas.dashed(&line, dashes)?;
                    }
                }
                for (x, point) in points {
                    if point.deviation > 0.0 {
                        let (low, high) = (height(point.y - point.deviation), height(point.y + point.deviation));
                        canvas.line((x, low), (x, high), 1, 0.0)?;
                        canvas.line((x - 4, low), (x + 4, low), 1, 0.0)?;
                        canvas.line((x - 4, high), (x + 4, high), 1, 0.0)?;
                    }
                    canvas.mark(series.look, (x, height(point.y)))?;
                }
                let y = TOP + 12 + 28 * number as i32;
                if let Some(dashes) = series.look.dashes {
                    canvas.dashed(&[(RIGHT + 14, y), (RIGHT + 58, y)], dashes)?;
                }
                canvas.mark(series.look, (RIGHT + 36, y))?;
                canvas.text(&series.name, (RIGHT + 66, y), 13, Anchor::Left)?;
            }
            Ok(())
        });
        svg.map(Some)
    }

    /// The lines of a series: one, or two with a gap between names of different kinds. A series without marks is one
    /// value, drawn from end to end.
    fn lines<'p>(&self, series: &Series, points: &'p [(i32, &'p Point)]) -> Vec<Vec<(i32, &'p Point)>> {
        if series.look.mark == Mark::None {
            return points.first().map(|(_, point)| vec![(LEFT, *point), (RIGHT, *point)]).into_iter().collect();
        }
        let before = match &self.x {
            Axis::Names { gap, .. } => points.iter().filter(|(_, point)| point.x < *gap as f64).count(),
            Axis::Powers(_) => points.len(),
        };
        let (before, after) = points.split_at(before);
        [before, after].into_iter().filter(|line| line.len() > 1).map(<[_]>::to_vec).collect()
    }

    /// Where the gap between names of different kinds lies, in pixels.
    fn gap(&self) -> Option<i32> {
        match &self.x {
            Axis::Names { names, gap } if *gap > 0 && *gap < names.len() => Some(self.across(*gap as f64 - 0.5)),
            _ => None,
        }
    }

    /// Where an x lies, in pixels.
    fn across(&self, x: f64) -> i32 {
        let width = f64::from(RIGHT - LEFT);
        let share = match &self.x {
            Axis::Names { names, .. } => (x + 0.5) / names.len().max(1) as f64,
            Axis::Powers(numbers) => {
                let ends = numbers.first().zip(numbers.last()).map(|(first, last)| (*first as f64, *last as f64));
                let (first, last) = ends.unwrap_or((1.0, 2.0));
                0.08 + 0.84 * (x / first).ln() / (last / first).ln()
            }
        };
        LEFT + (share * width).round() as i32
    }

    fn x_ticks(&self) -> Vec<(i32, String)> {
        match &self.x {
            Axis::Names { names, .. } => {
                names.iter().enumerate().map(|(at, name)| (self.across(at as f64), name.clone())).collect()
            }
            Axis::Powers(numbers) => {
                numbers.iter().map(|number| (self.across(*number as f64), number.to_string())).collect()
            }
        }
    }
}

fn drawable(point: &Point) -> bool {
    point.x.is_finite() && point.y.is_finite() && point.y > 0.0 && point.deviation.is_finite()
}

/// Round numbers on a logarithmic axis, about six of them.
fn ticks(least: f64, largest: f64) -> Vec<(f64, String)> {
    let rounds: [&[f64]; 4] = [
        &[1.0],
        &[1.0, 2.0, 5.0],
        &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0],
        &[
            1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.2, 2.4, 2.6, 2.8, 3.0, 3.2, 3.4, 3.6, 3.8, 4.0,
            4.2, 4.4, 4.6, 4.8, 5.0, 5.5, 6.0, 6.5, 7.0, 7.5, 8.0, 8.5, 9.0, 9.5,
        ],
    ];
    let decades = least.log10().floor() as i32..=largest.log10().ceil() as i32;
    let of = |rounds: &[f64]| -> Vec<f64> {
        let all = decades.clone().flat_map(|decade| rounds.iter().map(move |round| round * 10f64.powi(decade)));
        all.filter(|tick| (least..=largest).contains(tick)).collect()
    };
    let mut chosen = rounds.iter().map(|rounds| of(rounds)).find(|ticks| ticks.len() >= 4).unwrap_or_default();
    if chosen.len() < 4 {
        // less than a few percent from end to end
        let step = 10f64.powf((largest - least).log10().floor());
        let step = if (largest - least) / step < 3.0 { step / 4.0 } else { step };
        let first = (least / step).ceil() as i64;
        chosen = (first..first + 40).map(|at| at as f64 * step).take_while(|tick| *tick <= largest).collect();
    }
    let every = chosen.len().div_ceil(9).max(1);
    let label = |tick: f64| {
        let text = format!("{tick:.3}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    chosen.into_iter().step_by(every).map(|tick| (tick, label(tick))).collect()
}
