//! What can be looked up quickly: statements, bodies, certificates, evidence, and counters.
//!
//! Nothing here is the only copy of anything but the counters: statements and certificates are in the log, bodies
//! in the store. After a crash the index may lag behind them, so unless it was closed properly its entries are made
//! again when it is opened, by a callback that reads the log and the store. A file that is damaged or gone is no
//! failure either: it is moved aside and made again. Counters (bytes sent and received over all starts of the node)
//! then begin at zero; they are for people, and nothing depends on them.
//!
//! The running node writes; `node status` may look at the same time ([`Index::look`]). For that each update is
//! synced, so many changes belong in one.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use fedprune_federation::{Height, MemberIndex};
use fedprune_mask::Digest;
use redb::{
    ConcurrencyMode, Database, DatabaseError, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition,
    WriteTransaction,
};

use super::fs::{FileError, failed};
use super::limits::{INDEX_CACHE_BYTES, MAX_COUNTER_NAME_BYTES, MAX_INDEX_VALUE_BYTES};
use super::wal::Position;

/// Kind, height, member, digest; where it is.
const STATEMENTS: TableDefinition<(u8, u32, u16, [u8; 32]), &[u8]> = TableDefinition::new("statements");
/// Root, member; size in bytes, height, complete.
const BODIES: TableDefinition<([u8; 32], u16), (u64, u32, bool)> = TableDefinition::new("bodies");
/// By height.
const CERTIFICATES: TableDefinition<u32, &[u8]> = TableDefinition::new("certificates");
/// By digest.
const EVIDENCE: TableDefinition<[u8; 32], &[u8]> = TableDefinition::new("evidence");
/// By name.
const COUNTERS: TableDefinition<&str, u64> = TableDefinition::new("counters");
/// `format`, and `closed` while no node has it open.
const ABOUT: TableDefinition<&str, u64> = TableDefinition::new("about");
/// Of the tables.
const FORMAT: u64 = 1;

/// An index.
#[derive(Debug)]
pub struct Index {
    database: Database,
}

/// How an index was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Closed properly: nothing was made again.
    Closed,
    /// There was none; all was made.
    New,
    /// Left by a crash; all but the counters was made again.
    LeftOpen,
    /// Unusable; all was made again, and counters are at zero.
    Damaged {
        /// Where the file is now.
        moved_to: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// What identifies a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StatementKey {
    /// What it is, as the caller numbers kinds.
    pub kind: u8,
    /// Its height.
    pub height: Height,
    /// Who made it.
    pub member: MemberIndex,
    /// Digest of its bytes.
    pub digest: Digest,
}

/// Where a statement is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the log.
    Log(Position),
    /// Here.
    Bytes(Vec<u8>),
}

/// A ballot body that a member announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Announced {
    /// Its root.
    pub digest: Digest,
    /// Who announced it.
    pub member: MemberIndex,
    /// Its size in bytes, as announced.
    pub size_bytes: u64,
    /// For which height.
    pub height: Height,
    /// Whether it is in the store.
    pub complete: bool,
}

/// How much there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Statements.
    pub statements: u64,
    /// Bodies announced.
    pub bodies: u64,
    /// Bodies that are in the store.
    pub complete_bodies: u64,
    /// Bytes of bodies that are in the store.
    pub complete_bytes: u64,
    /// Certified heights.
    pub certificates: u64,
    /// Pieces of evidence.
    pub evidence: u64,
    /// Counters by name.
    pub counters: BTreeMap<String, u64>,
}

