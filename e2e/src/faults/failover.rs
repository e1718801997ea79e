//! A standby that takes its server's place in the middle of a move.

use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::events::v1::Event;
use kube::{Api, api::ListParams};
use sqlx::Row as _;

use super::{
    FROM, Run,
    scenario::{Address, End},
};
use crate::{
    awaiting::await_condition,
    postgres::Standby,
    shop::{Shop, shard_names},
};

/// For how long an asynchronous standby hears nothing of its server, which works on: what is lost then.
const DEAF: Duration = Duration::from_secs(2);

/// Much longer than the operator takes to notice.
const COMPARED_DEADLINE: Duration = Duration::from_secs(60);

/// Who fails over to whom.
pub(super) struct Prepared {
    shard: String,
    standby: Standby,
    synchronous: bool,
    to: Address,
}

pub(super) async fn prepare(shop: &Shop, of: End, synchronous: bool, to: Address) -> Result<Prepared> {
    let names = shard_names(FROM + 1);
    let shard = match of {
        End::Source => names.first(),
        End::Destination => names.last(),
    };
    let shard = shard.context("there are shards")?.clone();
    let standby = shop.server(&shard)?.standby(synchronous).await?;
    Ok(Prepared { shard, standby, synchronous, to })
}

impl Run {
    /// Says what was not as it should be.
    pub(super) async fn fail_over(&mut self, prepared: Prepared) -> Result<Vec<String>> {
        let Prepared { shard, standby, synchronous, to } = prepared;
        if !synchronous {
            standby.deafen(self.ordeal.shop.server(&shard)?).await?;
            self.ordeal.hold(DEAF).await?;
        }
        let server = self.ordeal.shop.server(&shard)?;
        self.ordeal.say(&format!("the server of {shard} dies, its standby takes over"));
        server.fail_over_to(standby).await?;
        if to == Address::InSecret {
            self.ordeal.say(&format!("{shard} is found at another address, says its Secret"));
            self.ordeal.shop.move_shard(&shard).await?;
        }
        let mut wrong = Vec::new();
        let mut admin = self.ordeal.shop.database(&shard)?.connect_admin().await?;
        let quarantined = sqlx::query("select server <> longshore.this_server() from longshore.armed")
            .fetch_one(&mut admin)
            .await?;
        // Unless the operator was faster than this question.
        let quarantined: bool = quarantined.try_get(0)?;
        self.ordeal.say(&format!("{shard} runs on its standby, quarantined: {quarantined}"));
        drop(self.held.take());
        // A status from before the fault would say that all is well.
        let compared = format!("shard {shard} works again");
        let heard = async || {
            let said = self.events("ServerChanged").await.ok()?;
            said.iter().any(|note| note.contains(&compared)).then_some(())
        };
        await_condition("the operator to have compared the shard", COMPARED_DEADLINE, heard).await?;
        self.ordeal.until(|status| status.is_converged()).await?;
        let said = self.events("ServerChanged").await?;
        for note in &said {
            eprintln!("event ServerChanged: {note}");
        }
        for note in self.events("OwnershipConflict").await? {
            eprintln!("event OwnershipConflict: {note}");
        }
        if !said.iter().any(|note| note.contains(&compared) && note.contains("it was last seen on")) {
            wrong.push(format!("no event says what became of {shard}: {said:?}"));
        }
        Ok(wrong)
    }

    async fn events(&self, reason: &str) -> Result<Vec<String>> {
        let events: Api<Event> =
            Api::namespaced(self.ordeal.shop.client().clone(), self.ordeal.shop.namespace());
        let events = events.list(&ListParams::default()).await?;
        let of = |event: Event| (event.reason.as_deref() == Some(reason)).then_some(event.note).flatten();
        Ok(events.items.into_iter().filter_map(of).collect())
    }
}
