//! What the model shows: as it is, and with each of its rules broken.

use super::{search::search, *};

const NOTHING: Bounds = Bounds {
    writes: 0,
    writers: 1,
    reads: 0,
    crashes: 0,
    cuts: 0,
    lost_slots: 0,
    full_slots: 0,
    corruptions: 0,
    reverts: 0,
};
const FAULTS: Bounds = Bounds { lost_slots: 1, full_slots: 1, corruptions: 1, reverts: 1, ..NOTHING };

fn exhaust(bounds: Bounds) {
    match search(&Model::new(bounds, &[])) {
        Ok(found) => {
            eprintln!("{bounds:?}: {found}");
        }
        Err(counterexample) => panic!("{bounds:?}: {counterexample}"),
    }
}

#[test]
fn one_owner_and_no_loss_in_every_state() {
    exhaust(Bounds { crashes: 2, writes: 2, writers: 2, reads: 1, ..NOTHING });
}

#[test]
fn every_way_back_has_an_end() {
    let usual = Bounds { crashes: 1, writes: 1, ..NOTHING };
    exhaust(Bounds { corruptions: 1, reverts: 1, ..usual });
    exhaust(Bounds { lost_slots: 1, reverts: 1, ..usual });
    exhaust(Bounds { full_slots: 1, ..usual });
}

/// What acts late under the same term does no harm on the way forward.
#[test]
fn what_outlives_its_connection_may_act_late() {
    exhaust(Bounds { crashes: 1, writes: 1, cuts: 1, ..NOTHING });
}

/// A known gap: while the COMMIT of a handover outlives its connection (it waits for a standby, say), a way back under the
/// same term may come to its end first. A new term would end that session: so it does after a crash.
#[test]
fn a_way_back_must_not_overtake_a_handover() {
    let bounds = Bounds { cuts: 1, reverts: 1, ..NOTHING };
    let counterexample = search(&Model::new(bounds, &[])).expect_err("closed: then it is to be exhausted");
    eprintln!("{counterexample}");
    exhaust(Bounds { crashes: 1, cuts: 0, ..bounds });
}

/// `cargo test -p longshore-sharding -- --ignored --nocapture model`: minutes, and gigabytes.
#[test]
#[ignore = "takes minutes"]
fn one_owner_and_no_loss_in_many_more_states() {
    exhaust(Bounds { crashes: 2, writes: 3, writers: 2, reads: 1, ..NOTHING });
    exhaust(Bounds { crashes: 2, writes: 1, reads: 1, corruptions: 1, reverts: 1, ..NOTHING });
    exhaust(Bounds { crashes: 2, writes: 2, cuts: 1, ..NOTHING });
    exhaust(Bounds { crashes: 1, writes: 1, ..FAULTS });
}

/// Each rule that keeps rows safe is needed: without it there is a way to lose them, or to go on for ever.
#[test]
fn a_broken_rule_is_noticed() {
    let write = Bounds { writes: 1, ..NOTHING };
    let read = Bounds { writes: 1, reads: 1, ..NOTHING };
    let (corrupted, crash) = (Bounds { corruptions: 1, ..NOTHING }, Bounds { crashes: 1, ..NOTHING });
    let lost = "an acknowledged row is not where its bucket is or comes from";
    let stale = "a read missed what was acknowledged before it began";
    let (endless, left) = ("no end can be reached any more", "streams left at the end");
    let cases: [(&[Rule], Bounds, &str); 11] = [
        (&[Rule::HandoverWaitsForGates], write, lost),
        (&[Rule::StateIsReadAfterTheGate], write, lost),
        (&[Rule::ReadsTryTheGate], read, stale),
        (&[Rule::ReadsCompareEpochs], Bounds { reverts: 1, ..read }, stale),
        (&[Rule::DigestIsCompared], corrupted, lost),
        (&[Rule::RaisingRaisesTheEpoch], NOTHING, endless),
        (&[Rule::RevokingRaisesTheEpoch], corrupted, endless),
        (&[Rule::HandoverAwaitsTheCopy], NOTHING, lost),
        (&[Rule::ClearingAwaitsTheStreams], NOTHING, left),
        (&[Rule::ClearingAwaitsTheStreams, Rule::ClearingRefusesUnderASlot], corrupted, lost),
        (&[Rule::TermsEndFormerLeaders], crash, left),
    ];
    for (broken, bounds, expected) in cases {
        match search(&Model::new(bounds, broken)) {
            Ok(found) => panic!("{broken:?} went unnoticed: {found}"),
            Err(counterexample) => {
                eprintln!("without {broken:?}: {counterexample}");
                assert_eq!(counterexample.violation, expected, "{broken:?}");
            }
        }
    }
}
