//! What two nodes tell each other before anything else, and what they conclude.
//!
//! On every new connection each side opens a stream `/fedprune/greeting/1`, writes its greeting and reads an
//! answer: a verdict and the other's greeting. Both therefore learn both greetings even if one of the two
//! streams is lost, and a node of another round, protocol or model can be told which of them differs.
//!
//! | bytes | greeting |
//! |---|---|
//! | 8 | `fedprune` |
//! | 2 | version of this encoding, little-endian, 1 |
//! | 1 | 64; an answer has 65 |
//! | 1 | in an answer only: the [`Verdict`] |
//! | 2 | protocol, little-endian |
//! | 32, 32, 32 | consortium id, round id, digest of the base model |
//! | 16 | instance: random, drawn when the process starts |
//! | 1, … | behind an answer: length and text of a [`ProgramName`]; absent from programs that do not tell |
//!
//! **Versions.** What two nodes must share is the protocol, which is one with what is encoded and signed. Programs of
//! different versions that speak one protocol take part in one round: what each calls itself is told, and compared with
//! nothing. A program whose greeting cannot be read, or that names another protocol, is refused by both sides, and both
//! say which of the two is to be updated ([`Difference::remedy`]).
//!
//! The **instance** tells a node from a second process with the same key (a cloned home folder). A member's
//! place is leased to the instance that greeted first; it is freed when the last connection with it closes.

mod behaviour;
mod handler;

use std::fmt;

use fedprune_federation::wire::MAGIC;
use fedprune_federation::{ConsortiumId, RoundId};
use fedprune_mask::Digest;

pub(super) use behaviour::{Behaviour, Event, Timing};

/// Version of the encoding.
const VERSION: u16 = 1;
/// Says that a greeting follows; apart from the contents of every other encoding.
const GREETING: u8 = 64;
/// Says that the answer to a greeting follows.
const ANSWER: u8 = 65;
/// Longest name of a program, in bytes.
const MAX_PROGRAM_BYTES: usize = 64;
const PREFIX_BYTES: usize = 11;
const FIELDS_BYTES: usize = 2 + 3 * 32 + 16;
/// Bytes of a greeting.
const GREETING_BYTES: usize = PREFIX_BYTES + FIELDS_BYTES;
/// Bytes of the answer to a greeting.
const ANSWER_BYTES: usize = PREFIX_BYTES + 1 + FIELDS_BYTES;

/// What a node says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting {
    /// Version of the protocol that the node speaks.
    pub protocol: u16,
    /// The consortium it belongs to.
    pub consortium: ConsortiumId,
    /// The round it takes part in.
    pub round: RoundId,
    /// The base model it has.
    pub model: Digest,
    /// Drawn at random when the process started.
    pub instance: [u8; 16],
}

/// What a program calls itself, with its version: `fedprune 0.1.0`. Told for people, and compared with nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramName(String);

impl ProgramName {
    /// Of a text of 1 to 64 printable ASCII characters.
    pub fn new(text: &str) -> Option<Self> {
        let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        ((1..=MAX_PROGRAM_BYTES).contains(&text.len()) && printable).then(|| Self(text.to_owned()))
    }

    fn encode(&self) -> Vec<u8> {
        let length = u8::try_from(self.0.len()).unwrap_or(0); // at most 64
        [&[length], self.0.as_bytes()].concat()
    }
}

impl fmt::Display for ProgramName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What two nodes must have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// How greetings are written.
    Greeting,
    /// The version of the protocol.
    Protocol,
    /// The consortium.
    Consortium,
    /// The round.
    Round,
    /// The base model.
    Model,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Subject::Greeting => "greeting",
            Subject::Protocol => "protocol",
            Subject::Consortium => "consortium",
            Subject::Round => "round",
            Subject::Model => "model",
        })
    }
}

/// One thing that two nodes should have in common and have not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What differs.
    pub what: Subject,
    /// This node's.
    pub ours: String,
    /// The other node's.
    pub theirs: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} differs: ours is `{}`, theirs is `{}`", self.what, self.ours, self.theirs)
    }
}

impl Difference {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self.what {
            Subject::Greeting => {
                "one of the two programs is of another protocol, which cannot even be read here: whichever is older \
                                  is to be updated (fedprune --version)"
                    .to_owned()
            }
            Subject::Protocol => {
                let older = match (self.ours.parse::<u16>(), self.theirs.parse::<u16>()) {
                    (Ok(ours), Ok(theirs)) if ours < theirs => "this program is the older one, and is to be updated",
                    (Ok(_), Ok(_)) => "its program is the older one, and is to be updated",
                    _ => "whichever program is older is to be updated",
                };
                format!("members of one round use programs of one protocol, of whatever version: {older}")
            }
            Subject::Consortium => {
                "if the consortium has changed, whoever has the older one takes the change over: fedprune consortium \
                                    sign consortium.toml --home HOME, with both files of a member that has it"
                    .to_owned()
            }
            Subject::Round => "both must run the same round: fedprune node run --round ID".to_owned(),
            Subject::Model => {
                "both must have the round's base model: fedprune round show round.toml --model DIR".to_owned()
            }
        }
    }
}

