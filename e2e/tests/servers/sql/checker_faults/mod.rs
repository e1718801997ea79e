//! The checker can fail: on real PostgreSQL a clean store is green, and each seeded fault turns exactly its own
//! invariant red.

mod fixture;

use anyhow::Result;
use checker::{
    OwnershipSampler,
    history::{Operation, OrderFacts, Outcome},
};
use fixture::{Fixture, place_of};
use std::time::Duration;

const SAMPLED_EVERY: Duration = Duration::from_millis(10);

/// Tells one lie after an honest run; expects these invariants red and no other.
async fn check(expected: &[&str], lie: impl AsyncFnOnce(&mut Fixture) -> Result<()>) -> Result<()> {
    let mut fixture = Fixture::honest().await?;
    lie(&mut fixture).await?;
    let verdict = fixture.judge().await?;
    assert_eq!(verdict.violated(), expected, "{verdict:#?}");
    assert_eq!(verdict.is_green(), expected.is_empty());
    Ok(())
}

/// As [`check`], with statements about a placed order at its shard.
async fn check_sql(expected: &[&str], index: usize, statements: &str) -> Result<()> {
    check(expected, async |fixture| {
        let placed = fixture.placed[index].clone();
        fixture.sql(placed.shard, &placed, statements).await
    })
    .await
}

/// As [`check`], with statements about a preloaded order.
async fn check_preloaded(expected: &[&str], statements: &str) -> Result<()> {
    check(expected, async |fixture| {
        let preloaded = fixture.preloaded().await?;
        fixture.sql(0, &preloaded, statements).await
    })
    .await
}

const DROP: &str = "delete from order_items where order_id = $order;
                    delete from order_events where order_id = $order;
                    delete from idempotency_keys where order_id = $order;
                    delete from orders where order_id = $order";

#[tokio::test]
async fn an_honest_run_is_green() -> Result<()> {
    let verdict = Fixture::honest().await?.judge().await?;
    assert!(verdict.is_green(), "{verdict:#?}");
    assert_eq!(verdict.invariants.len(), 9);
    assert_eq!((verdict.checked.acknowledged, verdict.checked.indeterminate), (20, 2));
    assert_eq!((verdict.checked.stored, verdict.checked.preloaded), (21, 2_000));
    Ok(())
}

#[tokio::test]
async fn a_run_without_acknowledgements_is_invalid() -> Result<()> {
    let verdict = Fixture::empty().await?.judge().await?;
    assert!(verdict.violated().is_empty(), "{verdict:#?}");
    assert!(!verdict.is_green());
    Ok(())
}

#[tokio::test]
async fn lost_orders() -> Result<()> {
    check_sql(&["acknowledged_stored"], 7, DROP).await?;
    check_preloaded(&["acknowledged_stored"], DROP).await?;
    let order_alone =
        "delete from order_items where order_id = $order; delete from orders where order_id = $order";
    check_sql(&["acknowledged_stored"], 7, order_alone).await?;
    check_preloaded(&["acknowledged_stored"], order_alone).await
}

#[tokio::test]
async fn a_lost_cancellation() -> Result<()> {
    let undo = "update orders set status = 'created', version = 1 where order_id = $order;
                delete from order_events where order_id = $order and version = 2";
    check_sql(&["acknowledged_stored"], 2, undo).await
}

#[tokio::test]
async fn doubled_orders() -> Result<()> {
    // The same key led to another order on the other shard.
    check(&["one_row_per_key"], async |fixture| {
        fixture.case.complete = false;
        let mut other = fixture.placed[6].clone();
        other.facts.order_id = fixture.order(other.facts.user_id).await?.facts.order_id;
        other.shard = 1 - other.shard;
        fixture.store(&other).await
    })
    .await?;
    // The same order counts on both, which takes two owners.
    let mut fixture = Fixture::honest().await?;
    let placed = fixture.placed[6].clone();
    let peer = 1 - placed.shard;
    let claim = "update longshore.ownership set state = 'owned', epoch = 2
                 where bucket = (hashint8extended($user, 0) & 15)";
    fixture.sql(peer, &placed, claim).await?;
    fixture.store_at(&placed, peer).await?;
    fixture
        .sql(peer, &placed, "insert into idempotency_keys values ($user, $key, '', $order, now())")
        .await?;
    let verdict = fixture.judge().await?;
    let violated = verdict.violated();
    assert!(violated.contains(&"one_row_per_key") && violated.contains(&"one_owner"), "{verdict:#?}");
    assert!(verdict.orders.duplicated >= 1);
    Ok(())
}

