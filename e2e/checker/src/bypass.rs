//! Writers that know no router: they log in to any shard as a service does, and write rows straight into the tables, without
//! asking whose they are. Most are refused, for the bucket is elsewhere. What a shard accepts counts like any other
//! acknowledged write; what it refuses must never be stored. Owns those writers; must not read an error's text.

use crate::{
    history::{Answer, History, HistoryError, Item, Operation, OrderFacts, Outcome, total_cents},
    store::Store,
};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde::Serialize;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgTransaction, Row};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use uuid::Uuid;

/// Sessions that write at the same time.
const WRITERS: u32 = 2;
/// A shard that does not let anyone in for so long is tried again later.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// No statement waits longer for a bucket that is being handed over.
const STATEMENT_TIMEOUT: &str = "set statement_timeout = '5s'";
/// So many accepted orders are remembered, to be cancelled.
const REMEMBERED_MAX: usize = 1_000;
/// Misdirected Request: as a service would answer it.
const REFUSED: u16 = 421;
const NOT_HERE: &str = "no such row here";
const NO_CONNECTION: &str = "connection lost";

/// Who writes what, how often.
#[derive(Clone, Debug)]
pub struct BypassOptions {
    /// The shards, by URLs of the role that services log in as.
    pub stores: Vec<Store>,
    /// Transactions tried a second, on average.
    pub per_second: f64,
    /// Users are numbered from 1 to this.
    pub users: u64,
    /// How many buckets the set has.
    pub buckets: u32,
    /// The same seed draws the same writes.
    pub seed: u64,
}

/// What became of the writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BypassSummary {
    /// Transactions begun.
    pub attempted: u64,
    /// Committed: orders placed.
    pub placed: u64,
    /// Committed: orders cancelled.
    pub cancelled: u64,
    /// Rolled back, by the error's SQLSTATE.
    pub refused: BTreeMap<String, u64>,
    /// The commit was not answered.
    pub unsure: u64,
}

/// Writers at work. Dropping it stops them at once.
#[derive(Debug)]
pub struct Bypass {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    writers: JoinSet<Result<(), HistoryError>>,
}

#[derive(Debug)]
struct Shared {
    options: BypassOptions,
    history: History,
    run: String,
    summary: Mutex<BypassSummary>,
    accepted: Mutex<Vec<OrderFacts>>,
}

impl Bypass {
    /// Starts to write. Must be called inside a tokio runtime.
    pub fn start(options: BypassOptions, history: History) -> Self {
        let shared = Arc::new(Shared {
            options,
            history,
            run: Uuid::new_v4().simple().to_string(),
            summary: Mutex::default(),
            accepted: Mutex::default(),
        });
        let (stop, stopped) = watch::channel(false);
        let mut writers = JoinSet::new();
        for number in 0..WRITERS {
            writers.spawn(Writer::new(number, Arc::clone(&shared)).run(stopped.clone()));
        }
        Self { shared, stop, writers }
    }

    /// How it goes, right now.
    pub fn summary(&self) -> BypassSummary {
        lock(&self.shared.summary).clone()
    }

    /// Waits for the writes under way, and sums up.
    pub async fn stop(mut self) -> Result<BypassSummary, HistoryError> {
        let _ended = self.stop.send(true);
        while let Some(ended) = self.writers.join_next().await {
            ended.map_err(|_| HistoryError::Closed)??;
        }
        Ok(self.summary())
    }
}

/// A transaction's end.
enum End {
    Committed(OrderFacts),
    /// By the SQLSTATE.
    RolledBack(String),
    Unsure(String),
}

struct Writer {
    shared: Arc<Shared>,
    rng: StdRng,
    number: u32,
    count: u64,
    sessions: HashMap<usize, PgConnection>,
}

impl Writer {
    fn new(number: u32, shared: Arc<Shared>) -> Self {
        let rng = StdRng::seed_from_u64(shared.options.seed.rotate_left(7 * (number + 1)));
        Self { shared, rng, number, count: 0, sessions: HashMap::new() }
    }

    async fn run(mut self, mut stopped: watch::Receiver<bool>) -> Result<(), HistoryError> {
        let pause = Duration::from_secs_f64(f64::from(WRITERS) / self.shared.options.per_second.max(0.001));
        while !*stopped.borrow() {
            tokio::select! {
                () = sleep(pause.mul_f64(self.rng.random_range(0.0..2.0))) => self.write().await?,
                // A dropped sender means that nobody wants to know any more.
                _ = stopped.changed() => break,
            }
        }
        Ok(())
    }

