//! The agreed set of ballots: a file, and matrix by matrix the global mask.
//!
//! The set is stored, never the expanded mask: 64 `norms` ballots of LLaMA-7B are 48 MB, its packed mask
//! is 809 MB, and whoever has the weights recomputes one from the other.
//!
//! Body: the bytes of the ballots, one after another, in the order of the header's members.

use std::sync::{Arc, Mutex, PoisonError};

use crate::Digest;
use crate::ballot::{
    Ballot, BallotError, Header, MAX_MEMBER_NAME_BYTES, MAX_MEMBERS, Member, Reader, Sink, TallyHeader, check_header,
    check_shape, digest_of_bytes, is_member_name,
};
use crate::layout::Layout;
use crate::matrix_mask::MatrixMask;
use crate::sparsity::{Group, Sparsity, SparsityError};
use crate::tally::by_threshold::{LayerVotes, Source};
use crate::tally::{Agreement, BATCH, Counts, global_mask};
use crate::weights::WeightsView;

/// Why ballots do not make a tally.
#[derive(Debug, thiserror::Error)]
pub enum TallyError {
    /// The file around the ballots.
    #[error(transparent)]
    File(#[from] BallotError),
    /// One ballot cannot be read, or its mask of some matrix cannot be used.
    #[error("the ballot of `{member}` cannot be used")]
    Ballot {
        /// Who cast it.
        member: String,
        /// What is wrong with it.
        source: BallotError,
    },
    /// Nothing to count.
    #[error("there are no ballots; give at least one")]
    Empty,
    /// More than [`MAX_MEMBERS`].
    #[error("there are {0} ballots, more than the {MAX_MEMBERS} that one tally holds")]
    TooMany(usize),
    /// No name, or one that is too long.
    #[error(
        "`{0}` cannot name a member: a name has 1 to {MAX_MEMBER_NAME_BYTES} bytes and no control characters; \
         rename the ballot file, whose name is its silo's"
    )]
    Name(String),
    /// Two ballots of one member.
    #[error(
        "there are two ballots of `{0}`; a ballot's file name names its silo: rename one of the files, or count one"
    )]
    Duplicate(String),
    /// Names out of order in a file.
    #[error("its members are not in order at `{0}`; it is damaged: tally the ballots again")]
    Order(String),
    /// A vote that counts for nothing.
    #[error("the ballot of `{0}` has weight 0; leave it out, or give it a weight of at least 1")]
    NoWeight(String),
    /// Weights beyond 32 bits.
    #[error("the weights of the ballots sum to {0}, more than 4294967295; give smaller weights in the same proportion")]
    TotalWeight(u64),
    /// The bytes are not those that the header names.
    #[error("the ballot of `{member}` is {found}, and the tally was made from {expected}; fetch the tally again")]
    Digest {
        /// Who cast it.
        member: String,
        /// The digest in the header.
        expected: Digest,
        /// The digest of the bytes.
        found: Digest,
    },
    /// Ballots that do not belong to one round.
    #[error(
        "the ballots of `{first}` and `{other}` differ in {what}: {first_value} and {other_value}; tally ballots of one round"
    )]
    Differ {
        /// The first ballot.
        first: String,
        /// The one that differs.
        other: String,
        /// Model, group or sparsity.
        what: &'static str,
        /// Of the first.
        first_value: String,
        /// Of the other.
        other_value: String,
    },
    /// The header does not follow from the ballots.
    #[error("its header says {what} {header}, and its ballots say {ballots}; it is damaged: tally the ballots again")]
    Contradiction {
        /// Model or sparsity.
        what: &'static str,
        /// In the header.
        header: String,
        /// In the ballots.
        ballots: String,
    },
    /// An explicit mask that already stands for several silos.
    #[error("`{member}` is a mask tallied from {votes} ballots, not a vote; tally those ballots themselves")]
    NotAVote {
        /// Under which name it was given.
        member: String,
        /// How many ballots it came from.
        votes: u32,
    },
    /// Group and sparsity contradict each other or the ballots'.
    #[error(transparent)]
    Sparsity(#[from] SparsityError),
}

/// One ballot with its name and weight.
#[derive(Debug, Clone)]
pub struct Voter<'a> {
    /// Who cast it.
    pub name: String,
    /// Tally weight, at least 1.
    pub weight: u32,
    /// The ballot.
    pub ballot: Ballot<'a>,
}

