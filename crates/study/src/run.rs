//! Carries a plan out: what is missing is computed, each thing once, and everything becomes [`Results`].
//!
//! All work is listed before any is done, so that a plan that cannot be carried out is refused first and the time that
//! is left can be told. Ballots come before what is evaluated with them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use fedprune_checkpoint::Checkpoint;
use fedprune_mask::{Digest, Group};
use fedprune_model::Decoder;
use fedprune_prune::Recipe;

use crate::bench::{Bench, SiloWindows, Source, uses_text};
use crate::error::StudyError;
use crate::opened::Opened;
use crate::plan::Plan;
use crate::results::{Method, ModelResults, Profile, Record, Results, Scaling, Silos, Strategy};
use crate::store::{Measured, Store};

/// How often results are handed out while a study runs.
const RESULTS_EVERY: Duration = Duration::from_secs(60);

/// How far a study is.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// What is being done.
    pub what: String,
    /// Work done since the last call: tokens through a block, times the block's weights, in units of 1024.
    pub advanced: u64,
    /// Work in all, that of earlier runs not counted.
    pub total: u64,
}

/// What a run needs besides its plan.
pub struct RunOptions<'a> {
    /// Where everything that is measured is kept.
    pub folder: &'a Path,
    /// Program that measures, as it is named in the results.
    pub program: &'a str,
    /// Opens the decoder of a model for windows of so many tokens.
    pub decoder: &'a dyn Fn(&Checkpoint, usize) -> Result<Decoder, StudyError>,
    /// Told what happens; an error ends the work.
    pub progress: &'a dyn Fn(Progress) -> Result<(), StudyError>,
    /// Given what there is, now and then and at the end.
    pub results: &'a dyn Fn(&Results) -> Result<(), StudyError>,
}

/// Work that evaluations rest on.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Vote {
    /// One silo's ballot.
    Silo(u64, Silos, usize),
    /// The ballot of all silos' text in one place.
    Centralized(u64, Silos),
    /// All ballots of an iterative federation.
    Heights(u64, Silos, Group),
}

/// As [`Source`], with what it needs.
#[derive(Debug, Clone, PartialEq)]
enum Wanted {
    Dense,
    Own(Digest),
    Tally { votes: Vec<Digest>, global_group: Group, support: bool, profile: bool },
    Heights { id: Digest, silos: usize, global_group: Group },
}

impl Wanted {
    fn source(&self) -> Source<'_> {
        match self {
            Self::Dense => Source::Dense,
            Self::Own(vote) => Source::Own(*vote),
            Self::Tally { votes, global_group, support, profile } => {
                Source::Tally { votes, global_group: *global_group, support: *support, profile: *profile }
            }
            Self::Heights { id, silos, global_group } => {
                Source::Heights { id: *id, silos: *silos, global_group: *global_group }
            }
        }
    }

    /// Ids of the ballots that it rests on.
    fn votes(&self) -> &[Digest] {
        match self {
            Self::Dense => &[],
            Self::Own(id) | Self::Heights { id, .. } => std::slice::from_ref(id),
            Self::Tally { votes, .. } => votes,
        }
    }
}

/// A record that will be; its evaluations by id.
struct Planned {
    record: Record,
    evaluations: Vec<(Digest, Wanted)>,
}

/// Everything that is to be done with one model.
struct Work<'a> {
    plan: &'a Plan,
    opened: &'a Opened,
    votes: BTreeMap<Digest, Vote>,
    planned: Vec<Planned>,
}