    /// One transaction on a drawn shard, written down before it begins.
    async fn write(&mut self) -> Result<(), HistoryError> {
        let at = self.rng.random_range(0..self.shared.options.stores.len());
        let Some(mut session) = self.session(at).await else { return Ok(()) };
        let level = *["read committed", "read committed", "repeatable read", "serializable"]
            .choose(&mut self.rng)
            .unwrap_or(&"read committed");
        let target = self.target();
        let operation = match &target {
            Some(facts) => Operation::Cancel { order_id: facts.order_id },
            None => self.place(),
        };
        let history = &self.shared.history;
        let id = history.intent(history.now(), &operation).await?;
        let began_us = history.now();
        let end = match (&operation, &target) {
            (Operation::Place { user_id, key, items }, _) => {
                place(&mut session, level, self.shared.options.buckets, *user_id, key, items).await
            }
            (_, Some(facts)) => cancel(&mut session, level, facts).await,
            (Operation::Get { .. } | Operation::List { .. } | Operation::Cancel { .. }, None) => {
                return Ok(());
            }
        };
        if !matches!(&end, End::Unsure(_)) && !matches!(&end, End::RolledBack(code) if code == NO_CONNECTION)
        {
            self.sessions.insert(at, session);
        }
        let outcome = self.settle(end, target);
        history_outcome(&self.shared.history, id, began_us, outcome)
    }

    async fn session(&mut self, at: usize) -> Option<PgConnection> {
        if let Some(session) = self.sessions.remove(&at) {
            return Some(session);
        }
        let connecting = async {
            let mut session = self.shared.options.stores[at].connect().await.ok()?;
            sqlx::raw_sql(STATEMENT_TIMEOUT).execute(&mut session).await.ok()?;
            Some(session)
        };
        timeout(CONNECT_WITHIN, connecting).await.ok().flatten()
    }

    /// One time of four, an order to cancel; nobody else does so meanwhile.
    fn target(&mut self) -> Option<OrderFacts> {
        let mut accepted = lock(&self.shared.accepted);
        let count = accepted.len();
        let cancels = count > 0 && self.rng.random_bool(0.25);
        cancels.then(|| accepted.swap_remove(self.rng.random_range(0..count)))
    }

    fn place(&mut self) -> Operation {
        self.count += 1;
        let item = |rng: &mut StdRng| Item {
            sku: format!("B-{}", rng.random_range(1..=5_000)),
            quantity: rng.random_range(1..=5),
            price_cents: rng.random_range(0..=20_000),
        };
        Operation::Place {
            user_id: self.rng.random_range(1..=self.shared.options.users.max(1)).cast_signed(),
            key: format!("bypass-{}-{}-{}", self.shared.run, self.number, self.count),
            items: (0..self.rng.random_range(1..=3)).map(|_| item(&mut self.rng)).collect(),
        }
    }

    /// Counts, remembers what was accepted, and says what to write down.
    fn settle(&self, end: End, target: Option<OrderFacts>) -> Outcome {
        let mut summary = lock(&self.shared.summary);
        summary.attempted += 1;
        match end {
            End::Committed(facts) => {
                match target {
                    Some(_) => summary.cancelled += 1,
                    None => {
                        summary.placed += 1;
                        self.remember(facts.clone());
                    }
                }
                Outcome::Acknowledged { http_status: 200, answer: Answer::Order(facts) }
            }
            End::RolledBack(code) => {
                *summary.refused.entry(code).or_default() += 1;
                target.into_iter().for_each(|facts| self.remember(facts));
                Outcome::Refused { http_status: REFUSED, earlier_unsure: false }
            }
            End::Unsure(reason) => {
                summary.unsure += 1;
                Outcome::Indeterminate { reason }
            }
        }
    }

    fn remember(&self, facts: OrderFacts) {
        let mut accepted = lock(&self.shared.accepted);
        if accepted.len() < REMEMBERED_MAX {
            accepted.push(facts);
        }
    }
}

fn history_outcome(history: &History, id: u64, began_us: u64, outcome: Outcome) -> Result<(), HistoryError> {
    history.outcome(id, began_us, history.now(), outcome)
}

/// An order's id bears its bucket, as services want it: 48 bits of milliseconds, the version, the bucket's high 12 bits, the
/// variant, its low 4 bits, and drawn bits.
const PLACE: &str = "
    insert into orders (user_id, order_id, status, total_cents, created_at, version)
    select $1, (lpad(to_hex((extract(epoch from clock_timestamp()) * 1000)::bigint), 12, '0')
                || '7' || lpad(to_hex(bucket >> 4), 3, '0')
                || to_hex(32768 | ((bucket & 15) << 10) | (random() * 1023)::integer)
                || substr(md5(random()::text), 1, 12))::uuid,
           'created', $3, now(), 1
    from (select (hashint8extended($1, 0) & ($2 - 1))::integer as bucket) as own
    returning order_id";
