//! The mutants. Their texts are short, so that they outlive changes around them; one that is not found fails the command.

use super::{
    Mutant,
    Test::{Sharding, Sql},
};

const GATE: &str = "operator/sql/agent/2_gate.sql";
const REGISTER: &str = "operator/sql/agent/3_register.sql";
const HANDOVER: &str = "operator/sql/agent/4_handover.sql";
const OPERATION: &str = "operator/sql/agent/5_operation.sql";
const COURSE: &str = "sharding/src/operation/mod.rs";
const NEXT: &str = "sharding/src/operation/next.rs";
const BACK: &str = "sharding/src/operation/back.rs";
const EVERY_STATE: &str = "operation::model::tests::one_owner_and_no_loss_in_every_state";
const EVERY_WAY_BACK: &str = "operation::model::tests::every_way_back_has_an_end";

/// All there are.
pub fn mutants() -> Vec<Mutant> {
    [writers_and_readers(), handing_over(), around_a_move(), deciding()].concat()
}

fn writers_and_readers() -> Vec<Mutant> {
    vec![
        Mutant {
            name: "no-gate",
            breaks: "A writer enters without the bucket's gate.",
            file: GATE,
            find: "perform pg_catalog.pg_advisory_xact_lock_shared(19539, p_bucket);",
            replace: "",
            caught_by: Sql("handover", "a_writer_that_stays_keeps_its_bucket"),
        },
        Mutant {
            name: "state-of-the-gates-statement",
            breaks: "A writer reads the state in the snapshot of the statement that waited for the gate.",
            file: GATE,
            find: "longshore.enter(p_bucket integer) returns void\nlanguage plpgsql as",
            replace: "longshore.enter(p_bucket integer) returns void\nlanguage plpgsql stable as",
            caught_by: Sql("gate", "a_writer_that_waited_meets_what_came_of_it"),
        },
        Mutant {
            name: "older-snapshot-enters",
            breaks: "Above READ COMMITTED a writer believes the state in its old snapshot.",
            file: GATE,
            find: "longshore.locked_state(p_bucket) o on true",
            replace: "longshore.ownership o on o.bucket = p_bucket",
            caught_by: Sql("gate", "an_older_snapshot_cannot_enter"),
        },
        Mutant {
            name: "unguarded-writers",
            breaks: "A writer that did not enter is not checked.",
            file: GATE,
            find: "perform longshore.enter(coalesce(v_new, v_old));",
            replace: "",
            caught_by: Sql("gate", "writers_that_know_no_router_are_held_to_the_rules"),
        },
        Mutant {
            name: "entered-for-ever",
            breaks: "What an earlier transaction of the session entered still counts.",
            file: REGISTER,
            find: "pg_catalog.pg_current_xact_id()::pg_catalog.text);",
            replace: "pg_catalog.split_part(pg_catalog.current_setting('longshore.entered', true), ':', 2));",
            caught_by: Sql("gate", "what_a_pooled_session_remembers_is_not_believed"),
        },
        Mutant {
            name: "read-without-gate",
            breaks: "A read does not try the gate.",
            file: GATE,
            find: "if not pg_catalog.pg_try_advisory_xact_lock_shared(19539, p_bucket) then",
            replace: "if false then",
            caught_by: Sql("gate", "reads_wait_while_a_handover_holds_the_gate"),
        },
        Mutant {
            name: "read-of-another-epoch",
            breaks: "A read's snapshot may be of an earlier ownership.",
            file: GATE,
            find: " or v_here.epoch is distinct from p_seen",
            replace: "",
            caught_by: Sql("gate", "a_read_older_than_the_departure_fails"),
        },
        Mutant {
            name: "quarantined-shard-works",
            breaks: "A shard works on, whatever server it runs on.",
            file: GATE,
            find: "if v_armed is distinct from longshore.this_server() then",
            replace: "if false then",
            caught_by: Sql("quarantine", "a_quarantined_shard_refuses_writes_reads_and_handovers"),
        },
        Mutant {
            name: "vouched-under-a-gate",
            breaks: "A read of many buckets takes those that are being handed over.",
            file: GATE,
            find: " - coalesce(v_held, '{}')",
            replace: "",
            caught_by: Sql("scatter", "a_shard_does_not_vouch_while_a_handover_holds_the_gate"),
        },
    ]
}