#[tokio::test]
async fn keys_and_orders_do_not_match() -> Result<()> {
    check_sql(&["one_row_per_key"], 7, "delete from idempotency_keys where key = $key").await?;
    check_preloaded(&["one_row_per_key"], "delete from idempotency_keys where key = $key").await?;
    let stray = "insert into idempotency_keys select user_id, 'other', body_hash, order_id, created_at
                 from idempotency_keys where key = $key";
    check_preloaded(&["one_row_per_key"], stray).await
}

#[tokio::test]
async fn changed_fields() -> Result<()> {
    let sku = "update order_items set sku = 'B' where order_id = $order and line = 1";
    check_sql(&["content_equal"], 7, sku).await?;
    check_preloaded(&["content_equal"], sku).await?;
    check_preloaded(&["content_equal"], "update orders set created_at = now() where order_id = $order")
        .await?;
    check_preloaded(&["content_equal"], "update order_events set payload = '{}' where order_id = $order")
        .await?;
    check_preloaded(&["content_equal"], "update idempotency_keys set body_hash = '' where key = $key").await
}

#[tokio::test]
async fn changed_totals() -> Result<()> {
    let total = "update orders set total_cents = total_cents + 1 where order_id = $order";
    check_sql(&["money_conserved"], 7, total).await?;
    check_preloaded(&["money_conserved"], total).await
}

#[tokio::test]
async fn second_owners_at_the_end() -> Result<()> {
    let claim = "update longshore.ownership set state = 'owned' where bucket = 12";
    check(&["one_owner"], async |fixture| {
        let any = fixture.placed[0].clone();
        fixture.sql(0, &any, claim).await
    })
    .await?;
    // No owner at all is as bad once the operation is over.
    check(&["one_owner"], async |fixture| {
        let any = fixture.placed[0].clone();
        fixture.sql(1, &any, "update longshore.ownership set state = 'moved' where bucket = 12").await?;
        // What lies there still counts where it was, so only the ownership is wrong.
        fixture.sql(1, &any, "update longshore.ownership set epoch = 4 where bucket = 12").await
    })
    .await
}

/// What the sampler sees while the ownership says this for a moment and is then as before.
async fn check_sampled(lie: &str, repair: &str) -> Result<()> {
    check(&["one_owner"], async |fixture| {
        let any = fixture.placed[0].clone();
        let sampler = OwnershipSampler::start(fixture.case.stores.clone(), SAMPLED_EVERY);
        wait_for_samples(&sampler).await?;
        fixture.sql(0, &any, lie).await?;
        wait_for_samples(&sampler).await?;
        fixture.sql(0, &any, repair).await?;
        let report = sampler.stop().await;
        assert_eq!(report.violations, 1, "{report:?}");
        fixture.case.ownership = Some(report);
        Ok(())
    })
    .await
}

/// Each shard has been read from start to end since now, for which it takes two more readings of each.
async fn wait_for_samples(sampler: &OwnershipSampler) -> Result<()> {
    let before = sampler.report().samples_by_shard;
    let enough = async || {
        let seen = sampler.report().samples_by_shard;
        before.iter().all(|(shard, count)| seen[shard] >= count + 2).then_some(())
    };
    e2e::awaiting::await_condition("two more readings of each shard", Duration::from_secs(20), enough).await
}

#[tokio::test]
async fn a_second_owner_for_a_moment() -> Result<()> {
    check_sampled(
        "update longshore.ownership set state = 'owned' where bucket = 12",
        "update longshore.ownership set state = 'moved' where bucket = 12",
    )
    .await
}

#[tokio::test]
async fn a_falling_epoch() -> Result<()> {
    check_sampled(
        "update longshore.ownership set epoch = 2 where bucket = 5",
        "update longshore.ownership set epoch = 3 where bucket = 5",
    )
    .await
}

