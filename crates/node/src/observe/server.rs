//! HTTP for whoever looks at a node: `GET` of three paths, and nothing that changes anything.
//!
//! A socket of this machine answers only requests that name this machine in `Host`: a web site that points its own name
//! at 127.0.0.1 gets nothing. No header allows another site to read what is answered.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use libp2p::metrics::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::metrics;
use super::page::Page;
use super::snapshot::Snapshot;
use limits::{
    ACCEPT_PAUSE, HTTP_CONNECTION_TIME, HTTP_CONNECTIONS, HTTP_HEAD_BYTES, HTTP_HEAD_LINES, HTTP_HEAD_TIME,
    HTTP_LAST_ANSWER_TIME, HTTP_REQUESTS_AT_ONCE, HTTP_REQUESTS_PER_SECOND, METRICS_KEPT,
};

/// Every limit of what clients can cause.
pub mod limits {
    use std::time::Duration;

    /// Connections at a time to one socket; further ones wait until one closes.
    pub const HTTP_CONNECTIONS: usize = 32;
    /// For the head of a request, from the first byte that could have come.
    pub const HTTP_HEAD_TIME: Duration = Duration::from_secs(5);
    /// Bytes of the head of a request; also of what is buffered for one.
    pub const HTTP_HEAD_BYTES: usize = 8 << 10;
    /// Lines in it.
    pub const HTTP_HEAD_LINES: usize = 64;
    /// How long a connection is used; then its client may connect again.
    pub const HTTP_CONNECTION_TIME: Duration = Duration::from_secs(60);
    /// For the answer that is under way when that is over.
    pub const HTTP_LAST_ANSWER_TIME: Duration = Duration::from_secs(5);
    /// Requests that a socket answers, however close they come; further ones wait for their turn.
    pub const HTTP_REQUESTS_AT_ONCE: u32 = 64;
    /// Requests that it answers in a second, from then on.
    pub const HTTP_REQUESTS_PER_SECOND: u32 = 32;
    /// How long metrics are answered as they were written down, while the node publishes nothing new.
    pub const METRICS_KEPT: Duration = Duration::from_secs(1);
    /// Pause after a connection could not be taken, as when files run out.
    pub const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
}

/// The type of metrics that Prometheus asks for.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a socket answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Routes {
    /// `/` and `/state.json`.
    pub(super) page: bool,
    /// `/metrics`.
    pub(super) metrics: bool,
    /// Only requests that name this machine.
    pub(super) local: bool,
}

/// What is answered.
pub(super) struct Served {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    registry: Arc<Mutex<Registry>>,
    page: Page,
    metrics: Mutex<Option<Written>>,
}

/// Metrics as they were written down last.
struct Written {
    /// Of which moment.
    of: Arc<Snapshot>,
    at: Instant,
    text: Bytes,
}

impl Served {
    pub(super) fn new(snapshots: watch::Receiver<Arc<Snapshot>>, registry: Arc<Mutex<Registry>>) -> Self {
        Self { snapshots, registry, page: Page::new(), metrics: Mutex::new(None) }
    }

    /// The metrics. Those of one snapshot are written down once, or again after [`METRICS_KEPT`], when libp2p may have
    /// counted further: whoever asks without end costs a copy of a pointer each time.
    fn metrics(&self) -> Result<Bytes, std::fmt::Error> {
        let now = self.snapshots.borrow().clone();
        let mut written = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = &*written
            && Arc::ptr_eq(&kept.of, &now)
            && kept.at.elapsed() < METRICS_KEPT
        {
            return Ok(kept.text.clone());
        }
        let text = metrics::encode(&self.registry.lock().unwrap_or_else(PoisonError::into_inner))?;
        let text = Bytes::from(text);
        *written = Some(Written { of: now, at: Instant::now(), text: text.clone() });
        Ok(text)
    }
}

/// When the requests of one socket are answered: so many at once, the others one after the other.
struct Pace {
    /// When the last of those that were promised an answer gets it.
    next: Mutex<Instant>,
}

impl Pace {
    /// Between two answers, once too many came at once.
    const PAUSE: Duration = Duration::from_nanos(1_000_000_000 / HTTP_REQUESTS_PER_SECOND as u64);

    fn new() -> Self {
        let now = Instant::now();
        Self { next: Mutex::new(Self::earliest(now)) }
    }

    /// Since when turns that nobody took are kept: as many as may come at once.
    fn earliest(now: Instant) -> Instant {
        now.checked_sub(Self::PAUSE * HTTP_REQUESTS_AT_ONCE).unwrap_or(now)
    }

    /// How long a request that comes now waits for its answer: never longer than a request on each connection takes,
    /// since clients that asked and went away are not waited for.
    fn wait(&self, now: Instant) -> Duration {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let latest = now + Self::PAUSE * HTTP_CONNECTIONS as u32;
        *next = ((*next).max(Self::earliest(now)) + Self::PAUSE).min(latest);
        next.saturating_duration_since(now)
    }
}

