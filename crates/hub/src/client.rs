//! Asking a hub: the list of a repository, and the beginning of a body.
//!
//! Redirects are followed by hand, since it is a matter of trust where to.

use std::io::Read;
use std::time::Duration;

use ureq::http::{Response, StatusCode, Uri};
use ureq::typestate::WithoutBody;
use ureq::{Agent, Body, RequestBuilder};

use crate::error::{HubError, shorten};
use crate::listing::{Identity, LIST_BYTES, Listing, RemoteFile};
use crate::name::{Commit, RepositoryName, Revision};

/// Where models are unless said otherwise.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long an answer may take to begin.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long nothing may come.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the list of files may take in all.
const LIST_TIMEOUT: Duration = Duration::from_secs(120);
/// Most bytes of the head of an answer.
const HEAD_BYTES: usize = 64 << 10;
/// Most times that one question is sent on.
const MAX_REDIRECTS: usize = 5;
/// Longest address, in bytes; those of other hosts are signed and long.
const MAX_ADDRESS_BYTES: usize = 16 << 10;

/// How a hub is asked.
#[derive(Clone)]
pub struct Settings {
    /// Its address, `https://huggingface.co` or that of a mirror.
    pub endpoint: String,
    /// What says who asks; sent to the hub's own address only.
    pub token: Option<String>,
    /// The program that asks, such as `fedprune/0.1.0`.
    pub program: String,
}

/// A hub that can be asked.
pub struct Hub {
    agent: Agent,
    endpoint: String,
    origin: Origin,
    token: Option<String>,
}

