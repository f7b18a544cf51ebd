//! What can be known before a node runs: the clock, the ports, and who of the others can be reached.
//!
//! Nothing here signs, stores or says anything of a round but the greeting with which nodes meet, so that it may be
//! repeated at will, also while the others' nodes run.

mod clock;
mod ports;
mod reach;

pub use clock::{Clock, clock};
pub use ports::{PortError, check_port};
pub use reach::{Dialled, Outcome, Reach, Request, TryError, reach};