/// Why an index cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The database refuses.
    #[error(
        "the index of this round cannot be used; delete `index.redb`, and it is made again when the node is started"
    )]
    Database(#[from] Box<redb::Error>),
    /// Another process writes to it.
    #[error("`{path}` is in use by another process; stop that first", path = .0.display())]
    InUse(PathBuf),
    /// Its bytes make no sense.
    #[error("`{path}` is damaged; it is made again when the node is started", path = .0.display())]
    Damaged(PathBuf),
    /// The file cannot be moved or made.
    #[error(transparent)]
    File(#[from] FileError),
    /// What it indexes cannot be read, or there is no room for it.
    #[error("`{path}` cannot be made again from the log and the bodies", path = .path.display())]
    Rebuild {
        /// The index.
        path: PathBuf,
        /// Why not.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Larger than anything that belongs here.
    #[error("{bytes} bytes are more than the {limit} that an entry of the index may have")]
    TooLarge {
        /// Bytes given.
        bytes: usize,
        /// Bytes allowed.
        limit: usize,
    },
}

fn database(error: impl Into<redb::Error>) -> IndexError {
    IndexError::Database(Box::new(error.into()))
}

/// Changes that are made together or not at all.
pub struct Update<'a>(&'a WriteTransaction);

impl Index {
    /// Opens the index at `path`. Unless it was closed properly, `rebuild` is called with it empty but for its
    /// counters, and puts in what the log and the store hold.
    ///
    /// # Errors
    /// [`IndexError::InUse`]; [`IndexError::Rebuild`] with the error of `rebuild`; others when even a new file
    /// cannot be written.
    pub fn open<E>(
        path: &Path,
        rebuild: impl FnOnce(&mut Update<'_>) -> Result<(), E>,
    ) -> Result<(Self, Found), IndexError>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let existed = path.symlink_metadata().is_ok();
        let (database, found) = match usable(path) {
            Ok((database, true)) => (database, Found::Closed),
            Ok((database, false)) if existed => (database, Found::LeftOpen),
            Ok((database, false)) => (database, Found::New),
            Err(Unusable::InUse) => return Err(IndexError::InUse(path.to_owned())),
            Err(Unusable::Damaged(why)) => {
                let mut moved_to = path.as_os_str().to_owned();
                moved_to.push(".damaged");
                let moved_to = PathBuf::from(moved_to);
                std::fs::rename(path, &moved_to).map_err(failed("move aside", path))?;
                let (database, _) = usable(path).map_err(|error| match error {
                    Unusable::InUse => IndexError::InUse(path.to_owned()),
                    Unusable::Damaged(why) => IndexError::Rebuild { path: path.to_owned(), source: why.into() },
                })?;
                (database, Found::Damaged { moved_to, why })
            }
        };
        let index = Self { database };
        let mut transaction = index.begin()?;
        {
            // from here on it counts as left by a crash, until it is closed
            let mut about = transaction.open_table(ABOUT).map_err(self::database)?;
            about.remove("closed").map_err(self::database)?;
            about.insert("format", FORMAT).map_err(self::database)?;
        }
        if found != Found::Closed {
            transaction = refill(path, transaction, rebuild)?;
        }
        transaction.commit().map_err(self::database)?;
        Ok((index, found))
    }

    /// Makes changes, all or, on an error, none; syncs them.
    ///
    /// # Errors
    /// Those of `change`, and [`IndexError::Database`].
    pub fn update<T>(
        &mut self,
        change: impl FnOnce(&mut Update<'_>) -> Result<T, IndexError>,
    ) -> Result<T, IndexError> {
        let transaction = self.begin()?;
        let value = change(&mut Update(&transaction))?;
        transaction.commit().map_err(database)?;
        Ok(value)
    }

    /// Closes it, so that it need not be made again.
    ///
    /// # Errors
    /// [`IndexError::Database`]; it is made again then.
    pub fn close(self) -> Result<(), IndexError> {
        let transaction = self.begin()?;
        transaction.open_table(ABOUT).map_err(database)?.insert("closed", 1).map_err(database)?;
        transaction.commit().map_err(database)
    }

    fn begin(&self) -> Result<WriteTransaction, IndexError> {
        self.database.begin_write().map_err(database)
    }

    fn table<K: redb::Key + 'static, V: redb::Value + 'static>(
        &self,
        table: TableDefinition<K, V>,
    ) -> Result<redb::ReadOnlyTable<K, V>, IndexError> {
        self.database.begin_read().map_err(database)?.open_table(table).map_err(database)
    }

    /// Where a statement is.
    ///
    /// # Errors
    /// [`IndexError::Database`], here and below.
    pub fn statement(&self, key: &StatementKey) -> Result<Option<Place>, IndexError> {
        let value = self.table(STATEMENTS)?.get(key.to_tuple()).map_err(database)?;
        Ok(value.and_then(|value| Place::decode(value.value())))
    }

    /// Statements of one kind and height, by member, with where they are; at most `limit`.
    ///
    /// # Errors
    /// [`IndexError::Database`].
    pub fn statements(&self, kind: u8, height: Height, limit: usize) -> Result<Vec<(StatementKey, Place)>, IndexError> {
        let (first, last) = ((kind, height.0, 0, [0; 32]), (kind, height.0, u16::MAX, [u8::MAX; 32]));
        let mut statements = Vec::new();
        for entry in self.table(STATEMENTS)?.range(first..=last).map_err(database)?.take(limit) {
            let (key, value) = entry.map_err(database)?;
            let (kind, height, member, digest) = key.value();
            let (height, member, digest) = (Height(height), MemberIndex(member), Digest(digest));
            if let Some(place) = Place::decode(value.value()) {
                statements.push((StatementKey { kind, height, member, digest }, place));
            }
        }
        Ok(statements)
    }

    /// Bodies that were announced, by root; at most `limit`.
    ///
    /// # Errors
    /// [`IndexError::Database`].
    pub fn bodies(&self, limit: usize) -> Result<Vec<Announced>, IndexError> {
        bodies(&self.table(BODIES)?, limit)
    }

    /// The certificate of a height.
    ///
    /// # Errors
    /// [`IndexError::Database`].
    pub fn certificate(&self, height: Height) -> Result<Option<Vec<u8>>, IndexError> {
        let value = self.table(CERTIFICATES)?.get(height.0).map_err(database)?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    /// A piece of evidence.
    ///
    /// # Errors
    /// [`IndexError::Database`].
    pub fn evidence(&self, digest: &Digest) -> Result<Option<Vec<u8>>, IndexError> {
        let value = self.table(EVIDENCE)?.get(digest.0).map_err(database)?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    /// How much there is.
    ///
    /// # Errors
    /// [`IndexError::Database`].
    pub fn summary(&self) -> Result<Summary, IndexError> {
        summary(&self.database)
    }

    /// How much there is in the index at `path`, also while a node writes to it.
    /// `None` when there is no such file.
    ///
    /// # Errors
    /// [`IndexError::Database`] also for a file that a crash left and no node has repaired yet;
    /// [`IndexError::Damaged`].
    pub fn look(path: &Path) -> Result<Option<Summary>, IndexError> {
        if path.symlink_metadata().is_err() {
            return Ok(None);
        }
        // Whoever only looks cannot have the file checked first, and redb panics on some damage.
        let look = || {
            let database = builder().open_read_only(path).map_err(self::database)?;
            summary(&database).map(Some)
        };
        std::panic::catch_unwind(look).unwrap_or_else(|_| Err(IndexError::Damaged(path.to_owned())))
    }
}

impl Update<'_> {
    /// Adds a statement, or says where it is now.
    ///
    /// # Errors
    /// [`IndexError::TooLarge`]; [`IndexError::Database`], here and below.
    pub fn put_statement(&mut self, key: &StatementKey, place: &Place) -> Result<(), IndexError> {
        if let Place::Bytes(bytes) = place {
            check_length(bytes)?;
        }
        let mut table = self.0.open_table(STATEMENTS).map_err(database)?;
        table.insert(key.to_tuple(), place.encode().as_slice()).map_err(database)?;
        Ok(())
    }

    /// Adds a body that a member announced, or changes what is said of it.
    ///
    /// # Errors
    /// [`IndexError::Database`].
    pub fn put_body(&mut self, body: &Announced) -> Result<(), IndexError> {
        let mut table = self.0.open_table(BODIES).map_err(database)?;
        let (key, value) = ((body.digest.0, body.member.0), (body.size_bytes, body.height.0, body.complete));
        table.insert(key, value).map_err(database)?;
        Ok(())
    }

    /// Adds the certificate of a height.
    ///
    /// # Errors
    /// [`IndexError::TooLarge`], [`IndexError::Database`].
    pub fn put_certificate(&mut self, height: Height, bytes: &[u8]) -> Result<(), IndexError> {
        check_length(bytes)?;
        self.0.open_table(CERTIFICATES).map_err(database)?.insert(height.0, bytes).map_err(database)?;
        Ok(())
    }

    /// Adds a piece of evidence.
    ///
    /// # Errors
    /// [`IndexError::TooLarge`], [`IndexError::Database`].
    pub fn put_evidence(&mut self, digest: &Digest, bytes: &[u8]) -> Result<(), IndexError> {
        check_length(bytes)?;
        self.0.open_table(EVIDENCE).map_err(database)?.insert(digest.0, bytes).map_err(database)?;
        Ok(())
    }

    /// Adds to a counter, which begins at zero and stops at `u64::MAX`; its name has at most
    /// [`MAX_COUNTER_NAME_BYTES`]. Returns its value.
    ///
    /// # Errors
    /// [`IndexError::TooLarge`], [`IndexError::Database`].
    pub fn add_to_counter(&mut self, name: &str, amount: u64) -> Result<u64, IndexError> {
        if name.len() > MAX_COUNTER_NAME_BYTES {
            return Err(IndexError::TooLarge { bytes: name.len(), limit: MAX_COUNTER_NAME_BYTES });
        }
        let mut table = self.0.open_table(COUNTERS).map_err(database)?;
        let before = table.get(name).map_err(database)?.map_or(0, |value| value.value());
        let after = before.saturating_add(amount);
        table.insert(name, after).map_err(database)?;
        Ok(after)
    }
}

impl StatementKey {
    fn to_tuple(self) -> (u8, u32, u16, [u8; 32]) {
        (self.kind, self.height.0, self.member.0, self.digest.0)
    }
}

impl Place {
    fn encode(&self) -> Vec<u8> {
        match self {
            Place::Log(position) => {
                [&[0], position.height.0.to_le_bytes().as_slice(), &position.offset_bytes.to_le_bytes()].concat()
            }
            Place::Bytes(bytes) => [&[1], bytes.as_slice()].concat(),
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first()? {
            (0, rest) => {
                let (height, offset) = rest.split_first_chunk::<4>()?;
                let offset_bytes = u64::from_le_bytes(offset.try_into().ok()?);
                Some(Place::Log(Position { height: Height(u32::from_le_bytes(*height)), offset_bytes }))
            }
            (1, rest) => Some(Place::Bytes(rest.to_vec())),
            _ => None,
        }
    }
}

fn check_length(bytes: &[u8]) -> Result<(), IndexError> {
    let (bytes, limit) = (bytes.len(), MAX_INDEX_VALUE_BYTES);
    if bytes > limit { Err(IndexError::TooLarge { bytes, limit }) } else { Ok(()) }
}

enum Unusable {
    InUse,
    Damaged(String),
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    // One node writes, others may look; the whole file is checked, for a plain open trusts it.
    builder.set_concurrency_mode(ConcurrencyMode::SingleWriter);
    builder.set_check_integrity_on_open(true);
    builder.set_cache_size(INDEX_CACHE_BYTES);
    builder
}

/// Opens or makes the file; says whether it was closed properly.
fn usable(path: &Path) -> Result<(Database, bool), Unusable> {
    let damaged = |error: &dyn std::fmt::Display| Unusable::Damaged(error.to_string());
    let database = match builder().create(path) {
        Ok(database) => database,
        Err(DatabaseError::DatabaseAlreadyOpen) => return Err(Unusable::InUse),
        Err(error) => return Err(damaged(&error)),
    };
    let look = || -> Result<(u64, bool), Box<redb::Error>> {
        let transaction = database.begin_write().map_err(|error| Box::new(error.into()))?;
        open_tables(&transaction)?;
        let closed;
        let format;
        {
            let about = transaction.open_table(ABOUT).map_err(|error| Box::new(error.into()))?;
            let get = |name| -> Result<Option<u64>, Box<redb::Error>> {
                Ok(about.get(name).map_err(|error| Box::new(error.into()))?.map(|value| value.value()))
            };
            format = get("format")?.unwrap_or(FORMAT);
            closed = get("closed")?.is_some();
        }
        transaction.commit().map_err(|error| Box::new(error.into()))?;
        Ok((format, closed))
    };
    match look() {
        Ok((FORMAT, closed)) => Ok((database, closed)),
        Ok((other, _)) => Err(damaged(&format!("it is of format {other}"))),
        Err(error) => Err(damaged(&error)),
    }
}

/// Empties all tables but the counters and fills them anew.
fn refill<E>(
    path: &Path,
    transaction: WriteTransaction,
    rebuild: impl FnOnce(&mut Update<'_>) -> Result<(), E>,
) -> Result<WriteTransaction, IndexError>
where
    E: Into<Box<dyn Error + Send + Sync>>,
{
    transaction.delete_table(STATEMENTS).map_err(database)?;
    transaction.delete_table(BODIES).map_err(database)?;
    transaction.delete_table(CERTIFICATES).map_err(database)?;
    transaction.delete_table(EVIDENCE).map_err(database)?;
    open_tables(&transaction)?;
    rebuild(&mut Update(&transaction))
        .map_err(|error| IndexError::Rebuild { path: path.to_owned(), source: error.into() })?;
    Ok(transaction)
}

/// Makes the tables that do not exist; fails for one of other types.
fn open_tables(transaction: &WriteTransaction) -> Result<(), Box<redb::Error>> {
    let boxed = |error: redb::TableError| Box::new(redb::Error::from(error));
    transaction.open_table(STATEMENTS).map_err(boxed)?;
    transaction.open_table(BODIES).map_err(boxed)?;
    transaction.open_table(CERTIFICATES).map_err(boxed)?;
    transaction.open_table(EVIDENCE).map_err(boxed)?;
    transaction.open_table(COUNTERS).map_err(boxed)?;
    transaction.open_table(ABOUT).map_err(boxed)?;
    Ok(())
}

fn bodies(
    table: &impl ReadableTable<([u8; 32], u16), (u64, u32, bool)>,
    limit: usize,
) -> Result<Vec<Announced>, IndexError> {
    let entries = table.iter().map_err(database)?.take(limit);
    let body = |entry: Result<(redb::AccessGuard<'_, _>, redb::AccessGuard<'_, _>), redb::StorageError>| {
        let (key, value) = entry.map_err(database)?;
        let ((digest, member), (size_bytes, height, complete)): (([u8; 32], u16), (u64, u32, bool)) =
            (key.value(), value.value());
        Ok(Announced {
            digest: Digest(digest),
            member: MemberIndex(member),
            size_bytes,
            height: Height(height),
            complete,
        })
    };
    entries.map(body).collect()
}

fn summary(database: &impl ReadableDatabase) -> Result<Summary, IndexError> {
    let transaction = database.begin_read().map_err(self::database)?;
    let mut summary = Summary {
        statements: transaction.open_table(STATEMENTS).map_err(self::database)?.len().map_err(self::database)?,
        certificates: transaction.open_table(CERTIFICATES).map_err(self::database)?.len().map_err(self::database)?,
        evidence: transaction.open_table(EVIDENCE).map_err(self::database)?.len().map_err(self::database)?,
        ..Summary::default()
    };
    let mut previous = None;
    for body in bodies(&transaction.open_table(BODIES).map_err(self::database)?, usize::MAX)? {
        summary.bodies = summary.bodies.saturating_add(1);
        // one body that several members announced is stored once
        if body.complete && previous != Some(body.digest) {
            summary.complete_bodies = summary.complete_bodies.saturating_add(1);
            summary.complete_bytes = summary.complete_bytes.saturating_add(body.size_bytes);
            previous = Some(body.digest);
        }
    }
    let counters = transaction.open_table(COUNTERS).map_err(self::database)?;
    for entry in counters.iter().map_err(self::database)? {
        let (name, value) = entry.map_err(self::database)?;
        summary.counters.insert(name.value().to_owned(), value.value());
    }
    Ok(summary)
}