/// Who answers at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    /// That of an address; nothing where it is not of HTTP, or names a user.
    fn of(address: &str) -> Option<Self> {
        let uri: Uri = address.parse().ok()?;
        let authority = uri.authority()?;
        let scheme = uri.scheme_str()?.to_ascii_lowercase();
        let default = match scheme.as_str() {
            "https" => 443,
            "http" => 80,
            _ => return None,
        };
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return None;
        }
        let port = authority.port_u16().unwrap_or(default);
        Some(Self { scheme, host: authority.host().to_ascii_lowercase(), port })
    }

    fn is_encrypted(&self) -> bool {
        self.scheme == "https"
    }

    /// Whether it is this machine, which nobody listens to.
    fn is_loopback(&self) -> bool {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl Hub {
    /// A hub; nothing is asked yet.
    ///
    /// # Errors
    /// [`HubError::Endpoint`] for what is no address, [`HubError::TokenInTheClear`] where the token would be read by others.
    pub fn new(settings: &Settings) -> Result<Self, HubError> {
        let endpoint = settings.endpoint.trim_end_matches('/').to_owned();
        let bad = || HubError::Endpoint(shorten(&settings.endpoint));
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/[]".contains(&byte);
        if !endpoint.bytes().all(plain) || endpoint.contains("..") {
            return Err(bad());
        }
        let origin = Origin::of(&endpoint).ok_or_else(bad)?;
        if settings.token.is_some() && !origin.is_encrypted() && !origin.is_loopback() {
            return Err(HubError::TokenInTheClear(endpoint));
        }
        let agent = Agent::config_builder()
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(ANSWER_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT))
            .max_response_header_size(HEAD_BYTES)
            .user_agent(&settings.program)
            .accept_encoding("identity")
            .build();
        Ok(Self { agent: agent.into(), endpoint, origin, token: settings.token.clone() })
    }

    /// Its address.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The files of a repository.
    ///
    /// # Errors
    /// [`HubError`]: nobody answers, there is no such model or revision, or the answer is no list.
    pub fn listing(&self, name: &RepositoryName, revision: &Revision) -> Result<Listing, HubError> {
        let revision_part = revision.as_str().replace('/', "%2F");
        let question = format!("{}/api/models/{name}/revision/{revision_part}?blobs=true", self.endpoint);
        let request = self.request(&question).config().timeout_global(Some(LIST_TIMEOUT)).build();
        let answered = request.call();
        let response = answered.map_err(|error| self.unreachable(&error))?;
        let address = format!("{}/api/models/{name}", self.endpoint);
        if let Some(to) = location(&response) {
            return Err(HubError::Moved { name: name.to_string(), to: shorten(&to) });
        }
        if response.status() != StatusCode::OK {
            return Err(self.refused(&response, &address, name, revision.as_str()));
        }
        if response.headers().get("content-encoding").is_some_and(|encoding| encoding != "identity") {
            return Err(HubError::Listing("it is compressed, which was not asked for".to_owned()));
        }
        let announced = response.body().content_length().unwrap_or(0);
        let too_large = || HubError::Listing(format!("it has more than the {LIST_BYTES} bytes of any such list"));
        if announced > LIST_BYTES {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        let body = response.into_body().into_with_config().limit(LIST_BYTES + 1).reader();
        let read = body.take(LIST_BYTES + 1).read_to_end(&mut bytes);
        if bytes.len() as u64 > LIST_BYTES {
            return Err(too_large());
        }
        read.map_err(|error| self.unreachable(&error.into()))?;
        Listing::parse(&bytes)
    }

    /// A question; who asks is told to the hub's own address alone.
    fn request(&self, address: &str) -> RequestBuilder<WithoutBody> {
        let request = self.agent.get(address);
        match &self.token {
            Some(token) if Origin::of(address).as_ref() == Some(&self.origin) => {
                request.header("Authorization", format!("Bearer {token}"))
            }
            _ => request,
        }
    }

    /// The body of a file from byte `from` on, as somebody answers who may: its status is not looked at yet.
    pub(crate) fn open(
        &self,
        name: &RepositoryName,
        commit: &Commit,
        file: &RemoteFile,
        from: u64,
    ) -> Result<Response<Body>, Interrupted> {
        // names of files that are fetched are plain: see `need`
        let address = format!("{}/{name}/resolve/{commit}/{}", self.endpoint, file.name);
        let mut at = address.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.request(&at);
            if from > 0 {
                request = request.header("Range", format!("bytes={from}-"));
            }
            let response = request.call().map_err(|error| self.broken(&error))?;
            let Some(to) = location(&response) else { return Ok(response) };
            at = self.sent_on(&at, &to, file).map_err(Interrupted::ForGood)?;
        }
        let why = "again and again";
        Err(Interrupted::ForGood(HubError::Redirect { address: shorten(&address), to: shorten(&at), why }))
    }

    /// The address that an answer sends on to, if this file may come from there.
    fn sent_on(&self, at: &str, to: &str, file: &RemoteFile) -> Result<String, HubError> {
        let refused = |why: &'static str| HubError::Redirect { address: shorten(at), to: shorten(to), why };
        if to.len() > MAX_ADDRESS_BYTES {
            return Err(refused("which is too long"));
        }
        let here = Origin::of(at).ok_or_else(|| refused("from where no address is"))?;
        let next = match to.strip_prefix('/') {
            // of the same host; `//` would name another one
            Some(rest) if !rest.starts_with('/') => {
                format!("{}://{}:{}{to}", here.scheme, here.host, here.port)
            }
            _ => to.to_owned(),
        };
        let there = Origin::of(&next).ok_or_else(|| refused("which is no address of HTTP"))?;
        if self.origin.is_encrypted() && !there.is_encrypted() {
            return Err(refused("where it would not be encrypted"));
        }
        if there != self.origin && matches!(file.identity, Identity::GitBlob(_)) {
            return Err(refused("another host, and there is no SHA-256 that its contents could be compared with"));
        }
        Ok(next)
    }

    /// What an answer that is no file means.
    pub(crate) fn refused(
        &self,
        response: &Response<Body>,
        address: &str,
        name: &RepositoryName,
        revision: &str,
    ) -> HubError {
        let code = response.headers().get("x-error-code").and_then(|code| code.to_str().ok()).unwrap_or_default();
        let (status, address, endpoint) = (response.status().as_u16(), shorten(address), self.endpoint.clone());
        let name = name.to_string();
        match (status, code) {
            (_, "RevisionNotFound") => HubError::NoSuchRevision { name, revision: revision.to_owned() },
            (_, "GatedRepo") => HubError::Gated { endpoint, name },
            (_, "RepoNotFound") => HubError::NoSuchModel { endpoint, name },
            (_, "EntryNotFound") => HubError::Status { address, status },
            (401 | 404, _) => HubError::NoSuchModel { endpoint, name },
            (403, _) => HubError::Gated { endpoint, name },
            (429 | 500..=599, _) => HubError::Busy { address, status },
            _ => HubError::Status { address, status },
        }
    }

    fn unreachable(&self, error: &ureq::Error) -> HubError {
        HubError::Unreachable { endpoint: self.endpoint.clone(), why: in_words(error) }
    }

    /// What a connection that failed means: whether another try may do better.
    fn broken(&self, error: &ureq::Error) -> Interrupted {
        match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => {
                Interrupted::ForGood(self.unreachable(error))
            }
            _ => Interrupted::ForNow(in_words(error)),
        }
    }
}

