//! `cargo xtask images`: what the nodes of a cluster elsewhere need.

use std::process::ExitCode;

use anyhow::Result;
use e2e::pods;

/// Builds the images and prints each archive and what is in it.
pub(crate) async fn run() -> Result<ExitCode> {
    eprintln!("to be loaded by `kind load image-archive FILE`, `minikube image load FILE` or the like:");
    for image in pods::images().await? {
        println!("{}  {}", image.archive().display(), image.reference());
    }
    Ok(ExitCode::SUCCESS)
}
