//! A larger share of the processors for the load. On a machine that is busy with the shop, its users would wait for a processor as
//! well, which users elsewhere do not, and their waits would count as the shop's. A share and no more: a load that everything
//! else waits for would keep a shop down that just fell over.

use std::fs;

/// The nice value of this session's processes among other sessions, which each weigh as much as ours otherwise. A shell's session
/// outlives us, so it is given back.
const SESSION: &str = "/proc/self/autogroup";
/// Three times the weight.
const PREFERRED: &str = "-5";
const EQUAL: &str = "0";

/// This session comes first until this is dropped, also on the way out of a failure.
pub(super) struct Precedence(());

impl Precedence {
    /// I/O.
    pub(super) fn take() -> Self {
        set(PREFERRED);
        Self(())
    }
}

impl Drop for Precedence {
    fn drop(&mut self) {
        set(EQUAL);
    }
}

/// Who may not do so, or has no such groups, is measured with its waits.
fn set(nice: &str) {
    let _refused = fs::write(SESSION, nice);
}
