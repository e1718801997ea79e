//! Two databases that play two shards after a finished move, with preloaded orders and the orders of an honest
//! run, and the history of that run. Each test then tells one lie.

use anyhow::{Context as _, Result};
use checker::{
    Case, History, Preload, Store, Verdict,
    history::{Answer, Item, Micros, Operation, OrderFacts, Outcome, total_cents},
    judge,
};
use e2e::postgres::{Server, Version};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use std::path::PathBuf;
use uuid::Uuid;

/// Shard a owns the lower half, b the upper.
pub(crate) const BUCKETS: u32 = 16;
const USERS: i64 = 40;

/// An order of the run.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) facts: OrderFacts,
    pub(crate) key: String,
    /// 0 is a, 1 is b.
    pub(crate) shard: usize,
}

pub(crate) struct Fixture {
    pub(crate) shards: [PgConnection; 2],
    pub(crate) history: History,
    /// The first five are cancelled; those after them are not.
    pub(crate) placed: Vec<Placed>,
    pub(crate) case: Case,
    now_us: Micros,
}

impl Fixture {
    /// An honest run: orders placed, some cancelled, some read and listed, a place refused, one without an
    /// answer that happened and one that did not.
    pub(crate) async fn honest() -> Result<Self> {
        let mut fixture = Self::empty().await?;
        for user_id in 1..=20 {
            fixture.place(user_id).await?;
        }
        for index in 0..5 {
            fixture.cancel(index).await?;
        }
        for index in 0..20 {
            fixture.get(index).await?;
        }
        let unsure = fixture.order(21).await?;
        fixture.store(&unsure).await?;
        let reason = || "timed out".to_owned();
        fixture.record(&place_of(&unsure), Outcome::Indeterminate { reason: reason() }).await?;
        let never = fixture.order(22).await?;
        fixture.record(&place_of(&never), Outcome::Indeterminate { reason: reason() }).await?;
        let refused = fixture.order(23).await?;
        let refusal = Outcome::Refused { http_status: 400, earlier_unsure: false };
        fixture.record(&place_of(&refused), refusal).await?;
        for index in [0, 7] {
            fixture.list(index, false).await?;
            fixture.list(index, true).await?;
        }
        Ok(fixture)
    }

    /// Preloaded orders alone.
    pub(crate) async fn empty() -> Result<Self> {
        let server = Server::shared(Version::V17).await?;
        let databases = [server.scratch_database().await?, server.scratch_database().await?];
        let mut shards = [databases[0].connect_admin().await?, databases[1].connect_admin().await?];
        for (shard, mine) in shards.iter_mut().zip(["bucket < 8", "bucket >= 8"]) {
            shard.execute(sqlx::raw_sql(include_str!("schema.sql"))).await?;
            let ownership = format!(
                "insert into longshore.ownership
                 select bucket, case when {mine} then 'owned' else 'moved' end, 3
                 from generate_series(0, {BUCKETS} - 1) as bucket"
            );
            shard.execute(sqlx::raw_sql(AssertSqlSafe(ownership))).await?;
        }
        let stores =
            vec![Store::new("a", databases[0].admin_url()), Store::new("b", databases[1].admin_url())];
        let preload = Preload { orders: 2_000, users: USERS.unsigned_abs(), buckets: BUCKETS, seed: 9 };
        let report = preload.fill(&stores).await?;
        assert_eq!(report.orders, 2_000);

        let path = history_path();
        let history = History::create(&path)?;
        let case = Case {
            history: path,
            stores,
            buckets: BUCKETS,
            preload: Some(preload),
            ownership: None,
            complete: true,
        };
        Ok(Self { shards, history, placed: Vec::new(), case, now_us: 1_000 })
    }

    /// Closes the history and asks for the verdict.
    pub(crate) async fn judge(self) -> Result<Verdict> {
        self.history.close().await?;
        for shard in self.shards {
            shard.close().await?;
        }
        let verdict = judge(&self.case).await;
        std::fs::remove_file(&self.case.history)?;
        Ok(verdict?)
    }

