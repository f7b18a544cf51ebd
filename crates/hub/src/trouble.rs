//! What goes wrong between here and a hub: whether another try may do better, when, and how it is told in the end.

use std::time::Duration;

use crate::error::{HubError, shorten};

/// The pause after the first failure; it doubles.
const PAUSE: Duration = Duration::from_millis(250);
/// The same after an answer that asks for patience, without saying for how much.
const BUSY_PAUSE: Duration = Duration::from_secs(4);
/// The longest pause, whatever is asked for.
const MOST_PAUSE: Duration = Duration::from_secs(60);

/// Why there is no body.
pub(crate) enum Interrupted {
    /// Another try may do better.
    ForNow {
        /// Who did not answer, or not to the end.
        host: String,
        /// What happened.
        why: String,
    },
    /// Another try may do better, though who answers has too much to do, or is broken.
    Busy {
        /// What was asked for.
        address: String,
        /// The HTTP status.
        status: u16,
        /// For how long nothing should be asked, if that is said.
        after: Option<Duration>,
    },
    /// None will.
    ForGood(HubError),
}

impl Interrupted {
    /// How long nothing is asked after so many failures in a row, at least one.
    pub fn pause(&self, failures: u32) -> Duration {
        let doubled = |first: Duration| first.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1)));
        let pause = match self {
            Self::Busy { after: Some(after), .. } => doubled(PAUSE).max(*after),
            Self::Busy { status: 429 | 503, .. } => doubled(BUSY_PAUSE),
            _ => doubled(PAUSE),
        };
        pause.min(MOST_PAUSE)
    }
}

impl From<HubError> for Interrupted {
    fn from(error: HubError) -> Self {
        Self::ForGood(error)
    }
}

/// What a connection to `host` that failed is told as.
pub(crate) fn unreachable(error: &ureq::Error, host: String) -> HubError {
    match certificate(error) {
        Some(why) if is_of_unknown_authority(&why) => HubError::UnknownAuthority { host },
        Some(why) => HubError::Certificate { host, why: shorten(&why) },
        None => HubError::Unreachable { endpoint: host, why: in_words(error) },
    }
}

/// The same, and whether another try may do better.
pub(crate) fn broken(error: &ureq::Error, host: String) -> Interrupted {
    let for_good = matches!(error, ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl);
    if for_good || certificate(error).is_some() {
        return Interrupted::ForGood(unreachable(error, host));
    }
    Interrupted::ForNow { host, why: in_words(error) }
}

/// What is wrong with the certificate of who answered, if that is it.
fn certificate(error: &ureq::Error) -> Option<String> {
    // by its words: it comes in an error of the system, of a type that only rustls itself could name
    let said = error.to_string();
    said.split_once("invalid peer certificate: ").map(|(_, why)| why.to_owned())
}

/// Whether it is one that nobody signed whom this program knows; who signs for himself is the same case.
fn is_of_unknown_authority(why: &str) -> bool {
    why.contains("UnknownIssuer") || why.contains("CaUsedAsEndEntity")
}

