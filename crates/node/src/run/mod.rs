//! Running a node: from a home folder to a pruned model.
//!
//! | module | what it does |
//! |---|---|
//! | `config` | what a node is told, and its limits |
//! | `driver` | the loop: network, work and time into the machine, its effects into I/O |
//! | `fetch` | pulls bodies from members, chunk by chunk |
//! | `validations` | which ballot is checked next |
//! | `model` | validates and counts ballots over the base model |
//! | `child` | processes that compute masks and write the pruned model |
//! | `conclude` | pruned model and transcript |
//! | `catalogue` | the index of what is in the log and the store |
//! | `events` | what the operator is told |
//! | `status` | how the node is doing, as a file |

mod catalogue;
mod child;
mod conclude;
mod config;
mod driver;
mod error;
mod events;
mod fetch;
mod model;
mod status;
mod validations;
mod work;

use std::collections::{BTreeMap, VecDeque};
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use fedprune_checkpoint::Checkpoint;
use fedprune_engine::MalachiteEngine;
use fedprune_federation::ballot::largest_body_bytes;
use fedprune_federation::consortium::Member;
use fedprune_federation::machine::{Machine, Record, Setup};
use fedprune_federation::round::{Scaling, Strategy};
use fedprune_federation::{Height, Ratified, Round};
use fedprune_mask::Digest;
use libp2p::Multiaddr;
use libp2p::metrics::Registry;
use tokio::sync::watch;

pub use config::{DEFAULT_LINGER, FailPoint, Gate, NodeConfig, OwnBallot, ParseFailPointError};
pub use driver::Ending;
pub use error::NodeError;
pub use events::NodeEvent;
pub use model::ModelError;
pub use status::{Status, StatusError};

use crate::limits::STORED_BALLOTS_PER_MEMBER;
use crate::network::{Greeting, Network, NetworkConfig, Peer};
use crate::observe::{Addresses, Endpoints, MemberRow, Snapshot};
use crate::storage::blobs::BlobStore;
use crate::storage::home::{Home, Part};
use crate::storage::wal::Wal;
use catalogue::{Catalogue, Opened};
use driver::{Driver, Observed, Parts};
use model::RoundModel;

/// What stands between a member's machine and the network.
///
/// An honest node has none. Members that lie, in tests, are programs of their own that put something here.
pub trait Outgoing: Send {
    /// What the member says of itself before anything else, instead of this.
    fn introduce(&mut self, greeting: Greeting) -> Greeting {
        greeting
    }

    /// The node runs; whatever else the member does with its network begins here.
    fn begin(&mut self, _network: &Network) {}

    /// What leaves instead of this message.
    fn publish(&mut self, message: Vec<u8>) -> Vec<Vec<u8>>;

    /// What a member that asks is answered, instead of these messages.
    fn answer(&mut self, messages: Vec<Vec<u8>>) -> Vec<Vec<u8>>;

    /// Whether a member that asks for a part of this body gets it.
    fn serves(&mut self, _body: &Digest) -> bool {
        true
    }
}

/// Takes part in a round until it is over, others have had their answers, or `stop` turns true.
///
/// Must be called within a multi-threaded tokio runtime. `tell` gets every event, in order.
///
/// # Errors
/// [`NodeError`]. Whatever was signed or stored stays: the same command goes on.
pub async fn run(
    config: NodeConfig,
    tell: &mut (dyn FnMut(&NodeEvent) + Send),
    stop: tokio::sync::watch::Receiver<bool>,
) -> Result<Ending, NodeError> {
    run_behind(config, None, tell, stop).await
}

