//! What becomes of members that send too much, or what they should not.

use fedprune_federation::MemberIndex;
use libp2p::PeerId;
use tokio::time::Instant;

use super::super::conduct::ShutOut;
use super::super::events::NetworkEvent;
use super::Task;
use crate::limits::CONDUCT_INTERVAL;

impl Task {
    /// Looks at what members sent, and lets those back in whose time is over.
    pub(super) fn look_at_conduct(&mut self) {
        let now = Instant::now();
        for member in self.conduct.forgiven(now) {
            if let Some(peer) = self.members.peer(member) {
                self.swarm.behaviour_mut().allowed.allow_peer(peer);
            }
        }
        if now < self.look_at {
            return;
        }
        self.look_at = now + CONDUCT_INTERVAL;
        let connected: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in connected {
            let Some(member) = self.members.member(&peer) else { continue };
            let out = self.conduct.unasked(member, self.counters.unasked(&peer), now);
            self.shut_out(member, out);
        }
    }

    /// Closes the connections of a member, and refuses it for a while.
    pub(super) fn shut_out(&mut self, member: MemberIndex, out: Option<ShutOut>) {
        let (Some(ShutOut { why, lasts }), Some(peer)) = (out, self.members.peer(member)) else { return };
        self.swarm.behaviour_mut().allowed.disallow_peer(peer);
        self.outbox.tell(NetworkEvent::ShutOut { member, why, lasts });
    }
}
