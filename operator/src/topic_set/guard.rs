//! Pure: whether a topic may be deleted. One that is used may not, unless a person says so of this very topic.

use super::{
    wanted::{DELETE, Wanted},
    world::{Topic, Use},
};

/// The reason of a deletion that waits.
pub(super) const IN_USE: &str = "InUse";

/// Why not.
pub(super) fn objection(wanted: &Wanted, name: &str, topic: &Topic, uses: Option<&Use>) -> Option<String> {
    let token = token(topic);
    if wanted.may_delete.get(name) == Some(&token) {
        return None;
    }
    let mut reasons = Vec::new();
    match uses {
        None => reasons.push("who uses it is not known".to_owned()),
        Some(uses) => {
            if !uses.groups.is_empty() {
                let groups: Vec<&str> = uses.groups.iter().map(String::as_str).take(5).collect();
                reasons.push(format!("{} consumer groups read it: {}", uses.groups.len(), groups.join(", ")));
            }
            if uses.is_fresh {
                reasons.push("it got a record within the last hour".to_owned());
            }
            if let Some(doubt) = &uses.doubt {
                reasons.push(format!("who uses it is not known for certain: {doubt}"));
            }
        }
    }
    (!reasons.is_empty()).then(|| {
        format!(
            "not deleted: {}; to delete it nevertheless, annotate {DELETE}={name}:{token}",
            reasons.join("; ")
        )
    })
}

/// Of this topic, and of no other that gets its name later.
fn token(topic: &Topic) -> String {
    topic.id.simple().to_string().chars().take(8).collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn consent_is_to_one_topic() {
        let topic = |id: u128| Topic { id: Uuid::from_u128(id << 96), ..Topic::default() };
        let wanted =
            Wanted { may_delete: [("a".into(), "00000001".into())].into(), ..super::super::tests::wanted() };
        let fresh = Use { is_fresh: true, ..Use::default() };
        assert_eq!(objection(&wanted, "a", &topic(1), Some(&fresh)), None);
        assert!(objection(&wanted, "a", &topic(2), Some(&fresh)).unwrap().contains("a:00000002"));
        assert!(objection(&wanted, "b", &topic(1), None).is_some(), "unknown is not unused");
        assert_eq!(objection(&wanted, "b", &topic(1), Some(&Use::default())), None);
    }
}
