//! Which rights the pods of a shop and of the operator have, and which they have used, by the API server's own record.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result};
use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject,
};
use kube::{Api, Client, api::ListParams};
use serde_json::Value;

use super::{NAMESPACE, OPERATOR_NAMESPACE};

/// What an account may do, or did: `VERB RESOURCE.GROUP`.
pub type Rights = BTreeSet<String>;

/// Rights of all service accounts in both namespaces.
pub async fn granted(client: &Client) -> Result<Rights> {
    let all = ListParams::default();
    let mut rights = Rights::new();
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    for binding in bindings.list(&all).await? {
        if binding.subjects.iter().flatten().any(is_ours) {
            rights.extend(expand(&rules(client, &binding.role_ref, None).await?));
        }
    }
    for namespace in [NAMESPACE, OPERATOR_NAMESPACE] {
        let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), namespace);
        for binding in bindings.list(&all).await? {
            if binding.subjects.iter().flatten().any(is_ours) {
                rights.extend(expand(&rules(client, &binding.role_ref, Some(namespace)).await?));
            }
        }
    }
    Ok(rights)
}

fn is_ours(subject: &Subject) -> bool {
    let namespace = subject.namespace.as_deref().unwrap_or_default();
    subject.kind == "ServiceAccount" && [NAMESPACE, OPERATOR_NAMESPACE].contains(&namespace)
}

async fn rules(client: &Client, role: &RoleRef, namespace: Option<&str>) -> Result<Vec<PolicyRule>> {
    let rules = match (role.kind.as_str(), namespace) {
        ("Role", Some(namespace)) => {
            Api::<Role>::namespaced(client.clone(), namespace).get(&role.name).await?.rules
        }
        _ => Api::<ClusterRole>::all(client.clone()).get(&role.name).await?.rules,
    };
    Ok(rules.unwrap_or_default())
}

fn expand(rules: &[PolicyRule]) -> Rights {
    let mut rights = Rights::new();
    for rule in rules {
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                rights.extend(rule.verbs.iter().map(|verb| right(verb, resource, group)));
            }
        }
    }
    rights
}

fn right(verb: &str, resource: &str, group: &str) -> String {
    let dot = if group.is_empty() { "" } else { "." };
    format!("{verb} {resource}{dot}{group}")
}

/// Rights that the accounts used, by the record of a node of ours.
pub fn used(audit_log: &Path) -> Result<Rights> {
    let log =
        fs::read_to_string(audit_log).with_context(|| format!("failed to read {}", audit_log.display()))?;
    Ok(log.lines().filter_map(|line| used_in(&serde_json::from_str(line).ok()?)).flatten().collect())
}

/// An apply that creates is asked for as `patch`, and must be allowed to `create` as well: its answer is 201.
fn used_in(event: &Value) -> Option<Vec<String>> {
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str);
    let user = text("/user/username")?;
    let ours = [NAMESPACE, OPERATOR_NAMESPACE];
    if !ours.iter().any(|namespace| user.starts_with(&format!("system:serviceaccount:{namespace}:"))) {
        return None;
    }
    let resource = text("/objectRef/resource")?;
    let resource =
        text("/objectRef/subresource").map_or(resource.to_owned(), |sub| format!("{resource}/{sub}"));
    let (verb, group) = (text("/verb")?, text("/objectRef/apiGroup").unwrap_or_default());
    let creates =
        verb == "patch" && event.pointer("/responseStatus/code").and_then(Value::as_u64) == Some(201);
    let verbs = [Some(verb), creates.then_some("create")];
    Some(verbs.into_iter().flatten().map(|verb| right(verb, &resource, group)).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rights_are_verbs_on_resources() {
        let rule = PolicyRule {
            api_groups: Some(vec![String::new(), "apps".to_owned()]),
            resources: Some(vec!["secrets".to_owned()]),
            verbs: vec!["get".to_owned(), "list".to_owned()],
            ..PolicyRule::default()
        };
        let expected = ["get secrets", "get secrets.apps", "list secrets", "list secrets.apps"];
        assert!(expand(&[rule]).iter().eq(expected.iter()));
    }

    #[test]
    fn only_our_accounts_count() {
        let event = |user: &str| {
            json!({"user": {"username": user}, "verb": "patch",
                   "objectRef": {"resource": "ordershardsets", "apiGroup": "longshore.dev", "subresource": "status"}})
        };
        let used = used_in(&event("system:serviceaccount:longshore-system:longshore"));
        assert_eq!(used, Some(vec!["patch ordershardsets/status.longshore.dev".to_owned()]));
        assert_eq!(used_in(&event("system:serviceaccount:kube-system:deployment-controller")), None);
        assert_eq!(used_in(&event("admin")), None);
    }

    #[test]
    fn an_apply_that_creates_uses_both_rights() {
        let event = |code: u16| {
            json!({"user": {"username": "system:serviceaccount:longshore-system:longshore"}, "verb": "patch",
                   "objectRef": {"resource": "services"}, "responseStatus": {"code": code}})
        };
        assert_eq!(
            used_in(&event(201)),
            Some(vec!["patch services".to_owned(), "create services".to_owned()])
        );
        assert_eq!(used_in(&event(200)), Some(vec!["patch services".to_owned()]));
    }
}
