//! x
/// b
pub struct Ballot;
