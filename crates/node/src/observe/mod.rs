//! Seeing a node run: a page and metrics over HTTP, on this machine unless the operator says otherwise, and off unless
//! asked for.
//!
//! | module | what it does |
//! |---|---|
//! | [`snapshot`] | what a node is doing at one moment: the one source of all the others |
//! | [`metrics`] | the same as OpenMetrics, and the table of it in the documentation |
//! | `page` | the page, with what a browser may do in it |
//! | `server` | HTTP: who may ask what, and within which limits |
//!
//! The node's loop publishes a [`Snapshot`] through a channel that holds one; nobody who reads it slowly, or stops to, is
//! ever waited for.

pub mod metrics;
mod page;
mod server;
pub mod snapshot;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use libp2p::metrics::Registry;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use server::limits;
pub use snapshot::{LogLine, MemberRow, Snapshot, Waits};

use server::{Routes, Served};

/// Nothing can be served there.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The address cannot be listened on.
    #[error("cannot serve {what} on `{address}`; give an address of this machine with a free port, or port 0 for any")]
    Listen {
        /// The page or metrics.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The page is for this machine.
    #[error(
        "the page is for this machine alone, and `{0}` can be reached from others: give --page 127.0.0.1:PORT, and from \
         elsewhere use a tunnel: ssh -L PORT:127.0.0.1:PORT HOST"
    )]
    PageElsewhere(SocketAddr),
}

/// Where a node is to be looked at; nowhere by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Addresses {
    /// The page and `state.json`: on this machine alone.
    pub page: Option<SocketAddr>,
    /// `/metrics`.
    pub metrics: Option<SocketAddr>,
}

/// Sockets that are listened on and not served yet.
pub(crate) struct Endpoints {
    listeners: Vec<(TcpListener, Routes)>,
    /// Where the page is, if anywhere.
    pub(crate) page: Option<SocketAddr>,
    /// Where metrics are.
    pub(crate) metrics: Option<SocketAddr>,
}

impl Endpoints {
    /// Listens.
    pub(crate) fn bind(addresses: Addresses) -> Result<Self, ObserveError> {
        let listen = |address: SocketAddr, what| {
            let bound = TcpListener::bind(address).and_then(|listener| {
                listener.set_nonblocking(true)?;
                Ok((listener.local_addr()?, listener))
            });
            bound.map_err(|source| ObserveError::Listen { what, address, source })
        };
        let mut endpoints = Self { listeners: Vec::new(), page: None, metrics: None };
        if let Some(address) = addresses.page {
            if !address.ip().is_loopback() {
                return Err(ObserveError::PageElsewhere(address));
            }
            let metrics_too = addresses.metrics == addresses.page;
            let (at, listener) = listen(address, "the page")?;
            endpoints.listeners.push((listener, Routes { page: true, metrics: metrics_too, local: true }));
            endpoints.page = Some(at);
            endpoints.metrics = metrics_too.then_some(at);
        }
        if let (Some(address), None) = (addresses.metrics, endpoints.metrics) {
            let (at, listener) = listen(address, "metrics")?;
            let local = address.ip().is_loopback();
            endpoints.listeners.push((listener, Routes { page: false, metrics: true, local }));
            endpoints.metrics = Some(at);
        }
        Ok(endpoints)
    }

    /// Whether nothing is served.
    pub(crate) fn is_empty(&self) -> bool {
        self.listeners.is_empty()
    }

    /// Serves until the set is dropped.
    pub(crate) fn serve(
        self,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        registry: Arc<Mutex<Registry>>,
    ) -> io::Result<JoinSet<()>> {
        metrics::register(&mut registry.lock().unwrap_or_else(PoisonError::into_inner), snapshots.clone());
        let served = Arc::new(Served::new(snapshots, registry));
        let mut tasks = JoinSet::new();
        for (listener, routes) in self.listeners {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            tasks.spawn(server::serve(listener, routes, Arc::clone(&served)));
        }
        Ok(tasks)
    }
}
