//! Faults: one operation under load, in which a server dies, a stream errs, a shard cannot be reached, the leader is frozen
//! or what lets everybody in is rotated; all of it mends by itself, and the checker judges.

mod failover;
mod rotation;
mod scenario;

use std::{fmt, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use checker::Phase;
use serde::Serialize;
use sqlx::{Connection as _, PgConnection, Row as _};

use self::scenario::What;
pub use self::scenario::{End, Loss, Scenario, Victim, scenarios};
use crate::{
    awaiting::await_condition,
    chain::LEASE_SECONDS,
    ordeal::{Moment, Ordeal},
    proxy::{Line, Recorder},
    shop::{Shop, ShopOptions, order_shard_set::SetStatus, shard_names},
    trial::{Score, Trial, TrialOptions},
};

const FROM: usize = 2;
const MOMENT_DEADLINE: Duration = Duration::from_secs(180);

/// What the shop has to bear beside the fault.
#[derive(Clone, Debug)]
pub struct FaultOptions {
    /// The load.
    pub trial: TrialOptions,
    /// How long a stream errs or a shard is unreachable.
    pub lasting: Duration,
}

/// What came of one scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    name: &'static str,
    #[serde(flatten)]
    score: Score,
    failing_is_fine: bool,
    loss: Loss,
    hand_overs_at_fault: u64,
    hand_overs: u64,
    seconds: f64,
    ended_by_itself: u64,
    /// How the operation ended, and why if it went back.
    ended: String,
    /// What the scenario itself found wrong.
    wrong: Vec<String>,
}

/// Runs one scenario on servers of its own.
pub async fn run(scenario: &Scenario, options: &FaultOptions) -> Result<Report> {
    let recorder = Arc::new(Recorder::default());
    let names = shard_names(FROM + 1);
    let (before, spare) = names.split_at(FROM);
    let shop = Shop::start(ShopOptions {
        buckets: options.trial.buckets,
        shards: before.to_vec(),
        spare: spare.to_vec(),
        lease_seconds: Some(LEASE_SECONDS),
        recorder: (!scenario.encrypts()).then(|| Arc::clone(&recorder)),
        tls: scenario.encrypts(),
        ..ShopOptions::default()
    });
    let shop = shop.await?;
    let prepared = match scenario.what {
        What::FailOver { of, synchronous, to } => Some(failover::prepare(&shop, of, synchronous, to).await?),
        What::Kill(_)
        | What::SubscriptionErrs
        | What::Unreachable(_)
        | What::LeaderFrozen
        | What::Rotated(_) => None,
    };
    let trial = Trial::start(&shop, FROM, &options.trial).await?;
    trial.load().set_phase(Phase::During);
    shop.set().set_shards(&names).await?;
    let ordeal = Ordeal::new(shop, trial, recorder, scenario.name);
    let mut run = Run { ordeal, lasting: options.lasting, held: None };
    if scenario.needs_streams() {
        run.await_moment(Moment::Copying).await?;
        run.held = Some(run.hold_a_bucket().await?);
    }
    run.await_moment(scenario.moment).await?;
    let hand_overs_at_fault = *run.ordeal.recorder.hand_overs().borrow();
    let wrong = match prepared {
        Some(prepared) => run.fail_over(prepared).await?,
        None => run.inflict(&scenario.what).await?,
    };
    let anew = scenario.begins_anew();
    let is_over = |status: &SetStatus| status.is_converged() || !anew && has_gone_back(status);
    let status = run.ordeal.until(is_over).await?;
    let Ordeal { shop: _shop, trial, recorder, keeper, .. } = run.ordeal;
    let seconds = keeper.elapsed().as_secs_f64();
    trial.load().set_phase(Phase::After);
    let (summary, verdict) = trial.end().await?;
    Ok(Report {
        name: scenario.name,
        score: Score::new(&summary, verdict),
        failing_is_fine: scenario.failing_is_fine(),
        loss: scenario.loss(),
        hand_overs_at_fault,
        hand_overs: *recorder.hand_overs().borrow(),
        seconds,
        ended_by_itself: keeper.ended_by_itself,
        ended: ending(&status),
        wrong,
    })
}

/// For a reason that the status shows.
fn has_gone_back(status: &SetStatus) -> bool {
    status.operation().is_none() && status.last_phase() == Some("RolledBack")
}

fn ending(status: &SetStatus) -> String {
    let phase = status.last_phase().unwrap_or("none");
    let ready = status.condition("Ready");
    match ready {
        Some(ready) if ready.status != "True" => format!("{phase}: {}: {}", ready.reason, ready.message),
        Some(_) | None => phase.to_owned(),
    }
}

/// A scenario under way.
struct Run {
    ordeal: Ordeal,
    lasting: Duration,
    /// The transaction that keeps a bucket from being handed over.
    held: Option<PgConnection>,
}

impl Run {
    /// By what the proxies see, or the destination: a status comes too late.
    async fn await_moment(&self, moment: Moment) -> Result<()> {
        if self.ordeal.shop.encrypts() {
            self.await_encrypted(moment).await?;
        } else {
            let reached = tokio::time::timeout(MOMENT_DEADLINE, self.ordeal.moment(moment)).await;
            reached.with_context(|| format!("not reached in time: {moment}"))?;
            if moment == Moment::TableCopied {
                self.await_copied_table().await?;
            }
        }
        self.ordeal.say(&format!("{moment}: now"));
        Ok(())
    }

