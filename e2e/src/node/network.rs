//! The node's own network: an interface that leads nowhere, with the node's address, to which all addresses of Services are
//! routed; a bridge that pods are plugged into; and a rule that lets no pod reach beyond the machine.

use std::{fs, path::Path};

use anyhow::Result;
use serde_json::json;
use tokio::process::Command;

use super::folder::NodeFolder;
use crate::parts::output;

/// The node's own address: the API server will not talk to a kubelet on loopback.
pub(super) const NODE_ADDRESS: &str = "10.250.0.1";
/// The addresses of Services.
pub(super) const SERVICES: &str = "10.96.0.0/16";
/// The Service of the API server.
pub(super) const KUBERNETES_SERVICE: &str = "10.96.0.1";
/// The Service of the DNS server.
pub(super) const DNS_SERVICE: &str = "10.96.0.10";
/// The addresses of pods.
pub(super) const PODS: &str = "10.244.0.0/22";

const INTERFACE: &str = "longshore0";
const BRIDGE: &str = "longshore1";
const TABLE: &str = "longshore";
/// Of the container network.
const NETWORK: &str = "longshore-pods";

/// Whether anything of it is there.
pub(super) fn exists() -> bool {
    [INTERFACE, BRIDGE].iter().any(|name| Path::new("/sys/class/net").join(name).exists())
}

/// Makes the interface, its routes and rules, and writes the plugins' configuration.
pub(super) async fn create(folder: &NodeFolder) -> Result<()> {
    let commands: [&[&str]; 5] = [
        // A bridge that nothing is plugged into: not every kernel has dummy interfaces, which are the same.
        &["link", "add", INTERFACE, "type", "bridge"],
        &["address", "add", &format!("{NODE_ADDRESS}/32"), "dev", INTERFACE],
        &["link", "set", INTERFACE, "up"],
        &["route", "add", SERVICES, "dev", INTERFACE],
        // Where the bridge does not lead, nothing does.
        &["route", "add", "unreachable", PODS, "metric", "4096"],
    ];
    for command in commands {
        output(Command::new("ip").args(command)).await?;
    }
    let drop = format!("iifname \"{BRIDGE}\" oifname != \"{BRIDGE}\" drop");
    let chain = format!("chain forward {{ type filter hook forward priority 0; policy accept; {drop}; }};");
    output(Command::new("nft").arg(format!("table inet {TABLE} {{ {chain} }}"))).await?;
    let plugins = json!({"cniVersion": "1.0.0", "name": NETWORK, "plugins": [{
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": true,
        "hairpinMode": true,
        "ipam": {
            "type": "host-local",
            "dataDir": folder.path("cni/addresses"),
            "ranges": [[{"subnet": PODS}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }]});
    fs::write(folder.path("cni/pods.conflist"), serde_json::to_string_pretty(&plugins)?)?;
    Ok(())
}

/// Removes all of it, and the tables of kube-proxy.
pub(super) async fn remove() -> Result<()> {
    for interface in [INTERFACE, BRIDGE] {
        if Path::new("/sys/class/net").join(interface).exists() {
            output(Command::new("ip").args(["link", "delete", interface])).await?;
        }
    }
    // There may be none any more, or no such program where there never was a node.
    let _ = output(Command::new("ip").args(["route", "delete", "unreachable", PODS, "metric", "4096"])).await;
    for (family, table) in [("inet", TABLE), ("ip", "kube-proxy"), ("ip6", "kube-proxy")] {
        let _ = output(Command::new("nft").args(["delete", "table", family, table])).await;
    }
    Ok(())
}