/// [`run`] with something between the machine and the network.
///
/// # Errors
/// As [`run`].
pub async fn run_behind(
    config: NodeConfig,
    mut outgoing: Option<Box<dyn Outgoing>>,
    tell: &mut (dyn FnMut(&NodeEvent) + Send),
    stop: tokio::sync::watch::Receiver<bool>,
) -> Result<Ending, NodeError> {
    let endpoints = Endpoints::bind(config.observe)?;
    let served = Addresses { page: endpoints.page, metrics: endpoints.metrics };
    let home = Home::open(&config.home)?;
    let Part { consortium, round, folder, identity } = home.part(config.round)?;
    let names: Vec<String> = consortium.members().iter().map(|member| member.name.clone()).collect();
    let name = names.get(identity.member.as_usize()).cloned().unwrap_or_default();
    let registry = Arc::new(Mutex::new(Registry::default()));
    // serves until this function ends
    let (mut observed, _serving) = match endpoints.is_empty() {
        true => (None, None),
        false => {
            let (sender, snapshots) = watch::channel(Arc::new(at_start(
                &name,
                &names,
                &consortium,
                &round,
                config.version.to_string(),
                served,
            )));
            let serving = endpoints.serve(snapshots, Arc::clone(&registry)).map_err(NodeError::Serve)?;
            (Some(Observed::new(sender)), Some(serving))
        }
    };
    let mut say = |observed: &mut Option<Observed>, event: NodeEvent| {
        if let Some(observed) = observed {
            observed.note_at_start(&event, config.unix_ms());
        }
        event.trace();
        tell(&event);
    };
    say(&mut observed, NodeEvent::Started { member: name.clone(), round: round.id().0, consortium: consortium.id().0 });
    if observed.is_some() {
        let url = |path: &'static str| move |at: SocketAddr| format!("http://{at}{path}");
        say(
            &mut observed,
            NodeEvent::Serving { page: served.page.map(url("/")), metrics: served.metrics.map(url("/metrics")) },
        );
    }
    if let Some(address) = served.metrics.filter(|address| !address.ip().is_loopback()) {
        let text = format!(
            "metrics on `{address}` can be read by whoever reaches this machine there: names of members, bytes, times; \
             --metrics 127.0.0.1:PORT keeps them here"
        );
        say(&mut observed, NodeEvent::Warning { text });
    }
    if round.terms().scaling == Scaling::Support && round.terms().strategy == Strategy::Iterative {
        return Err(NodeError::NotSupported(
            "an iterative round with scaling = \"support\" is not supported yet; use scaling = \"none\"",
        ));
    }

    let (checkpoint, round) = {
        let model = config.model.clone();
        let opened =
            tokio::task::spawn_blocking(move || open_model(&model, &round).map(|checkpoint| (checkpoint, round)));
        opened.await.map_err(|error| NodeError::Worker(error.to_string()))??
    };
    let base_model = round.terms().base_model;
    let layout = checkpoint.layout().clone();
    if let Some(observed) = &mut observed {
        observed.has_blocks(layout.blocks());
    }
    let model = RoundModel::new(checkpoint, round.clone(), consortium.clone(), folder.folder().join("masks"))?;

    let members = names.len() as u64;
    let heights = round.heights(&layout).map_err(ModelError::from)?;
    let mut largest = 0u64;
    for height in 0..heights {
        let of_height = round.layout_at(&layout, Height(height)).map_err(ModelError::from)?;
        largest = largest.saturating_add(largest_body_bytes(&of_height));
    }
    // more than one of each member: an equivocator's second ballot may be the one that counts
    let room = largest.saturating_mul(members).saturating_mul(STORED_BALLOTS_PER_MEMBER);
    let blobs = Arc::new(BlobStore::open(&folder.blobs(), room)?);
    let (mut wal, notices) = Wal::open(&folder.wal())?;
    for notice in notices {
        say(&mut observed, NodeEvent::Warning { text: notice.to_string() });
    }
    let mut records = Vec::new();
    for entry in wal.entries() {
        let entry = entry?;
        let record =
            Record::decode(&entry.payload).map_err(|source| NodeError::Record { folder: folder.wal(), source })?;
        records.push((entry.position, record));
    }
    let engine = MalachiteEngine::new(consortium.clone(), &round, identity.signing_key.clone())
        .map_err(|error| NodeError::Engine(error.to_string()))?;
    let setup =
        Setup { consortium: consortium.clone(), round: round.clone(), layout, key: identity.signing_key.clone() };
    let replayed = records.iter().map(|(position, record)| (position.height, record.clone()));
    let machine = Machine::recover(setup, Box::new(engine), replayed)?;
    let Opened { catalogue, earlier, notice } = Catalogue::open(&folder.index(), &records, &machine, &blobs)?;
    drop(records);
    if let Some(text) = notice {
        say(&mut observed, NodeEvent::Warning { text });
    }

    let listen = listen_addresses(&config.listen, &consortium, &name)?;
    if let Some((unknown, _)) = config.dial.iter().find(|(member, _)| !names.contains(member)) {
        return Err(NodeError::NoSuchMember(unknown.clone()));
    }
    let peers = consortium.members().iter().zip(consortium.consortium().indices()).map(|(member, index)| Peer {
        member: index,
        name: member.name.clone(),
        key: member.peer_key,
        addresses: addresses_of(&config.dial, member),
    });
    let greeting = Greeting {
        protocol: fedprune_federation::wire::VERSION,
        consortium: consortium.id(),
        round: round.id(),
        model: base_model,
        instance: instance()?,
    };
    let greeting = match &mut outgoing {
        Some(outgoing) => outgoing.introduce(greeting),
        None => greeting,
    };
    let network_config = NetworkConfig {
        peer_key_seed: *identity.peer_key.to_seed(),
        member: identity.member,
        peers: peers.collect(),
        listen,
        greeting,
        program: config.version.clone(),
        options: config.options,
    };
    let (network, events) = {
        let mut registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
        Network::start_measured(network_config, served.metrics.is_some().then_some(&mut *registry))?
    };
    let former_peers = former_peers(&consortium);
    let home_folder = home.folder().to_owned();
    let parts = Parts {
        config,
        name,
        names,
        folder,
        home: home_folder,
        machine,
        model,
        wal,
        blobs,
        network,
        events,
        catalogue,
        earlier,
        outgoing,
        observed,
        served,
        former_peers,
    };
    let ending = Driver::new(parts, tell).run(stop).await;
    drop(home); // unlocks
    ending
}

