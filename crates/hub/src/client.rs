//! Asking a hub: the list of a repository, and the beginning of a body.
//!
//! Redirects are followed by hand, since it is a matter of trust where to.

use std::io::Read;
use std::time::Duration;

use ureq::http::{Response, StatusCode, Uri};
use ureq::typestate::WithoutBody;
use ureq::{Agent, Body, Proxy, ProxyProtocol, RequestBuilder};

use crate::error::{HubError, shorten};
use crate::listing::{Identity, LIST_BYTES, Listing, RemoteFile};
use crate::name::{Commit, RepositoryName, Revision};
use crate::origin::Origin;
use crate::trouble::{Interrupted, broken, unreachable};

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
    /// Its address, `https://huggingface.co` or that of a mirror; encrypted, or on this machine.
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

/// What answered to a question for a file.
pub(crate) struct Answer {
    /// Its status is not looked at yet.
    pub response: Response<Body>,
    /// Who gave it: the hub, or where it sent on to.
    pub from: Origin,
}

impl Hub {
    /// A hub, asked through the proxy that the environment names; nothing is asked yet.
    ///
    /// # Errors
    /// [`HubError::Endpoint`] for what is no address, [`HubError::NotEncrypted`] for one where anybody on the way could
    /// change what is said, [`HubError::SocksProxy`] where it lies behind a proxy that cannot be used.
    pub fn new(settings: &Settings) -> Result<Self, HubError> {
        Self::through(settings, Proxy::try_from_env())
    }

    fn through(settings: &Settings, proxy: Option<Proxy>) -> Result<Self, HubError> {
        let endpoint = settings.endpoint.trim_end_matches('/').to_owned();
        let bad = || HubError::Endpoint(shorten(&settings.endpoint));
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/[]".contains(&byte);
        if !endpoint.bytes().all(plain) || endpoint.contains("..") {
            return Err(bad());
        }
        let origin = Origin::of(&endpoint).ok_or_else(bad)?;
        if !origin.is_encrypted() && !origin.is_loopback() {
            return Err(HubError::NotEncrypted(endpoint));
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
            .proxy(proxy)
            .build();
        let hub = Self { agent: agent.into(), endpoint, origin, token: settings.token.clone() };
        if hub.is_behind_socks(&hub.endpoint) {
            return Err(HubError::SocksProxy(hub.origin.to_string()));
        }
        Ok(hub)
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
        let response = answered.map_err(|error| unreachable(&error, self.endpoint.clone()))?;
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
        read.map_err(|error| unreachable(&error.into(), self.endpoint.clone()))?;
        let listing = Listing::parse(&bytes)?;
        if revision.is_of_another(&listing.commit) {
            let (name, commit, asked) = (name.to_string(), listing.commit.to_string(), revision.to_string());
            return Err(HubError::OtherCommit { name, commit, asked });
        }
        Ok(listing)
    }

    /// Whether an address lies behind a proxy of a kind that is not spoken here; it would be asked past it, silently.
    fn is_behind_socks(&self, address: &str) -> bool {
        use ProxyProtocol::{Http, Https};
        let here = || Origin::of(address).is_some_and(|origin| origin.is_loopback());
        let spared = |proxy: &Proxy| address.parse::<Uri>().is_ok_and(|uri| proxy.is_no_proxy(&uri));
        let proxy = self.agent.config().proxy();
        proxy.is_some_and(|proxy| !matches!(proxy.protocol(), Http | Https) && !spared(proxy)) && !here()
    }

    /// A question; who asks is told to the hub's own address alone.
    fn request(&self, address: &str) -> RequestBuilder<WithoutBody> {
        let mut request = self.agent.get(address);
        let Some(to) = Origin::of(address) else { return request };
        if to.is_loopback() && self.agent.config().proxy().is_some() {
            // this machine is meant, and not the proxy's; nor is a token for others to read
            request = request.config().proxy(None).build();
        }
        match &self.token {
            Some(token) if to == self.origin => request.header("Authorization", format!("Bearer {token}")),
            _ => request,
        }
    }

    /// Whether it was the hub itself that answered.
    pub(crate) fn is_own(&self, from: &Origin) -> bool {
        *from == self.origin
    }

    /// Who answered, as it is told.
    pub(crate) fn named(&self, from: &Origin) -> String {
        if self.is_own(from) { self.endpoint.clone() } else { from.to_string() }
    }

    /// The body of a file from byte `from` on, as somebody answers who may.
    pub(crate) fn open(
        &self,
        name: &RepositoryName,
        commit: &Commit,
        file: &RemoteFile,
        from: u64,
    ) -> Result<Answer, Interrupted> {
        // names of files that are fetched are plain: see `need`
        let address = format!("{}/{name}/resolve/{commit}/{}", self.endpoint, file.name);
        let (mut at, mut origin) = (address.clone(), self.origin.clone());
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.request(&at);
            if from > 0 {
                request = request.header("Range", format!("bytes={from}-"));
            }
            let response = request.call().map_err(|error| broken(&error, self.named(&origin)))?;
            let Some(to) = location(&response) else { return Ok(Answer { response, from: origin }) };
            (at, origin) = self.sent_on(&at, &to, file)?;
        }
        let why = "again and again";
        Err(HubError::Redirect { address: shorten(&address), to: shorten(&at), why }.into())
    }

