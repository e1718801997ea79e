//! The scenarios: what happens, and when.

use crate::proxy::Line;

/// One fault at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// For the command line.
    pub name: &'static str,
    /// When it begins.
    pub moment: Moment,
    pub(super) what: What,
}

/// A moment of an operation, as the proxies see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The first subscription was made: rows are being copied.
    Copying,
    /// A table is just copied: its stream's own slot is gone from the source.
    TableCopied,
    /// A hand_over is under way, and it is not the first.
    HandingOver,
    /// The first hand_over was committed this instant.
    HandedOver,
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
}

impl Moment {
    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::Copying => "rows are copied",
            Self::TableCopied => "a table was copied",
            Self::HandingOver => "a hand_over is under way",
            Self::HandedOver => "a hand_over was committed",
        }
    }
}

impl Scenario {
    /// Whether requests may fail: where a server is down nobody can answer for it.
    pub fn failing_is_fine(&self) -> bool {
        match self.what {
            What::Kill(_) | What::Unreachable(_) => true,
            What::SubscriptionErrs | What::LeaderFrozen => false,
        }
    }
}

/// All there are.
pub fn scenarios() -> Vec<Scenario> {
    use Moment::{Copying, HandedOver, HandingOver, TableCopied};
    use Victim::{Both, Destination, Source};
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
    ]
    .map(|(name, moment, what)| Scenario { name, moment, what })
    .to_vec()
}
