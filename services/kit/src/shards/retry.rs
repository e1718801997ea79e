//! One request's tries: the target of the next one, and what to do between two.

use std::time::Duration;

use longshore_sharding::BucketId;
use tokio::time::{Instant, timeout_at};

use super::{
    RetryReason, RouteError, connections::Pool, core::Core, decision::Step, errors::Fault, map::Claim,
};

/// Bounds of the wait before another try, unless news of the bucket comes first.
const PAUSE_MS_MIN: u64 = 2;
const PAUSE_MS_MAX: u64 = 20;

/// How long a request waits in vain before every shard is asked for its bucket, in case news was missed.
const SURVEY_INTERVAL: Duration = Duration::from_millis(500);

/// What the server's own timeout gets ahead of ours, so that its answer is the one that counts.
pub(crate) const GRACE: Duration = Duration::from_millis(250);

/// As those, where each try costs the server a login that it refuses.
const LOGIN_PAUSE_MS_MIN: u64 = 50;
const LOGIN_PAUSE_MS_MAX: u64 = 200;

/// How long to wait for news before another try.
pub(crate) fn pause_after(reason: RetryReason) -> Duration {
    let range = match reason {
        RetryReason::Credentials => LOGIN_PAUSE_MS_MIN..=LOGIN_PAUSE_MS_MAX,
        RetryReason::Moved
        | RetryReason::HandingOver
        | RetryReason::Absent
        | RetryReason::Refused
        | RetryReason::Quarantined
        | RetryReason::Conflict
        | RetryReason::Connection
        | RetryReason::Unknown
        | RetryReason::Timeout => PAUSE_MS_MIN..=PAUSE_MS_MAX,
    };
    Duration::from_millis(rand::random_range(range))
}

/// The tries of one request.
pub(crate) struct Tries<'c> {
    core: &'c Core,
    bucket: BucketId,
    started: Instant,
    deadline: Instant,
    next_survey: Instant,
    asked: Option<Claim>,
    waited: bool,
    last_reason: RetryReason,
}

impl<'c> Tries<'c> {
    pub(crate) fn new(core: &'c Core, bucket: BucketId, deadline: Instant) -> Self {
        let started = Instant::now();
        Self {
            core,
            bucket,
            started,
            deadline,
            next_survey: started + SURVEY_INTERVAL,
            asked: None,
            waited: false,
            last_reason: RetryReason::Unknown,
        }
    }

    /// The shard to try next. Waits while no owner is known.
    pub(crate) async fn target(&mut self) -> Result<Pool, RouteError> {
        loop {
            if let Some((claim, pool)) = self.core.target(self.bucket) {
                self.asked = Some(claim);
                return Ok(pool);
            }
            self.asked = self.core.claim(self.bucket);
            self.survey();
            self.pause(RetryReason::Unknown, None).await?;
        }
    }

    /// How long the server may take.
    pub(crate) fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Runs a try within the time that is left.
    pub(crate) async fn bound<T>(
        &self,
        attempt: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, Failure> {
        match timeout_at(self.deadline + GRACE, attempt).await {
            Ok(result) => result.map_err(Failure::Answered),
            Err(_) => Err(Failure::Overdue),
        }
    }

    /// Learns from a failed try and waits as long as need be. Fails when no other try may follow.
    pub(crate) async fn after(&mut self, failure: Failure) -> Result<(), RouteError> {
        let Failure::Answered(error) = failure else { return Err(self.expired(RetryReason::Timeout, None)) };
        let fault = Fault::of(&error);
        let Some(asked) = self.asked.clone() else {
            return Err(self.expired(RetryReason::Unknown, Some(error)));
        };
        let decision = self.core.decide(self.bucket, &asked.shard, &fault);
        // Anything newer than what was asked for ends the wait, also if it came while the try was under way.
        self.asked = decision.learn.or(Some(asked));
        match decision.step {
            Step::Follow => {
                self.count(RetryReason::Moved);
                self.check_deadline(RetryReason::Moved, Some(error))
            }
            Step::Wait(reason) => {
                if Instant::now() >= self.next_survey {
                    self.survey();
                }
                self.pause(reason, Some(error)).await
            }
            Step::Survey(reason) => {
                if !self.waited || Instant::now() >= self.next_survey {
                    self.survey();
                }
                self.pause(reason, Some(error)).await
            }
            Step::Reauthenticate => {
                self.core.reload_credentials();
                self.pause(RetryReason::Credentials, Some(error)).await
            }
            Step::Expire(reason) => Err(self.expired(reason, Some(error))),
            Step::Fail => Err(RouteError::Statement { bucket: self.bucket, source: error }),
        }
    }

    fn survey(&mut self) {
        self.core.sought.add([self.bucket]);
        self.next_survey = Instant::now() + SURVEY_INTERVAL;
    }

    /// Waits for news of the bucket or a few milliseconds, whichever comes first.
    async fn pause(&mut self, reason: RetryReason, error: Option<sqlx::Error>) -> Result<(), RouteError> {
        self.count(reason);
        self.check_deadline(reason, error)?;
        if !self.waited {
            self.waited = true;
            metrics::counter!("longshore_router_waits_total").increment(1);
        }
        let until = self.deadline.min(Instant::now() + pause_after(reason));
        let mut news = self.core.map_news();
        // Either way another try follows: the time over, the news come, or (never) the sender gone.
        let _ = timeout_at(until, news.wait_for(|()| self.core.claim(self.bucket) != self.asked)).await;
        Ok(())
    }

    fn count(&mut self, reason: RetryReason) {
        self.last_reason = reason;
        metrics::counter!("longshore_router_retries_total", "reason" => reason.as_str()).increment(1);
    }

    fn check_deadline(&self, reason: RetryReason, error: Option<sqlx::Error>) -> Result<(), RouteError> {
        if Instant::now() < self.deadline { Ok(()) } else { Err(self.expired(reason, error)) }
    }

    fn expired(&self, reason: RetryReason, source: Option<sqlx::Error>) -> RouteError {
        // What ran into the statement timeout is better told by what made it wait.
        let reason = if reason == RetryReason::Timeout && self.waited { self.last_reason } else { reason };
        RouteError::Deadline { bucket: self.bucket, reason, source }
    }
}

impl Drop for Tries<'_> {
    fn drop(&mut self) {
        if self.waited {
            metrics::histogram!("longshore_router_wait_seconds").record(self.started.elapsed());
        }
    }
}

/// How a try failed.
pub(crate) enum Failure {
    Answered(sqlx::Error),
    Overdue,
}