/// Takes connections until it is dropped, and its connections with it.
pub(super) async fn serve(listener: TcpListener, routes: Routes, served: Arc<Served>) {
    let places = Arc::new(Semaphore::new(HTTP_CONNECTIONS));
    let pace = Arc::new(Pace::new());
    let mut connections = tokio::task::JoinSet::new();
    loop {
        // closed by nobody
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let (served, pace) = (Arc::clone(&served), Arc::clone(&pace));
                connections.spawn(async move {
                    connection(stream, routes, served, pace).await;
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn connection(stream: TcpStream, routes: Routes, served: Arc<Served>, pace: Arc<Pace>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (served, wait) = (Arc::clone(&served), pace.wait(Instant::now()));
        async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            Ok::<_, Infallible>(answer(&request, routes, &served))
        }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HTTP_HEAD_TIME)
        .max_headers(HTTP_HEAD_LINES)
        .max_buf_size(HTTP_HEAD_BYTES);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    // whatever goes wrong, it is the client's, and it is gone
    if tokio::time::timeout(HTTP_CONNECTION_TIME, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(HTTP_LAST_ANSWER_TIME, connection).await;
    }
}

/// Answers one request; its body, if it has one, is never read.
fn answer<B>(request: &Request<B>, routes: Routes, served: &Served) -> Response<Full<Bytes>> {
    if routes.local && !names_this_machine(request) {
        return plain(StatusCode::MISDIRECTED_REQUEST, "this is answered to localhost alone\n");
    }
    if request.method() != Method::GET {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered\n");
        refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
        return refused;
    }
    match request.uri().path() {
        "/" if routes.page => {
            let mut page = with_type(StatusCode::OK, "text/html; charset=utf-8", served.page.html());
            page.headers_mut().insert(header::CONTENT_SECURITY_POLICY, served.page.policy());
            page
        }
        "/state.json" if routes.page => {
            let snapshot = served.snapshots.borrow().clone();
            match serde_json::to_vec(&*snapshot) {
                Ok(json) => with_type(StatusCode::OK, "application/json", json.into()),
                Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            }
        }
        "/metrics" if routes.metrics => match served.metrics() {
            Ok(text) => with_type(StatusCode::OK, OPENMETRICS, text),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        _ => {
            let known = [(routes.page, "/, /state.json"), (routes.metrics, "/metrics")];
            let known: Vec<&str> = known.iter().filter(|(is, _)| *is).map(|(_, path)| *path).collect();
            plain(StatusCode::NOT_FOUND, format!("not here; there is {}\n", known.join(", ")))
        }
    }
}

/// Whether a request was made to this machine under a name that nobody else has.
fn names_this_machine<B>(request: &Request<B>) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = match (request.uri().host(), hosts.next(), hosts.next()) {
        (_, _, Some(_)) => return false,
        (Some(host), ..) => Some(host),
        (None, host, _) => host.and_then(|host| host.to_str().ok()).and_then(without_port),
    };
    host.is_some_and(|host| {
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        host.eq_ignore_ascii_case("localhost") || address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
    })
}

/// The host of `host[:port]`.
fn without_port(authority: &str) -> Option<&str> {
    match authority.rsplit_once(':') {
        // the colons of an IPv6 address are within brackets
        Some((host, port)) if !port.contains(']') => port.parse::<u16>().is_ok().then_some(host),
        _ => Some(authority),
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    with_type(status, "text/plain; charset=utf-8", text.into())
}

fn with_type(status: StatusCode, media_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, media_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_answered_at_once_and_nobody_waits_for_those_who_left() {
        let (pace, connections) = (Pace::new(), HTTP_CONNECTIONS as u32);
        let now = Instant::now();
        let waits: Vec<Duration> = (0..10_000).map(|_| pace.wait(now)).collect();
        let (at_once, then) = waits.split_at(HTTP_REQUESTS_AT_ONCE as usize);
        assert!(at_once.iter().all(Duration::is_zero), "{at_once:?}");
        assert!(!then[1].is_zero() && then[1] <= 2 * Pace::PAUSE, "{:?}", then[1]);
        assert_eq!(waits.last(), Some(&(Pace::PAUSE * connections)));
        // and when nobody asked for a while, as at the beginning
        let later = now + Pace::PAUSE * (connections + HTTP_REQUESTS_AT_ONCE);
        assert!((0..HTTP_REQUESTS_AT_ONCE).all(|_| pace.wait(later).is_zero()));
        assert!(!pace.wait(later).is_zero());
    }

    #[test]
    fn only_this_machine_is_named() {
        let asked = |host: &str| Request::get("/").header("host", host).body(()).unwrap();
        for host in ["localhost", "LOCALHOST:1", "localhost:9464", "127.0.0.1:80", "127.8.9.1", "[::1]:9464", "[::1]"] {
            assert!(names_this_machine(&asked(host)), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:9464",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1:9464",
            "0.0.0.0",
            "[::2]",
            "localhost:port",
            "localhost:99999",
            "localhost@evil.example",
            "::1:80:",
        ] {
            assert!(!names_this_machine(&asked(host)), "{host}");
        }
        assert!(!names_this_machine(&Request::get("/").body(()).unwrap()), "HTTP/1.0 without a host");
        let twice = Request::get("/").header("host", "localhost").header("host", "evil.example").body(()).unwrap();
        assert!(!names_this_machine(&twice));
        let absolute = Request::get("http://evil.example/").header("host", "localhost").body(()).unwrap();
        assert!(!names_this_machine(&absolute), "what the request line says counts");
    }
}
