//! One model on the bench: ballots of silos, global masks, perplexities.
//!
//! Every mask comes about as nodes make it: [`local_pass`] and [`BlockPass`] measure, [`encode_ballot`] writes what
//! would travel, [`Tally`] counts what it reads back. A model is never written: its blocks are pruned as they are
//! loaded. Memory holds one block, the ballots and the activations; of an iterative federation those of all silos.

use std::path::{Path, PathBuf};

use fedprune_checkpoint::Checkpoint;
use fedprune_mask::ballot::{Ballot, BallotHeader, Encodings, VoteHeader, encode_ballot};
use fedprune_mask::matrix_mask::mask_root;
use fedprune_mask::score::Pruner;
use fedprune_mask::tally::{Counts, Tally, Voter, support_factor};
use fedprune_mask::weights::MatricesFrom;
use fedprune_mask::{Digest, Group, Layout, MatrixMask, NormVector};
use fedprune_model::{Block, Choice, Decoder, perplexity};
use fedprune_prune::{BlockPass, LocalPass, Recipe, local_pass};

use crate::error::StudyError;
use crate::profile::profile_matrix;
use crate::results::MatrixProfile;
use crate::store::{Store, read};

/// Calibration windows of one silo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiloWindows {
    windows: Vec<Vec<u32>>,
    digest: Digest,
}

impl SiloWindows {
    /// Takes windows of token ids.
    pub fn new(windows: Vec<Vec<u32>>) -> Self {
        let mut hasher = blake3::Hasher::new();
        for window in &windows {
            hasher.update(&(window.len() as u64).to_le_bytes());
            window.iter().for_each(|token| {
                hasher.update(&token.to_le_bytes());
            });
        }
        Self { windows, digest: Digest(*hasher.finalize().as_bytes()) }
    }

    /// The windows.
    pub fn windows(&self) -> &[Vec<u32>] {
        &self.windows
    }

    /// Those of several silos as those of one.
    pub fn joined<'a>(all: impl IntoIterator<Item = &'a SiloWindows>) -> Self {
        Self::new(all.into_iter().flat_map(|silo| silo.windows.iter().cloned()).collect())
    }
}

/// Where the masks of an evaluated model come from.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// Nowhere: nothing is pruned.
    Dense,
    /// One ballot.
    Own(Digest),
    /// Ballots of a one-shot federation.
    Tally {
        /// Their ids.
        votes: &'a [Digest],
        /// Comparison group of the global mask.
        global_group: Group,
        /// Whether what stays is scaled by the share of silos that kept it.
        support: bool,
        /// Whether the mask is looked at matrix by matrix.
        profile: bool,
    },
    /// Ballots of an iterative federation.
    Heights {
        /// Its id.
        id: Digest,
        /// How many silos it has.
        silos: usize,
        /// Comparison group of the global mask.
        global_group: Group,
    },
}

/// What an evaluation found.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluated {
    /// e^(mean over windows of the mean token loss).
    pub perplexity: f64,
    /// The mask; none for the dense model.
    pub mask_root: Option<Digest>,
    /// The mask, matrix by matrix, where that was asked for.
    pub profile: Option<Vec<MatrixProfile>>,
}

/// A model, and what it is measured with.
pub struct Bench<'a> {
    /// The dense model.
    pub checkpoint: &'a Checkpoint,
    /// The decoder over it.
    pub decoder: &'a Decoder,
    /// Content digest of the model.
    pub model: Digest,
    /// Windows that perplexity is measured on.
    pub evaluation: &'a [Vec<u32>],
    /// Told how many tokens went through a block since the last call; an error ends the work.
    pub progress: &'a dyn Fn(u64) -> Result<(), StudyError>,
}

/// Builds the id of what follows from all that is added.
struct Id(blake3::Hasher);

impl Id {
    fn of(what: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"fedprune study v1\0");
        Self(hasher).with(what.as_bytes())
    }

    fn with(mut self, bytes: &[u8]) -> Self {
        self.0.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        self
    }

    fn done(self) -> Digest {
        Digest(*self.0.finalize().as_bytes())
    }
}

