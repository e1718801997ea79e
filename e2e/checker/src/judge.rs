//! The verdict: what the history says was asked and answered, against what the shards hold. Reads everything,
//! writes nothing but temporary objects of its own sessions.

mod answers;
mod asked;
mod findings;
mod live;
mod preloaded;
mod register;
mod territory;

use crate::{
    history::HistoryError,
    ownership::OwnershipReport,
    preload::Preload,
    store::{Store, StoreError},
};
use asked::Asked;
use findings::{Findings, Rule};
use serde::Serialize;
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use std::{collections::BTreeMap, path::PathBuf};
use territory::Territory;

/// What is to be judged.
#[derive(Clone, Debug)]
pub struct Case {
    /// The history's file, closed.
    pub history: PathBuf,
    /// All shards that are, or were, part of the set; administrators' URLs. All must answer.
    pub stores: Vec<Store>,
    /// How many buckets the set has.
    pub buckets: u32,
    /// What was preloaded.
    pub preload: Option<Preload>,
    /// What the sampler saw during the run.
    pub ownership: Option<OwnershipReport>,
    /// The operation is over, clean-up included: each bucket must have an owner, and leftovers are violations.
    pub complete: bool,
}

/// The judgement. Serializes to JSON as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Why this run proves nothing; empty for a valid one.
    pub invalid: Vec<String>,
    /// By name, e.g. `acknowledged_stored`; all that were checked are there, also those without violations.
    /// `no_leftovers` is checked only where the operation is complete.
    pub invariants: BTreeMap<String, Invariant>,
    /// Orders alone.
    pub orders: OrderFaults,
    /// How much was looked at.
    pub checked: Checked,
}

impl Verdict {
    /// Valid and without any violation.
    pub fn is_green(&self) -> bool {
        self.invalid.is_empty() && self.violated().is_empty()
    }

    /// The names of the invariants with violations.
    pub fn violated(&self) -> Vec<&str> {
        self.invariants.iter().filter(|(_, one)| one.violations > 0).map(|(name, _)| name.as_str()).collect()
    }
}

/// One invariant's violations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Invariant {
    /// How many.
    pub violations: u64,
    /// The first few of them, at most five.
    pub examples: Vec<String>,
}

/// What became of orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OrderFaults {
    /// Acknowledged or preloaded, and not stored.
    pub lost: u64,
    /// Stored more than once, or a key with more than one order.
    pub duplicated: u64,
}

/// How much a verdict rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Places acknowledged.
    pub acknowledged: u64,
    /// Places whose outcome is unknown.
    pub indeterminate: u64,
    /// Orders found in the stores, preloaded ones aside.
    pub stored: u64,
    /// Preloaded orders found.
    pub preloaded: u64,
    /// Versions seen in answers.
    pub observations: u64,
    /// Readings of the ownership.
    pub ownership_samples: u64,
}

/// What makes judging fail; then there is no verdict, which is not a green one.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// The history cannot be read, or is damaged.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// A shard could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A question to a shard failed.
    #[error("failed to ask shard {shard} about {about}")]
    Query {
        /// Which shard.
        shard: String,
        /// What was asked.
        about: &'static str,
        #[source]
        /// Why.
        source: sqlx::Error,
    },
}

/// Reads the history, then the shards, then the history's answers again. I/O.
pub async fn judge(case: &Case) -> Result<Verdict, JudgeError> {
    let preload = Preload {
        buckets: case.buckets,
        ..case.preload.unwrap_or(Preload { orders: 0, ..Preload::default() })
    };
    let mut findings = Findings::new(case.complete);
    let mut asked = Asked::read(&case.history)?;
    let mut shards = open(case, &preload, &mut findings).await?;

    preloaded::check(&mut shards, &preload, &mut findings).await?;
    for shard in &mut shards {
        shard.ask(include_str!("../sql/judge_money.sql"), "money", &mut findings).await?;
    }
    live::check(&mut shards, &mut asked, &mut findings).await?;
    if case.complete {
        leftovers(&mut shards, &mut findings).await?;
    }
    answers::check(&case.history, &asked, &preload, &mut shards, &mut findings).await?;
    if let Some(report) = &case.ownership {
        findings.add_many(Rule::OneOwner, report.violations, &report.examples);
        findings.checked.ownership_samples = report.samples;
    }
    findings.checked.acknowledged = asked.acknowledged();
    findings.checked.indeterminate = asked.indeterminate();
    let invalid = invalid(case, &findings);
    Ok(findings.into_verdict(invalid))
}

