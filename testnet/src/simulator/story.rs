//! What happened last, in words, for whoever looks into a violation.

use std::collections::VecDeque;
use std::rc::Rc;

use fedprune_federation::statement::Statement;
use fedprune_federation::wire::{self, Content};
use fedprune_federation::{BallotHeader, Holdings, MaskResult, Precommit, Prevote, Received, ReceivedProposed};
use fedprune_mask::Digest;

use super::world::World;

/// How many of the last events are told.
const TOLD_EVENTS: usize = 120;

#[derive(Debug)]
struct Happened {
    at_ms: u64,
    member: usize,
    what: String,
    message: Option<Rc<[u8]>>,
}

/// The last events.
#[derive(Debug, Default)]
pub struct Story {
    events: VecDeque<Happened>,
}

impl Story {
    /// Notes what a member did, and with which message.
    pub fn note(&mut self, at_ms: u64, member: usize, what: String, message: Option<Rc<[u8]>>) {
        if self.events.len() == TOLD_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(Happened { at_ms, member, what, message });
    }

    /// Oldest first.
    pub fn tell(&self, world: &World) -> Vec<String> {
        let line = |Happened { at_ms, member, what, message }: &Happened| {
            let message = message.as_ref().map_or(String::new(), |bytes| format!(" {}", in_words(bytes, world)));
            format!("{at_ms:>7} ms, member {member} {what}{message}")
        };
        self.events.iter().map(line).collect()
    }
}

fn in_words(bytes: &[u8], world: &World) -> String {
    let short = |digest: Option<Digest>| digest.map_or("nil".to_owned(), |digest| digest.short());
    let told = match wire::content_of(bytes) {
        Ok(Some(Content::BallotHeader)) => {
            read::<BallotHeader>(bytes, world).map(|(by, said)| format!("ballot {} of {by}", said.body.short()))
        }
        Ok(Some(Content::Holdings)) => read::<Holdings>(bytes, world).map(|(by, said)| {
            let held: Vec<String> = said.ballots().iter().map(|held| short(*held)).collect();
            format!("holdings of {by}: {}", held.join(" "))
        }),
        Ok(Some(Content::MaskResult)) => {
            read::<MaskResult>(bytes, world).map(|(by, said)| format!("result {} of {by}", said.mask_root.short()))
        }
        Ok(Some(Content::Prevote)) => read::<Prevote>(bytes, world)
            .map(|(by, said)| format!("prevote of {by} in view {}: {}", said.view, short(said.value))),
        Ok(Some(Content::Precommit)) => read::<Precommit>(bytes, world)
            .map(|(by, said)| format!("precommit of {by} in view {}: {}", said.view, short(said.value))),
        Ok(Some(Content::Proposed)) => ReceivedProposed::decode(bytes).ok().map(|received| {
            let by = received.claimed_member();
            match received.check(&world.consortium, &world.round) {
                Ok(proposed) => {
                    let said = proposed.proposal().content();
                    let again = said.valid_view.map_or(String::new(), |view| format!(", valid since {view}"));
                    format!("proposal of {by} in view {}: {}{again}", said.view, said.value.short())
                }
                Err(error) => format!("proposal of {by}: {error}"),
            }
        }),
        Ok(Some(content)) => Some(content.in_words().to_owned()),
        _ => None,
    };
    told.unwrap_or_else(|| format!("something unreadable of {} bytes", bytes.len()))
}

fn read<T: Statement>(bytes: &[u8], world: &World) -> Option<(usize, T)> {
    let received = Received::<T>::decode(bytes).ok()?;
    let by = received.claimed_member().as_usize();
    let said = received.check(&world.consortium, world.round.id()).ok()?;
    Some((by, said.content().clone()))
}