/// What a node makes of a greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accepted = 0,
    Differs = 1,
    AnotherInstance = 2,
}

/// The bytes are not a greeting of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GreetingError {
    #[error("the first bytes are not `fedprune`")]
    Magic,
    #[error("it is written in version {0}, this program reads version {VERSION}")]
    Version(u16),
    #[error("it is marked as content {0}")]
    Content(u8),
    #[error("its verdict {0} is none that exists")]
    Verdict(u8),
    #[error("it is cut off")]
    CutOff,
}

impl Greeting {
    fn fields(&self) -> [u8; FIELDS_BYTES] {
        let mut bytes = [0; FIELDS_BYTES];
        bytes[..2].copy_from_slice(&self.protocol.to_le_bytes());
        bytes[2..34].copy_from_slice(&self.consortium.0.0);
        bytes[34..66].copy_from_slice(&self.round.0.0);
        bytes[66..98].copy_from_slice(&self.model.0);
        bytes[98..].copy_from_slice(&self.instance);
        bytes
    }

    fn from_fields(bytes: &[u8]) -> Result<Self, GreetingError> {
        let (protocol, bytes) = take::<2>(bytes)?;
        let (consortium, bytes) = take::<32>(bytes)?;
        let (round, bytes) = take::<32>(bytes)?;
        let (model, bytes) = take::<32>(bytes)?;
        let (instance, _) = take::<16>(bytes)?;
        Ok(Self {
            protocol: u16::from_le_bytes(protocol),
            consortium: ConsortiumId(Digest(consortium)),
            round: RoundId(Digest(round)),
            model: Digest(model),
            instance,
        })
    }

