//! Where the daemon is looked for: the same answer as `roostd` gives to the same environment.

use std::path::PathBuf;

/// What the answer depends on; an argument, so that tests own it.
#[derive(Debug, Default)]
pub(crate) struct Surroundings {
    /// `ROOST_STATE_DIR`.
    pub(crate) state_dir: Option<PathBuf>,
    /// `ROOST_RUNTIME_DIR`.
    pub(crate) runtime_dir: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`.
    pub(crate) xdg_runtime_dir: Option<PathBuf>,
    /// `XDG_STATE_HOME`.
    pub(crate) xdg_state_home: Option<PathBuf>,
    /// `HOME`.
    pub(crate) home: Option<PathBuf>,
    /// Whether we are root.
    pub(crate) root: bool,
}

/// The daemon's places.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Paths {
    /// Its API.
    pub(crate) socket: PathBuf,
    /// Its database, its lock, and its log when `roost daemon start` started it.
    pub(crate) state_dir: PathBuf,
}

impl Surroundings {
    /// Those of this process.
    pub(crate) fn of_process() -> Self {
        let given = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        // The XDG specification says to ignore what is not absolute.
        let absolute = |name: &str| given(name).filter(|p| p.is_absolute());
        Self {
            // The daemon hands its paths on to others: what is relative here would be another place there.
            state_dir: given("ROOST_STATE_DIR").and_then(|dir| std::path::absolute(dir).ok()),
            runtime_dir: given("ROOST_RUNTIME_DIR").and_then(|dir| std::path::absolute(dir).ok()),
            xdg_runtime_dir: absolute("XDG_RUNTIME_DIR"),
            xdg_state_home: absolute("XDG_STATE_HOME"),
            home: absolute("HOME"),
            root: rustix::process::geteuid().is_root(),
        }
    }

    /// The daemon's places; `socket` is what the user said about it.
    pub(crate) fn paths(self, socket: Option<PathBuf>) -> Paths {
        let own_state = self.state_dir.is_some();
        let state_dir = match self.state_dir {
            Some(dir) => dir,
            None if self.root => PathBuf::from("/var/lib/roost"),
            None => self
                .xdg_state_home
                .or_else(|| self.home.map(|h| h.join(".local/state")))
                .unwrap_or_else(|| PathBuf::from("/.local/state"))
                .join("roost"),
        };
        let runtime_dir = match (self.runtime_dir, self.xdg_runtime_dir) {
            (Some(dir), _) => dir,
            // A state directory of one's own is a daemon of one's own: its socket lives with it.
            (None, _) if own_state => state_dir.join("run"),
            (None, _) if self.root => PathBuf::from("/run/roost"),
            (None, Some(dir)) => dir.join("roost"),
            (None, None) => state_dir.join("run"),
        };
        Paths { socket: socket.unwrap_or_else(|| runtime_dir.join("api.sock")), state_dir }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Option<PathBuf> {
        Some(PathBuf::from(text))
    }

    fn paths(surroundings: Surroundings) -> (String, String) {
        let Paths { socket, state_dir } = surroundings.paths(None);
        (socket.display().to_string(), state_dir.display().to_string())
    }

    fn is(socket: &str, state_dir: &str) -> (String, String) {
        (socket.to_owned(), state_dir.to_owned())
    }

    #[test]
    fn the_daemon_is_looked_for_where_it_is() {
        let root = || Surroundings { root: true, home: at("/root"), ..Default::default() };
        let user = || Surroundings { home: at("/home/u"), xdg_runtime_dir: at("/run/user/7"), ..Default::default() };
        assert_eq!(paths(root()), is("/run/roost/api.sock", "/var/lib/roost"));
        assert_eq!(paths(user()), is("/run/user/7/roost/api.sock", "/home/u/.local/state/roost"));
        let no_session = Surroundings { xdg_runtime_dir: None, ..user() };
        assert_eq!(paths(no_session), is("/home/u/.local/state/roost/run/api.sock", "/home/u/.local/state/roost"));
        let elsewhere = Surroundings { xdg_state_home: at("/s"), ..user() };
        assert_eq!(paths(elsewhere), is("/run/user/7/roost/api.sock", "/s/roost"));
        for who in [root(), user()] {
            let own = Surroundings { state_dir: at("/d"), ..who };
            assert_eq!(paths(own), is("/d/run/api.sock", "/d"));
        }
        let own_run = Surroundings { state_dir: at("/d"), runtime_dir: at("/r"), ..root() };
        assert_eq!(paths(own_run), is("/r/api.sock", "/d"));
        assert_eq!(root().paths(at("/x.sock")).socket, PathBuf::from("/x.sock"));
    }
}
