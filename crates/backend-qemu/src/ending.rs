//! The mark beside a machine's sockets that says that it is being ended by us. It is made before QEMU is
//! told to quit, and goes with the run directory: a daemon that finds no process any more, its
//! predecessor having died in the middle, knows by it that nobody else ended the machine.

use std::io;
use std::path::Path;

use roost_backend::BackendError;
use roost_model::ExitCause;

use crate::backend::on_thread;

const MARK: &str = "ending";

/// Makes the mark.
pub(crate) async fn mark(run_dir: &Path) -> Result<(), BackendError> {
    let path = run_dir.join(MARK);
    let made = on_thread(move || match std::fs::File::create_new(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(crate::host_error("HOST_DIRECTORY", &error)),
        _ => Ok(()),
    });
    made.await
}

/// Whether it is there.
pub(crate) fn is_marked(run_dir: &Path) -> bool {
    run_dir.join(MARK).exists()
}

/// Why a machine ended that nobody saw end.
pub(crate) fn unseen(run_dir: &Path) -> ExitCause {
    if is_marked(run_dir) { ExitCause::Forced } else { ExitCause::Killed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_that_nobody_saw_was_ours_only_where_it_is_marked() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(unseen(dir.path()), ExitCause::Killed);
        for _ in 0..2 {
            mark(dir.path()).await.unwrap();
            assert_eq!(unseen(dir.path()), ExitCause::Forced);
        }
        assert!(mark(&dir.path().join("gone")).await.is_err());
    }
}