/// Carries out a plan.
///
/// # Errors
/// [`StudyError`]; what was measured before is kept, and the same call goes on.
pub fn run(plan: &Plan, options: &RunOptions<'_>) -> Result<Results, StudyError> {
    let mut models = Vec::new();
    for model in &plan.models {
        models.push(Opened::open(plan, model, options)?);
    }
    let mut store = Store::open(options.folder)?;
    let works: Vec<Work<'_>> = models.iter().map(|opened| Work::list(plan, opened)).collect();
    let total = works.iter().map(|work| work.missing_units(&store)).sum();
    let mut told = Instant::now();
    for work in &works {
        work.carry_out(&mut store, total, options, &mut |store| {
            if told.elapsed() >= RESULTS_EVERY {
                told = Instant::now();
                (options.results)(&assemble(plan, &works, store, options.program)?)?;
            }
            Ok(())
        })?;
    }
    let results = assemble(plan, &works, &store, options.program)?;
    (options.results)(&results)?;
    Ok(results)
}

/// What is left to do of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Models to evaluate.
    pub evaluations: usize,
    /// Ballots to compute, one for all of an iterative federation.
    pub votes: usize,
    /// Work, in units of [`Progress`].
    pub units: u64,
}

/// Checks that a plan can be carried out, and says what is left to do.
///
/// # Errors
/// [`StudyError`], as [`run`] has before it computes anything.
pub fn check(plan: &Plan, options: &RunOptions<'_>) -> Result<Left, StudyError> {
    let mut left = Left { evaluations: 0, votes: 0, units: 0 };
    let mut opened = Vec::new();
    for model in &plan.models {
        opened.push(Opened::open(plan, model, options)?);
    }
    let store = Store::open(options.folder)?;
    for opened in &opened {
        let work = Work::list(plan, opened);
        left.votes += work.votes.keys().filter(|id| !work.has_vote(&store, **id)).count();
        left.evaluations += work.missing_evaluations(&store);
        left.units += work.missing_units(&store);
    }
    Ok(left)
}