    /// A new order of a user, not yet stored anywhere; its id is young and random, as the checker needs no more.
    pub(crate) async fn order(&mut self, user_id: i64) -> Result<Placed> {
        let bucket: i32 = sqlx::query_scalar("select (hashint8extended($1, 0) & $2)::integer")
            .bind(user_id)
            .bind(i64::from(BUCKETS - 1))
            .fetch_one(&mut self.shards[0])
            .await?;
        let random = Uuid::new_v4().as_u128() >> 48;
        let items = vec![
            Item { sku: "A-1".to_owned(), quantity: 2, price_cents: 150 },
            Item { sku: "A-2".to_owned(), quantity: 1, price_cents: 99 },
        ];
        let facts = OrderFacts {
            order_id: Uuid::from_u128((1_900_000_000_000 << 80) | random),
            user_id,
            status: "created".to_owned(),
            version: 1,
            total_cents: total_cents(&items),
            items,
        };
        Ok(Placed { facts, key: Uuid::new_v4().to_string(), shard: usize::from(bucket >= 8) })
    }

    /// Writes an order's rows to its shard.
    pub(crate) async fn store(&mut self, placed: &Placed) -> Result<()> {
        self.store_at(placed, placed.shard).await
    }

    /// Writes an order's rows to a shard.
    pub(crate) async fn store_at(&mut self, placed: &Placed, shard: usize) -> Result<()> {
        let OrderFacts { order_id, user_id, total_cents, ref items, .. } = placed.facts;
        let shard = &mut self.shards[shard];
        sqlx::query("insert into orders values ($1, $2, 'created', $3, now(), 1)")
            .bind(user_id)
            .bind(order_id)
            .bind(total_cents)
            .execute(&mut *shard)
            .await?;
        for (line, item) in (1_i32..).zip(items) {
            sqlx::query("insert into order_items values ($1, $2, $3, $4, $5::bigint, $6)")
                .bind(user_id)
                .bind(order_id)
                .bind(line)
                .bind(&item.sku)
                .bind(item.quantity)
                .bind(item.price_cents)
                .execute(&mut *shard)
                .await?;
        }
        sqlx::query("insert into order_events values ($1, $2, 1, 'created', '{}', now())")
            .bind(user_id)
            .bind(order_id)
            .execute(&mut *shard)
            .await?;
        self.store_key(placed, &placed.key).await
    }

    /// Writes an idempotency row for an order, to the shard where the order belongs.
    pub(crate) async fn store_key(&mut self, placed: &Placed, key: &str) -> Result<()> {
        sqlx::query("insert into idempotency_keys values ($1, $2, '', $3, now()) on conflict do nothing")
            .bind(placed.facts.user_id)
            .bind(key)
            .bind(placed.facts.order_id)
            .execute(&mut self.shards[placed.shard])
            .await?;
        Ok(())
    }

    /// Runs statements on a shard; `$order`, `$user` and `$key` stand for those of a placed order.
    pub(crate) async fn sql(&mut self, shard: usize, placed: &Placed, statements: &str) -> Result<()> {
        let statements = statements
            .replace("$order", &format!("'{}'", placed.facts.order_id))
            .replace("$user", &placed.facts.user_id.to_string())
            .replace("$key", &format!("'{}'", placed.key));
        self.shards[shard].execute(sqlx::raw_sql(AssertSqlSafe(statements))).await?;
        Ok(())
    }

    /// The id of a preloaded order on shard a.
    pub(crate) async fn preloaded(&mut self) -> Result<Placed> {
        let (user_id, order_id, key): (i64, Uuid, String) = sqlx::query_as(
            "select user_id, order_id, key from idempotency_keys where key like 'preload-%' order by key limit 1",
        )
        .fetch_one(&mut self.shards[0])
        .await?;
        let mut placed = self.order(user_id).await?;
        placed.facts.order_id = order_id;
        placed.key = key;
        Ok(placed)
    }

