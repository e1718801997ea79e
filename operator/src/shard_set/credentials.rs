//! Secrets that change while a set is open: its shards take the new way in without being opened anew, and subscriptions
//! follow. Decides by revisions alone, never by what is secret.

use std::time::{Duration, Instant};

use kube::Client;
use longshore_sharding::{ShardName, operation::Stream};

use super::{
    Error, Outcome,
    inputs::{self, Inputs},
    names::Names,
    observe::{World, streams},
    open::OpenSet,
    refused,
    wanted::Wanted,
};
use crate::shard::{Connection, Shard};

/// How long to wait before new credentials that a shard did not accept yet are tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// When subscriptions may be looked after again.
#[derive(Debug, Default)]
pub(super) struct Patience(Option<Instant>);

/// I/O: lets an open set go on with what it stands on now. Says whether it can: another endpoint or schema needs to be
/// opened anew.
pub(super) async fn take(
    client: &Client,
    wanted: &Wanted,
    open: &mut OpenSet,
    (known, read): (&Inputs, &Inputs),
) -> bool {
    if is_elsewhere(known, read) {
        return false;
    }
    for (name, connection) in &read.connections {
        adopt(open, name, connection);
    }
    let leaving = open.shards.values().filter(|shard| !read.connections.contains_key(&shard.name));
    let leaving: Vec<_> =
        leaving.map(|shard| (shard.name.clone(), shard.connection.secret_name.clone())).collect();
    for (name, secret_name) in leaving {
        // What cannot be read changes nothing.
        if let Ok(connection) = inputs::connection(client, &wanted.namespace, &name, &secret_name).await {
            adopt(open, &name, &connection);
        }
    }
    true
}

/// Pure: whether more has changed than credentials.
fn is_elsewhere(known: &Inputs, read: &Inputs) -> bool {
    let same_place = |name: &ShardName, connection: &Connection| {
        read.connections.get(name).is_some_and(|read| {
            (&read.endpoint, &read.secret_name) == (&connection.endpoint, &connection.secret_name)
        })
    };
    known.migrations != read.migrations
        || known.connections.len() != read.connections.len()
        || !known.connections.iter().all(|(name, connection)| same_place(name, connection))
}

fn adopt(open: &mut OpenSet, name: &ShardName, connection: &Connection) {
    if let Some(Shard { connection: known, .. }) = open.shards.get(name) {
        // Another endpoint of a shard that is leaving is a matter of opening the set.
        if known == connection || known.endpoint != connection.endpoint {
            return;
        }
        tracing::info!(shard.id = %name, secret = connection.secret_name, "the shard's Secret has changed");
    }
    open.set_connection(name, connection);
}

/// I/O: lets one subscription connect with what its source's Secret says now. If we die in the middle, the next leader finds
/// its comment as it was, and does it again.
pub(super) async fn resubscribe(
    open: &OpenSet,
    world: &World,
    patience: &mut Patience,
) -> Result<Option<String>, Error> {
    if patience.0.is_some_and(|until| Instant::now() < until) {
        return Ok(None);
    }
    let revision = |name: &ShardName| Some(open.shards.get(name)?.connection.revision.as_str());
    for (stream, name) in outdated(world, &open.names, revision) {
        let (Some(source), Some(destination)) =
            (open.shards.get(&stream.source), open.shards.get(&stream.destination))
        else {
            continue;
        };
        // A stream that runs must not be sent to a door that is still locked. Only peers may have to be let in, though: 28000
        // is what others are told.
        if let Err(error) = Shard::try_replication(&source.connection).await
            && error.distrust().is_some()
            && error.sqlstate().as_deref() != Some("28000")
        {
            tracing::warn!(shard.id = %source.name, error = error.chain(),
                "new replication credentials are not accepted yet: {stream} keeps the old ones");
            patience.0 = Some(Instant::now() + TRY_AGAIN);
            continue;
        }
        let altered = destination.resubscribe(&name, &source.connection).await;
        altered.map_err(|error| refused(destination.name.to_string(), error))?;
        let deed = format!("{stream}: the subscription has the new credentials");
        tracing::info!(shard.id = %destination.name, name, "{deed}");
        return Ok(Some(deed));
    }
    Ok(None)
}