    async fn await_copied_table(&self) -> Result<()> {
        let copied = "select exists (select from pg_subscription_rel where srsubstate in ('s', 'r'))";
        self.await_at_destination("a table to be copied", copied).await
    }

    /// By the destination alone, where no proxy can read along.
    async fn await_encrypted(&self, moment: Moment) -> Result<()> {
        let reached = match moment {
            Moment::Copying => "select exists (select from pg_subscription_rel)",
            Moment::TableCopied => return self.await_copied_table().await,
            Moment::Actions(_) => bail!("nobody counts actions where everybody encrypts"),
            Moment::HandingOver | Moment::HandedOver => {
                "select exists (select from longshore.ownership where state = 'owned')"
            }
        };
        self.await_at_destination(&moment.to_string(), reached).await
    }

    async fn await_at_destination(&self, what: &str, query: &'static str) -> Result<()> {
        let destination = shard_names(FROM + 1).pop().context("there are shards")?;
        let mut connection = self.ordeal.shop.database(&destination)?.connect_admin().await?;
        let reached = async || {
            let row = sqlx::query(query).fetch_one(&mut connection).await;
            row.and_then(|row| row.try_get::<bool, _>(0)).ok()?.then_some(())
        };
        await_condition(what, MOMENT_DEADLINE, reached).await
    }

    /// The fault, from its begin to its end. Says what was not as it should be.
    async fn inflict(&mut self, what: &What) -> Result<Vec<String>> {
        let destination = shard_names(FROM + 1).pop().context("there are shards")?;
        match what {
            What::Kill(victim) => self.kill(*victim, &destination).await?,
            What::SubscriptionErrs => self.spoil_stream(&destination).await?,
            What::Unreachable(line) => {
                self.ordeal.shop.set_line(&destination, *line)?;
                self.ordeal.hold(self.lasting).await?;
                self.ordeal.shop.set_line(&destination, Line::Open)?;
            }
            What::LeaderFrozen => return self.ordeal.freeze_leader(&shard_names(FROM + 1)).await,
            What::FailOver { .. } => {}
            What::Rotated(what) => return self.rotate(*what).await,
        }
        self.ordeal.say("the fault is over");
        Ok(Vec::new())
    }

    async fn kill(&mut self, victim: Victim, destination: &str) -> Result<()> {
        let sources = shard_names(FROM);
        // The source is the one that gives now: the last that handed over, or else the first.
        let giver = self.giver().unwrap_or_else(|| sources[0].clone());
        let victims: Vec<String> = match victim {
            Victim::Source => vec![giver],
            Victim::Destination => vec![destination.to_owned()],
            Victim::Both => vec![giver, destination.to_owned()],
        };
        self.ordeal.kill_servers(&victims).await
    }

    fn giver(&self) -> Option<String> {
        let actions = self.ordeal.recorder.actions();
        let last = actions.iter().rev().find(|action| action.kind == "hand_over")?;
        last.signature.split(' ').next().map(str::to_owned)
    }

    /// A trigger that refuses what a stream brings, and nothing else.
    async fn spoil_stream(&mut self, destination: &str) -> Result<()> {
        let mut connection = self.ordeal.shop.database(destination)?.connect_admin().await?;
        sqlx::raw_sql(
            "create function spoil() returns trigger language plpgsql as $$ begin raise 'spoiled'; end $$;
             create trigger spoil before insert or update on orders for each row execute function spoil();
             alter table orders enable replica trigger spoil",
        )
        .execute(&mut connection)
        .await
        .context("failed to spoil the stream")?;
        self.ordeal.hold(self.lasting).await?;
        sqlx::raw_sql("drop trigger spoil on orders; drop function spoil()").execute(&mut connection).await?;
        connection.close().await?;
        Ok(())
    }
}

impl Report {
    /// What must not have happened, in words; empty if all is well.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = match self.loss {
            Loss::None => self.score.faults(self.failing_is_fine),
            Loss::Possible | Loss::Certain => self.score.faults_but_losses(),
        };
        if self.loss == Loss::Certain && self.score.lost() == 0 {
            faults.push("nothing was lost: the standby lacked nothing".to_owned());
        }
        faults.extend(self.wrong.iter().cloned());
        faults
    }

    /// Which scenario.
    pub fn name(&self) -> &'static str {
        self.name
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} in {:.0} s; {} of {} hand_overs before the fault",
            self.name, self.ended, self.seconds, self.hand_overs_at_fault, self.hand_overs
        )?;
        write!(f, "{}", self.score)?;
        self.score.write_invariants(f)
    }
}

/// All scenarios of these names, or all there are.
pub fn chosen(only: &[String]) -> Result<Vec<Scenario>> {
    let known = scenarios();
    for name in only {
        ensure!(
            known.iter().any(|scenario| scenario.name == name),
            "there is no scenario {name}: see --list"
        );
    }
    Ok(known
        .into_iter()
        .filter(|scenario| only.is_empty() || only.iter().any(|name| name == scenario.name))
        .collect())
}
