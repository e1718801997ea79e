//! One KafkaTopicSet: from what is asked and what is there to the next changes and the status.
//!
//! `reconcile` is the table of contents. Nothing is remembered but to save work: what was begun by an operator that died is seen
//! in the cluster, and what belongs to a set stands in its status before it is created.

pub(crate) mod changes;
mod claims;
mod decide;
mod events;
mod execute;
mod guard;
pub(crate) mod moves;
mod placement;
mod release;
mod status;
#[cfg(test)]
mod tests;
pub(crate) mod wanted;
pub(crate) mod world;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, OnceLock, Weak},
    time::{Duration, Instant},
};

use kube::{
    Client, ResourceExt as _,
    runtime::{
        events::Recorder,
        reflector::{ObjectRef, Store},
    },
};
use longshore_crds::{KafkaTopicSet, kafka_topic_set::KafkaTopicSetStatus};
use tokio::sync::Mutex;

use self::{
    claims::Claims,
    decide::{Decision, Problem},
    wanted::Wanted,
};
use crate::{
    kafka::{
        Admin, KafkaError,
        access::{Access, AccessError},
    },
    status::{Written, chain},
    telemetry,
};

pub(crate) use release::release;
pub(crate) use wanted::WantedError;

/// How often a cluster is looked at of which nothing is wanted.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// What a broker refused is asked for again after this, unless something has changed.
const REFUSED_INTERVAL: Duration = Duration::from_secs(30);
const MOVES_INTERVAL: Duration = Duration::from_secs(1);
/// A guarded deletion waits for consumers to go.
const BLOCKED_INTERVAL: Duration = Duration::from_secs(10);
/// Brokers learn of a change from the controller a moment later.
const ACTED_PAUSE: Duration = Duration::from_millis(200);
/// A cluster that cannot be reached is tried again after this, then ever later.
const BACKOFF: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// Why a reconcile failed; the next one comes with backoff.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the spec is not valid")]
    Wanted(#[from] WantedError),
    #[error("failed to {operation} of the KafkaTopicSet")]
    Kubernetes {
        operation: &'static str,
        #[source]
        source: Box<kube::Error>,
    },
}

/// What every reconcile needs: handles only.
pub(crate) struct Context {
    client: Client,
    recorder: Recorder,
    /// How long a deleted set whose topics cannot be deleted holds its finalizer.
    release_patience: Duration,
    /// The sets as the watch brought them.
    store: OnceLock<Store<KafkaTopicSet>>,
    sets: Mutex<HashMap<String, Arc<Mutex<SetState>>>>,
    /// Sets of one cluster and user share a client, and so its one request at a time.
    admins: Mutex<Vec<(Access, Weak<Mutex<Admin>>)>>,
}

/// What is remembered of a set, to save work.
#[derive(Default)]
struct SetState {
    admin: Option<(Access, Arc<Mutex<Admin>>)>,
    /// How often the cluster was not reached, one time after the other.
    failures: u32,
    /// What was changed last, and how often before: something may undo it, or brokers may show it otherwise.
    acted: Option<(String, u32)>,
    /// Changes in words that brokers refused, by topic: when, and what they said.
    refused: BTreeMap<String, (Vec<String>, Instant, Problem)>,
    written: Written<KafkaTopicSetStatus>,
    /// Nothing is to be done before, unless these change.
    rest: Option<(Question, Instant)>,
}

impl SetState {
    /// I/O: every change is written at once: whose the topics are has to stand in it.
    async fn write(
        &mut self,
        ctx: &Context,
        set: &KafkaTopicSet,
        status: &KafkaTopicSetStatus,
    ) -> Result<(), Error> {
        let written = self.written.write(&ctx.client, set, status, Clone::clone).await;
        let failed = |source| Error::Kubernetes { operation: "write the status", source: Box::new(source) };
        written.map(drop).map_err(failed)
    }
}

/// All that an answer depends on, but for the cluster itself.
type Question = (i64, BTreeMap<String, String>, Claims);

/// Where a reconcile ended.
enum Outcome {
    Unreachable { reason: &'static str, message: String },
    Looked(Box<Look>),
}

/// What was seen and done.
struct Look {
    cluster_id: String,
    decision: Decision,
    /// What was changed, as a hash.
    acted: Option<String>,
}

impl Context {
    #[must_use]
    pub(crate) fn new(client: Client, recorder: Recorder, release_patience: Duration) -> Self {
        let store = OnceLock::new();
        Self { client, recorder, release_patience, store, sets: Mutex::default(), admins: Mutex::default() }
    }