impl Bench<'_> {
    /// Id of the ballot that a silo casts; the same for all silos if the pruner looks at no text.
    pub fn vote_id(&self, silo: &SiloWindows, recipe: Recipe) -> Digest {
        let id = self.id("vote").with(recipe_name(recipe).as_bytes());
        if recipe.pruner.scorer().uses_norms() { id.with(&silo.digest.0).done() } else { id.done() }
    }

    /// Id of an iterative federation.
    pub fn heights_id(&self, silos: &[&SiloWindows], recipe: Recipe, global_group: Group) -> Digest {
        let id = self.id("heights").with(recipe_name(recipe).as_bytes()).with(global_group.to_string().as_bytes());
        silos.iter().fold(id, |id, silo| id.with(&silo.digest.0)).done()
    }

    /// Id of the evaluation of a model.
    pub fn evaluation_id(&self, source: Source<'_>) -> Digest {
        let windows = SiloWindows::new(self.evaluation.to_vec()).digest;
        let id = self.id("evaluation").with(&windows.0);
        match source {
            Source::Dense => id.with(b"dense").done(),
            Source::Own(vote) => id.with(b"own").with(&vote.0).done(),
            Source::Tally { votes, global_group, support, profile } => {
                let id = id.with(b"tally").with(global_group.to_string().as_bytes());
                let id = id.with(&[u8::from(support), u8::from(profile)]);
                votes.iter().fold(id, |id, vote| id.with(&vote.0)).done()
            }
            Source::Heights { id: heights, global_group, .. } => {
                id.with(b"heights").with(&heights.0).with(global_group.to_string().as_bytes()).done()
            }
        }
    }

    /// Everything measured depends on model and device.
    fn id(&self, what: &str) -> Id {
        let device = format!("{:?} {:?}", self.decoder.device().location(), self.decoder.dtype());
        Id::of(what).with(&self.model.0).with(device.as_bytes())
    }

    /// Computes and keeps the ballot of one silo.
    ///
    /// # Errors
    /// [`StudyError`]; nothing is kept then.
    pub fn vote(&self, store: &Store, silo: &SiloWindows, recipe: Recipe) -> Result<(), StudyError> {
        let inputs = LocalPass {
            checkpoint: self.checkpoint,
            decoder: Some(self.decoder),
            windows: &silo.windows,
            recipe,
            data_free: &[],
        };
        let (tokens, stopped) = (silo.windows.first().map_or(0, Vec::len) as u64, std::cell::RefCell::new(None));
        let mut before = 0;
        let outcome = local_pass(&inputs, None, |progress| {
            let more = progress.done.saturating_sub(before) * tokens;
            before = progress.done;
            if let Err(error) = (self.progress)(more) {
                stopped.borrow_mut().get_or_insert(error);
            }
        })?;
        if let Some(error) = stopped.into_inner() {
            return Err(error);
        }
        let layout = self.checkpoint.layout();
        let path = store.vote(self.vote_id(silo, recipe));
        self.write(store, &path, layout, 0, &self.header(silo, recipe, layout), &outcome.norms)
    }

    fn header(&self, silo: &SiloWindows, recipe: Recipe, layout: &Layout) -> VoteHeader {
        let uses_text = recipe.pruner.scorer().uses_norms();
        let (samples, tokens) = (silo.windows.len(), silo.windows.first().map_or(0, Vec::len));
        VoteHeader {
            model: self.model,
            layout: layout.digest(),
            pruner: recipe.pruner,
            group: recipe.group,
            sparsity: recipe.sparsity,
            samples: if uses_text { u32::try_from(samples).unwrap_or(u32::MAX) } else { 0 },
            sequence_tokens: if uses_text { u32::try_from(tokens).unwrap_or(u32::MAX) } else { 0 },
        }
    }

    fn write(
        &self,
        store: &Store,
        path: &Path,
        layout: &Layout,
        first: usize,
        header: &VoteHeader,
        norms: &[NormVector],
    ) -> Result<(), StudyError> {
        let weights = MatricesFrom { source: self.checkpoint, first };
        store.create(path, |writer| {
            encode_ballot(header, layout, norms, Encodings::Auto, &weights, &mut |bytes| writer.write_all(bytes))
                .map(|_| ())
                .map_err(StudyError::from)
        })
    }

    /// Computes and keeps the ballots of an iterative federation, block by block.
    ///
    /// # Errors
    /// [`StudyError`]; the heights that were finished are kept.
    pub fn heights(
        &self,
        store: &Store,
        silos: &[&SiloWindows],
        recipe: Recipe,
        global_group: Group,
    ) -> Result<(), StudyError> {
        let (id, layout) = (self.heights_id(silos, recipe, global_group), self.checkpoint.layout());
        let uses_text = recipe.pruner.scorer().uses_norms();
        let mut passes = Vec::new();
        for silo in silos.iter().filter(|_| uses_text) {
            passes.push(BlockPass::new(self.checkpoint, self.decoder, &silo.windows, |_| ())?);
        }
        for block in 0..layout.blocks() {
            let block_layout = block_layout(layout, block);
            let first = layout.block(block).start;
            for (number, silo) in silos.iter().enumerate() {
                let path = store.height_vote(id, block, number);
                if path.exists() {
                    continue;
                }
                let norms = match passes.get_mut(number) {
                    Some(pass) => {
                        let norms = pass.measure()?.norms;
                        pass.unload();
                        (self.progress)(tokens_of(silo))?;
                        norms
                    }
                    None => block_layout.taps().iter().map(|_| NormVector::default()).collect(),
                };
                self.write(store, &path, &block_layout, first, &self.header(silo, recipe, &block_layout), &norms)?;
            }
            let files = height_files(store, id, block, silos.len())?;
            let tally = tally_of(&files, &block_layout, global_group)?;
            let masks: Vec<MatrixMask> = layout
                .block(block)
                .enumerate()
                .map(|(position, index)| Ok(tally.mask(position, self.checkpoint.matrix(index))?))
                .collect::<Result<_, StudyError>>()?;
            for (pass, silo) in passes.iter_mut().zip(silos) {
                pass.advance(&masks)?;
                (self.progress)(tokens_of(silo))?;
            }
        }
        Ok(())
    }

    /// Measures the perplexity of the model that these masks make.
    ///
    /// # Errors
    /// [`StudyError`]: a kept ballot that is damaged, or the decoder's.
    pub fn evaluate(&self, store: &Store, source: Source<'_>) -> Result<Evaluated, StudyError> {
        let layout = self.checkpoint.layout();
        let loaded = Loaded::open(store, source, layout)?;
        let masks = loaded.parse(source, layout)?;
        let mut digests: Vec<Option<Digest>> = vec![None; layout.matrices().len()];
        let mut profile: Option<Vec<MatrixProfile>> =
            matches!(source, Source::Tally { profile: true, .. }).then(Vec::new);
        let mut after_load = |block: usize, loaded: &mut Block| -> Result<(), StudyError> {
            if let Some(chosen) = masks.chosen(self.checkpoint, block, loaded)? {
                let known = digests.get_mut(layout.block(block)).into_iter().flatten();
                known.zip(&chosen).for_each(|(known, mask)| *known = Some(mask.digest()));
                return Ok(());
            }
            for (position, index) in layout.block(block).enumerate() {
                let Some((mask, counts, norms)) = masks.matrix(self.checkpoint, block, position, index)? else { break };
                if let Some(counts) = counts.as_ref().filter(|_| matches!(source, Source::Tally { support: true, .. }))
                {
                    let total = counts.total();
                    let factors: Vec<f32> =
                        counts.to_vec().into_iter().map(|count| support_factor(count, total)).collect();
                    loaded.scale(position, &factors)?;
                }
                loaded.prune(position, &mask)?;
                let known = digests.get_mut(index).and_then(|known| known.replace(mask.digest()));
                if let (Some(of), Some(counts), None) = (&mut profile, &counts, known) {
                    let weights = self.checkpoint.matrix(index);
                    of.extend(profile_matrix(&layout.matrices()[index], weights, &mask, counts, &norms));
                }
            }
            Ok(())
        };
        let tokens = self.evaluation.first().map_or(0, Vec::len) as u64;
        let (mut before, stopped) = (0, std::cell::RefCell::new(None));
        let measured = perplexity::<StudyError>(
            self.checkpoint,
            self.decoder,
            self.evaluation,
            &mut |block, loaded| match stopped.borrow_mut().take() {
                Some(error) => Err(error),
                None => after_load(block, loaded),
            },
            &mut |done, _| {
                let more = done.saturating_sub(before) * tokens;
                before = done;
                if let Err(error) = (self.progress)(more) {
                    stopped.borrow_mut().get_or_insert(error);
                }
            },
        )?;
        if let Some(error) = stopped.into_inner() {
            return Err(error);
        }
        let digests: Option<Vec<Digest>> = digests.into_iter().collect();
        Ok(Evaluated {
            perplexity: measured.perplexity,
            mask_root: digests.map(|digests| mask_root(layout.digest(), digests)),
            profile: profile.filter(|of| of.len() == layout.matrices().len()),
        })
    }

    /// Bytes of each silo's ballots in a federation.
    ///
    /// # Errors
    /// [`StudyError::Io`] when one is missing.
    pub fn ballot_bytes(&self, store: &Store, source: Source<'_>) -> Result<Vec<u64>, StudyError> {
        let bytes = |path: PathBuf| Ok(std::fs::metadata(&path).map_err(StudyError::io("read", &path))?.len());
        match source {
            Source::Dense => Ok(Vec::new()),
            Source::Own(vote) => Ok(vec![bytes(store.vote(vote))?]),
            Source::Tally { votes, .. } => votes.iter().map(|vote| bytes(store.vote(*vote))).collect(),
            Source::Heights { id, silos, .. } => (0..silos)
                .map(|silo| {
                    let heights = 0..self.checkpoint.layout().blocks();
                    heights.map(|height| bytes(store.height_vote(id, height, silo))).sum::<Result<u64, _>>()
                })
                .collect(),
        }
    }
}

