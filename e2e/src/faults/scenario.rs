//! The scenarios: what happens, and when.

use serde::Serialize;

use crate::{ordeal::Moment, proxy::Line};

/// One fault at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// For the command line.
    pub name: &'static str,
    /// When it begins.
    pub moment: Moment,
    pub(super) what: What,
}

/// Whose postmaster dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The one that gives buckets.
    Source,
    /// The one that gets them.
    Destination,
    /// Both at once.
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Kill(Victim),
    SubscriptionErrs,
    /// The destination, and it comes back.
    Unreachable(Line),
    LeaderFrozen,
    /// A standby takes the place of the server of `of`, which is killed.
    FailOver {
        of: End,
        synchronous: bool,
        to: Address,
    },
    /// Each stands until the next; nothing ends but sessions.
    Rotated(Rotated),
}

/// Where a standby is found that took over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// At its server's, as behind a Service.
    Same,
    /// At another one, of which the connection Secret tells.
    InSecret,
}

/// What lets the product in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rotated {
    /// Of all roles, twice: once the servers know first, once the clients.
    Passwords,
    /// Who signs the servers' certificates, twice: in the right order, and in the wrong one.
    Authority,
}

/// Whether a scenario loses orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Loss {
    /// Not one.
    None,
    /// It may.
    Possible,
    /// It does, or else it has shown nothing.
    Certain,
}

/// One end of the first pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The first shard, which gives buckets.
    Source,
    /// The new one, which gets them.
    Destination,
}

impl Scenario {
    /// Whether requests may fail: where a server is down nobody can answer for it.
    pub fn failing_is_fine(&self) -> bool {
        match self.what {
            What::Kill(_) | What::Unreachable(_) | What::FailOver { .. } => true,
            What::SubscriptionErrs | What::LeaderFrozen | What::Rotated(_) => false,
        }
    }

    /// Whether the streams have to stay until it is over.
    pub(super) fn needs_streams(&self) -> bool {
        matches!(self.what, What::Rotated(_) | What::FailOver { synchronous: false, .. })
    }

    /// Whether everybody encrypts: no recorder can read along then.
    pub(super) fn encrypts(&self) -> bool {
        self.what == What::Rotated(Rotated::Authority)
    }
}

impl Scenario {
    /// Whether what was acknowledged is lost: an asynchronous standby lacks it.
    pub fn loss(&self) -> Loss {
        match self.what {
            What::FailOver { of: End::Source, synchronous: false, .. } => Loss::Certain,
            // What it acknowledged has gone back to the source as well, by the reverse stream, unless that was as slow.
            What::FailOver { of: End::Destination, synchronous: false, .. } => Loss::Possible,
            What::FailOver { synchronous: true, .. }
            | What::Kill(_)
            | What::SubscriptionErrs
            | What::Unreachable(_)
            | What::LeaderFrozen
            | What::Rotated(_) => Loss::None,
        }
    }

    /// Whether the operation begins anew by itself, should it go back.
    pub(super) fn begins_anew(&self) -> bool {
        matches!(self.what, What::FailOver { .. })
    }
}

/// All there are.
pub fn scenarios() -> Vec<Scenario> {
    use Moment::{Copying, HandedOver, HandingOver, TableCopied};
    use Victim::{Both, Destination, Source};
    let failover = |of, synchronous| What::FailOver { of, synchronous, to: Address::Same };
    let elsewhere = |of| What::FailOver { of, synchronous: true, to: Address::InSecret };
    [
        ("source-dies-copying", Copying, What::Kill(Source)),
        ("source-dies-handing-over", HandingOver, What::Kill(Source)),
        ("source-dies-after-hand-over", HandedOver, What::Kill(Source)),
        ("destination-dies-copying", Copying, What::Kill(Destination)),
        ("destination-dies-table-copied", TableCopied, What::Kill(Destination)),
        ("destination-dies-handing-over", HandingOver, What::Kill(Destination)),
        ("destination-dies-after-hand-over", HandedOver, What::Kill(Destination)),
        ("both-die-copying", Copying, What::Kill(Both)),
        ("both-die-handing-over", HandingOver, What::Kill(Both)),
        ("both-die-after-hand-over", HandedOver, What::Kill(Both)),
        ("subscription-errs", Copying, What::SubscriptionErrs),
        ("unreachable-copying", Copying, What::Unreachable(Line::Stalled)),
        ("unreachable-handing-over", HandedOver, What::Unreachable(Line::Stalled)),
        ("refusing-handing-over", HandedOver, What::Unreachable(Line::Down)),
        ("leader-frozen", HandedOver, What::LeaderFrozen),
        ("source-fails-over-copying", Copying, failover(End::Source, true)),
        ("source-fails-over-handing-over", HandedOver, failover(End::Source, true)),
        ("destination-fails-over-handing-over", HandedOver, failover(End::Destination, true)),
        ("source-fails-over-to-another-address", HandedOver, elsewhere(End::Source)),
        ("destination-fails-over-to-another-address", Copying, elsewhere(End::Destination)),
        ("source-fails-over-losing", HandedOver, failover(End::Source, false)),
        ("destination-fails-over-losing", HandedOver, failover(End::Destination, false)),
        ("passwords-rotated-copying", Copying, What::Rotated(Rotated::Passwords)),
        ("passwords-rotated-handing-over", HandedOver, What::Rotated(Rotated::Passwords)),
        ("authority-rotated-copying", Copying, What::Rotated(Rotated::Authority)),
        ("authority-rotated-handing-over", HandedOver, What::Rotated(Rotated::Authority)),
    ]
    .map(|(name, moment, what)| Scenario { name, moment, what })
    .to_vec()
}