    /// An intent and its outcome, after everything before it.
    pub(crate) async fn record(&mut self, operation: &Operation, outcome: Outcome) -> Result<()> {
        let began_us = self.now_us;
        let id = self.history.intent(began_us, operation).await?;
        self.history.outcome(id, began_us, began_us + 10, outcome)?;
        self.now_us += 100;
        Ok(())
    }

    /// Records a get of an order as answered with these facts.
    pub(crate) async fn shown(&mut self, facts: OrderFacts) -> Result<()> {
        self.record(&Operation::Get { order_id: facts.order_id }, acknowledged(Answer::Order(facts))).await
    }

    /// A list of the user of a placed order: the last page, or a first page that ends with their newest
    /// preloaded order.
    pub(crate) async fn page(&mut self, index: usize, more: bool) -> Result<Vec<OrderFacts>> {
        let placed = self.placed[index].clone();
        let rows: Vec<(Uuid, String, i32, i64)> = sqlx::query_as(
            "select order_id, status, version, total_cents from orders where user_id = $1 order by order_id desc",
        )
        .bind(placed.facts.user_id)
        .fetch_all(&mut self.shards[placed.shard])
        .await?;
        let length = if more { 2 } else { rows.len() };
        let facts = |(order_id, status, version, total_cents): (_, _, i32, _)| OrderFacts {
            order_id,
            user_id: placed.facts.user_id,
            status,
            version: version.into(),
            total_cents,
            items: Vec::new(),
        };
        Ok(rows.into_iter().take(length).map(facts).collect())
    }

    /// Records a list of the user of a placed order as answered with this page.
    pub(crate) async fn listed(&mut self, index: usize, orders: Vec<OrderFacts>, more: bool) -> Result<()> {
        let user_id = self.placed[index].facts.user_id;
        self.record(&Operation::List { user_id, limit: 50 }, acknowledged(Answer::Page { orders, more }))
            .await
    }

    async fn list(&mut self, index: usize, more: bool) -> Result<()> {
        let page = self.page(index, more).await?;
        self.listed(index, page, more).await
    }

    async fn place(&mut self, user_id: i64) -> Result<()> {
        let placed = self.order(user_id).await?;
        self.store(&placed).await?;
        let answer = Answer::Order(placed.facts.clone());
        self.record(&place_of(&placed), acknowledged(answer)).await?;
        self.placed.push(placed);
        Ok(())
    }

    async fn cancel(&mut self, index: usize) -> Result<()> {
        let placed = self.placed[index].clone();
        let statements = "update orders set status = 'cancelled', version = 2 where order_id = $order;
                          insert into order_events values ($user, $order, 2, 'cancelled', '{}', now())";
        self.sql(placed.shard, &placed, statements).await?;
        let facts = OrderFacts { status: "cancelled".to_owned(), version: 2, ..placed.facts };
        self.placed[index].facts = facts.clone();
        self.record(&Operation::Cancel { order_id: facts.order_id }, acknowledged(Answer::Order(facts))).await
    }

    async fn get(&mut self, index: usize) -> Result<()> {
        let facts = self.placed.get(index).context("no such order")?.facts.clone();
        self.shown(facts).await
    }
}

/// The request that asks for an order.
pub(crate) fn place_of(placed: &Placed) -> Operation {
    Operation::Place {
        user_id: placed.facts.user_id,
        key: placed.key.clone(),
        items: placed.facts.items.clone(),
    }
}

fn acknowledged(answer: Answer) -> Outcome {
    Outcome::Acknowledged { http_status: 200, answer }
}

fn history_path() -> PathBuf {
    std::env::temp_dir().join(format!("checker-faults-{}.jsonl", Uuid::new_v4()))
}
