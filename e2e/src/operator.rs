//! What a running operator answers over HTTP.

use std::fs;

use anyhow::{Context as _, Result};
use reqwest::StatusCode;

use crate::process::Process;

/// I/O: the answer at `/healthz` or `/metrics` of an operator that listens on 127.0.0.1 and logs as text.
///
/// # Errors
/// When it does not serve yet, or does not answer.
pub async fn ask(operator: &Process, path: &str) -> Result<(StatusCode, String)> {
    let log = fs::read_to_string(operator.log())?;
    let said = log.lines().find(|line| line.contains("serving /healthz and /metrics"));
    let port = said.and_then(|line| line.rsplit_once("127.0.0.1:")).context("the operator serves nothing")?.1;
    let port: String = port.chars().take_while(char::is_ascii_digit).collect();
    let answer = reqwest::get(format!("http://127.0.0.1:{port}{path}")).await?;
    Ok((answer.status(), answer.text().await?))
}
