//! Pictures of results, as SVG and PNG: each from one drawing, in black and white, and the same for the same results.

mod chart;
mod png;
#[cfg(test)]
mod tests;

use crate::cells::{Cell, Spread, cells, main_silos, same_text};
use crate::results::{MatrixProfile, Method, ModelResults, Results, Scaling, Silos, Split, Strategy};
use chart::{Axis, Chart, Point, Series};
pub use fedprune_figures::FigureError;
use fedprune_figures::canvas::{Look, Mark};
use fedprune_figures::heat;
use fedprune_mask::Group;

/// A picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// Name of its files, without ending.
    pub name: String,
    /// What it shows.
    pub caption: String,
    /// As a drawing.
    pub svg: String,
    /// As pixels.
    pub png: Vec<u8>,
}

/// Draws every figure that the results have something for.
///
/// # Errors
/// [`FigureError`].
pub fn draw(results: &Results) -> Result<Vec<Figure>, FigureError> {
    let mut figures = Vec::new();
    let several = results.models.len() > 1;
    for (number, model) in results.models.iter().enumerate() {
        let prefix = if several { format!("{}-", number + 1) } else { String::new() };
        let mut add = |name: &str, caption: String, svg: Option<String>| -> Result<(), FigureError> {
            if let Some(svg) = svg {
                figures.push(Figure { name: format!("{prefix}{name}"), caption, png: png::png(&svg)?, svg });
            }
            Ok(())
        };
        let all = cells(model);
        let Some(main) = main_silos(model) else { continue };
        let title = |what: &str| format!("{what}: {}", model.model.name);
        let text = text_of(&main);
        let (measured, bars) = (measured_on(model), "error bars: ± one standard deviation over the seeds");
        add(
            "perplexity-by-sparsity",
            format!(
                "Perplexity on {measured} by sparsity and method; {text}, local group row, global group layer; {bars}."
            ),
            by_sparsity(&title("Perplexity by sparsity and method"), &all, &main)?,
        )?;
        add(
            "perplexity-by-pruner",
            format!(
                "Perplexity on {measured} of the federated model by sparsity and pruner; {text}, local group row, global group layer; {bars}."
            ),
            by_pruner(&title("Perplexity by sparsity and pruner"), &all, &main)?,
        )?;
        add(
            "perplexity-by-silos",
            format!("Perplexity on {measured} by number of silos, {} calibration windows each; {bars}.", main.samples),
            curve(&title("Perplexity by number of silos"), "silos", &all, &main, |from| {
                (from.samples == main.samples).then_some((from.silos, Some(from.split)))
            })?,
        )?;
        add(
            "perplexity-by-samples",
            format!("Perplexity on {measured} by calibration windows of each of {} silos; {bars}.", main.silos),
            curve(
                &title("Perplexity by calibration windows of a silo"),
                "calibration windows of a silo",
                &all,
                &main,
                |from| (from.silos == main.silos && from.split == main.split).then_some((from.samples, None)),
            )?,
        )?;
        let profile = model
            .profiles
            .iter()
            .find(|profile| same_text(&profile.from, &main) && profile.from.local_group == Group::Row)
            .or(model.profiles.first());
        if let Some(profile) = profile {
            let of = format!(
                "{} of {}, local group {}, sparsity {}, seed {}",
                profile.from.pruner,
                text_of(&profile.from),
                profile.from.local_group,
                profile.from.sparsity,
                profile.seed
            );
            let cells_of = |share: fn(&MatrixProfile) -> f64| {
                let matrices = profile.matrices.iter();
                matrices.map(|of| heat::Cell { block: of.block, kind: &of.kind, share: share(of) }).collect::<Vec<_>>()
            };
            add(
                "agreement",
                format!(
                    "Share of weights on which two silos agree, mean over pairs of silos, by block and layer type; {of}."
                ),
                heat::map(&title("Agreement between silos, %"), &cells_of(|matrix| matrix.agreement))?,
            )?;
            add(
                "energy-lost",
                format!(
                    "Share of the output's energy that the global mask takes, were the inputs uncorrelated, by block and \
                     layer type; {of}."
                ),
                heat::map(&title("Output energy lost, %"), &cells_of(|matrix| matrix.energy_lost))?,
            )?;
        }
    }
    Ok(figures)
}

/// Whose text, in words.
fn text_of(from: &Silos) -> String {
    let split = match from.split {
        Split::Different => "different",
        Split::Identical => "identical",
    };
    format!("{} silos with {split} text, {} windows each", from.silos, from.samples)
}

/// What perplexity is measured on, in words.
pub(crate) fn measured_on(model: &ModelResults) -> String {
    let files = model.evaluation.files.iter().take(4).map(|file| format!("`{file}`")).collect::<Vec<_>>().join(", ");
    format!("{files} ({} windows of {} tokens)", model.evaluation.windows, model.evaluation.sequence_tokens)
}