/// What there is so far.
fn assemble(plan: &Plan, works: &[Work<'_>], store: &Store, program: &str) -> Result<Results, StudyError> {
    let mut complete = true;
    let mut models = Vec::new();
    for work in works {
        models.push(work.results(store, &mut complete)?);
    }
    Ok(Results {
        study: plan.name.clone(),
        program: program.to_owned(),
        texts: plan.silos.iter().map(|silo| silo.value.name.clone()).collect(),
        sequence_tokens: plan.sequence_tokens,
        seeds: plan.seeds.clone(),
        complete,
        seconds: store.seconds(),
        models,
    })
}

fn recipe(from: &Silos) -> Recipe {
    Recipe { pruner: from.pruner, group: from.local_group, sparsity: from.sparsity }
}

impl<'a> Work<'a> {
    /// Lists everything, each thing once.
    fn list(plan: &'a Plan, opened: &'a Opened) -> Self {
        let mut work = Self { plan, opened, votes: BTreeMap::new(), planned: Vec::new() };
        let bench = opened.bench(&|_| Ok(()));
        work.add(&bench, Method::Dense, None, None, None, vec![Wanted::Dense]);
        for point in &plan.points {
            for seed in &plan.seeds {
                let (from, together) = (point.from, point.together);
                let windows: Vec<SiloWindows> =
                    (0..from.silos).map(|silo| opened.windows(plan, *seed, silo, &from)).collect();
                let votes: Vec<Digest> = windows.iter().map(|windows| bench.vote_id(windows, recipe(&from))).collect();
                if point.baselines || together.strategy == Strategy::OneShot {
                    for (silo, id) in votes.iter().enumerate() {
                        work.votes.entry(*id).or_insert(Vote::Silo(*seed, from, silo));
                    }
                }
                if point.baselines {
                    let own = votes.iter().map(|vote| Wanted::Own(*vote)).collect();
                    work.add(&bench, Method::Local, Some(from), None, Some(*seed), own);
                    let all = bench.vote_id(&SiloWindows::joined(&windows), recipe(&from));
                    work.votes.entry(all).or_insert(Vote::Centralized(*seed, from));
                    work.add(&bench, Method::Centralized, Some(from), None, Some(*seed), vec![Wanted::Own(all)]);
                }
                let wanted = match together.strategy {
                    Strategy::OneShot => {
                        let support = together.scaling == Scaling::Support;
                        let whole = matches!(together.global_group, Group::Layer | Group::NofM { .. });
                        let first = plan.seeds.first() == Some(seed);
                        let profile = whole && first && !support && uses_text(from.pruner);
                        Wanted::Tally { votes, global_group: together.global_group, support, profile }
                    }
                    Strategy::Iterative => {
                        let silos: Vec<&SiloWindows> = windows.iter().collect();
                        let id = bench.heights_id(&silos, recipe(&from), together.global_group);
                        work.votes.entry(id).or_insert(Vote::Heights(*seed, from, together.global_group));
                        Wanted::Heights { id, silos: from.silos, global_group: together.global_group }
                    }
                };
                work.add(&bench, Method::Federated, Some(from), Some(together), Some(*seed), vec![wanted]);
            }
        }
        work
    }

    fn add(
        &mut self,
        bench: &Bench<'_>,
        method: Method,
        from: Option<Silos>,
        together: Option<crate::results::Together>,
        seed: Option<u64>,
        wanted: Vec<Wanted>,
    ) {
        let same = |planned: &Planned| {
            let known = &planned.record;
            (known.method, known.from, known.together, known.seed) == (method, from, together, seed)
        };
        if self.planned.iter().any(same) {
            return;
        }
        let record = Record {
            method,
            from,
            together,
            seed,
            perplexity: f64::NAN,
            perplexity_range: None,
            ballot_bytes: None,
            mask_root: None,
        };
        let evaluations = wanted.into_iter().map(|wanted| (bench.evaluation_id(wanted.source()), wanted)).collect();
        self.planned.push(Planned { record, evaluations });
    }

    /// Tokens through a block that computing these ballots takes.
    fn vote_tokens(&self, vote: Vote) -> u64 {
        let (blocks, window) = (self.opened.blocks() as u64, self.plan.sequence_tokens as u64);
        let (silos, from, blocks) = match vote {
            Vote::Silo(_, from, _) => (1, from, 2 * blocks - 1),
            Vote::Centralized(_, from) => (from.silos as u64, from, 2 * blocks - 1),
            Vote::Heights(_, from, _) => (from.silos as u64, from, 2 * blocks),
        };
        if uses_text(from.pruner) { silos * from.samples as u64 * window * blocks } else { 0 }
    }

    fn has_vote(&self, store: &Store, id: Digest) -> bool {
        match self.votes.get(&id) {
            Some(Vote::Heights(_, from, _)) => {
                store.height_vote(id, self.opened.blocks().saturating_sub(1), from.silos - 1).exists()
            }
            _ => store.vote(id).exists(),
        }
    }

    /// Work that was not done yet.
    fn missing_units(&self, store: &Store) -> u64 {
        let votes = self.votes.iter().filter(|(id, _)| !self.has_vote(store, **id));
        let votes: u64 = votes.map(|(_, vote)| self.vote_tokens(*vote)).sum();
        let evaluation = self.opened.evaluation_tokens() * (self.opened.blocks() as u64 + 1);
        self.opened.units(votes.saturating_add(evaluation.saturating_mul(self.missing_evaluations(store) as u64)))
    }

    /// How many models were not evaluated yet.
    fn missing_evaluations(&self, store: &Store) -> usize {
        let all = self.planned.iter().flat_map(|planned| planned.evaluations.iter().map(|(id, _)| *id));
        all.filter(|id| store.measured(*id).is_none()).collect::<BTreeSet<Digest>>().len()
    }

    /// Does what is missing; `after` is called after each evaluation.
    fn carry_out(
        &self,
        store: &mut Store,
        total: u64,
        options: &RunOptions<'_>,
        after: &mut dyn FnMut(&Store) -> Result<(), StudyError>,
    ) -> Result<(), StudyError> {
        for planned in &self.planned {
            let what = describe(&planned.record);
            let progress = |tokens: u64| {
                (options.progress)(Progress { what: what.clone(), advanced: self.opened.units(tokens), total })
            };
            let bench = self.opened.bench(&progress);
            for (id, wanted) in &planned.evaluations {
                if store.measured(*id).is_some() {
                    continue;
                }
                for vote in wanted.votes() {
                    self.ensure(&bench, store, *vote)?;
                }
                let started = Instant::now();
                let evaluated = bench.evaluate(store, wanted.source())?;
                store.keep(Measured {
                    id: *id,
                    perplexity: evaluated.perplexity,
                    mask_root: evaluated.mask_root,
                    profile: evaluated.profile,
                    seconds: started.elapsed().as_secs_f64(),
                })?;
                after(store)?;
            }
        }
        Ok(())
    }

    /// Computes ballots that are not there yet.
    fn ensure(&self, bench: &Bench<'_>, store: &mut Store, id: Digest) -> Result<(), StudyError> {
        let Some(vote) = self.votes.get(&id).filter(|_| !self.has_vote(store, id)) else { return Ok(()) };
        let started = Instant::now();
        let windows = |seed: u64, from: &Silos| -> Vec<SiloWindows> {
            (0..from.silos).map(|silo| self.opened.windows(self.plan, seed, silo, from)).collect()
        };
        match vote {
            Vote::Silo(seed, from, silo) => {
                bench.vote(store, &self.opened.windows(self.plan, *seed, *silo, from), recipe(from))?;
            }
            Vote::Centralized(seed, from) => {
                bench.vote(store, &SiloWindows::joined(&windows(*seed, from)), recipe(from))?;
            }
            Vote::Heights(seed, from, global_group) => {
                let windows = windows(*seed, from);
                bench.heights(store, &windows.iter().collect::<Vec<_>>(), recipe(from), *global_group)?;
            }
        }
        store.voted(id, started.elapsed().as_secs_f64())
    }

    /// The records whose evaluations are there; `complete` turns false if some are not.
    fn results(&self, store: &Store, complete: &mut bool) -> Result<ModelResults, StudyError> {
        let bench = self.opened.bench(&|_| Ok(()));
        let (mut records, mut profiles) = (Vec::new(), Vec::new());
        for planned in &self.planned {
            let measured: Option<Vec<&Measured>> =
                planned.evaluations.iter().map(|(id, _)| store.measured(*id)).collect();
            let Some(measured) = measured.filter(|measured| !measured.is_empty()) else {
                *complete = false;
                continue;
            };
            let mut record = planned.record.clone();
            let all = || measured.iter().map(|measured| measured.perplexity);
            record.perplexity = all().sum::<f64>() / measured.len() as f64;
            if record.method == Method::Local {
                record.perplexity_range =
                    Some((all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max)));
            } else {
                record.mask_root = measured.first().and_then(|measured| measured.mask_root);
            }
            if let (Method::Federated, Some((_, wanted))) = (record.method, planned.evaluations.first()) {
                let bytes = bench.ballot_bytes(store, wanted.source())?;
                record.ballot_bytes = Some(bytes.iter().sum::<u64>() as f64 / bytes.len().max(1) as f64);
            }
            let profile = measured.first().and_then(|measured| measured.profile.clone());
            if let (Some(from), Some(together), Some(seed), Some(matrices)) =
                (record.from, record.together, record.seed, profile)
            {
                profiles.push(Profile { from, global_group: together.global_group, seed, matrices });
            }
            records.push(record);
        }
        let (model, evaluation) = self.opened.facts();
        Ok(ModelResults { model, evaluation, records, profiles })
    }
}

/// What is being measured, for people.
fn describe(record: &Record) -> String {
    let method = match record.method {
        Method::Dense => return "dense".to_owned(),
        Method::Local => "each silo alone",
        Method::Centralized => "centralized",
        Method::Federated => "federated",
    };
    let from = record.from.map_or_else(String::new, |from| {
        format!("{}, {} {} of {} silos", from.sparsity, from.pruner, from.local_group, from.silos)
    });
    let seed = record.seed.map_or_else(String::new, |seed| format!(", seed {seed}"));
    format!("{method}, {from}{seed}")
}
