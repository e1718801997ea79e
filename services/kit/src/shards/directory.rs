//! Which shards there are and where, and for which version of that list every shard is connected. Pure.

use std::collections::BTreeMap;

use longshore_sharding::{BucketCount, ShardName};

use super::{Addresses, Endpoint};

/// Where each shard is.
pub(crate) type Endpoints = BTreeMap<ShardName, Addresses>;

/// What a shard says of itself and of its set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) shard: ShardName,
    pub(crate) set_uid: String,
    pub(crate) buckets: BucketCount,
    /// Of the list `shards`.
    pub(crate) version: i64,
    pub(crate) shards: Endpoints,
}

/// The shard belongs to another set than the one first heard of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "shard {shard} belongs to set {found} with {found_buckets} buckets, not to {expected} with {buckets}"
)]
pub(crate) struct ForeignShard {
    shard: ShardName,
    found: String,
    found_buckets: u32,
    expected: String,
    buckets: u32,
}

/// The set's shards as far as known.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    set: Option<(String, BucketCount)>,
    version: Option<i64>,
    shards: Endpoints,
    /// Named by a peer, but not in the list yet.
    told: Endpoints,
    /// Listened to, and where: at the server itself.
    connected: BTreeMap<ShardName, Endpoint>,
    caught_up: i64,
}

impl Directory {
    pub(crate) fn buckets(&self) -> Option<BucketCount> {
        self.set.as_ref().map(|(_, buckets)| *buckets)
    }

    /// Every shard that may be asked.
    pub(crate) fn endpoints(&self) -> Endpoints {
        let mut all = self.told.clone();
        all.extend(self.shards.clone());
        all
    }

    /// Takes a shard's report. Says whether the endpoints changed.
    pub(crate) fn offer(&mut self, report: &Report) -> Result<bool, ForeignShard> {
        match &self.set {
            None => self.set = Some((report.set_uid.clone(), report.buckets)),
            Some((uid, buckets)) if (uid, buckets) != (&report.set_uid, &report.buckets) => {
                return Err(ForeignShard {
                    shard: report.shard.clone(),
                    found: report.set_uid.clone(),
                    found_buckets: report.buckets.get(),
                    expected: uid.clone(),
                    buckets: buckets.get(),
                });
            }
            Some(_) => {}
        }
        if self.version.is_some_and(|version| version >= report.version) {
            return Ok(false);
        }
        let before = self.endpoints();
        self.version = Some(report.version);
        self.shards.clone_from(&report.shards);
        // The list is newer than any hint given before it.
        self.told.clear();
        self.update_caught_up();
        Ok(before != self.endpoints())
    }

    /// Takes a peer's word for a shard that no list has named. Says whether it is new. Peers name the server itself: until the
    /// list tells of a pooler, transactions go there as well.
    pub(crate) fn hear_of(&mut self, shard: &ShardName, endpoint: &Endpoint) -> bool {
        if self.shards.contains_key(shard) || self.told.contains_key(shard) {
            return false;
        }
        self.told.insert(shard.clone(), endpoint.clone().into());
        true
    }

    /// Notes that `shard` is listened to at `endpoint`, its map read.
    pub(crate) fn connected(&mut self, shard: &ShardName, endpoint: &Endpoint) {
        self.connected.insert(shard.clone(), endpoint.clone());
        self.update_caught_up();
    }

    /// Notes that `shard` is listened to no more.
    pub(crate) fn disconnected(&mut self, shard: &ShardName) {
        self.connected.remove(shard);
    }

    /// Whether there is a list, and every shard of it is listened to. A shard that was just given its agent has an empty one.
    pub(crate) fn settled(&self) -> bool {
        let connected = |(shard, at): (&ShardName, &Addresses)| self.connected.get(shard) == Some(&at.direct);
        !self.shards.is_empty() && self.shards.iter().all(connected)
    }

    /// The newest version for which every shard has been connected to. A connection lost later does not take it
    /// back: the shard is known, and that is what the version says.
    pub(crate) fn caught_up(&self) -> i64 {
        self.caught_up
    }