/// Which federations a figure is of.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Dense,
    Local,
    Centralized,
    Federated(Scaling, Strategy),
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Dense,
        Self::Local,
        Self::Centralized,
        Self::Federated(Scaling::None, Strategy::OneShot),
        Self::Federated(Scaling::Support, Strategy::OneShot),
        Self::Federated(Scaling::None, Strategy::Iterative),
    ];

    /// Of a cell, if its global group is the main one.
    fn of(cell: &Cell) -> Option<Self> {
        Some(match (cell.key.method, cell.key.together) {
            (Method::Dense, _) => Self::Dense,
            (Method::Local, _) => Self::Local,
            (Method::Centralized, _) => Self::Centralized,
            (Method::Federated, Some(together)) => {
                if !matches!(together.global_group, Group::Layer | Group::NofM { .. }) {
                    return None;
                }
                Self::Federated(together.scaling, together.strategy)
            }
            (Method::Federated, None) => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Local => "one silo alone (mean)",
            Self::Centralized => "centralized",
            Self::Federated(Scaling::None, Strategy::OneShot) => "federated",
            Self::Federated(Scaling::Support, _) => "federated, scaled",
            Self::Federated(_, Strategy::Iterative) => "federated, iterative",
        }
    }

    fn look(self) -> Look {
        let look = |mark, filled, dashes| Look { mark, filled, dashes: Some(dashes) };
        match self {
            Self::Dense => Look { mark: Mark::None, filled: true, dashes: Some(&[2, 4]) },
            Self::Local => look(Mark::Triangle, false, &[8, 5]),
            Self::Centralized => look(Mark::Square, false, &[2, 4]),
            Self::Federated(Scaling::None, Strategy::OneShot) => look(Mark::Circle, true, &[]),
            Self::Federated(Scaling::Support, _) => look(Mark::Cross, true, &[12, 4, 2, 4]),
            Self::Federated(_, Strategy::Iterative) => look(Mark::Diamond, false, &[12, 4]),
        }
    }
}

/// Sparsities in the order of their size, patterns after fractions, as they are called.
fn sparsities(all: &[Cell], main: &Silos) -> Vec<(String, f64)> {
    let mut found: Vec<(String, f64)> = Vec::new();
    for from in all.iter().filter_map(|cell| cell.key.from).filter(|from| same_text(from, main)) {
        let pattern = matches!(from.local_group, Group::NofM { .. });
        let name = if pattern { from.local_group.to_string() } else { from.sparsity.to_string() };
        let order = from.sparsity.as_f64() + if pattern { 1.0 } else { 0.0 };
        if !found.iter().any(|(known, _)| *known == name) {
            found.push((name, order));
        }
    }
    found.sort_by(|(one_name, one), (other_name, other)| {
        one.total_cmp(other).then(other_name.len().cmp(&one_name.len())).then(one_name.cmp(other_name))
    });
    found
}

/// Where a cell lies among the sparsities.
fn place(cell: &Cell, names: &[(String, f64)]) -> Option<usize> {
    let from = cell.key.from?;
    let name = match from.local_group {
        Group::NofM { .. } => from.local_group.to_string(),
        _ => from.sparsity.to_string(),
    };
    names.iter().position(|(known, _)| *known == name)
}

/// Fractions, a gap, patterns.
fn names_axis(names: Vec<(String, f64)>) -> Axis {
    let gap = names.iter().filter(|(name, _)| !name.contains(':')).count();
    Axis::Names { names: names.into_iter().map(|(name, _)| name).collect(), gap }
}

fn row_or_pattern(cell: &Cell) -> bool {
    cell.key.from.is_some_and(|from| matches!(from.local_group, Group::Row | Group::NofM { .. }))
}

/// Perplexity by sparsity: a series for each method.
fn by_sparsity(title: &str, all: &[Cell], main: &Silos) -> Result<Option<String>, FigureError> {
    let names = sparsities(all, main);
    let dense = all.iter().find(|cell| cell.key.method == Method::Dense).map(|cell| cell.perplexity);
    let mut series = Vec::new();
    for kind in Kind::ALL {
        let points: Vec<Point> = match (kind, dense) {
            (Kind::Dense, Some(dense)) => (0..names.len()).map(|at| Point::of(at as f64, dense)).collect(),
            _ => {
                let mut points = Vec::new();
                let of_main = |cell: &&Cell| {
                    let from = cell.key.from.filter(|from| same_text(from, main) && from.pruner == main.pruner);
                    from.is_some() && row_or_pattern(cell) && Kind::of(cell) == Some(kind)
                };
                for cell in all.iter().filter(of_main) {
                    points.extend(place(cell, &names).map(|at| Point::of(at as f64, cell.perplexity)));
                }
                points
            }
        };
        series.push(Series { name: kind.name().to_owned(), look: kind.look(), points });
    }
    let magnitude = all.iter().filter(|cell| {
        let from = cell.key.from.filter(|from| same_text(from, main) && from.pruner.to_string() == "magnitude");
        from.is_some_and(|from| from.pruner != main.pruner)
            && row_or_pattern(cell)
            && Kind::of(cell) == Some(Kind::Federated(Scaling::None, Strategy::OneShot))
    });
    let points = magnitude.filter_map(|cell| Some(Point::of(place(cell, &names)? as f64, cell.perplexity))).collect();
    let look = Look { mark: Mark::Square, filled: true, dashes: Some(&[4, 4]) };
    series.push(Series { name: "magnitude (no text)".to_owned(), look, points });
    let x = names_axis(names);
    Chart { title: title.to_owned(), x_title: "sparsity".to_owned(), x, series }.draw()
}