/// Why there is no body.
pub(crate) enum Interrupted {
    /// Another try may do better.
    ForNow(String),
    /// None will.
    ForGood(HubError),
}

/// Where an answer sends on to, if it does.
fn location(response: &Response<Body>) -> Option<String> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let to = response.headers().get("location").and_then(|to| to.to_str().ok());
    Some(to.unwrap_or_default().to_owned())
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
    use super::*;

    fn hub(endpoint: &str, token: Option<&str>) -> Result<Hub, HubError> {
        Hub::new(&Settings {
            endpoint: endpoint.to_owned(),
            token: token.map(str::to_owned),
            program: "fedprune/0.1.0".to_owned(),
        })
    }

    fn file(pinned: bool) -> RemoteFile {
        let identity = if pinned { Identity::Sha256("0".repeat(64)) } else { Identity::GitBlob("0".repeat(40)) };
        RemoteFile { name: "x".to_owned(), bytes: 1, identity }
    }

    #[test]
    fn an_endpoint_is_an_address_and_a_token_is_not_sent_in_the_clear() {
        for good in [
            "https://huggingface.co",
            "https://huggingface.co/",
            "https://mirror.example:8443/api/hub",
            "http://[::1]:80",
        ] {
            assert!(hub(good, None).is_ok(), "{good}");
        }
        for bad in
            ["", "huggingface.co", "ftp://x", "file:///etc", "https://a@b", "https://a?b", "https://a/../b", "https://"]
        {
            assert!(matches!(hub(bad, None), Err(HubError::Endpoint(_))), "{bad}");
        }
        assert!(matches!(hub("http://hub.example", Some("t")), Err(HubError::TokenInTheClear(_))));
        for good in ["https://hub.example", "http://127.0.0.1:9", "http://localhost"] {
            assert!(hub(good, Some("t")).is_ok(), "{good}");
        }
    }

    #[test]
    fn only_contents_with_a_digest_may_come_from_elsewhere_and_never_in_the_clear() {
        let hub = hub("https://hub.example", None).unwrap();
        let at = "https://hub.example/a/b/resolve/main/x";
        let sent_on = |to: &str, pinned: bool| hub.sent_on(at, to, &file(pinned));
        assert_eq!(sent_on("/elsewhere?x=1", false).unwrap(), "https://hub.example:443/elsewhere?x=1");
        assert_eq!(sent_on("https://HUB.example:443/y", false).unwrap(), "https://HUB.example:443/y");
        assert_eq!(sent_on("https://cdn.example/y", true).unwrap(), "https://cdn.example/y");
        let refused = [
            ("https://cdn.example/y", false),
            ("//cdn.example/y", true),
            ("http://hub.example/y", true),
            ("file:///etc/passwd", true),
            ("https://user@cdn.example/y", true),
            ("relative", true),
            ("", true),
        ];
        for (to, pinned) in refused {
            assert!(matches!(sent_on(to, pinned), Err(HubError::Redirect { .. })), "{to}");
        }
        assert!(sent_on(&format!("https://cdn.example/{}", "x".repeat(20_000)), true).is_err());
    }
}
