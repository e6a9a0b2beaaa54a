//! What a run that dies would leave: the process groups of its gateways, and its folder. One reaper
//! process is given each of them, kills the groups that are left, and removes the folder.

use std::io::Write;
use std::path::Path;
use std::process::ChildStdin;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::reaper::shell;

/// Keeps a list of process groups (`+ 12` adds one, `- 12` removes it) and the path of a folder
/// (`/ /tmp/x`). When its input ends it kills the groups that are left, and removes the folder.
const LEFT: &str = r#"
groups=" "
folder=
while read -r sign what; do
  case $sign in
    +) groups="$groups$what " ;;
    -) groups="${groups%% $what *} ${groups#* $what }" ;;
    /) folder=$what ;;
  esac
done
for group in $groups; do kill -s KILL -- "-$group"; done
[ -z "$folder" ] || rm -rf -- "$folder"
"#;

/// A process group that is killed if the run dies before [`ReapedGroup::has_ended`] is called.
#[derive(Debug)]
pub(super) struct ReapedGroup(u32);

impl ReapedGroup {
    /// Adds a group to the reaper's list.
    pub(super) fn watch(group: u32) -> Self {
        if !send('+', group) {
            tracing::warn!(
                group,
                "the reaper process does not run, so this gateway would outlive a run that is killed"
            );
        }
        Self(group)
    }

    /// Removes the group from the reaper's list; its number may be used by another from now on.
    pub(super) fn has_ended(self) {
        // without a reaper, nothing has to be removed from its list
        let _ = send('-', self.0);
    }
}

/// Gives the reaper the folder that it removes at the end of the run, however that comes.
pub(crate) fn removed_at_the_end(folder: &Path) {
    if !send('/', folder.display()) {
        tracing::warn!(
            "the reaper process does not run, so that {} is left behind; remove it by hand",
            folder.display()
        );
    }
}

fn send(sign: char, what: impl std::fmt::Display) -> bool {
    static REAPER: OnceLock<Option<Mutex<ChildStdin>>> = OnceLock::new();
    let reaper = REAPER.get_or_init(|| {
        shell(LEFT, &[], &[])
            .spawn()
            .ok()
            .and_then(|reaper| reaper.stdin)
            .map(Mutex::new)
    });
    reaper.as_ref().is_some_and(|reaper| {
        // one short write to a pipe is atomic
        reaper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write_all(format!("{sign} {what}\n").as_bytes())
            .is_ok()
    })
}