fn tokens_of(silo: &SiloWindows) -> u64 {
    silo.windows.iter().map(|window| window.len() as u64).sum()
}

fn recipe_name(recipe: Recipe) -> String {
    format!("{} {} {}", recipe.pruner, recipe.group, recipe.sparsity)
}

/// The layout of one block, as a round's.
fn block_layout(layout: &Layout, block: usize) -> Layout {
    let matrices = layout.matrices().get(layout.block(block)).unwrap_or_default().to_vec();
    // part of a layout is a layout
    Layout::new(matrices).unwrap_or_else(|_| layout.clone())
}

/// Ballots with the name that each counts under.
type Files = Vec<(String, PathBuf, Vec<u8>)>;

fn open(paths: impl Iterator<Item = PathBuf>) -> Result<Files, StudyError> {
    paths.enumerate().map(|(silo, path)| Ok((format!("{silo:02}"), path.clone(), read(&path)?))).collect()
}

fn height_files(store: &Store, id: Digest, block: usize, silos: usize) -> Result<Files, StudyError> {
    open((0..silos).map(|silo| store.height_vote(id, block, silo)))
}

fn tally_of<'a>(files: &'a Files, layout: &'a Layout, group: Group) -> Result<Tally<'a>, StudyError> {
    let voter = |(name, path, bytes): &'a (String, PathBuf, Vec<u8>)| {
        let ballot = Ballot::parse(bytes, layout).map_err(|source| StudyError::Kept { path: path.clone(), source })?;
        Ok(Voter { name: name.clone(), weight: 1, ballot })
    };
    let voters = files.iter().map(voter).collect::<Result<Vec<_>, StudyError>>()?;
    Ok(Tally::new(layout, group, voters)?)
}

