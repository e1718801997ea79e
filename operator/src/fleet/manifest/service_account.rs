//! Who a service's pods are: nobody with a token.

use longshore_crds::service_fleet::ServiceSpec;
use serde_json::json;

use super::{ChildKind, Fleet, Manifest, object};

pub(super) fn build(fleet: &Fleet, service: &ServiceSpec) -> Manifest {
    let spec = object(json!({"automountServiceAccountToken": false}));
    Manifest::new(ChildKind::ServiceAccount, fleet, service, spec)
}