    /// The address that an answer sends on to, if this file may come from there.
    fn sent_on(&self, at: &str, to: &str, file: &RemoteFile) -> Result<(String, Origin), HubError> {
        let refused = |why: &'static str| HubError::Redirect { address: shorten(at), to: shorten(to), why };
        if to.len() > MAX_ADDRESS_BYTES {
            return Err(refused("which is too long"));
        }
        let here = Origin::of(at).ok_or_else(|| refused("from where no address is"))?;
        let next = match to.strip_prefix('/') {
            // of the same host; `//` would name another one
            Some(rest) if !rest.starts_with('/') => here.with_path(to),
            _ => to.to_owned(),
        };
        let there = Origin::of(&next).ok_or_else(|| refused("which is no address of HTTP"))?;
        if !there.is_encrypted() && (self.origin.is_encrypted() || !there.is_loopback()) {
            return Err(refused("where it would not be encrypted"));
        }
        if there != self.origin && matches!(file.identity, Identity::GitBlob(_)) {
            return Err(refused("another host, and there is no SHA-256 that its contents could be compared with"));
        }
        if self.is_behind_socks(&next) {
            return Err(refused("behind the SOCKS proxy that the environment names, which this program cannot use"));
        }
        Ok((next, there))
    }

    /// What an answer of the hub itself that is no file means.
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
}

/// Where an answer sends on to, if it does.
fn location(response: &Response<Body>) -> Option<String> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let to = response.headers().get("location").and_then(|to| to.to_str().ok());
    Some(to.unwrap_or_default().to_owned())
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
    fn an_endpoint_is_an_address_and_encrypted_or_on_this_machine() {
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
        for good in ["https://hub.example", "http://127.0.0.1:9", "http://localhost"] {
            assert!(hub(good, Some("t")).is_ok(), "{good}");
        }
        for bad in ["http://hub.example", "http://10.0.0.1:80/x", "http://127.0.0.1.example"] {
            assert!(matches!(hub(bad, None), Err(HubError::NotEncrypted(_))), "{bad}");
        }
    }

    #[test]
    fn a_proxy_that_is_not_spoken_is_refused_and_this_machine_needs_none() {
        let through = |endpoint: &str, proxy: Proxy| {
            let settings =
                Settings { endpoint: endpoint.to_owned(), token: None, program: "fedprune/0.1.0".to_owned() };
            Hub::through(&settings, Some(proxy))
        };
        let proxy = |address: &str| Proxy::new(address).unwrap();
        for spoken in ["http://proxy.example:3128", "https://proxy.example", "proxy.example:3128"] {
            assert!(through("https://hub.example", proxy(spoken)).is_ok(), "{spoken}");
        }
        for kind in ["socks4", "socks4a", "socks5", "socks5h", "socks"] {
            let address = format!("{kind}://user:secret@127.0.0.1:1080");
            let Err(error) = through("https://hub.example", proxy(&address)) else { panic!("{kind} is used") };
            let said = error.to_string();
            assert!(error.is_of_usage() && said.contains("SOCKS") && said.contains("https://hub.example"), "{said}");
            assert!(!said.contains("secret"), "{said}");
            assert!(through("http://127.0.0.1:9", proxy(&address)).is_ok(), "{kind}");
        }
        // what it is not asked for, and what is sent on to behind it
        let spares = Proxy::builder(ProxyProtocol::Socks5).host("127.0.0.1").no_proxy("hub.example").build().unwrap();
        let hub = through("https://hub.example", spares).unwrap();
        let at = "https://hub.example/a/b/resolve/main/x";
        assert!(hub.sent_on(at, "/y", &file(true)).is_ok());
        assert!(hub.sent_on(at, "https://cdn.example/y", &file(true)).is_err());
    }

    #[test]
    fn a_file_in_the_clear_comes_from_this_machine_alone() {
        let hub = hub("http://127.0.0.1:9", None).unwrap();
        let at = "http://127.0.0.1:9/a/b/resolve/main/x";
        for good in ["http://127.0.0.1:10/y", "https://cdn.example/y"] {
            assert!(hub.sent_on(at, good, &file(true)).is_ok(), "{good}");
        }
        assert!(matches!(hub.sent_on(at, "http://cdn.example/y", &file(true)), Err(HubError::Redirect { .. })));
    }

    #[test]
    fn only_contents_with_a_digest_may_come_from_elsewhere_and_never_in_the_clear() {
        let hub = hub("https://hub.example", None).unwrap();
        let at = "https://hub.example/a/b/resolve/main/x";
        let sent_on = |to: &str, pinned: bool| hub.sent_on(at, to, &file(pinned)).map(|(next, _)| next);
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
