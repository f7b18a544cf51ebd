//! Verification of a round by someone who trusts nobody, offline.