/// A look between operations, as cheap as it can be: each bucket has one owner, and no stream is left. Says what is wrong.
/// I/O.
pub async fn inspect(stores: &[Store], buckets: u32) -> Result<Vec<String>, JudgeError> {
    let mut findings = Findings::new(true);
    let mut claims = Vec::new();
    for store in stores {
        let mut connection = store.connect().await?;
        claims.push(store.ownership(&mut connection).await?);
        leftover_objects(&mut connection, store, &mut findings).await?;
    }
    let names: Vec<&str> = stores.iter().map(|store| store.name.as_str()).collect();
    let _territory = Territory::of(&names, &claims, buckets, true, &mut findings);
    let verdict = findings.into_verdict(Vec::new());
    Ok(verdict.invariants.into_values().flat_map(|invariant| invariant.examples).collect())
}

fn invalid(case: &Case, findings: &Findings) -> Vec<String> {
    let unsampled = case.ownership.as_ref().is_some_and(|report| report.samples == 0);
    let reasons = [
        (findings.checked.acknowledged == 0, "no order was acknowledged"),
        (unsampled, "the ownership was never read while orders flowed"),
    ];
    reasons.iter().filter(|(holds, _)| *holds).map(|(_, reason)| (*reason).to_owned()).collect()
}

/// A shard under judgement: one session with the judge's functions in it.
struct Shard {
    store: Store,
    connection: PgConnection,
    /// False where the schema was never applied; then there are no rows either.
    has_tables: bool,
}

/// Connects to all shards, finds out whose rows count, installs the functions. I/O.
async fn open(case: &Case, preload: &Preload, findings: &mut Findings) -> Result<Vec<Shard>, JudgeError> {
    let mut shards = Vec::new();
    let mut claims = Vec::new();
    for store in &case.stores {
        let mut connection = store.connect().await?;
        claims.push(store.ownership(&mut connection).await?);
        let has_tables = store.has_table(&mut connection, "orders").await?;
        preload.install(store, &mut connection).await?;
        shards.push(Shard { store: store.clone(), connection, has_tables });
    }
    let names: Vec<&str> = case.stores.iter().map(|store| store.name.as_str()).collect();
    let territory = Territory::of(&names, &claims, case.buckets, case.complete, findings);
    for (index, shard) in shards.iter_mut().enumerate() {
        let function =
            include_str!("../sql/judge_mine.sql").replace("{ranges}", &territory.multirange(index));
        let made = shard.connection.execute(sqlx::raw_sql(AssertSqlSafe(function))).await;
        made.map_err(|source| shard.failed("its buckets", source))?;
    }
    Ok(shards)
}

/// Rows, slots, publications and subscriptions that should be gone. I/O.
async fn leftovers(shards: &mut [Shard], findings: &mut Findings) -> Result<(), JudgeError> {
    for shard in shards {
        shard.ask(include_str!("../sql/judge_leftover_rows.sql"), "leftover rows", findings).await?;
        leftover_objects(&mut shard.connection, &shard.store, findings).await?;
    }
    Ok(())
}

/// Slots, publications and subscriptions that should be gone. I/O.
async fn leftover_objects(
    connection: &mut PgConnection,
    store: &Store,
    findings: &mut Findings,
) -> Result<(), JudgeError> {
    let objects = include_str!("../sql/judge_leftover_objects.sql");
    findings.ask(connection, store, objects, "leftover objects").await
}

impl Shard {
    fn failed(&self, about: &'static str, source: sqlx::Error) -> JudgeError {
        JudgeError::Query { shard: self.store.name.clone(), about, source }
    }

    /// Asks a question about the order tables whose answers are violations. I/O.
    async fn ask(
        &mut self,
        sql: &'static str,
        about: &'static str,
        findings: &mut Findings,
    ) -> Result<(), JudgeError> {
        if !self.has_tables {
            return Ok(());
        }
        findings.ask(&mut self.connection, &self.store, sql, about).await
    }
}