/// Pure: subscriptions of the newest operation that were made of another state of their source's Secret.
fn outdated<'a>(
    world: &World,
    names: &Names,
    revision: impl Fn(&ShardName) -> Option<&'a str>,
) -> Vec<(Stream, String)> {
    let Some(newest) = world.newest() else { return Vec::new() };
    let named = streams(&newest.plan).into_iter().map(|stream| {
        let name = names.stream(newest.plan.id, &stream);
        (stream, name)
    });
    let is_outdated = |(stream, name): &(Stream, String)| {
        let made_with = world.views.get(&stream.destination)?.subscribed_with.get(name)?;
        (made_with.as_deref() != Some(revision(&stream.source)?)).then_some(())
    };
    named.filter(|stream| is_outdated(stream).is_some()).collect()
}

/// Pure: whether the Secrets should be read again soon, since a shard and its Secret seem to differ.
pub(super) fn are_doubtful(world: &World, outcome: &Outcome) -> bool {
    let blocked = matches!(outcome, Outcome::Blocked { reason: "AuthenticationFailed" | "TlsFailed", .. });
    blocked || !world.distrusted.is_empty()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::ByteString;
    use longshore_sharding::{
        operation::{Course, Kind, OperationId, Plan},
        planner::Move,
    };
    use serde_json::json;

    use super::*;
    use crate::shard::view::View;

    fn name(name: &str) -> ShardName {
        name.try_into().expect("a valid name")
    }

    fn inputs(secret_name: &str, host: &str, password: &str, schema: &str) -> Inputs {
        let data = [
            ("host", host),
            ("port", "5432"),
            ("dbname", "orders"),
            ("username", "operator"),
            ("password", password),
            ("replicationUsername", "replication"),
            ("replicationPassword", password),
        ];
        let data: BTreeMap<_, _> = data
            .map(|(key, value)| (key.to_owned(), ByteString(value.as_bytes().to_vec())))
            .into_iter()
            .collect();
        let connection = Connection::from_secret(secret_name, password, &data).expect("complete");
        Inputs {
            connections: BTreeMap::from([(name("a"), connection)]),
            migrations: BTreeMap::from([("1.sql".to_owned(), schema.to_owned())]),
        }
    }

    #[test]
    fn other_credentials_are_not_another_place() {
        let known = inputs("shard-a", "db", "old", "");
        assert!(!is_elsewhere(&known, &inputs("shard-a", "db", "new", "")));
        assert!(is_elsewhere(&known, &inputs("shard-a", "db-2", "old", "")));
        assert!(is_elsewhere(&known, &inputs("shard-b", "db", "old", "")));
        assert!(is_elsewhere(&known, &inputs("shard-a", "db", "old", "select 1")));
        let mut more = inputs("shard-a", "db", "old", "");
        more.connections.extend(
            inputs("shard-a", "db", "old", "").connections.remove(&name("a")).map(|one| (name("b"), one)),
        );
        assert!(is_elsewhere(&known, &more));
    }

    #[test]
    fn subscriptions_of_another_revision_are_outdated() {
        let moves = vec![Move { from: name("a"), to: name("b"), ranges: [].into_iter().collect() }];
        let plan = Plan { id: OperationId(7), kind: Kind::Rebalance { moves }, cost: None };
        let names = Names::of_set("uid");
        let stream = Stream { source: name("a"), destination: name("b") };
        let forward = names.stream(plan.id, &stream);
        let cases = [
            (json!({&forward: "2"}), vec![]),
            (json!({&forward: "1"}), vec![(stream.clone(), forward.clone())]),
            (json!({&forward: null}), vec![(stream.clone(), forward.clone())]),
            (json!({"ls_other": "1"}), vec![]),
        ];
        for (subscribed_with, expected) in cases {
            let now = "2026-01-01T00:00:00Z";
            let view: View = serde_json::from_value(json!({
                "shardsVersion": 1, "ownership": [], "withRows": [], "publications": [], "slots": {}, "subscriptions": {},
                "subscribedWith": subscribed_with, "probes": [], "routersBehind": 0, "unanalyzed": false, "schema": "",
                "registeredSchema": "", "migration": null,
                "operations": [{"plan": plan, "course": Course::Forward, "generation": 1, "startedAt": now, "changedAt": now,
                                "result": null}],
            }))
            .expect("a view");
            let world = World { views: BTreeMap::from([(name("b"), view)]), ..World::default() };
            assert_eq!(outdated(&world, &names, |_| Some("2")), expected);
        }
    }
}
