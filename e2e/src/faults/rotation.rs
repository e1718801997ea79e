//! Rotations: everything that lets the operator, services and subscriptions in is replaced, and every session ended, so that
//! what is new is really used.

use anyhow::{Context as _, Result};
use sqlx::{Connection as _, PgConnection};

use super::{Run, scenario::Rotated};
use crate::{process::ProcessId, shop::rotation::First};

impl Run {
    /// Rotates, and lets the operation end. Says what was not as it should be.
    pub(super) async fn rotate(&mut self, what: Rotated) -> Result<Vec<String>> {
        let before = self.processes()?;
        let mut wrong = Vec::new();
        match what {
            Rotated::Passwords => {
                for first in [First::Servers, First::Clients] {
                    self.ordeal.shop.rotate_passwords(first).await?;
                    wrong.extend(self.renew_sessions(&format!("passwords, {first:?} first")).await?);
                }
            }
            Rotated::Authority => {
                for first in [First::Clients, First::Servers] {
                    self.ordeal.shop.rotate_authority(first).await?;
                    wrong.extend(self.renew_sessions(&format!("the authority, {first:?} first")).await?);
                }
            }
        }
        if let Some(held) = self.held.take() {
            held.close().await?;
        }
        if self.processes()? != before {
            wrong.push("the operator or the service was restarted".to_owned());
        }
        Ok(wrong)
    }

    /// Ends every session; returns when every stream is connected anew.
    async fn renew_sessions(&mut self, what: &str) -> Result<Vec<String>> {
        let moment = self.ordeal.shop.moment().await?;
        self.ordeal.shop.end_sessions(&moment).await?;
        let streams = self.ordeal.shop.await_streams_since(&moment).await?;
        // And those that were logging in just then.
        self.ordeal.shop.end_sessions(&moment).await?;
        let clear =
            if self.ordeal.shop.encrypts() { self.ordeal.shop.sessions_in_the_clear().await? } else { 0 };
        self.ordeal
            .say(&format!("rotated: {what}; every session was ended, {streams} streams are connected anew"));
        let none = (streams == 0).then(|| format!("{what}: there was no stream to connect anew"));
        let clear = (clear > 0).then(|| format!("{what}: {clear} sessions were not encrypted"));
        Ok(none.into_iter().chain(clear).collect())
    }

    fn processes(&self) -> Result<[ProcessId; 2]> {
        let operator = self.ordeal.shop.operator().context("an operator runs")?;
        let service = self.ordeal.shop.service().context("the service runs")?;
        operator.expect_running()?;
        service.expect_running()?;
        Ok([operator.id(), service.id()])
    }

    /// Holds the gate of a bucket that is to move, as a writer would, until the session ends: so the streams stay.
    pub(super) async fn hold_a_bucket(&self) -> Result<PgConnection> {
        let source = self.ordeal.shop.databases().into_values().next().context("there are shards")?;
        let mut held = source.connect_admin().await?;
        sqlx::raw_sql(
            "begin; select pg_advisory_xact_lock_shared(19539, max(bucket)) from longshore.ownership
                    where state = 'owned' and peer is not null",
        )
        .execute(&mut held)
        .await?;
        Ok(held)
    }
}