/// Weight of equal ballots together, what says their mask, and one who cast it.
type Prefix<'t, 'a> = (u32, Source<'t>, &'t Voter<'a>);

/// An agreed set of ballots, checked to belong together.
#[derive(Debug, Clone)]
pub struct Tally<'a> {
    layout: &'a Layout,
    group: Group,
    sparsity: Sparsity,
    /// By name, ascending.
    voters: Vec<Voter<'a>>,
    /// Digests of the ballots, in the order of `voters`.
    digests: Vec<Digest>,
    total: u32,
    mask_root: Option<Digest>,
    /// Counts of the matrix before, whose memory the next one takes.
    spare: Arc<Mutex<Option<Counts>>>,
}

impl<'a> Tally<'a> {
    /// Takes ballots, in any order, to be tallied in pools of the global `group`.
    ///
    /// The sparsity is that of the ballots, or the group's own for n:m.
    ///
    /// # Errors
    /// [`TallyError`] naming the ballot that does not belong, or the name or weight that cannot be.
    pub fn new(layout: &'a Layout, group: Group, voters: Vec<Voter<'a>>) -> Result<Self, TallyError> {
        let digests = voters.iter().map(|voter| voter.ballot.digest()).collect();
        Self::with_digests(layout, group, voters, digests)
    }

    fn with_digests(
        layout: &'a Layout,
        group: Group,
        voters: Vec<Voter<'a>>,
        digests: Vec<Digest>,
    ) -> Result<Self, TallyError> {
        let mut both: Vec<(Voter<'a>, Digest)> = voters.into_iter().zip(digests).collect();
        both.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        let (voters, digests): (Vec<_>, Vec<_>) = both.into_iter().unzip();
        let Some(first) = voters.first() else { return Err(TallyError::Empty) };
        check_members(voters.iter().map(|voter| (voter.name.as_str(), voter.weight)))?;
        if let Some([voter, _]) = voters.array_windows().find(|[a, b]| a.name == b.name) {
            return Err(TallyError::Duplicate(voter.name.clone()));
        }
        layout.check_group(group).map_err(BallotError::from)?;
        for voter in &voters {
            check_same_round(layout, first, voter)?;
        }
        first.ballot.group().check_global(group)?;
        let sparsity = group.fixed_sparsity().unwrap_or(first.ballot.sparsity());
        let total = total_weight(voters.iter().map(|voter| voter.weight))?;
        Ok(Self { layout, group, sparsity, voters, digests, total, mask_root: None, spare: Arc::default() })
    }

    /// Reads a stored tally made for `layout`, and every ballot in it.
    ///
    /// The mask root is what the file claims; [`Tally::matrix`] of all matrices tells.
    ///
    /// # Errors
    /// [`TallyError`] for anything that [`encode_tally`] does not write, naming the ballot.
    pub fn parse(bytes: &'a [u8], layout: &'a Layout) -> Result<Self, TallyError> {
        let mut reader = Reader::new(bytes);
        let header = Header::read(&mut reader)?;
        check_header(&header, layout)?;
        let kind = header.kind();
        let Header::Tally(header) = header else {
            return Err(BallotError::WrongKind { found: kind, wanted: "a tally" }.into());
        };
        check_members(header.members.iter().map(|member| (member.name.as_str(), member.weight)))?;
        if let Some([_, member]) = header.members.array_windows().find(|[a, b]| a.name >= b.name) {
            return Err(TallyError::Order(member.name.clone()));
        }
        let mut voters = Vec::with_capacity(header.members.len());
        let mut digests = Vec::with_capacity(header.members.len());
        for member in &header.members {
            let ballot = reader.take_claimed(member.ballot_bytes, "a ballot")?;
            let found = digest_of_bytes(ballot);
            if found != member.ballot {
                return Err(TallyError::Digest { member: member.name.clone(), expected: member.ballot, found });
            }
            let ballot = Ballot::parse(ballot, layout)
                .map_err(|source| TallyError::Ballot { member: member.name.clone(), source })?;
            voters.push(Voter { name: member.name.clone(), weight: member.weight, ballot });
            digests.push(found);
        }
        reader.finish()?;
        let mut tally = Self::with_digests(layout, header.group, voters, digests)?;
        let contradiction = |what, header: String, ballots: String| TallyError::Contradiction { what, header, ballots };
        if header.sparsity != tally.sparsity {
            return Err(contradiction("sparsity", header.sparsity.to_string(), tally.sparsity.to_string()));
        }
        if header.model != tally.model() {
            return Err(contradiction("model", header.model.short(), tally.model().short()));
        }
        tally.mask_root = Some(header.mask_root);
        Ok(tally)
    }

    /// The layout that it was parsed against.
    pub fn layout(&self) -> &'a Layout {
        self.layout
    }

