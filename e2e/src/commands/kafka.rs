//! `cargo xtask kafka`: a Kafka cluster to try things on.

use std::process::ExitCode;

use anyhow::Result;
use e2e::kafka::Cluster;

pub(crate) async fn run() -> Result<ExitCode> {
    let cluster = Cluster::start().await?;
    println!("plain text:     {}", cluster.bootstrap());
    println!("TLS and SASL:   {}", cluster.secure_bootstrap());
    println!("its properties: {}", cluster.write_client_properties()?.display());
    println!(
        "look at it:     java -cp '{}/*' org.apache.kafka.tools.TopicCommand --describe --bootstrap-server {}",
        cluster.jars().display(),
        cluster.bootstrap()
    );
    println!("press Ctrl-C to end it");
    tokio::signal::ctrl_c().await?;
    Ok(ExitCode::SUCCESS)
}