    fn update_caught_up(&mut self) {
        if let Some(version) = self.version
            && self.settled()
        {
            self.caught_up = self.caught_up.max(version);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ShardName {
        ShardName::try_from(name.to_owned()).unwrap()
    }

    fn at(port: u16) -> Endpoint {
        Endpoint { host: "127.0.0.1".to_owned(), port, dbname: "orders".to_owned() }
    }

    fn report(version: i64, shards: &[(&str, u16)]) -> Report {
        Report {
            shard: name("a"),
            set_uid: "uid".to_owned(),
            buckets: BucketCount::new(8).unwrap(),
            version,
            shards: shards.iter().map(|(shard, port)| (name(shard), at(*port).into())).collect(),
        }
    }

    #[test]
    fn an_empty_list_is_not_enough() {
        let mut directory = Directory::default();
        directory.offer(&report(0, &[])).unwrap();
        assert!(!directory.settled(), "the seeds must be asked again");
        directory.offer(&report(1, &[("a", 1)])).unwrap();
        directory.connected(&name("a"), &at(1));
        assert!(directory.settled());
    }

    #[test]
    fn a_version_is_caught_up_with_when_every_shard_is_connected() {
        let mut directory = Directory::default();
        assert!(!directory.settled());
        assert_eq!(directory.offer(&report(3, &[("a", 1)])), Ok(true));
        assert_eq!(directory.caught_up(), 0);
        directory.connected(&name("a"), &at(1));
        assert_eq!(directory.caught_up(), 3);

        assert_eq!(directory.offer(&report(4, &[("a", 1), ("b", 2)])), Ok(true));
        assert_eq!(directory.caught_up(), 3, "b is not connected yet");
        directory.connected(&name("b"), &at(9));
        assert_eq!(directory.caught_up(), 3, "an old endpoint does not count");
        directory.connected(&name("b"), &at(2));
        assert_eq!(directory.caught_up(), 4);

        directory.disconnected(&name("b"));
        assert!(!directory.settled());
        assert_eq!(directory.caught_up(), 4, "b stays known");
    }

    #[test]
    fn another_pooler_is_another_endpoint_but_the_same_to_listen_to() {
        let mut directory = Directory::default();
        directory.offer(&report(3, &[("a", 1)])).unwrap();
        directory.connected(&name("a"), &at(1));
        let mut pooled = report(4, &[("a", 1)]);
        pooled.shards.insert(name("a"), Addresses { direct: at(1), pooler: Some(at(2)) });
        assert_eq!(directory.offer(&pooled), Ok(true));
        assert_eq!(directory.endpoints()[&name("a")].pooled(), &at(2));
        assert!(directory.settled());
        assert_eq!(directory.caught_up(), 4);
        assert_eq!(directory.offer(&report(5, &[("a", 1)])), Ok(true), "the pooler is gone");
        assert_eq!(directory.endpoints()[&name("a")].pooled(), &at(1));
    }

    #[test]
    fn a_list_without_a_shard_needs_no_connection_to_it() {
        let mut directory = Directory::default();
        directory.offer(&report(3, &[("a", 1), ("b", 2)])).unwrap();
        directory.connected(&name("a"), &at(1));
        assert_eq!(directory.caught_up(), 0);
        assert_eq!(directory.offer(&report(4, &[("a", 1)])), Ok(true));
        assert_eq!(directory.caught_up(), 4);
    }

    #[test]
    fn old_lists_are_ignored() {
        let mut directory = Directory::default();
        directory.offer(&report(3, &[("a", 1), ("b", 2)])).unwrap();
        assert_eq!(directory.offer(&report(2, &[("a", 1)])), Ok(false));
        assert_eq!(directory.offer(&report(3, &[("a", 7)])), Ok(false));
        assert_eq!(directory.endpoints().len(), 2);
        assert_eq!(directory.offer(&report(4, &[("a", 1), ("b", 2)])), Ok(false), "newer, but the same");
    }

    #[test]
    fn another_set_is_refused() {
        let mut directory = Directory::default();
        directory.offer(&report(3, &[("a", 1)])).unwrap();
        let other = Report { set_uid: "other".to_owned(), ..report(9, &[("z", 1)]) };
        assert!(directory.offer(&other).is_err());
        let other = Report { buckets: BucketCount::new(16).unwrap(), ..report(9, &[("z", 1)]) };
        assert!(directory.offer(&other).is_err());
        assert!(directory.endpoints().contains_key(&name("a")));
    }

    #[test]
    fn a_peer_may_name_a_shard_before_the_list_does() {
        let mut directory = Directory::default();
        directory.offer(&report(3, &[("a", 1)])).unwrap();
        assert!(directory.hear_of(&name("b"), &at(2)));
        assert!(!directory.hear_of(&name("b"), &at(2)));
        assert!(!directory.hear_of(&name("a"), &at(5)), "the list knows better");
        assert_eq!(directory.endpoints().len(), 2);
        assert_eq!(directory.endpoints()[&name("b")].pooled(), &at(2), "it works at once");
        assert_eq!(directory.offer(&report(4, &[("a", 1), ("b", 2)])), Ok(false));
    }
}
