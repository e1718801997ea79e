//! `cargo xtask rights`: whether the charts grant more than what is used.

use std::process::ExitCode;

use anyhow::{Result, bail};
use e2e::pods::{Ground, rights};

pub(crate) async fn run() -> Result<ExitCode> {
    let ground = Ground::find().await?;
    let Ground::Node(node) = &ground else {
        bail!("only a node of our own keeps a record of what was asked")
    };
    let granted = rights::granted(&ground.cluster()?.client().await?).await?;
    let used = rights::used(&node.audit_log())?;
    for right in &granted {
        println!("{} {right}", if used.contains(right) { "used    " } else { "NOT USED" });
    }
    for right in used.difference(&granted) {
        println!("refused, or granted to everybody: {right}");
    }
    Ok(ExitCode::SUCCESS)
}
