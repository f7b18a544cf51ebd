//! What the program exits with, by what went wrong: found from the type of an error, never from its words.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | failed: a file, a model, a disk, a bug |
//! | 2 | usage: what was typed, or a setting, is not understood |
//! | 3 | network or membership: others cannot be reached or do not agree, a key is of no member, a round was abandoned |
//! | 4 | refused: a policy of this site, or its operator, does not allow it |
//! | 10 and up | verdicts of an audit, see `fedprune audit verify --help` |
//! | 130 | stopped by a signal |

use std::io::ErrorKind;

use crate::interrupt;

/// Failed.
pub const FAILED: u8 = 1;
/// Not understood.
pub const USAGE: u8 = 2;
/// Others cannot be reached, do not agree, or do not know this member.
pub const NETWORK: u8 = 3;
/// Not allowed here.
pub const REFUSED: u8 = 4;

/// The same for people, at the end of `fedprune help`.
pub const HELP: &str = "\
Exit codes: 0 done, 1 failed, 2 not understood, 3 network or membership, 4 refused by this site's policy or operator, \
10 and up the verdicts of an audit, 130 stopped by a signal.";

/// What was typed contradicts itself, or a setting is not understood; found after parsing.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Who takes part does not fit.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Membership(pub String);

/// This site's policy, or its operator, does not allow it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// Returns an error that is a mistake of what was typed.
#[macro_export]
macro_rules! usage {
    ($($message:tt)*) => {
        return Err($crate::exit::Usage(format!($($message)*)).into())
    };
}

/// The exit code of an error.
pub fn code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(of_cause).unwrap_or(FAILED)
}

/// What one error in a chain says about it; nothing if it says nothing.
fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if cause.is::<interrupt::Stopped>() {
        return Some(interrupt::EXIT_CODE);
    }
    if cause.is::<Usage>() {
        return Some(USAGE);
    }
    if cause.is::<Membership>() {
        return Some(NETWORK);
    }
    if cause.is::<Refused>() {
        return Some(REFUSED);
    }
    #[cfg(feature = "federation")]
    if cause.is::<fedprune_federation::PolicyRefusal>() {
        return Some(REFUSED);
    }
    #[cfg(any(feature = "federation", feature = "audit"))]
    if let Some(code) = of_federation(cause) {
        return Some(code);
    }
    #[cfg(feature = "federation")]
    if let Some(code) = of_node(cause) {
        return Some(code);
    }
    #[cfg(feature = "fetch")]
    if let Some(error) = cause.downcast_ref::<fedprune_hub::HubError>() {
        return of_hub(error);
    }
    let io = cause.downcast_ref::<std::io::Error>()?;
    let network = matches!(
        io.kind(),
        ErrorKind::AddrInUse
            | ErrorKind::AddrNotAvailable
            | ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkDown
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NotConnected
    );
    network.then_some(NETWORK)
}

#[cfg(any(feature = "federation", feature = "audit"))]
fn of_federation(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    use fedprune_federation::consortium::{NotRatified, RatificationError};
    use fedprune_federation::statement::SignError;
    if cause.is::<NotRatified>() {
        return Some(NETWORK);
    }
    if let Some(error) = cause.downcast_ref::<RatificationError>() {
        // bytes that are no list of signatures are a broken file, and nothing about members
        return (!matches!(error, RatificationError::Wire(_) | RatificationError::Order(_))).then_some(NETWORK);
    }
    let sign = cause.downcast_ref::<SignError>()?;
    matches!(sign, SignError::NotAMember(_)).then_some(NETWORK)
}

#[cfg(feature = "fetch")]
fn of_hub(error: &fedprune_hub::HubError) -> Option<u8> {
    if error.is_of_usage() {
        return Some(USAGE);
    }
    error.is_of_network().then_some(NETWORK)
}

#[cfg(feature = "federation")]
fn of_node(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    use fedprune_federation::machine::SetupError;
    use fedprune_node::observe::ObserveError;
    use fedprune_node::run::NodeError;
    use fedprune_node::storage::home::HomeError;
    let home = |error: &HomeError| match error {
        HomeError::NoConsortium(_)
        | HomeError::NotAMember { .. }
        | HomeError::FormerKey { .. }
        | HomeError::PeerKey { .. }
        | HomeError::NotRatified { .. } => Some(NETWORK),
        // the operator has not said yes to it
        HomeError::NotApproved { .. } | HomeError::NoneApproved(_) => Some(REFUSED),
        HomeError::SeveralApproved { .. } => Some(USAGE),
        _ => None,
    };
    if let Some(error) = cause.downcast_ref::<HomeError>() {
        return home(error);
    }
    match cause.downcast_ref::<NodeError>()? {
        // transparent errors are not in the chain themselves
        NodeError::Home(error) => home(error),
        NodeError::Start(_) | NodeError::Send(_) | NodeError::AnotherInstance { .. } | NodeError::Address(_) => {
            Some(NETWORK)
        }
        NodeError::Setup(SetupError::NotAMember(_)) => Some(NETWORK),
        NodeError::NoAddress(_) | NodeError::NoSuchMember(_) | NodeError::Observe(ObserveError::PageElsewhere(_)) => {
            Some(USAGE)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    fn failed() -> anyhow::Error {
        anyhow::anyhow!("anything")
    }

    #[test]
    fn kinds_are_found_by_type_wherever_they_are_in_the_chain() {
        let deep = |error: anyhow::Error| error.context("one").context("two");
        assert_eq!(code(&deep(failed())), FAILED);
        assert_eq!(code(&deep(Usage("x".to_owned()).into())), USAGE);
        assert_eq!(code(&deep(Membership("x".to_owned()).into())), NETWORK);
        assert_eq!(code(&deep(Refused("x".to_owned()).into())), REFUSED);
        assert_eq!(code(&deep(interrupt::Stopped::leaving("x").into())), interrupt::EXIT_CODE);
        // words alone mean nothing
        assert_eq!(code(&anyhow::anyhow!("refused by policy: connection refused, usage")), FAILED);
        let io = |kind: ErrorKind| code(&Err::<(), _>(std::io::Error::from(kind)).context("x").unwrap_err());
        assert_eq!((io(ErrorKind::ConnectionRefused), io(ErrorKind::NotFound)), (NETWORK, FAILED));
    }

    #[cfg(feature = "federation")]
    #[test]
    fn errors_of_nodes_are_told_apart() {
        use fedprune_node::run::NodeError;
        use fedprune_node::storage::home::HomeError;
        let of = |error: NodeError| code(&anyhow::Error::from(error));
        assert_eq!(of(HomeError::NoneApproved("home".into()).into()), REFUSED);
        assert_eq!(of(HomeError::NoFolder("home".into()).into()), FAILED);
        let stranger = HomeError::NotAMember { path: "k".into(), key: "k".into(), consortium: "c".into() };
        assert_eq!(of(stranger.into()), NETWORK);
        assert_eq!(of(NodeError::AnotherInstance { seconds: 3 }), NETWORK);
        assert_eq!(of(NodeError::NoSuchMember("x".into())), USAGE);
        let elsewhere = fedprune_node::observe::ObserveError::PageElsewhere(([0, 0, 0, 0], 9464).into());
        assert_eq!(of(elsewhere.into()), USAGE);
        assert_eq!(of(NodeError::Apply("x".into())), FAILED);
    }
}