    /// Where other sets are found.
    pub(crate) fn set_store(&self, store: Store<KafkaTopicSet>) {
        let _ = self.store.set(store);
    }

    fn claims(&self, wanted: &Wanted, cluster_id: Option<&str>) -> Claims {
        let sets = self.store.get().map(Store::state).unwrap_or_default();
        Claims::of(wanted, cluster_id, sets.iter().map(AsRef::as_ref))
    }

    /// A set as the watch has brought it by now.
    fn current(&self, set: &KafkaTopicSet) -> Arc<KafkaTopicSet> {
        let found = self.store.get().and_then(|store| store.get(&ObjectRef::from_obj(set)));
        found.filter(|found| found.uid() == set.uid()).unwrap_or_else(|| Arc::new(set.clone()))
    }

    async fn state(&self, uid: &str) -> Arc<Mutex<SetState>> {
        Arc::clone(self.sets.lock().await.entry(uid.to_owned()).or_default())
    }

    async fn forget(&self, uid: &str) {
        self.sets.lock().await.remove(uid);
    }

    /// I/O: reads Secrets; connects to nothing yet.
    async fn admin(&self, wanted: &Wanted, state: &mut SetState) -> Result<Arc<Mutex<Admin>>, NoAccess> {
        let access = Access::read(&self.client, &wanted.namespace, &wanted.cluster).await?;
        if let Some((known, admin)) = &state.admin
            && *known == access
        {
            return Ok(Arc::clone(admin));
        }
        let mut admins = self.admins.lock().await;
        admins.retain(|(_, admin)| admin.strong_count() > 0);
        let known = admins.iter().find(|(known, _)| *known == access).and_then(|(_, admin)| admin.upgrade());
        let admin = match known {
            Some(admin) => admin,
            None => {
                let admin = Arc::new(Mutex::new(Admin::new(access.clone())));
                admins.push((access.clone(), Arc::downgrade(&admin)));
                admin
            }
        };
        state.admin = Some((access, Arc::clone(&admin)));
        Ok(admin)
    }
}

/// Why there is no client, in the words of a condition.
struct NoAccess {
    reason: &'static str,
    message: String,
}

impl From<AccessError> for NoAccess {
    fn from(error: AccessError) -> Self {
        Self { reason: error.reason, message: error.to_string() }
    }
}

/// Does what has to be done for one set. Returns when to come back.
///
/// # Errors
/// When the API server fails; nothing is lost, the next reconcile looks again.
pub(crate) async fn reconcile(set: &KafkaTopicSet, ctx: &Context) -> Result<Duration, Error> {
    let state = ctx.state(&set.uid().unwrap_or_default()).await;
    let mut state = state.lock().await;
    let wanted = wanted(set, &state)?;
    let last = state.written.last().or(set.status.as_ref()).cloned();
    let claims = ctx.claims(&wanted, last.as_ref().and_then(|status| status.cluster_id.as_deref()));
    let question = (wanted.generation, set.annotations().clone(), claims);
    if let Some((before, until)) = &state.rest {
        if *before == question && Instant::now() < *until {
            return Ok(until.duration_since(Instant::now()));
        }
        if before.0 != question.0 {
            state.refused.clear();
        }
    }
    let outcome = step(set, &wanted, ctx, &mut state).await?;
    let status = status::compute(set, &wanted, &outcome);
    telemetry::show_topics(set, &status);
    state.write(ctx, set, &status).await?;
    events::publish(ctx, set, last.as_ref(), &status).await;
    let pause = pause_after(&outcome, &mut state);
    state.rest = Some((question, Instant::now() + pause));
    Ok(pause)
}

/// The spec, and what was last written down of whose the topics are: the watch may bring it later.
fn wanted(set: &KafkaTopicSet, state: &SetState) -> Result<Wanted, WantedError> {
    let mut wanted = Wanted::of(set)?;
    if let Some(written) = state.written.last() {
        wanted.owned = written.topics.iter().cloned().collect();
    }
    Ok(wanted)
}

/// I/O: looks, decides, acts.
async fn step(
    set: &KafkaTopicSet,
    wanted: &Wanted,
    ctx: &Context,
    state: &mut SetState,
) -> Result<Outcome, Error> {
    let admin = match ctx.admin(wanted, state).await {
        Ok(admin) => admin,
        Err(NoAccess { reason, message }) => return Ok(Outcome::Unreachable { reason, message }),
    };
    let mut admin = admin.lock().await;
    let mut look = match look(wanted, ctx, &mut admin).await {
        Ok(look) => look,
        Err(error) => return Ok(unreachable(&error)),
    };
    spare_refused(&mut look, state);
    let changes = match (wanted.plans, wanted.paused) {
        (true, _) => return Ok(Outcome::Looked(look)),
        (false, true) => look.decision.changes.ends(),
        (false, false) => look.decision.changes.clone(),
    };
    if look.decision.owned.iter().any(|topic| !wanted.owned.contains(topic)) && !wanted.paused {
        // Before anything is created: a topic that we cannot know for ours would never be deleted.
        let status = status::compute(set, wanted, &Outcome::Looked(Box::new(look.claimed(wanted))));
        state.write(ctx, set, &status).await?;
    }
    if changes.is_empty() {
        return Ok(Outcome::Looked(look));
    }
    for step in changes.in_words() {
        tracing::info!(set = wanted.name, namespace = wanted.namespace, "{step}");
    }
    match execute::execute(&mut admin, &changes).await {
        Err(error) => Ok(unreachable(&error)),
        Ok(refusals) => {
            for (topic, refusal) in refusals {
                let problem = Problem { reason: refusal.reason, message: refusal.words };
                state
                    .refused
                    .insert(topic.clone(), (changes.of_topic(&topic), Instant::now(), problem.clone()));
                look.decision.problems.insert(topic, problem);
            }
            look.acted = Some(changes.hash());
            Ok(Outcome::Looked(look))
        }
    }
}

/// I/O: observes, asks who uses what might be deleted, and decides.
async fn look(wanted: &Wanted, ctx: &Context, admin: &mut Admin) -> Result<Box<Look>, KafkaError> {
    let mut world = admin.look(&wanted.concerned()).await?;
    let claims = ctx.claims(wanted, Some(&world.cluster_id));
    world.uses = admin.uses(&decide::doomed(wanted, &world, &claims)).await?;
    let mut decision = decide::decide(wanted, &world, &claims);
    if wanted.plans || wanted.paused {
        // What is not done changes nothing about whose the topics are.
        decision.owned.clone_from(&wanted.owned);
    }
    Ok(Box::new(Look { cluster_id: world.cluster_id, decision, acted: None }))
}

/// What was refused a moment ago is not asked for again yet.
fn spare_refused(look: &mut Look, state: &mut SetState) {
    let changes = &mut look.decision.changes;
    state
        .refused
        .retain(|topic, (words, at, _)| at.elapsed() < REFUSED_INTERVAL && *words == changes.of_topic(topic));
    for (topic, (_, _, problem)) in &state.refused {
        changes.drop_topic(topic);
        look.decision.problems.insert(topic.clone(), problem.clone());
    }
}

impl Look {
    /// As it will be: what is claimed, beside what was claimed before.
    fn claimed(&self, wanted: &Wanted) -> Self {
        let mut decision = self.decision.clone();
        decision.owned.extend(wanted.owned.iter().cloned());
        Self { cluster_id: self.cluster_id.clone(), decision, acted: None }
    }
}

fn unreachable(error: &KafkaError) -> Outcome {
    Outcome::Unreachable { reason: error.reason(), message: chain(error) }
}

fn pause_after(outcome: &Outcome, state: &mut SetState) -> Duration {
    let look = match outcome {
        Outcome::Unreachable { .. } => {
            let pause = doubled(BACKOFF, state.failures, BACKOFF_MAX);
            state.failures = state.failures.saturating_add(1);
            return pause.mul_f64(rand::random_range(0.5..1.0));
        }
        Outcome::Looked(look) => look,
    };
    state.failures = 0;
    let before = state.acted.take();
    if let Some(hash) = &look.acted {
        let times = before.filter(|(last, _)| last == hash).map_or(0, |(_, times)| times.saturating_add(1));
        state.acted = Some((hash.clone(), times));
        doubled(ACTED_PAUSE, times, LOOK_INTERVAL)
    } else if !look.decision.reassigning.is_empty() {
        MOVES_INTERVAL
    } else if look.decision.problems.values().any(|problem| problem.reason == guard::IN_USE) {
        BLOCKED_INTERVAL
    } else {
        LOOK_INTERVAL
    }
}

fn doubled(pause: Duration, times: u32, longest: Duration) -> Duration {
    pause.saturating_mul(2_u32.saturating_pow(times)).min(longest)
}