fn handing_over() -> Vec<Mutant> {
    vec![
        Mutant {
            name: "gate-not-awaited",
            breaks: "A handover does not wait for writers that hold the gate.",
            file: HANDOVER,
            find: "perform pg_advisory_xact_lock(19539, v_bucket);",
            replace: "null;",
            caught_by: Sql("handover", "a_writer_that_stays_keeps_its_bucket"),
        },
        Mutant {
            name: "anybody-hands-over",
            breaks: "A handover gives what is not owned or not meant for the peer.",
            file: HANDOVER,
            find: "where o.state is distinct from 'owned' or",
            replace: "where false and o.state is distinct from 'owned' or",
            caught_by: Sql("handover", "a_handover_is_made_once_and_whole"),
        },
        Mutant {
            name: "old-handover-accepted",
            breaks: "A handover row of another epoch makes an owner.",
            file: HANDOVER,
            find: " and o.epoch = new.epoch - 1",
            replace: "",
            caught_by: Sql("handover", "a_handover_acts_only_where_it_is_expected"),
        },
        Mutant {
            name: "handover-of-another-operation",
            breaks: "A handover row of another operation makes an owner.",
            file: HANDOVER,
            find: "and o.operation = new.operation and",
            replace: "and",
            caught_by: Sql("handover", "a_handover_acts_only_where_it_is_expected"),
        },
        Mutant {
            name: "handover-made-here",
            breaks: "A handover row that no stream brought makes an owner.",
            file: HANDOVER,
            find: "enable replica trigger longshore_receive",
            replace: "enable always trigger longshore_receive",
            caught_by: Sql("handover", "a_handover_acts_only_where_it_is_expected"),
        },
        Mutant {
            name: "rows-counted-only",
            breaks: "The destination compares the number of rows alone.",
            file: HANDOVER,
            find: "d.rows = new.rows and d.digest = new.digest",
            replace: "d.rows = new.rows",
            caught_by: Sql("handover", "a_bucket_with_other_rows_is_refused_and_reclaimed"),
        },
        Mutant {
            name: "failed-digest-stops-the-stream",
            breaks: "A digest that fails stops the stream for every other bucket.",
            file: HANDOVER,
            find: "raise warning 'digest of bucket % failed: %', new.bucket, sqlerrm;",
            replace: "raise;",
            caught_by: Sql("stream", "a_bucket_that_cannot_be_checked_stops_no_other"),
        },
        Mutant {
            name: "digest-of-record-hashes",
            breaks: "The digest is a sum of record hashes, which miss swapped values.",
            file: REGISTER,
            find: r#"hashtextextended(row(%3$s)::text collate "C", %4$s)"#,
            replace: "hash_record_extended(row(%3$s), %4$s)",
            caught_by: Sql("handover", "a_digest_notices_what_changed"),
        },
    ]
}

fn around_a_move() -> Vec<Mutant> {
    vec![
        Mutant {
            name: "no-origin-filter",
            breaks: "A stream carries what another stream brought.",
            file: OPERATION,
            find: "origin = none",
            replace: "origin = any",
            caught_by: Sql("stream", "a_write_past_every_rule_needs_a_forward_stream"),
        },
        Mutant {
            name: "handovers-of-all-operations",
            breaks: "A stream carries handovers of earlier operations.",
            file: OPERATION,
            find: "where (operation = %s and peer",
            replace: "where (operation <= %s and peer",
            caught_by: Sql("stream", "old_handovers_in_an_initial_copy_make_nobody_an_owner"),
        },
        Mutant {
            name: "epoch-not-raised",
            breaks: "Announcing a move raises no epoch.",
            file: OPERATION,
            find: "set epoch = p_epoch, peer = p_peer",
            replace: "set peer = p_peer",
            caught_by: Sql("handover", "a_handover_is_made_once_and_whole"),
        },
        Mutant {
            name: "revoked-in-the-same-epoch",
            breaks: "Revoking raises no epoch.",
            file: OPERATION,
            find: "set state = 'absent', epoch = p_epoch",
            replace: "set state = 'absent'",
            caught_by: Sql("stream", "a_handover_overtaken_by_a_reclaim_makes_nobody_an_owner"),
        },
        Mutant {
            name: "owner-expects",
            breaks: "An owner can be made to expect its own bucket.",
            file: OPERATION,
            find: "and o.state <> 'owned' and",
            replace: "and",
            caught_by: Sql("handover", "a_handover_acts_only_where_it_is_expected"),
        },
        Mutant {
            name: "cleared-under-a-stream",
            breaks: "Leftovers are deleted while a slot could carry the deletes to the owner.",
            file: OPERATION,
            find: "if exists (select from pg_replication_slots",
            replace: "if false and exists (select from pg_replication_slots",
            caught_by: Sql("stream", "leftovers_are_not_cleared_through_a_reverse_stream"),
        },
        Mutant {
            name: "owner-cleared",
            breaks: "Rows of an owned bucket are taken for leftovers.",
            file: OPERATION,
            find: "in ('owned', 'incoming')) then",
            replace: "in ('incoming')) then",
            caught_by: Sql("moves", "clearing_takes_leftovers_alone_and_in_portions"),
        },
        Mutant {
            name: "renounced-and-trusted",
            breaks: "A shard that missed that it gave a bucket away is believed in everything else.",
            file: OPERATION,
            find: "update longshore.armed set server = '';",
            replace: "",
            caught_by: Sql("quarantine", "who_renounces_is_quarantined"),
        },
        Mutant {
            name: "stale-term",
            breaks: "What a former leader asks for is done.",
            file: HANDOVER,
            find: "if p_term is distinct from (select term from longshore.meta) then",
            replace: "if false then",
            caught_by: Sql("term", "nothing_of_a_former_leader_has_an_effect"),
        },
        Mutant {
            name: "sessions-outlive-their-term",
            breaks: "A session of a former leader is not held to its term.",
            file: OPERATION,
            find: "perform pg_advisory_lock_shared(19540, 0);",
            replace: "",
            caught_by: Sql("term", "a_claim_ends_the_former_leaders_sessions"),
        },
    ]
}