    /// Content digest of the base checkpoint.
    pub fn model(&self) -> Digest {
        self.voters[0].ballot.model()
    }

    /// Global group.
    pub fn group(&self) -> Group {
        self.group
    }

    /// Global sparsity.
    pub fn sparsity(&self) -> Sparsity {
        self.sparsity
    }

    /// The ballots, by name.
    pub fn voters(&self) -> &[Voter<'a>] {
        &self.voters
    }

    /// Weight of all ballots together: the m of support scaling.
    pub fn total_weight(&self) -> u32 {
        self.total
    }

    /// The mask root that a parsed file claims.
    pub fn mask_root(&self) -> Option<Digest> {
        self.mask_root
    }

    /// The header under which the tally is stored, once the root of its masks is known.
    pub fn header(&self, mask_root: Digest) -> TallyHeader {
        let members = self.voters.iter().zip(&self.digests).map(|(voter, &ballot)| Member {
            name: voter.name.clone(),
            weight: voter.weight,
            ballot,
            ballot_bytes: voter.ballot.bytes().len() as u64,
        });
        TallyHeader {
            model: self.model(),
            layout: self.layout.digest(),
            group: self.group,
            sparsity: self.sparsity,
            members: members.collect(),
            mask_root,
        }
    }

    /// How often each weight of one matrix was pruned.
    ///
    /// Of column-prefix ballots (see [`Tally::mask`]) none is expanded; of others at most [`BATCH`] masks are in memory at a
    /// time.
    ///
    /// # Errors
    /// [`TallyError::Ballot`] naming the ballot whose mask cannot be used.
    ///
    /// # Panics
    /// When the layout has no matrix `index`.
    pub fn counts(&self, index: usize, weights: WeightsView<'_>) -> Result<Counts, TallyError> {
        match self.layer_votes(index, weights)? {
            Some(votes) => Ok(votes.counts(weights)),
            None => self.counts_by_masks(index, weights),
        }
    }

