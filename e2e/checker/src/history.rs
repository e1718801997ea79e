//! The log of what was asked and what came of it: JSON lines, appended, on one monotonic clock.
//!
//! An intent is on the disk (`fdatasync`) before [`History::intent`] returns, so before the request is sent:
//! whatever the stores hold at the end, the log knows everything that may have been asked. Intents that come
//! at the same time share one `fdatasync`. An outcome is written without waiting; losing it makes the
//! operation indeterminate, which is always a safe reading.
//!
//! This module must not interpret what it stores.

mod writer;

use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};
use uuid::Uuid;
pub use writer::History;

/// Microseconds on the history's own clock, which starts when the history is created.
pub type Micros = u64;

/// What makes a history's writing or reading fail.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The file could not be created.
    #[error("failed to create the history {}", path.display())]
    Create {
        /// Where.
        path: PathBuf,
        #[source]
        /// Why.
        source: std::io::Error,
    },
    /// The file could not be appended to or synced; nothing may be sent any more.
    #[error("failed to write the history")]
    Write(#[source] std::io::Error),
    /// The history was closed, or its writer failed before.
    #[error("the history takes no more records")]
    Closed,
    /// A record could not be encoded.
    #[error("failed to encode a record")]
    Encode(#[source] serde_json::Error),
    /// The file could not be read.
    #[error("failed to read the history {}", path.display())]
    Read {
        /// Where.
        path: PathBuf,
        #[source]
        /// Why.
        source: std::io::Error,
    },
    /// A line other than a half-written last one makes no sense.
    #[error("line {line} of the history is no record")]
    Decode {
        /// Counted from 1.
        line: usize,
        #[source]
        /// Why.
        source: serde_json::Error,
    },
}

/// One line of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Article.
    pub sku: String,
    /// Pieces.
    pub quantity: i64,
    /// Price of one piece.
    pub price_cents: i64,
}

/// What these items cost.
pub fn total_cents(items: &[Item]) -> i64 {
    items.iter().map(|item| item.quantity * item.price_cents).sum()
}

/// What is asked of the order service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Place an order under an idempotency key.
    Place {
        /// Whose.
        user_id: i64,
        /// The `Idempotency-Key`, unique in this history.
        key: String,
        /// What.
        items: Vec<Item>,
    },
    /// Read one order.
    Get {
        /// Which.
        order_id: Uuid,
    },
    /// Read the first page of a user's orders.
    List {
        /// Whose.
        user_id: i64,
        /// At most so many.
        limit: u32,
    },
    /// Cancel an order.
    Cancel {
        /// Which.
        order_id: Uuid,
    },
}

/// What an answer says about one order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderFacts {
    /// Which.
    pub order_id: Uuid,
    /// Whose.
    pub user_id: i64,
    /// `created` or `cancelled`.
    pub status: String,
    /// 1 after placing, 2 after cancelling.
    pub version: i64,
    /// The order's total.
    pub total_cents: i64,
    /// In the order of their lines; lists may leave them out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<Item>,
}

/// The body of a successful answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To a place, get or cancel.
    Order(OrderFacts),
    /// To a list.
    Page {
        /// Newest first.
        orders: Vec<OrderFacts>,
        /// There was a cursor to go on with.
        more: bool,
    },
    /// A success whose body made no sense.
    Unreadable(String),
}

/// What came of an operation, all its tries taken together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A 2xx.
    Acknowledged {
        /// The HTTP status.
        http_status: u16,
        /// The facts in the body.
        answer: Answer,
    },
    /// A final 4xx.
    Refused {
        /// The HTTP status.
        http_status: u16,
        /// An earlier try may have been applied, so the refusal says nothing about the effect.
        earlier_unsure: bool,
    },
    /// Time-out, lost connection or 5xx to the end: it may or may not have been applied.
    Indeterminate {
        /// The last try's trouble.
        reason: String,
    },
    /// Never sent: too much in flight.
    NotSent,
}

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// Durable before the request goes out.
    Intent {
        /// Counted from 1.
        id: u64,
        /// When the request is due; it is never sent earlier.
        due_us: Micros,
        /// What is asked.
        operation: Operation,
    },
    /// After the last try.
    Outcome {
        /// The intent's.
        id: u64,
        /// When the first try was sent.
        began_us: Micros,
        /// When the last answer (or the trouble) was there.
        ended_us: Micros,
        /// What came of it.
        outcome: Outcome,
    },
}

/// Reads a history record by record. A last line that was only half written is left out.
pub fn read(path: &Path) -> Result<impl Iterator<Item = Result<Record, HistoryError>>, HistoryError> {
    let failed = |path: &Path, source| HistoryError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(|source| failed(path, source))?;
    Ok(Reader { lines: BufReader::new(file), path: path.to_owned(), line: 0, buffer: Vec::new() })
}

struct Reader {
    lines: BufReader<File>,
    path: PathBuf,
    line: usize,
    buffer: Vec<u8>,
}

impl Iterator for Reader {
    type Item = Result<Record, HistoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.buffer.clear();
        self.line += 1;
        match self.lines.read_until(b'\n', &mut self.buffer) {
            Err(source) => Some(Err(HistoryError::Read { path: self.path.clone(), source })),
            // Only the last line can lack its end: the writer died in the middle of it.
            Ok(_) if !self.buffer.ends_with(b"\n") => None,
            Ok(_) => Some(
                serde_json::from_slice(&self.buffer)
                    .map_err(|source| HistoryError::Decode { line: self.line, source }),
            ),
        }
    }
}
