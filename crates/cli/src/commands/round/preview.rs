//! What will leave a silo that takes part in a round, and what that tells about its text.

use fedprune_federation::round::{Ballots, DataFree, Round, Scaling, Strategy, TallyBy};
use fedprune_federation::{Ratified, wire};
use fedprune_mask::{Digest, Group, Layout, Tap};
use serde::Serialize;

use crate::output::{bytes, count, tame};

/// Magic, header and digests of a ballot file, and what a bitmap has beside its bits, generously.
const BALLOT_HEADER_BYTES: u64 = 256;
const BITMAP_HEADER_BYTES: u64 = 16;

/// What an approval that was given after a preview binds: the node signs nothing else.
pub(super) fn covers(strategy: Strategy, ballot: Digest, calibration: Option<Digest>) -> Vec<String> {
    match strategy {
        Strategy::OneShot => vec![format!("this very ballot, {ballot}: the node signs no other")],
        Strategy::Iterative => {
            let text = match calibration {
                Some(text) => format!("only ballots made from the text of this preview (token windows {text})"),
                None => "only ballots that are made from no text".to_owned(),
            };
            vec![
                format!("of block 1 this very ballot, {ballot}: the node signs no other"),
                format!(
                    "of each later block {text}, by this round's terms; not what is in them: that depends on what is agreed on \
                     before, and nobody can see it now"
                ),
            ]
        }
    }
}

/// What a member agrees to.
#[derive(Debug, Serialize)]
pub(super) struct Preview {
    /// Each kind of message that leaves.
    pub sends: Vec<Message>,
    /// How large the ballots are, all heights together; known with the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    ballot_bytes: Option<BallotBytes>,
    /// What these tell about the silo's text.
    reveals: Vec<String>,
    /// Fewer tokens of text, and this silo does not contribute.
    #[serde(skip_serializing_if = "Option::is_none")]
    minimum_calibration_tokens: Option<u64>,
    /// Who gets it, and where it stays.
    pub stays: Vec<String>,
}

/// One kind of message.
#[derive(Debug, Serialize)]
pub(super) struct Message {
    pub what: &'static str,
    pub says: String,
    /// Most bytes of one, where that does not depend on what happens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_most_bytes: Option<u64>,
}

impl Message {
    /// What it says, and how large it is.
    pub fn in_words(&self) -> String {
        match self.at_most_bytes {
            Some(most) => format!("{}; up to {} each", self.says, bytes(most)),
            None => self.says.clone(),
        }
    }
}

/// Sizes of a silo's ballots, all heights together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct BallotBytes {
    /// As they mostly come out.
    pub about: u64,
    /// If nothing could be compressed.
    pub at_most: u64,
    /// One bit for each prunable weight, which members may send in place of norms.
    pub bitmaps: u64,
}

impl BallotBytes {
    /// For a layout: a norm has 15 bits before compression, and about 8.5 after; so have the thresholds of a channel,
    /// all matrices that read it together.
    pub fn of(round: &Round, layout: &Layout, heights: u32) -> Self {
        let terms = round.terms();
        let channels: u64 = layout
            .taps()
            .iter()
            .filter_map(|range| layout.matrices().get(range.start))
            .map(|tap| u64::from(tap.columns))
            .sum();
        let taps = layout.taps().len() as u64;
        let headers = BALLOT_HEADER_BYTES * u64::from(heights) + taps;
        let bitmaps = headers + layout.packed_bytes() + BITMAP_HEADER_BYTES * layout.matrices().len() as u64;
        let (about, at_most) = match (terms.ballots, terms.pruner.scorer().uses_norms()) {
            (Ballots::MaskOnly, _) if terms.local_group == Group::Layer => (headers + channels * 17 / 16, bitmaps),
            (Ballots::MaskOnly, _) => (bitmaps, bitmaps),
            (Ballots::Auto, true) => (channels * 17 / 16, headers + 2 * channels),
            (Ballots::Auto, false) => (headers, headers),
        };
        Self { about: about.min(at_most), at_most, bitmaps }
    }
}

impl Preview {
    pub fn of(round: &Round, consortium: &Ratified, model: Option<(&Layout, u32)>) -> Self {
        let terms = round.terms();
        let ballot_bytes = model.map(|(layout, heights)| BallotBytes::of(round, layout, heights));
        Self {
            sends: sends(round, ballot_bytes, consortium.members().len() as u64),
            ballot_bytes,
            reveals: reveals(round),
            minimum_calibration_tokens: terms.calibration.map(|calibration| calibration.minimum_calibration_tokens),
            stays: stays(round, consortium),
        }
    }