    fn encode(&self) -> [u8; GREETING_BYTES] {
        let mut bytes = [0; GREETING_BYTES];
        bytes[..PREFIX_BYTES].copy_from_slice(&prefix(GREETING));
        bytes[PREFIX_BYTES..].copy_from_slice(&self.fields());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, GreetingError> {
        Self::from_fields(after_prefix(bytes, GREETING)?)
    }

    fn encode_answer(&self, verdict: Verdict) -> [u8; ANSWER_BYTES] {
        let mut bytes = [0; ANSWER_BYTES];
        bytes[..PREFIX_BYTES].copy_from_slice(&prefix(ANSWER));
        bytes[PREFIX_BYTES] = verdict as u8;
        bytes[PREFIX_BYTES + 1..].copy_from_slice(&self.fields());
        bytes
    }

    fn decode_answer(bytes: &[u8]) -> Result<(Verdict, Self), GreetingError> {
        let ([verdict], fields) = take::<1>(after_prefix(bytes, ANSWER)?)?;
        let verdict = match verdict {
            0 => Verdict::Accepted,
            1 => Verdict::Differs,
            2 => Verdict::AnotherInstance,
            other => return Err(GreetingError::Verdict(other)),
        };
        Ok((verdict, Self::from_fields(fields)?))
    }

    /// All that `theirs` has different, most general first; empty if the two can work together. Instances differ always.
    pub fn differences(&self, theirs: &Greeting) -> Vec<Difference> {
        let pairs = [
            (Subject::Protocol, self.protocol.to_string(), theirs.protocol.to_string()),
            (Subject::Consortium, self.consortium.to_string(), theirs.consortium.to_string()),
            (Subject::Round, self.round.to_string(), theirs.round.to_string()),
            (Subject::Model, self.model.to_string(), theirs.model.to_string()),
        ];
        let differing = pairs.into_iter().filter(|(_, ours, theirs)| ours != theirs);
        differing.map(|(what, ours, theirs)| Difference { what, ours, theirs }).collect()
    }
}

/// A greeting, or the answer to one, read and written again; for tests and fuzzers.
pub(super) fn read_and_write_greeting_again(bytes: &[u8], answer: bool) -> Result<Vec<u8>, GreetingError> {
    if answer {
        let (verdict, greeting) = Greeting::decode_answer(bytes)?;
        return Ok(greeting.encode_answer(verdict).to_vec());
    }
    Ok(Greeting::decode(bytes)?.encode().to_vec())
}

/// What is said of a peer whose greeting cannot be read.
fn unreadable(theirs: String) -> Difference {
    Difference { what: Subject::Greeting, ours: format!("fedprune greeting {VERSION}"), theirs }
}

fn prefix(content: u8) -> [u8; PREFIX_BYTES] {
    let mut bytes = [0; PREFIX_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
    bytes[10] = content;
    bytes
}

fn after_prefix(bytes: &[u8], expected: u8) -> Result<&[u8], GreetingError> {
    let (magic, bytes) = take::<8>(bytes)?;
    if &magic != MAGIC {
        return Err(GreetingError::Magic);
    }
    let (version, bytes) = take::<2>(bytes)?;
    let version = u16::from_le_bytes(version);
    if version != VERSION {
        return Err(GreetingError::Version(version));
    }
    let ([content], bytes) = take::<1>(bytes)?;
    if content != expected {
        return Err(GreetingError::Content(content));
    }
    Ok(bytes)
}

fn take<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), GreetingError> {
    bytes.split_first_chunk().map(|(head, rest)| (*head, rest)).ok_or(GreetingError::CutOff)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting() -> Greeting {
        Greeting {
            protocol: 0x0201,
            consortium: ConsortiumId(Digest([3; 32])),
            round: RoundId(Digest([4; 32])),
            model: Digest([5; 32]),
            instance: [6; 16],
        }
    }

    #[test]
    fn bytes_are_pinned() {
        let encoded = greeting().encode();
        assert_eq!(encoded.len(), 125);
        assert_eq!(&encoded[..13], b"fedprune\x01\x00\x40\x01\x02");
        let digest = blake3::hash(&encoded);
        assert_eq!(digest.to_hex().as_str(), "87d3784e6a9bba5b94fcdb08f23fb12bcef4903d6a7143691081d3a66325ec5f");
        let answer = greeting().encode_answer(Verdict::AnotherInstance);
        assert_eq!(answer.len(), 126);
        assert_eq!(&answer[..14], b"fedprune\x01\x00\x41\x02\x01\x02");
        assert_eq!(
            blake3::hash(&answer).to_hex().as_str(),
            "18848bbbfb97ad3ba2e3d0c50b483ac4428929727a02f7c653917b59a328e207"
        );
    }

    #[test]
    fn decodes_what_it_encoded_and_nothing_else() {
        let greeting = greeting();
        assert_eq!(Greeting::decode(&greeting.encode()), Ok(greeting));
        for verdict in [Verdict::Accepted, Verdict::Differs, Verdict::AnotherInstance] {
            assert_eq!(Greeting::decode_answer(&greeting.encode_answer(verdict)), Ok((verdict, greeting)));
        }
        for length in 0..GREETING_BYTES {
            assert_eq!(Greeting::decode(&greeting.encode()[..length]), Err(GreetingError::CutOff), "{length} bytes");
        }
        let mut other = greeting.encode();
        other[0] ^= 1;
        assert_eq!(Greeting::decode(&other), Err(GreetingError::Magic));
        let mut other = greeting.encode();
        other[8] = 2;
        assert_eq!(Greeting::decode(&other), Err(GreetingError::Version(2)));
        assert_eq!(Greeting::decode(&greeting.encode_answer(Verdict::Accepted)), Err(GreetingError::Content(65)));
        let mut other = greeting.encode_answer(Verdict::Accepted);
        other[PREFIX_BYTES] = 3;
        assert_eq!(Greeting::decode_answer(&other), Err(GreetingError::Verdict(3)));
    }

    #[test]
    fn programs_have_short_printable_names() {
        let name = ProgramName::new("fedprune 0.1.0").unwrap();
        assert_eq!(name.encode(), b"\x0efedprune 0.1.0");
        assert_eq!(ProgramName::new(&"x".repeat(64)).unwrap().encode().len(), 65);
        for bad in ["", "a\n", "\u{1b}[2J", "fédprune", &"x".repeat(65)] {
            assert_eq!(ProgramName::new(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn says_which_program_is_to_be_updated() {
        let ours = greeting();
        let of = |protocol| ours.differences(&Greeting { protocol, ..ours })[0].remedy();
        assert!(of(1).ends_with("its program is the older one, and is to be updated"), "{}", of(1));
        assert!(of(0x0301).ends_with("this program is the older one, and is to be updated"), "{}", of(0x0301));
        let other = ours.differences(&Greeting { consortium: ConsortiumId(Digest([9; 32])), ..ours });
        assert!(other[0].remedy().contains("consortium sign consortium.toml --home HOME"));
        assert!(unreadable("it".to_owned()).remedy().contains("--version"));
    }

    #[test]
    fn names_each_difference() {
        let ours = greeting();
        assert_eq!(ours.differences(&Greeting { instance: [9; 16], ..ours }), []);
        let theirs = Greeting { round: RoundId(Digest([7; 32])), model: Digest([8; 32]), ..ours };
        let differences = ours.differences(&theirs);
        assert_eq!(
            differences.iter().map(|difference| difference.what).collect::<Vec<_>>(),
            [Subject::Round, Subject::Model]
        );
        let sentence = format!("the round differs: ours is `{}`, theirs is `{}`", "04".repeat(32), "07".repeat(32));
        assert_eq!(differences[0].to_string(), sentence);
        let protocol = ours.differences(&Greeting { protocol: 1, ..ours });
        assert_eq!(protocol[0].to_string(), "the protocol differs: ours is `513`, theirs is `1`");
    }
}