/// The ballots behind an evaluated model, as they are kept.
struct Loaded {
    /// Of the whole model.
    files: Files,
    /// Of one block each.
    heights: Vec<(Layout, Files)>,
}

impl Loaded {
    fn open(store: &Store, source: Source<'_>, layout: &Layout) -> Result<Self, StudyError> {
        let (mut files, mut heights) = (Files::new(), Vec::new());
        match source {
            Source::Dense => {}
            Source::Own(vote) => files = open(std::iter::once(store.vote(vote)))?,
            Source::Tally { votes, .. } => files = open(votes.iter().map(|vote| store.vote(*vote)))?,
            Source::Heights { id, silos, .. } => {
                for block in 0..layout.blocks() {
                    heights.push((block_layout(layout, block), height_files(store, id, block, silos)?));
                }
            }
        }
        Ok(Self { files, heights })
    }

    fn parse<'a>(&'a self, source: Source<'_>, layout: &'a Layout) -> Result<Masks<'a>, StudyError> {
        Ok(match (source, self.files.first()) {
            (Source::Own(_), Some((_, path, bytes))) => {
                let ballot = Ballot::parse(bytes, layout);
                Masks::Own(ballot.map_err(|source| StudyError::Kept { path: path.clone(), source })?, path)
            }
            (Source::Tally { global_group, profile, .. }, _) => {
                Masks::Tally(tally_of(&self.files, layout, global_group)?, profile)
            }
            (Source::Heights { global_group, .. }, _) => {
                let tally = |(layout, files): &'a (Layout, Files)| tally_of(files, layout, global_group);
                Masks::Heights(self.heights.iter().map(tally).collect::<Result<_, _>>()?)
            }
            _ => Masks::None,
        })
    }
}

