//! The routing decision: what a failed try teaches, and what to do next. Pure.

use std::sync::Arc;

use longshore_sharding::ShardName;

use super::{
    RetryReason,
    errors::Fault,
    map::{Claim, Standing},
};

/// What to do after a failed try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decision {
    /// To be remembered of the bucket.
    pub(crate) learn: Option<Claim>,
    pub(crate) step: Step,
}

/// The next step of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Ask the owner that the map names now, at once.
    Follow,
    /// Wait for news of the bucket, or a few milliseconds.
    Wait(RetryReason),
    /// Nobody we know of has it: ask every shard, then wait.
    Survey(RetryReason),
    /// Read the credentials again, then wait.
    Reauthenticate,
    /// Out of time.
    Expire(RetryReason),
    /// No retry can help.
    Fail,
}

/// Decides after `asked` answered with `fault`, while the map says `known` of the bucket.
pub(crate) fn decide(known: Option<&Claim>, asked: &ShardName, fault: &Fault) -> Decision {
    match fault {
        Fault::Moved(successor) => {
            let told = Claim {
                shard: Arc::new(successor.shard.clone()),
                epoch: successor.epoch,
                standing: Standing::Told,
            };
            after_moved(known, asked, told)
        }
        Fault::Passing(reason) => Decision { learn: None, step: after_passing(*reason) },
        Fault::Lasting => Decision { learn: None, step: Step::Fail },
    }
}

fn after_moved(known: Option<&Claim>, asked: &ShardName, told: Claim) -> Decision {
    let wait = Step::Wait(RetryReason::Moved);
    if *told.shard == *asked {
        return Decision { learn: None, step: wait };
    }
    let Some(known) = known else { return Decision { learn: Some(told), step: Step::Follow } };
    if told.supersedes(known) {
        return Decision { learn: Some(told), step: Step::Follow };
    }
    if *known.shard != *asked {
        // Somebody else has learnt better meanwhile.
        return Decision { learn: None, step: Step::Follow };
    }
    // The shard we take for the owner says that it is not, but knows nothing newer: it is about to receive the
    // bucket back and its row is of the time before. At the same epoch its word counts, but two shards that name
    // each other must not make us run in circles: hence no step without a wait.
    let learn = (told.epoch == known.epoch).then_some(told);
    Decision { learn, step: wait }
}

fn after_passing(reason: RetryReason) -> Step {
    match reason {
        RetryReason::Moved
        | RetryReason::HandingOver
        | RetryReason::Quarantined
        | RetryReason::Conflict
        | RetryReason::Connection => Step::Wait(reason),
        RetryReason::Absent | RetryReason::Refused | RetryReason::Unknown => Step::Survey(reason),
        RetryReason::Credentials => Step::Reauthenticate,
        RetryReason::Timeout => Step::Expire(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shards::{errors::Successor, map::tests::claim};

    fn name(name: &str) -> ShardName {
        ShardName::try_from(name.to_owned()).unwrap()
    }

    fn moved(peer: &str, epoch: i64) -> Fault {
        Fault::Moved(Successor { shard: name(peer), epoch, endpoint: None })
    }

    #[test]
    fn a_moved_bucket_is_followed_once_per_epoch() {
        use Standing::{Claimed, Told};
        let wait = Step::Wait(RetryReason::Moved);
        let cases = [
            (
                "newer than known",
                Some(claim("a", 3, Claimed)),
                moved("b", 4),
                Some(claim("b", 4, Told)),
                Step::Follow,
            ),
            ("nothing known", None, moved("b", 4), Some(claim("b", 4, Told)), Step::Follow),
            ("on its way back: its row is old", Some(claim("a", 5, Told)), moved("b", 4), None, wait),
            (
                "of the epoch we believe",
                Some(claim("a", 4, Told)),
                moved("b", 4),
                Some(claim("b", 4, Told)),
                wait,
            ),
            ("names itself", Some(claim("a", 3, Claimed)), moved("a", 4), None, wait),
            ("learnt meanwhile", Some(claim("c", 6, Claimed)), moved("b", 4), None, Step::Follow),
            (
                "learnt meanwhile, but older",
                Some(claim("c", 3, Told)),
                moved("b", 4),
                Some(claim("b", 4, Told)),
                Step::Follow,
            ),
        ];
        for (why, known, fault, learn, step) in cases {
            assert_eq!(decide(known.as_ref(), &name("a"), &fault), Decision { learn, step }, "{why}");
        }
    }

    #[test]
    fn the_rest_teaches_nothing() {
        let cases = [
            (Fault::Passing(RetryReason::HandingOver), Step::Wait(RetryReason::HandingOver)),
            (Fault::Passing(RetryReason::Quarantined), Step::Wait(RetryReason::Quarantined)),
            (Fault::Passing(RetryReason::Conflict), Step::Wait(RetryReason::Conflict)),
            (Fault::Passing(RetryReason::Connection), Step::Wait(RetryReason::Connection)),
            (Fault::Passing(RetryReason::Absent), Step::Survey(RetryReason::Absent)),
            (Fault::Passing(RetryReason::Refused), Step::Survey(RetryReason::Refused)),
            (Fault::Passing(RetryReason::Credentials), Step::Reauthenticate),
            (Fault::Passing(RetryReason::Timeout), Step::Expire(RetryReason::Timeout)),
            (Fault::Lasting, Step::Fail),
        ];
        for (fault, step) in cases {
            let known = claim("a", 3, Standing::Claimed);
            assert_eq!(decide(Some(&known), &name("a"), &fault), Decision { learn: None, step }, "{fault:?}");
        }
    }
}
