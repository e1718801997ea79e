//! A share of the processors for the load, where the shop runs in pods of this machine.

use crate::node::cgroups;

/// The load has its share until this is dropped, also on the way out of a failure.
pub(super) struct Precedence {
    entered: bool,
}

impl Precedence {
    /// Who may not do so is measured with its waits.
    pub(super) fn take() -> Self {
        Self { entered: cgroups::LOAD.enter(std::process::id()).unwrap_or(false) }
    }
}

impl Drop for Precedence {
    fn drop(&mut self) {
        if self.entered {
            let _refused = cgroups::leave(std::process::id());
        }
    }
}