/// What there is to see of a node that has just started.
fn at_start(
    name: &str,
    names: &[String],
    consortium: &Ratified,
    round: &Round,
    program: String,
    served: Addresses,
) -> Snapshot {
    let terms = round.terms();
    let sparsity = terms.local_group.fixed_sparsity().unwrap_or(terms.sparsity).as_f64();
    let member = |of: &String| MemberRow {
        name: of.clone(),
        own: of == name,
        connected: false,
        heard_seconds_ago: None,
        ballot: None,
        shut_out: None,
        finished: false,
    };
    Snapshot {
        status: Status::at_start(name, names.len(), round.id().0, program, served),
        consortium: consortium.id().0,
        unix_ms: 0,
        view: 0,
        waits: None,
        roster: names.iter().map(member).collect(),
        agreement: Vec::new(),
        agreement_by_chance: sparsity * sparsity + (1.0 - sparsity) * (1.0 - sparsity),
        steps: BTreeMap::new(),
        limits: BTreeMap::new(),
        events: BTreeMap::new(),
        log: VecDeque::new(),
    }
}

/// Peer ids that were of members before a change and are of nobody now, with what is said of whoever comes with one.
fn former_peers(consortium: &Ratified) -> BTreeMap<String, String> {
    let mut peers = BTreeMap::new();
    for member in consortium.lineage().skip(1).flat_map(Ratified::members) {
        let Some(former) = consortium.retired(&member.peer_key) else { continue };
        let Some(peer) = crate::network::peer_id(&member.peer_key) else { continue };
        let (change, name) = (former.change(), &member.name);
        let now = if former.replaced {
            format!("`{name}` has another since, and is to start with that and with the newest consortium")
        } else {
            format!("`{name}` is no member since")
        };
        peers
            .entry(peer.to_string())
            .or_insert(format!("its key is the one that `{name}` had until change {change}; {now}"));
    }
    peers
}

/// Opens the model and compares it with the round's.
fn open_model(folder: &Path, round: &Round) -> Result<Checkpoint, NodeError> {
    let checkpoint = Checkpoint::open(folder)?;
    let terms = round.terms();
    let other = |what, found, expected| NodeError::OtherModel { folder: folder.to_owned(), what, found, expected };
    let found = checkpoint.configuration_digest();
    if found != terms.configuration {
        return Err(other("configuration", found, terms.configuration));
    }
    let found = checkpoint.tokenizer_digest()?;
    if found != terms.tokenizer {
        return Err(other("tokenizer", found, terms.tokenizer));
    }
    let found = checkpoint.content_digest(&|_| {});
    if found != terms.base_model {
        return Err(other("weights", found, terms.base_model));
    }
    checkpoint.release_all();
    Ok(checkpoint)
}

/// Where to dial a member: as told, or where the consortium says.
pub(crate) fn addresses_of(dial: &[(String, Multiaddr)], member: &Member) -> Vec<String> {
    let told = dial.iter().filter(|(name, _)| *name == member.name);
    let told: Vec<String> = told.map(|(_, address)| address.to_string()).collect();
    if told.is_empty() { member.addresses.clone() } else { told }
}

/// Where to listen: as told, or at the ports of the addresses that the consortium has for this member.
///
/// # Errors
/// [`NodeError::NoAddress`], [`NodeError::Address`].
pub fn listen_addresses(told: &[Multiaddr], consortium: &Ratified, name: &str) -> Result<Vec<Multiaddr>, NodeError> {
    use libp2p::multiaddr::Protocol;
    if !told.is_empty() {
        return Ok(told.to_vec());
    }
    let member = consortium.members().iter().find(|member| member.name == name);
    let mut listen = Vec::new();
    for address in member.iter().flat_map(|member| &member.addresses) {
        let parsed: Multiaddr = address.parse().map_err(|_| NodeError::Address(address.clone()))?;
        let mut here = Multiaddr::empty();
        for part in &parsed {
            match part {
                Protocol::P2p(_) => {}
                // a name is resolved by those who dial; a node listens on all its interfaces
                Protocol::Dns(_) | Protocol::Dns4(_) => here.push(Protocol::Ip4(std::net::Ipv4Addr::UNSPECIFIED)),
                Protocol::Dns6(_) => here.push(Protocol::Ip6(std::net::Ipv6Addr::UNSPECIFIED)),
                // an address that is not this machine's own is that of a router in front of it
                Protocol::Ip4(ip) if !ip.is_loopback() => here.push(Protocol::Ip4(std::net::Ipv4Addr::UNSPECIFIED)),
                Protocol::Ip6(ip) if !ip.is_loopback() => here.push(Protocol::Ip6(std::net::Ipv6Addr::UNSPECIFIED)),
                other => here.push(other),
            }
        }
        listen.push(here);
    }
    if listen.is_empty() { Err(NodeError::NoAddress(name.to_owned())) } else { Ok(listen) }
}

/// Tells this process from every other with the same key.
pub(crate) fn instance() -> Result<[u8; 16], NodeError> {
    let mut bytes = [0; 16];
    let mut source = std::fs::File::open("/dev/urandom").map_err(NodeError::Random)?;
    source.read_exact(&mut bytes).map_err(NodeError::Random)?;
    Ok(bytes)
}
