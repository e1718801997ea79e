//! What staff ask the order service for: the orders of all users, wherever they are.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use e2e::{
    awaiting::{What, await_condition},
    free_port::free_port,
    postgres::Version,
    process::Process,
    shop::binaries::Binaries,
};
use longshore_sharding::operation::OperationId;
use serde_json::{Value, json};

use crate::shards::{DEADLINE, Pair, buckets, mount_credentials, ranges, user_in, value};

const OPERATION: OperationId = OperationId(1);

/// A running order service.
struct Shop {
    url: String,
    process: Process,
}

impl Shop {
    /// That hears of the other shards from a; returns when it is healthy.
    async fn open(pair: &Pair) -> Result<Self> {
        let database = &pair.a.database;
        let folder = mount_credentials(database)?;
        let listen = format!("127.0.0.1:{}", free_port()?);
        let seed = format!("{}:{}/{}", database.host(), database.port(), database.dbname());
        let mut command = Command::new(Binaries::build().await?.order());
        command.args(["--listen", &listen, "--shard-seeds", &seed, "--log-format", "text"]);
        command.arg("--credentials-dir").arg(folder);
        let process = Process::spawn(&format!("order-{}", database.dbname()), &mut command)?;
        let shop = Self { url: format!("http://{listen}"), process };
        let what = What::new("the order service to be healthy").log(shop.process.log());
        await_condition(what, DEADLINE, async || shop.get("/health").await.ok()).await?;
        Ok(shop)
    }

    async fn get(&self, path: &str) -> Result<Value> {
        let answer = reqwest::get(format!("{}{path}", self.url)).await?;
        let status = answer.status().as_u16();
        let text = answer.text().await?;
        ensure!(status == 200, "{path} was answered with {status}: {text}");
        Ok(serde_json::from_str(&text)?)
    }

    async fn post(&self, path: &str, key: &str, body: &Value) -> Result<String> {
        let request = reqwest::Client::new().post(format!("{}{path}", self.url));
        let answer = request.header("Idempotency-Key", key).json(body).send().await?;
        let answer = answer.error_for_status()?.json::<Value>().await?;
        Ok(answer["order_id"].as_str().context("an order has an id")?.to_owned())
    }

    async fn place(&self, user: i64, key: &str) -> Result<String> {
        let items = json!([{"sku": "A-1", "quantity": 2, "price_cents": 150}]);
        self.post("/api/orders", key, &json!({"user_id": user, "items": items})).await
    }

    /// The ids of all orders that match, page by page.
    async fn all(&self, query: &str) -> Result<Vec<String>> {
        let (mut ids, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = self.get(&format!("/api/staff/orders?limit=7{query}{cursor}")).await?;
            let orders = page["orders"].as_array().context("a page has orders")?;
            assert!(orders.iter().all(|order| order["items"][0]["sku"] == "A-1"), "{page}");
            ids.extend(orders.iter().filter_map(|order| order["order_id"].as_str()).map(str::to_owned));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(ids),
            }
        }
    }

    async fn status(&self, path: &str) -> Result<u16> {
        Ok(reqwest::get(format!("{}{path}", self.url)).await?.status().as_u16())
    }
}

#[tokio::test]
async fn staff_see_every_order_once_and_newest_first() -> Result<()> {
    let pair = Pair::new(Version::V17).await?;
    let shop = Shop::open(&pair).await?;
    assert!(shop.all("").await?.is_empty());
    let mut placed = Vec::new();
    for bucket in 0..24 {
        placed.push(shop.place(user_in(bucket), &format!("early-{bucket}")).await?);
    }
    // Half of them to b: copies of its rows stay at a.
    let moving = ranges(0, 11);
    pair.announce(OPERATION, &moving).await?;
    pair.connect(OPERATION, &moving).await?;
    pair.a.shard.hand_over(OPERATION, &pair.b.shard.name, &buckets(0, 11), 5_000).await?;
    for bucket in 0..24 {
        placed.push(shop.place(user_in(bucket), &format!("late-{bucket}")).await?);
    }
    for id in placed.iter().step_by(5) {
        shop.post(&format!("/api/orders/{id}/cancel"), "none", &json!({})).await?;
    }
    let copies: i64 = value(&mut pair.a.service().await?, "select count(*) from orders").await?;
    assert!(copies > 36, "a holds {copies}, among them those it gave up");

    let newest_first = |ids: Vec<&String>| -> Vec<String> {
        let mut ids: Vec<String> = ids.into_iter().cloned().collect();
        ids.sort_unstable_by(|one, other| other.cmp(one));
        ids
    };
    assert_eq!(shop.all("").await?, newest_first(placed.iter().collect()));
    let cancelled = newest_first(placed.iter().step_by(5).collect());
    assert_eq!(shop.all("&status=cancelled").await?, cancelled);
    let created = placed.iter().filter(|id| !cancelled.contains(id));
    assert_eq!(shop.all("&status=created").await?, newest_first(created.collect()));

    let of_one_user = shop.get(&format!("/api/orders?user_id={}&limit=1", user_in(1))).await?;
    let foreign = of_one_user["next_cursor"].as_str().context("there are two orders")?.to_owned();
    for query in ["limit=0", "limit=101", "status=lost", "cursor=2zz", &format!("cursor={foreign}")] {
        assert_eq!(shop.status(&format!("/api/staff/orders?{query}")).await?, 400, "{query}");
    }
    Ok(())
}
