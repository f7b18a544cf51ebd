//! Where what is shown comes from: the page of the node if it has one, and its folder otherwise.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use fedprune_node::observe::Snapshot;
use fedprune_node::run::Status;
use fedprune_node::storage::home::Home;

use crate::args::NodeWatchOptions;
use crate::files::{program, shell};

/// For the node to take a connection, and to say each part of its answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most bytes of an answer.
const ANSWER_BYTES: u64 = 4 << 20;

/// What is known of a node.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Seen {
    /// From its page: everything.
    Page(Box<Snapshot>),
    /// From its folder; why not from its page, unless it has none.
    Folder(Box<Status>, Option<String>),
}

impl Seen {
    pub(super) fn status(&self) -> &Status {
        match self {
            Self::Page(snapshot) => &snapshot.status,
            Self::Folder(status, _) => status,
        }
    }
}

/// A node to look at.
pub(super) struct Source {
    status: PathBuf,
    home: PathBuf,
}

impl Source {
    pub(super) fn of(options: &NodeWatchOptions) -> anyhow::Result<Self> {
        let home = Home::inspect(&options.home)?;
        let consortium = home.consortium()?;
        let (_, folder) = home.round(&consortium, options.round)?;
        Ok(Self { status: folder.status(), home: options.home.clone() })
    }

    /// Looks once. A node says in its folder where its page is.
    pub(super) fn look(&self) -> anyhow::Result<Seen> {
        let status = Status::read(&self.status).with_context(|| {
            format!(
                "no node has run in `{}` yet; start it with: {} node run --home {} --model DIR --data PATH --page 127.0.0.1:0",
                self.home.display(),
                program(),
                shell(&self.home)
            )
        })?;
        let Some(address) = status.page.filter(|_| status.running) else {
            return Ok(Seen::Folder(Box::new(status), None));
        };
        match ask(address) {
            Ok(snapshot) if snapshot.status.round == status.round && snapshot.status.member == status.member => {
                Ok(Seen::Page(Box::new(snapshot)))
            }
            Ok(_) => Ok(Seen::Folder(Box::new(status), Some(format!("another node answers at {address}")))),
            Err(error) => Ok(Seen::Folder(Box::new(status), Some(format!("{error:#}")))),
        }
    }
}

/// Asks a node on this machine for its state.
fn ask(address: SocketAddr) -> anyhow::Result<Snapshot> {
    if !address.ip().is_loopback() {
        bail!("its page is said to be at {address}, which is not on this machine");
    }
    let mut stream =
        TcpStream::connect_timeout(&address, PATIENCE).with_context(|| format!("it does not answer at {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET /state.json HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream
        .take(ANSWER_BYTES)
        .read_to_end(&mut answer)
        .with_context(|| format!("the answer of {address} breaks off"))?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("what answers there is no node")?;
    let (head, body) = answer.split_at(end);
    if !head.starts_with(b"HTTP/1.1 200 ") {
        let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        bail!("it answers `{}`", String::from_utf8_lossy(line));
    }
    serde_json::from_slice(body).context("what answers there is another version of this program, or no node")
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// What comes of an answer.
    fn of(answer: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                asked.extend(byte);
            }
            stream.write_all(answer).unwrap();
            String::from_utf8_lossy(&asked).into_owned()
        });
        let found = ask(address).map(|_| "a snapshot".to_owned()).unwrap_or_else(|error| format!("{error:#}"));
        let asked = served.join().unwrap();
        assert!(asked.starts_with("GET /state.json HTTP/1.1\r\nHost: 127.0.0.1:"), "{asked}");
        found
    }

    #[test]
    fn answers_that_are_none_are_named() {
        assert_eq!(of(b"hello"), "what answers there is no node");
        assert_eq!(of(b"HTTP/1.1 404 Not Found\r\n\r\n"), "it answers `HTTP/1.1 404 Not Found`");
        let other = of(b"HTTP/1.1 200 OK\r\n\r\n{}");
        assert!(other.starts_with("what answers there is another version"), "{other}");
        let elsewhere = ask("192.0.2.1:80".parse().unwrap()).unwrap_err().to_string();
        assert!(elsewhere.ends_with("not on this machine"), "{elsewhere}");
    }
}