/// Perplexity of the federated model by sparsity: a series for each pruner.
fn by_pruner(title: &str, all: &[Cell], main: &Silos) -> Result<Option<String>, FigureError> {
    let names = sparsities(all, main);
    let looks = [
        Look { mark: Mark::Circle, filled: true, dashes: Some(&[]) },
        Look { mark: Mark::Square, filled: false, dashes: Some(&[8, 5]) },
        Look { mark: Mark::Triangle, filled: false, dashes: Some(&[2, 4]) },
        Look { mark: Mark::Diamond, filled: true, dashes: Some(&[12, 4]) },
    ];
    let mut pruners: Vec<String> = Vec::new();
    for from in all.iter().filter_map(|cell| cell.key.from) {
        if !pruners.contains(&from.pruner.to_string()) {
            pruners.push(from.pruner.to_string());
        }
    }
    if pruners.len() < 2 {
        return Ok(None);
    }
    let mut series = Vec::new();
    for (pruner, look) in pruners.iter().zip(looks) {
        let wanted = all.iter().filter(|cell| {
            let from = cell.key.from.filter(|from| same_text(from, main));
            from.is_some_and(|from| from.pruner.to_string() == *pruner)
                && row_or_pattern(cell)
                && Kind::of(cell) == Some(Kind::Federated(Scaling::None, Strategy::OneShot))
        });
        let points = wanted.filter_map(|cell| Some(Point::of(place(cell, &names)? as f64, cell.perplexity))).collect();
        series.push(Series { name: pruner.clone(), look, points });
    }
    let x = names_axis(names);
    Chart { title: title.to_owned(), x_title: "sparsity".to_owned(), x, series }.draw()
}

/// Perplexity by a number, for the sparsity that most points have: a series for each method and split.
fn curve(
    title: &str,
    x_title: &str,
    all: &[Cell],
    main: &Silos,
    number: impl Fn(&Silos) -> Option<(usize, Option<Split>)>,
) -> Result<Option<String>, FigureError> {
    let of = |cell: &Cell| {
        let from = cell.key.from.filter(|from| {
            let same = (from.pruner, from.local_group) == (main.pruner, main.local_group);
            same && from.sparsity == main.sparsity
        })?;
        number(&from)
    };
    let mut splits: Vec<Option<Split>> = Vec::new();
    for (_, split) in all.iter().filter_map(of) {
        if !splits.contains(&split) {
            splits.push(split);
        }
    }
    let mut series = Vec::new();
    let mut numbers: Vec<usize> = Vec::new();
    for kind in [Kind::Local, Kind::Centralized, Kind::Federated(Scaling::None, Strategy::OneShot)] {
        for split in &splits {
            let mut points: Vec<Point> = Vec::new();
            for cell in all.iter().filter(|cell| Kind::of(cell) == Some(kind)) {
                if let Some((at, _)) = of(cell).filter(|(_, of)| of == split) {
                    points.push(Point::of(at as f64, cell.perplexity));
                    numbers.push(at);
                }
            }
            points.sort_by(|one, other| one.x.total_cmp(&other.x));
            let mut look = kind.look();
            let mut name = kind.name().to_owned();
            if splits.len() > 1 {
                let identical = *split == Some(Split::Identical);
                name.push_str(if identical { ", identical text" } else { ", different text" });
                look.filled = !identical;
                look.dashes = Some(if identical { &[3, 5] } else { &[] });
            }
            series.push(Series { name, look, points });
        }
    }
    numbers.sort_unstable();
    numbers.dedup();
    if numbers.len() < 2 {
        return Ok(None);
    }
    let title = format!("{title}, sparsity {}", main.sparsity);
    Chart { title, x_title: x_title.to_owned(), x: Axis::Powers(numbers), series }.draw()
}

impl Point {
    fn of(x: f64, spread: Spread) -> Self {
        Self { x, y: spread.mean, deviation: spread.deviation }
    }
}
