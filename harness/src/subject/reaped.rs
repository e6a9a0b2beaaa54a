//! The process groups of gateways: one reaper process is given each of them, and kills those that
//! are left when the run dies.

use std::io::Write;
use std::process::ChildStdin;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::reaper::shell;

/// Keeps a list of process groups (`+ 12` adds one, `- 12` removes it), and kills the groups that
/// are left when its input ends.
const GROUPS: &str = r#"
groups=" "
while read -r sign group; do
  case $sign in
    +) groups="$groups$group " ;;
    -) groups="${groups%% $group *} ${groups#* $group }" ;;
  esac
done
for group in $groups; do kill -s KILL -- "-$group"; done
"#;

/// A process group that is killed if the run dies before [`ReapedGroup::has_ended`] is called.
#[derive(Debug)]
pub(super) struct ReapedGroup(u32);

impl ReapedGroup {
    /// Adds a group to the reaper's list.
    pub(super) fn watch(group: u32) -> Self {
        send('+', group);
        Self(group)
    }

    /// Removes the group from the reaper's list; its number may be used by another from now on.
    pub(super) fn has_ended(self) {
        send('-', self.0);
    }
}

fn send(sign: char, group: u32) {
    static REAPER: OnceLock<Option<Mutex<ChildStdin>>> = OnceLock::new();
    let reaper = REAPER.get_or_init(|| {
        shell(GROUPS, &[], &[])
            .spawn()
            .ok()
            .and_then(|reaper| reaper.stdin)
            .map(Mutex::new)
    });
    let sent = reaper.as_ref().is_some_and(|reaper| {
        // one short write to a pipe is atomic
        reaper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write_all(format!("{sign} {group}\n").as_bytes())
            .is_ok()
    });
    if !sent {
        tracing::warn!(
            group,
            "the reaper process does not run, so this gateway would outlive a run that is killed"
        );
    }
}