const PLACE_ITEMS: &str = "
    insert into order_items (user_id, order_id, line, sku, quantity, price_cents)
    select $1, $2, line, sku, quantity, price_cents
    from unnest($3::text[], $4::bigint[], $5::bigint[]) with ordinality as item (sku, quantity, price_cents, line)";
const EVENT: &str = "
    insert into order_events (user_id, order_id, version, type, payload, created_at)
    values ($1, $2, $3, $4, '{}', now())";
const PLACE_KEY: &str = "
    insert into idempotency_keys (user_id, key, body_hash, order_id, created_at) values ($1, $2, '', $3, now())";
const CANCEL: &str = "
    update orders set status = 'cancelled', version = version + 1
    where user_id = $1 and order_id = $2 and status = 'created'";

/// All rows of an order, a statement a table. I/O.
async fn place(
    session: &mut PgConnection,
    level: &str,
    buckets: u32,
    user_id: i64,
    key: &str,
    items: &[Item],
) -> End {
    let work = async |tx: &mut PgTransaction<'_>| {
        let placed = sqlx::query(PLACE)
            .bind(user_id)
            .bind(i64::from(buckets))
            .bind(total_cents(items))
            .fetch_one(&mut **tx)
            .await?;
        let order_id: Uuid = placed.try_get("order_id")?;
        sqlx::query(PLACE_ITEMS)
            .bind(user_id)
            .bind(order_id)
            .bind(items.iter().map(|item| item.sku.as_str()).collect::<Vec<_>>())
            .bind(items.iter().map(|item| item.quantity).collect::<Vec<_>>())
            .bind(items.iter().map(|item| item.price_cents).collect::<Vec<_>>())
            .execute(&mut **tx)
            .await?;
        tell(tx, user_id, order_id, 1, "created").await?;
        sqlx::query(PLACE_KEY).bind(user_id).bind(key).bind(order_id).execute(&mut **tx).await?;
        Ok(Some(OrderFacts {
            order_id,
            user_id,
            status: "created".to_owned(),
            version: 1,
            total_cents: total_cents(items),
            items: items.to_vec(),
        }))
    };
    transact(session, level, work).await
}

/// The order's row, if it is here, and its event. I/O.
async fn cancel(session: &mut PgConnection, level: &str, facts: &OrderFacts) -> End {
    let OrderFacts { user_id, order_id, .. } = *facts;
    let work = async |tx: &mut PgTransaction<'_>| {
        let changed = sqlx::query(CANCEL).bind(user_id).bind(order_id).execute(&mut **tx).await?;
        if changed.rows_affected() == 0 {
            return Ok(None);
        }
        tell(tx, user_id, order_id, 2, "cancelled").await?;
        Ok(Some(OrderFacts { status: "cancelled".to_owned(), version: 2, ..facts.clone() }))
    };
    transact(session, level, work).await
}

async fn tell(
    tx: &mut PgTransaction<'_>,
    user_id: i64,
    order_id: Uuid,
    version: i32,
    kind: &str,
) -> Result<(), sqlx::Error> {
    let event = sqlx::query(EVENT).bind(user_id).bind(order_id).bind(version).bind(kind);
    event.execute(&mut **tx).await.map(drop)
}

/// What fails before the commit is sent is never applied; a commit without a clear answer may be. I/O.
async fn transact(
    session: &mut PgConnection,
    level: &str,
    work: impl AsyncFnOnce(&mut PgTransaction<'_>) -> Result<Option<OrderFacts>, sqlx::Error>,
) -> End {
    let begin = AssertSqlSafe(format!("begin isolation level {level}"));
    let mut tx = match session.begin_with(begin).await {
        Ok(tx) => tx,
        Err(error) => return End::RolledBack(code_of(&error)),
    };
    match work(&mut tx).await {
        Ok(Some(facts)) => match tx.commit().await {
            Ok(()) => End::Committed(facts),
            Err(error) => End::Unsure(error.to_string()),
        },
        Ok(None) => rolled_back(tx, NOT_HERE.to_owned()).await,
        Err(error) => rolled_back(tx, code_of(&error)).await,
    }
}

async fn rolled_back(tx: PgTransaction<'_>, code: String) -> End {
    match tx.rollback().await {
        Ok(()) => End::RolledBack(code),
        Err(_) => End::RolledBack(NO_CONNECTION.to_owned()),
    }
}

fn code_of(error: &sqlx::Error) -> String {
    let code = error.as_database_error().and_then(|error| error.code());
    code.map_or_else(|| NO_CONNECTION.to_owned(), |code| code.into_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
