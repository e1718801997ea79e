//! The thread that appends and syncs. It alone touches the file, so that many intents share one `fdatasync`.

use super::{HistoryError, Micros, Operation, Outcome, Record};
use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Instant,
};
use tokio::sync::oneshot;

/// An open history. Clones write to the same file; several loads may share one, one after the other, when the
/// stores are judged once for all of them.
#[derive(Clone, Debug)]
pub struct History {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    clock: Instant,
    next_id: AtomicU64,
    writer: Mutex<Option<Writer>>,
}

#[derive(Debug)]
struct Writer {
    lines: mpsc::Sender<Line>,
    thread: JoinHandle<Result<(), std::io::Error>>,
}

struct Line {
    bytes: Vec<u8>,
    /// Told when the line is on the disk.
    durable: Option<oneshot::Sender<()>>,
}

impl History {
    /// Creates a new file; one that exists is an error, since a history is never continued. Starts the clock.
    pub fn create(path: &Path) -> Result<Self, HistoryError> {
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(path)
            .map_err(|source| HistoryError::Create { path: path.to_owned(), source })?;
        let (lines, incoming) = mpsc::channel();
        let thread = std::thread::spawn(move || append(file, &incoming));
        let writer = Mutex::new(Some(Writer { lines, thread }));
        Ok(Self { inner: Arc::new(Inner { clock: Instant::now(), next_id: AtomicU64::new(1), writer }) })
    }

    /// Now, on this history's clock.
    pub fn now(&self) -> Micros {
        self.at(Instant::now())
    }

    /// A moment on this history's clock; one before its start counts as the start.
    pub fn at(&self, moment: Instant) -> Micros {
        let elapsed = moment.saturating_duration_since(self.inner.clock);
        Micros::try_from(elapsed.as_micros()).unwrap_or(Micros::MAX)
    }

    /// Writes down what is about to be asked, and returns when that is durable. I/O.
    pub async fn intent(&self, due_us: Micros, operation: &Operation) -> Result<u64, HistoryError> {
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let (durable, wait) = oneshot::channel();
        self.append(&Record::Intent { id, due_us, operation: operation.clone() }, Some(durable))?;
        wait.await.map_err(|_| HistoryError::Closed)?;
        Ok(id)
    }

    /// Writes down what came of an intent, without waiting for the disk.
    pub fn outcome(
        &self,
        id: u64,
        began_us: Micros,
        ended_us: Micros,
        outcome: Outcome,
    ) -> Result<(), HistoryError> {
        self.append(&Record::Outcome { id, began_us, ended_us, outcome }, None)
    }

    /// Writes out and syncs everything, and ends the writer. Says so if anything was ever not written.
    pub async fn close(&self) -> Result<(), HistoryError> {
        let Some(Writer { lines, thread }) = self.lock().take() else { return Ok(()) };
        drop(lines);
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        match joined {
            Ok(Ok(written)) => written.map_err(HistoryError::Write),
            Ok(Err(_)) | Err(_) => Err(HistoryError::Closed),
        }
    }

    fn append(&self, record: &Record, durable: Option<oneshot::Sender<()>>) -> Result<(), HistoryError> {
        let mut bytes = serde_json::to_vec(record).map_err(HistoryError::Encode)?;
        bytes.push(b'\n');
        let writer = self.lock();
        let Writer { lines, .. } = writer.as_ref().ok_or(HistoryError::Closed)?;
        lines.send(Line { bytes, durable }).map_err(|_| HistoryError::Closed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Writer>> {
        self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes whatever has gathered since the last sync, writes it at once, syncs if someone waits for it. Ends
/// when all senders are gone. After an error nobody is told "durable" any more: the waiters see a closed
/// channel and nothing further is sent.
fn append(mut file: File, incoming: &mpsc::Receiver<Line>) -> Result<(), std::io::Error> {
    let mut bytes = Vec::new();
    let mut waiters = Vec::new();
    while let Ok(first) = incoming.recv() {
        bytes.clear();
        for line in std::iter::once(first).chain(incoming.try_iter()) {
            bytes.extend_from_slice(&line.bytes);
            waiters.extend(line.durable);
        }
        file.write_all(&bytes)?;
        if !waiters.is_empty() {
            file.sync_data()?;
        }
        for waiter in waiters.drain(..) {
            // The one who asked may have been stopped; the record stands all the same.
            let _gone = waiter.send(());
        }
    }
    file.sync_data()
}
