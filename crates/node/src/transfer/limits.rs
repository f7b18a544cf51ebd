//! Every limit of fetching bodies, in one place.

/// Most requests for chunks of one body at a time.
pub const MAX_REQUESTS_PER_BODY: usize = 8;
/// Most requests to one member at a time, over all bodies.
pub const MAX_REQUESTS_PER_MEMBER: usize = 4;
/// Most requests at a time: with 1 MiB chunks, 32 MiB of answers in memory.
pub const MAX_REQUESTS: usize = 32;
/// Most bodies that are wanted at a time: one of each member.
pub const MAX_WANTED_BODIES: usize = 1024;

/// A request without progress for this long has failed.
pub const NO_PROGRESS_MS: u64 = 30_000;
/// How long a member is left alone after its first failure; doubled for each further one in a row.
pub const FIRST_BACKOFF_MS: u64 = 250;
/// Longest time for which a member is left alone.
pub const MAX_BACKOFF_MS: u64 = 30_000;
/// When a member that did not hold a body is asked again; doubled for each further time.
pub const FIRST_NOT_HELD_MS: u64 = 500;
/// Longest time after which a member that did not hold a body is asked again.
pub const MAX_NOT_HELD_MS: u64 = 15_000;
/// Age of a request from which, when nothing else of its body is left to ask for, another member is asked too.
pub const ENDGAME_MS: u64 = 10_000;
