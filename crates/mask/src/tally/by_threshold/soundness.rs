//! Whether thresholds that ballots carried keep the budget and are the ones that their masks are written with.

use rayon::prelude::*;

use super::Ties;
use crate::ballot::Carried;
use crate::thresholds::band::{Band, STRIP_COLUMNS};
use crate::vector::vectorized;

/// Whether all of them do.
pub(super) fn are_sound(all: &[&Carried], band: &Band, ties: &Ties, budget: u64) -> bool {
    let columns = band.columns();
    let task_columns = columns.div_ceil(4 * rayon::current_num_threads()).next_multiple_of(STRIP_COLUMNS);
    let tasks: Vec<usize> = (0..columns).step_by(task_columns).collect();
    let below_levels = tasks
        .into_par_iter()
        .map(|first| {
            vectorized(
                #[inline(always)]
                || pruned_within(all, band, first, (first + task_columns).min(columns)),
            )
        })
        .try_reduce(
            || vec![0; all.len()],
            |mut all, part| {
                all.iter_mut().zip(part).for_each(|(all, part)| *all += part);
                Some(all)
            },
        );
    let Some(below_levels) = below_levels else { return false };
    let is_sound = |(carried, below): (&&Carried, &u64)| {
        pruned_by_split(carried, ties).is_some_and(|pruned| band.below() + below + pruned == budget)
    };
    all.par_iter().zip(&below_levels).all(is_sound)
}

/// Of each ballot the weights below its thresholds in the ranges of some columns; none where a threshold is not the one to be
/// written.
#[inline(always)]
fn pruned_within(all: &[&Carried], band: &Band, first: usize, end: usize) -> Option<Vec<u64>> {
    let mut pruned = vec![0u64; all.len()];
    let (mut from, mut at, mut to) = ([0; STRIP_COLUMNS], [0; STRIP_COLUMNS], [0; STRIP_COLUMNS]);
    let (mut asked_from, mut asked_to) = ([false; STRIP_COLUMNS], [false; STRIP_COLUMNS]);
    for first in (first..end).step_by(STRIP_COLUMNS) {
        let columns = STRIP_COLUMNS.min(end - first);
        let (asked_from, asked_to) = (&mut asked_from[..columns], &mut asked_to[..columns]);
        let (from, at, to) = (&mut from[..columns], &mut at[..columns], &mut to[..columns]);
        for (pruned, carried) in pruned.iter_mut().zip(all) {
            at.copy_from_slice(&carried.thresholds.levels[first..first + columns]);
            carried.witnesses(first, from, to);
            // where nothing is asked, both ends are the threshold
            asked_from.iter_mut().zip(&*from).zip(&*at).for_each(|((asked, from), at)| *asked = from < at);
            asked_to.iter_mut().zip(&*at).zip(&*to).for_each(|((asked, at), to)| *asked = at < to);
            [&mut *from, at, to].into_iter().for_each(|levels| band.before_all(first, levels));
            *pruned += at.iter().map(|before| u64::from(*before)).sum::<u64>();
            let is_unsure = |column: usize| {
                asked_from[column] & (from[column] == at[column]) | asked_to[column] & (at[column] == to[column])
            };
            // hardly ever: no column after the other before it is so
            if (0..columns).fold(false, |any, column| any | is_unsure(column)) {
                let unsure = (0..columns).fold(0, |bits, column| bits | u64::from(is_unsure(column)) << column);
                if !are_split(carried, first, unsure) {
                    return None;
                }
            }
        }
    }
    Some(pruned)
}

/// Whether all of some columns, bits from `first` on, belong to the split, whose thresholds are what its weights are.
fn are_split(carried: &Carried, first: usize, columns: u64) -> bool {
    let split = carried.thresholds.split.as_ref().map_or(&[][..], |split| &split.columns);
    (0..64).filter(|at| columns >> at & 1 == 1).all(|at| split.binary_search(&((first + at) as u32)).is_ok())
}

/// How many weights its split prunes; none unless each of its columns prunes some and keeps some, and the last one pruned is
/// one of them.
fn pruned_by_split(carried: &Carried, ties: &Ties) -> Option<u64> {
    let Some(split) = &carried.thresholds.split else { return Some(0) };
    let mut parts = vec![(false, false); split.columns.len()];
    let (mut pruned, mut ends_there) = (0, false);
    for &(index, cell) in &ties.places {
        let (column, magnitude) = ties.cells[cell as usize];
        if magnitude != split.magnitude {
            continue;
        }
        let Ok(at) = split.columns.binary_search(&column) else { continue };
        if index <= split.last {
            pruned += 1;
            parts[at].0 = true;
        } else {
            parts[at].1 = true;
        }
        ends_there |= index == split.last;
    }
    (ends_there && parts.iter().all(|(some, rest)| *some && *rest)).then_some(pruned)
}