/// What happened to a connection.
pub(crate) fn in_words(error: &ureq::Error) -> String {
    match error {
        ureq::Error::HostNotFound => "its name does not resolve".to_owned(),
        ureq::Error::Timeout(_) => "it does not answer in time".to_owned(),
        ureq::Error::Io(error) => shorten(&error.to_string()),
        other => shorten(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;
    use crate::client::{Hub, Settings};

    /// What a server of TLS 1.2 begins with whose certificate is signed by itself, for `localhost`, from 2000 to 2099;
    /// of OpenSSL, with a key that nobody has any more. It is looked at before anything that another connection has anew.
    const HANDSHAKE: &str = "\
        160303003d02000039030304379df409ff1b972126408de8112824126304e851a50cb1be44f3cf744c186a00c02c000011ff01000100\
        000b00040300010200170000160303016d0b0001690001660001633082015f30820104a003020102020101300a06082a8648ce3d0403\
        0230143112301006035504030c096c6f63616c686f73743020170d3030303130313030303030305a180f323039393132333132333539\
        35395a30143112301006035504030c096c6f63616c686f73743059301306072a8648ce3d020106082a8648ce3d030107034200047889\
        b8cc03d94cccf473767c17cb73c8f4ae50bbbc6774e042edc0c277eb35a9813acafb6c67386450d16008e11bc9da02d337243e60ffb3\
        ecd7d68844e11c98a3453043300c0603551d130101ff0402300030140603551d11040d300b82096c6f63616c686f7374301d0603551d\
        0e0416041441bf7a42e5ffc1a0545a77b21ad5dfa77b72fc23300a06082a8648ce3d0403020349003046022100e17096ba4e03eb27b3\
        13c56fd1e88fa12212ba08ce61b848aae5ba113f5868f2022100ad148445c40754068d02839fb0d67e6407e027916f5dbd2fcf2f31be\
        18331c2816030300720c00006e03001d20133640a20911841ee4b29ed12c95dee2196df0ab24eab3b5d4f58f4056c0f2560503004630\
        4402205b182778e77319dc0663513bd42773b090c63c97c4162f03f3c90a006400912f022029b032f811bf8ab06ca325f9f3e023ff50\
        2d0d31aa973f6cb2b838f44ca0606716030300040e000000";

    #[test]
    fn a_certificate_that_nobody_known_signed_is_told_as_that() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("https://{}", listener.local_addr().unwrap());
        let handshake: Vec<u8> = (0..HANDSHAKE.len() / 2)
            .map(|at| u8::from_str_radix(&HANDSHAKE[2 * at..2 * at + 2], 16).unwrap())
            .collect();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                // all of its hello at once, and then what it thinks of the answer, which is never the end of it
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(&handshake);
                let _ = stream.read_to_end(&mut Vec::new());
            }
        });
        let settings = Settings { endpoint: endpoint.clone(), token: None, program: "fedprune/0.1.0".to_owned() };
        let hub = Hub::new(&settings).unwrap();
        let name = "a/b".parse().unwrap();
        let error = hub.listing(&name, &"main".parse().unwrap()).unwrap_err();
        assert!(matches!(&error, HubError::UnknownAuthority { host } if *host == endpoint), "{error}");
        assert!(error.is_of_network() && !error.to_string().contains("offline"), "{error}");

        // and is not tried again
        let identity = crate::listing::Identity::Sha256("0".repeat(64));
        let file = crate::listing::RemoteFile { name: "x".to_owned(), bytes: 1, identity };
        let Err(interrupted) = hub.open(&name, &"0".repeat(40).parse().unwrap(), &file, 0) else { panic!("it opens") };
        assert!(matches!(interrupted, Interrupted::ForGood(HubError::UnknownAuthority { .. })));
    }

    #[test]
    fn other_certificates_are_told_with_what_is_wrong() {
        let told = |why: &str| {
            let said = std::io::Error::other(format!("invalid peer certificate: {why}"));
            unreachable(&ureq::Error::Io(said), "https://hub.example".to_owned()).to_string()
        };
        assert!(told("certificate expired: verification time 5 (UNIX)").contains("does not hold: certificate expired"));
        assert!(told("Other(OtherError(CaUsedAsEndEntity))").contains("that this program does not know"));
        let other = unreachable(&ureq::Error::HostNotFound, "https://hub.example".to_owned());
        assert!(other.to_string().contains("cannot reach `https://hub.example`: its name does not resolve"), "{other}");
    }

    fn busy(status: u16, after: Option<u64>) -> Interrupted {
        Interrupted::Busy { address: String::new(), status, after: after.map(Duration::from_secs) }
    }

    #[test]
    fn who_asks_for_patience_gets_it_up_to_a_bound() {
        let broken = Interrupted::ForNow { host: String::new(), why: String::new() };
        let pauses = |interrupted: &Interrupted| [1, 2, 4, 40].map(|failures| interrupted.pause(failures).as_millis());
        assert_eq!(pauses(&broken), [250, 500, 2000, 60_000]);
        assert_eq!(pauses(&busy(500, None)), pauses(&broken));
        assert_eq!(pauses(&busy(429, None)), [4000, 8000, 32_000, 60_000]);
        assert_eq!(pauses(&busy(503, Some(1))), [1000, 1000, 2000, 60_000]);
        assert_eq!(pauses(&busy(429, Some(0))), pauses(&broken));
        assert_eq!(pauses(&busy(502, Some(u64::MAX))), [60_000; 4]);
    }
}