    /// As [`Tally::counts`], with every mask expanded and counted: the reference.
    ///
    /// # Errors
    /// As [`Tally::counts`].
    ///
    /// # Panics
    /// As [`Tally::counts`].
    pub fn counts_by_masks(&self, index: usize, weights: WeightsView<'_>) -> Result<Counts, TallyError> {
        check_shape(&self.layout.matrices()[index], weights.rows(), weights.columns())?;
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut counts = Counts::in_place_of(spare, weights.rows(), weights.columns(), self.total);
        // equal ballots once, with their weight together
        let mut by_digest: Vec<(&Digest, &Voter<'a>)> = self.digests.iter().zip(&self.voters).collect();
        by_digest.sort_by_key(|(digest, _)| **digest);
        let same = by_digest.chunk_by(|a, b| a.0 == b.0);
        let mut by_weight: Vec<(u32, &Voter<'a>)> =
            same.map(|same| (same.iter().map(|(_, voter)| voter.weight).sum(), same[0].1)).collect();
        by_weight.sort_by_key(|(weight, voter)| (*weight, &voter.name));
        for equal in by_weight.chunk_by(|a, b| a.0 == b.0) {
            for batch in equal.chunks(BATCH) {
                let masks = batch.iter().map(|(_, voter)| self.mask_of(voter, index, weights));
                let masks: Vec<MatrixMask> = masks.collect::<Result<_, _>>()?;
                let added = counts.add(batch[0].0, &masks.iter().collect::<Vec<_>>());
                assert!(added.is_ok(), "the total is the sum of the weights");
            }
        }
        Ok(counts)
    }

    /// The global mask of one matrix.
    ///
    /// Of ballots that are column prefixes (norms or thresholds of the group `layer`) none is expanded; of others at
    /// most [`BATCH`] masks are in memory at a time. The bits are those of [`Tally::matrix`].
    ///
    /// # Errors
    /// [`TallyError::Ballot`] naming the ballot whose mask cannot be used.
    ///
    /// # Panics
    /// When the layout has no matrix `index`.
    pub fn mask(&self, index: usize, weights: WeightsView<'_>) -> Result<MatrixMask, TallyError> {
        check_shape(&self.layout.matrices()[index], weights.rows(), weights.columns())?;
        let distinct = self.distinct_prefixes(index);
        if let Some([(_, _, voter)]) = distinct.as_deref() {
            return self.mask_of(voter, index, weights);
        }
        let votes = distinct.and_then(|distinct| self.votes_of_prefixes(&distinct, weights));
        match votes.and_then(|votes| votes.mask(weights)) {
            Some(mask) => Ok(mask),
            None => {
                let (mask, counts) = self.matrix_by_masks(index, weights)?;
                self.reuse(counts);
                Ok(mask)
            }
        }
    }

    /// How far the ballots agree on one matrix, by their weights: [`Counts::agreement`] of [`Tally::counts`].
    ///
    /// Of column-prefix ballots this takes the reads that [`Tally::mask`] takes, and no counts.
    ///
    /// # Errors
    /// As [`Tally::mask`].
    ///
    /// # Panics
    /// As [`Tally::mask`].
    pub fn agreement(&self, index: usize, weights: WeightsView<'_>) -> Result<Agreement, TallyError> {
        check_shape(&self.layout.matrices()[index], weights.rows(), weights.columns())?;
        let distinct = self.distinct_prefixes(index);
        if let Some([_]) = distinct.as_deref() {
            return Ok(self.unanimous(weights));
        }
        let votes = distinct.and_then(|distinct| self.votes_of_prefixes(&distinct, weights));
        match votes.and_then(|votes| votes.agreement()) {
            Some(agreement) => Ok(agreement),
            None => {
                let counts = self.counts_by_masks(index, weights)?;
                let agreement = counts.agreement();
                self.reuse(counts);
                Ok(agreement)
            }
        }
    }

    /// What [`Tally::mask`] and [`Tally::agreement`] say, for little more than one of them.
    ///
    /// # Errors
    /// As [`Tally::mask`].
    ///
    /// # Panics
    /// As [`Tally::mask`].
    pub fn mask_and_agreement(
        &self,
        index: usize,
        weights: WeightsView<'_>,
    ) -> Result<(MatrixMask, Agreement), TallyError> {
        check_shape(&self.layout.matrices()[index], weights.rows(), weights.columns())?;
        let distinct = self.distinct_prefixes(index);
        if let Some([(_, _, voter)]) = distinct.as_deref() {
            return Ok((self.mask_of(voter, index, weights)?, self.unanimous(weights)));
        }
        let votes = distinct.and_then(|distinct| self.votes_of_prefixes(&distinct, weights));
        if let Some((mask, agreement)) = votes.and_then(|votes| Some((votes.mask(weights)?, votes.agreement()?))) {
            return Ok((mask, agreement));
        }
        let (mask, counts) = self.matrix_by_masks(index, weights)?;
        let agreement = counts.agreement();
        self.reuse(counts);
        Ok((mask, agreement))
    }

    /// What equal ballots come to.
    fn unanimous(&self, weights: WeightsView<'_>) -> Agreement {
        let weights = weights.rows() as u64 * weights.columns() as u64;
        Agreement { weights, votes: self.total, unanimous: weights, differing: 0 }
    }

    /// Keeps memory for the next matrix.
    fn reuse(&self, counts: Counts) {
        *self.spare.lock().unwrap_or_else(PoisonError::into_inner) = Some(counts);
    }

    /// The votes of one matrix in histograms, if its ballots are column prefixes of a 16-bit matrix: the number of votes
    /// at which the budget runs out follows from them without weights.
    ///
    /// # Errors
    /// [`TallyError::File`] for weights of another shape than the layout says.
    ///
    /// # Panics
    /// When the layout has no matrix `index`.
    pub fn layer_votes(&self, index: usize, weights: WeightsView<'_>) -> Result<Option<LayerVotes>, TallyError> {
        check_shape(&self.layout.matrices()[index], weights.rows(), weights.columns())?;
        Ok(self.distinct_prefixes(index).and_then(|distinct| self.votes_of_prefixes(&distinct, weights)))
    }

    fn votes_of_prefixes(&self, distinct: &[Prefix<'_, 'a>], weights: WeightsView<'_>) -> Option<LayerVotes> {
        let ballots: Vec<(u32, Source<'_>)> = distinct.iter().map(|(weight, source, _)| (*weight, *source)).collect();
        LayerVotes::new(&ballots, self.sparsity, weights)
    }

    fn mask_of(&self, voter: &Voter<'a>, index: usize, weights: WeightsView<'_>) -> Result<MatrixMask, TallyError> {
        let mask = voter.ballot.mask(index, weights);
        mask.map_err(|source| TallyError::Ballot { member: voter.name.clone(), source })
    }

    /// What says the masks of one matrix, equal ones together with their weight, if all are column prefixes of
    /// one budget and the global pool is the layer too.
    fn distinct_prefixes(&self, index: usize) -> Option<Vec<Prefix<'_, 'a>>> {
        if self.group != Group::Layer || self.voters[0].ballot.group() != Group::Layer {
            return None;
        }
        let mut distinct: Vec<Prefix<'_, 'a>> = Vec::new();
        for voter in &self.voters {
            let source = voter.ballot.prefix_source(index)?;
            match distinct.iter_mut().find(|(_, other, _)| source.is_same(other)) {
                Some((weight, ..)) => *weight += voter.weight,
                None => distinct.push((voter.weight, source, voter)),
            }
        }
        Some(distinct)
    }

    /// The global mask of one matrix, and the counts that it came from.
    ///
    /// # Errors
    /// [`TallyError::Ballot`] naming the ballot whose mask cannot be used.
    ///
    /// # Panics
    /// When the layout has no matrix `index`.
    pub fn matrix(&self, index: usize, weights: WeightsView<'_>) -> Result<(MatrixMask, Counts), TallyError> {
        if let Some(votes) = self.layer_votes(index, weights)?
            && let Some(mask) = votes.mask(weights)
        {
            return Ok((mask, votes.counts(weights)));
        }
        self.matrix_by_masks(index, weights)
    }

    fn matrix_by_masks(&self, index: usize, weights: WeightsView<'_>) -> Result<(MatrixMask, Counts), TallyError> {
        let counts = self.counts_by_masks(index, weights)?;
        Ok((global_mask(weights, &counts, self.group, self.sparsity), counts))
    }
}

/// Writes a tally: header, then the ballots as they are. Returns the bytes written.
///
/// # Errors
/// The sink's own.
pub fn encode_tally<E>(tally: &Tally<'_>, mask_root: Digest, sink: &mut Sink<'_, E>) -> Result<u64, E> {
    let head = Header::Tally(tally.header(mask_root)).to_bytes();
    sink(&head)?;
    let mut written = head.len() as u64;
    for voter in &tally.voters {
        sink(voter.ballot.bytes())?;
        written += voter.ballot.bytes().len() as u64;
    }
    Ok(written)
}

/// Number, names and weights of members.
fn check_members<'m>(members: impl ExactSizeIterator<Item = (&'m str, u32)> + Clone) -> Result<(), TallyError> {
    match members.len() {
        0 => return Err(TallyError::Empty),
        1..=MAX_MEMBERS => {}
        more => return Err(TallyError::TooMany(more)),
    }
    for (name, weight) in members {
        if !is_member_name(name) {
            return Err(TallyError::Name(name.escape_debug().take(MAX_MEMBER_NAME_BYTES).collect()));
        }
        if weight == 0 {
            return Err(TallyError::NoWeight(name.to_owned()));
        }
    }
    Ok(())
}

fn total_weight(weights: impl Iterator<Item = u32>) -> Result<u32, TallyError> {
    let total: u64 = weights.map(u64::from).sum();
    u32::try_from(total).map_err(|_| TallyError::TotalWeight(total))
}

/// Model, layout, group and sparsity of all ballots are those of the first.
fn check_same_round(layout: &Layout, first: &Voter<'_>, voter: &Voter<'_>) -> Result<(), TallyError> {
    let ballot = &voter.ballot;
    if ballot.layout().digest() != layout.digest() {
        let (expected, found) = (layout.digest(), ballot.layout().digest());
        return Err(TallyError::Ballot {
            member: voter.name.clone(),
            source: BallotError::OtherLayout { expected, found },
        });
    }
    if ballot.votes() != 1 {
        return Err(TallyError::NotAVote { member: voter.name.clone(), votes: ballot.votes() });
    }
    let differ = |what, first_value: String, other_value: String| TallyError::Differ {
        first: first.name.clone(),
        other: voter.name.clone(),
        what,
        first_value,
        other_value,
    };
    let one = &first.ballot;
    if one.model() != ballot.model() {
        return Err(differ("the model", one.model().short(), ballot.model().short()));
    }
    if one.group() != ballot.group() {
        return Err(differ("the local group", one.group().to_string(), ballot.group().to_string()));
    }
    if one.sparsity() != ballot.sparsity() {
        return Err(differ("the sparsity", one.sparsity().to_string(), ballot.sparsity().to_string()));
    }
    Ok(())
}
