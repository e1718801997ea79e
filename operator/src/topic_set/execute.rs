//! I/O: does what was decided, one kind of request after the other. If we die in between, the next look sees how far we came.

use super::changes::Changes;
use crate::kafka::{Admin, KafkaError, Refusals};

/// What brokers refused, by topic; the rest is done.
pub(super) async fn execute(admin: &mut Admin, changes: &Changes) -> Result<Refusals, KafkaError> {
    let mut refusals = admin.create(&changes.creates).await?;
    refusals.extend(admin.configure(&changes.configs, None).await?);
    refusals.extend(admin.grow(&changes.grows).await?);
    // A throttle that was refused keeps its topic's replicas where they are.
    let throttled = admin.configure(&changes.throttles, changes.rate).await?;
    let mut moves = changes.moves.clone();
    moves.retain(|topic, _| !throttled.contains_key(topic));
    refusals.extend(throttled);
    refusals.extend(admin.reassign(&moves).await?);
    refusals.extend(admin.delete(changes.deletes.keys()).await?);
    Ok(refusals)
}
