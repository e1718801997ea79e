//! The load's threads before all others. On a machine that is busy with the shop, its users would wait for a processor as well,
//! which users elsewhere do not, and their waits would count as the shop's.

use tokio::process::Command;

use crate::parts::output;

/// I/O: a real-time class for all threads that this process has now; what they start runs as ever.
pub(super) async fn take() {
    schedule(&["--reset-on-fork", "--rr", "--pid", "1"]).await;
}

/// I/O: on a par with all others again.
pub(super) async fn give_back() {
    schedule(&["--other", "--pid", "0"]).await;
}

/// Who may not do so is measured with its waits.
async fn schedule(class: &[&str]) {
    let process = std::process::id().to_string();
    let _refused = output(Command::new("chrt").arg("--all-tasks").args(class).arg(process)).await;
}