/// The ballots behind an evaluated model.
enum Masks<'a> {
    None,
    Own(Ballot<'a>, &'a Path),
    /// Whether norms are wanted, too.
    Tally(Tally<'a>, bool),
    /// One for each block.
    Heights(Vec<Tally<'a>>),
}

/// A mask, the counts that it came from, and the norms of the ballots that were counted.
type Found = (MatrixMask, Option<Counts>, Vec<NormVector>);

impl Masks<'_> {
    /// The masks of a block of one silo's own, chosen and applied where the weights lie; none where they lie here, or where
    /// the ballot holds no norms of them.
    fn chosen(
        &self,
        checkpoint: &Checkpoint,
        block: usize,
        loaded: &mut Block,
    ) -> Result<Option<Vec<MatrixMask>>, StudyError> {
        let Masks::Own(ballot, _) = self else { return Ok(None) };
        let BallotHeader::Vote(vote) = ballot.header() else { return Ok(None) };
        let layout = ballot.layout();
        let of_block = layout.block(block);
        let taps = layout.taps().iter().enumerate().filter(|(_, range)| of_block.contains(&range.start));
        let norms: Option<Vec<NormVector>> = taps.map(|(tap, _)| ballot.norms(tap).cloned()).collect();
        let Some(norms) = norms else { return Ok(None) };
        let choice = Choice { pruner: vote.pruner, group: vote.group, sparsity: vote.sparsity, norms: &norms };
        Ok(loaded.choose_and_prune(checkpoint, &choice)?)
    }

    /// The mask of a matrix by its position in its block and its index in the model; none for a dense model.
    fn matrix(
        &self,
        checkpoint: &Checkpoint,
        block: usize,
        position: usize,
        index: usize,
    ) -> Result<Option<Found>, StudyError> {
        let weights = checkpoint.matrix(index);
        match self {
            Masks::None => Ok(None),
            Masks::Own(ballot, path) => {
                let kept = |source| StudyError::Kept { path: path.to_path_buf(), source };
                Ok(Some((ballot.mask(index, weights).map_err(kept)?, None, Vec::new())))
            }
            Masks::Tally(tally, profile) => {
                let (mask, counts) = tally.matrix(index, weights)?;
                let tap = tally.layout().taps().iter().position(|range| range.contains(&index));
                let norms = tap.filter(|_| *profile).map(|tap| {
                    tally.voters().iter().filter_map(|voter| voter.ballot.norms(tap).cloned()).collect::<Vec<_>>()
                });
                // without all of them nothing can be said
                let norms = norms.filter(|norms| norms.len() == tally.voters().len()).unwrap_or_default();
                Ok(Some((mask, Some(counts), norms)))
            }
            Masks::Heights(tallies) => {
                let Some(tally) = tallies.get(block) else { return Ok(None) };
                let (mask, counts) = tally.matrix(position, weights)?;
                Ok(Some((mask, Some(counts), Vec::new())))
            }
        }
    }
}

/// Whether a pruner looks at text.
pub(crate) fn uses_text(pruner: Pruner) -> bool {
    pruner.scorer().uses_norms()
}