fn deciding() -> Vec<Mutant> {
    vec![
        Mutant {
            name: "handover-before-sync",
            breaks: "Buckets are handed over before their rows are copied.",
            file: NEXT,
            find: "if !observed.stream(&stream).synchronised {",
            replace: "if false {",
            caught_by: Sharding(EVERY_STATE),
        },
        Mutant {
            name: "forward-stream-lives-on",
            breaks: "The forward stream outlives the last arrival.",
            file: NEXT,
            find: "return tear_down(&[stream], observed).unwrap_or(Step::Done);",
            replace: "return Step::Done;",
            caught_by: Sharding(
                "operation::simulation::the_forward_stream_goes_before_anything_else_once_all_have_arrived",
            ),
        },
        Mutant {
            name: "done-before-all-arrived",
            breaks: "The streams go when the first bucket has arrived.",
            file: NEXT,
            find: "if arrived == moving.ranges.size() {",
            replace: "if arrived > 0 {",
            caught_by: Sharding(EVERY_STATE),
        },
        Mutant {
            name: "lost-way-back-overlooked",
            breaks: "A reverse stream that is gone turns nothing back.",
            file: NEXT,
            find: "() if lost(&back) => Step::Turn(Reason::StreamLost { stream: back }),",
            replace: "() if lost(&back) => Step::Done,",
            caught_by: Sharding(EVERY_WAY_BACK),
        },
        Mutant {
            name: "announced-in-an-old-epoch",
            breaks: "A move is announced in an epoch that was used before.",
            file: NEXT,
            find: "epoch: highest.next(), peer })",
            replace: "epoch: highest, peer })",
            caught_by: Sharding(EVERY_STATE),
        },
        Mutant {
            name: "acts-before-the-journal",
            breaks: "The first effect comes before the plan is in every journal.",
            file: NEXT,
            find: "if let Some(shard) = first_without(plan, observed, &course) {",
            replace: "if let Some(shard) = first_without(plan, observed, &course).filter(|_| course != Course::Forward) {",
            caught_by: Sharding("operation::simulation::first_ownership_is_journalled_on_every_shard_first"),
        },
        Mutant {
            name: "refusal-overlooked",
            breaks: "A bucket that was refused turns nothing back.",
            file: NEXT,
            find: "if destination.state == Ownership::Refused {",
            replace: "if false {",
            caught_by: Sharding(EVERY_WAY_BACK),
        },
        Mutant {
            name: "clean-up-before-streams",
            breaks: "Leftovers are deleted, and all is over, with the reverse stream alive.",
            file: BACK,
            find: "unowned(m, observed)),\n        &|| over(moves, |m| tear_down(&both_streams(m), observed).unwrap_or(Step::Done)),",
            replace: "unowned(m, observed)),",
            caught_by: Sharding(EVERY_STATE),
        },
        Mutant {
            name: "revoked-without-raising",
            breaks: "The way back revokes a bucket in the epoch in which it may still arrive.",
            file: BACK,
            find: "Action::Revoke { shard: moving.to.clone(), ranges: ranges(&parts), epoch }",
            replace: "Action::Revoke { shard: moving.to.clone(), ranges: ranges(&parts), epoch: highest(&parts) }",
            caught_by: Sharding(EVERY_WAY_BACK),
        },
        Mutant {
            name: "reclaimed-under-a-stream",
            breaks: "A bucket is reclaimed while the stream that carries its handover lives.",
            file: BACK,
            find: "tear_down(&[back], observed).unwrap_or_else(|| {",
            replace: "None.unwrap_or_else(|| {",
            caught_by: Sharding(EVERY_WAY_BACK),
        },
        Mutant {
            name: "courses-alike",
            breaks: "Of two journals that differ the older one may count.",
            file: COURSE,
            find: "Self::Back { .. } | Self::CleaningUp => 1",
            replace: "Self::Back { .. } | Self::CleaningUp => 0",
            caught_by: Sharding(EVERY_STATE),
        },
    ]
}