    /// Lines for people.
    pub fn text(&self) -> String {
        let mut text = "what will leave this silo\n".to_owned();
        let width = self.sends.iter().map(|message| message.what.chars().count()).max().unwrap_or(0);
        for message in &self.sends {
            text.push_str(&format!("  {:<width$}  {}\n", message.what, tame(&message.in_words())));
        }
        text.push_str("what it tells about its text\n");
        for line in &self.reveals {
            text.push_str(&format!("  {line}\n"));
        }
        if let Some(minimum) = self.minimum_calibration_tokens {
            text.push_str(&format!(
                "  With fewer than {} tokens of text this silo does not contribute.\n",
                count(minimum)
            ));
        }
        text.push_str("who gets it\n");
        for line in &self.stays {
            text.push_str(&format!("  {}\n", tame(line)));
        }
        text
    }
}

fn sends(round: &Round, ballot_bytes: Option<BallotBytes>, members: u64) -> Vec<Message> {
    let terms = round.terms();
    let uses_norms = terms.pruner.scorer().uses_norms();
    let holds = match (terms.ballots, uses_norms) {
        (_, false) => "the magnitude mask, a function of the model alone",
        (Ballots::MaskOnly, true) if terms.local_group == Group::Layer => {
            "this silo's pruning mask, as one threshold a column of each matrix"
        }
        (Ballots::MaskOnly, true) => "this silo's pruning mask, one bit a weight",
        (Ballots::Auto, true) => "the norm of each input channel over this silo's text, or its mask",
    };
    let times = match terms.strategy {
        Strategy::OneShot => "one",
        Strategy::Iterative => "one a decoder block, together",
    };
    let size = match ballot_bytes {
        Some(BallotBytes { about, at_most, .. }) if about == at_most => format!("about {}", bytes(about)),
        Some(BallotBytes { about, at_most, .. }) => format!("about {} (at most {})", bytes(about), bytes(at_most)),
        None => "of a size that --model DIR tells".to_owned(),
    };
    let proposals = match terms.tally {
        TallyBy::EveryPeer => "which ballots count, when it is this member's turn",
        TallyBy::Elected => "which ballots count and the mask root, when it is this member's turn",
    };
    // prefix, member, height and signature of every statement
    let frame = wire::PREFIX_BYTES as u64 + 2 + 4 + 64;
    let message = |what, says: &str, at_most_bytes| Message { what, says: says.to_owned(), at_most_bytes };
    vec![
        message("ballot", &format!("{times}, {size}: {holds}"), None),
        message(
            "signed ballot header",
            "digest and size of the ballot, and the time by this machine's clock",
            Some(frame + 32 + 8 + 8),
        ),
        message(
            "signed holdings",
            "which members' ballots this node has checked and stored",
            Some(frame + 8 + 33 * members),
        ),
        message("signed proposals", proposals, None),
        message("signed votes", "for and against proposals", Some(frame + 4 + 33)),
        message("signed result", "the root of the global mask that this member derived", Some(frame + 32)),
        message("by being connected", "this node's addresses, peer id and program version, and when it is up", None),
        message("never", "text, tokens, activations of single texts, keys, approvals, or the model", None),
    ]
}

fn reveals(round: &Round) -> Vec<String> {
    let terms = round.terms();
    if !terms.pruner.scorer().uses_norms() {
        return vec![format!("Nothing: pruner {} looks at no text.", terms.pruner)];
    }
    let mut lines = vec![
        "A mask is not text, and it is not nothing. Whoever has this ballot and the model knows the average strength of"
            .to_owned(),
        "every input channel on this silo's text: almost exactly from a mask, to one part in 128 to 256 from norms.".to_owned(),
    ];
    if terms.data_free.contains(&DataFree { block: 0, tap: Tap::AttentionInput }) {
        lines.push(
            "block0.qkv, which would tell most about single words, is pruned without data: its votes tell nothing."
                .to_owned(),
        );
    } else {
        lines.extend([
            "Those of block 0's q, k and v add up word by word, so that words can be told from them: on SmolLM2-135M, of a"
                .to_owned(),
            "text of 64 tokens all 54 different ones were among the 60 best guesses, of 512 tokens 70 among the best 100."
                .to_owned(),
            "Longer texts hide single words better, and `data_free = [\"block0.qkv\"]` in the round withholds these votes."
                .to_owned(),
        ]);
    }
    lines
}

fn stays(round: &Round, consortium: &Ratified) -> Vec<String> {
    let (name, members) = (consortium.consortium().name(), consortium.members().len());
    let published = match round.terms().scaling {
        Scaling::None => "the pruned model tells no more than the global mask does",
        Scaling::Support => {
            "the pruned model tells the global mask, and by its scale how many voted to keep each weight"
        }
    };
    vec![
        format!("All {members} members of `{name}` get every ballot and every signed message, whole."),
        "Each keeps them in the transcript of the round, and so does everybody to whom a member hands it.".to_owned(),
        format!("What was sent cannot be taken back; {published}."),
    ]
}
