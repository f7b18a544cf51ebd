//! A small world for tests.

#[path = "../tests/world/mod.rs"]
mod world;

use fedprune_federation::MemberIndex;

use crate::journal::Owner;

pub(crate) use world::{World, key, value};

impl World {
    pub(crate) fn owner(&self, member: u16) -> Owner<'_> {
        Owner { consortium: &self.consortium, round: self.round.id(), height: self.height, member: MemberIndex(member) }
    }
}