#[tokio::test]
async fn things_nobody_asked_for() -> Result<()> {
    check(&["nothing_unasked"], async |fixture| {
        let order = fixture.order(30).await?;
        fixture.store(&order).await
    })
    .await?;
    // Without a key, too.
    check(&["nothing_unasked"], async |fixture| {
        let order = fixture.order(30).await?;
        fixture.store(&order).await?;
        fixture.sql(order.shard, &order, "delete from idempotency_keys where key = $key").await
    })
    .await?;
    // Refused, and stored all the same.
    check(&["nothing_unasked"], async |fixture| {
        let order = fixture.order(31).await?;
        fixture.store(&order).await?;
        let refusal = Outcome::Refused { http_status: 409, earlier_unsure: false };
        fixture.record(&place_of(&order), refusal).await
    })
    .await?;
    let cancel = "update orders set status = 'cancelled', version = 2 where order_id = $order;
                  insert into order_events values ($user, $order, 2, 'cancelled', '{}', now())";
    check_sql(&["nothing_unasked"], 9, cancel).await
}

#[tokio::test]
async fn events_missing_and_doubled() -> Result<()> {
    let missing = "delete from order_events where order_id = $order and version = 1";
    let doubled = "insert into order_events values ($user, $order, 3, 'created', '{}', now())";
    let orphan = "insert into order_events values ($user, gen_random_uuid(), 1, 'created', '{}', now())";
    for statements in [missing, doubled, orphan] {
        check_sql(&["events_exactly_once"], 7, statements).await?;
    }
    for statements in [missing, doubled] {
        check_preloaded(&["events_exactly_once"], statements).await?;
    }
    Ok(())
}

#[tokio::test]
async fn leftovers() -> Result<()> {
    let copy = |statements: &'static str| {
        async move |fixture: &mut Fixture| {
            let placed = fixture.placed[7].clone();
            fixture.sql(1 - placed.shard, &placed, statements).await
        }
    };
    let row = "insert into orders values ($user, $order, 'created', 399, now(), 1)";
    check(&["no_leftovers"], copy(row)).await?;
    check(&["no_leftovers"], copy("create publication ls_forward for table orders")).await?;
    let slot = "select pg_create_logical_replication_slot('ls_' || current_database(), 'pgoutput')";
    check(&["no_leftovers"], copy(slot)).await?;
    let subscription = "create subscription ls_back connection 'host=127.0.0.1' publication none
                        with (connect = false)";
    check(&["no_leftovers"], copy(subscription)).await?;
    // While the operation goes on they are as they should be.
    check(&[], async |fixture| {
        fixture.case.complete = false;
        copy(row)(fixture).await
    })
    .await
}

#[tokio::test]
async fn stale_reads() -> Result<()> {
    check(&["linearizable_per_user"], async |fixture| {
        let cancelled = fixture.placed[1].facts.clone();
        fixture.shown(OrderFacts { status: "created".to_owned(), version: 1, ..cancelled }).await
    })
    .await?;
    check(&["linearizable_per_user"], async |fixture| {
        let order_id = fixture.placed[8].facts.order_id;
        let not_found = Outcome::Refused { http_status: 404, earlier_unsure: false };
        fixture.record(&Operation::Get { order_id }, not_found).await
    })
    .await?;
    check(&["linearizable_per_user"], async |fixture| {
        let order_id = fixture.preloaded().await?.facts.order_id;
        let not_found = Outcome::Refused { http_status: 404, earlier_unsure: false };
        fixture.record(&Operation::Get { order_id }, not_found).await
    })
    .await
}

#[tokio::test]
async fn lists_that_lack_or_double_orders() -> Result<()> {
    // The first is the run's own order, the last the user's oldest preloaded one.
    for more in [false, true] {
        check(&["linearizable_per_user"], async |fixture| {
            let mut page = fixture.page(7, more).await?;
            page.remove(0);
            fixture.listed(7, page, more).await
        })
        .await?;
    }
    check(&["linearizable_per_user"], async |fixture| {
        let mut page = fixture.page(7, false).await?;
        page.pop();
        fixture.listed(7, page, false).await
    })
    .await?;
    check(&["linearizable_per_user"], async |fixture| {
        let mut page = fixture.page(7, false).await?;
        page.push(page[0].clone());
        fixture.listed(7, page, false).await
    })
    .await
}

#[tokio::test]
async fn answers_that_show_something_else() -> Result<()> {
    check(&["content_equal"], async |fixture| {
        let mut facts = fixture.placed[8].facts.clone();
        facts.items[0].sku = "B".to_owned();
        fixture.shown(facts).await
    })
    .await?;
    check(&["content_equal"], async |fixture| {
        let mut page = fixture.page(7, false).await?;
        page[3].total_cents += 1;
        fixture.listed(7, page, false).await
    })
    .await
}
