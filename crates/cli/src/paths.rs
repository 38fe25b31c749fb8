//! Where the daemon is looked for: the same answer as `roostd` gives to the same environment and file.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::Failure;

/// What the answer depends on; an argument, so that tests own it.
#[derive(Debug, Default)]
pub(crate) struct Surroundings {
    /// `ROOST_STATE_DIR`.
    pub(crate) state_dir: Option<PathBuf>,
    /// `ROOST_RUNTIME_DIR`.
    pub(crate) runtime_dir: Option<PathBuf>,
    /// `ROOST_CONFIG`.
    pub(crate) config: Option<PathBuf>,
    /// `XDG_STATE_HOME`.
    pub(crate) xdg_state_home: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`.
    pub(crate) xdg_config_home: Option<PathBuf>,
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

/// What the daemon's configuration file says of its places. Whatever else is in it is the daemon's to judge.
#[derive(Debug, Default, Deserialize)]
struct Places {
    state_dir: Option<PathBuf>,
    runtime_dir: Option<PathBuf>,
    socket: Option<PathBuf>,
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
            config: given("ROOST_CONFIG"),
            xdg_state_home: absolute("XDG_STATE_HOME"),
            xdg_config_home: absolute("XDG_CONFIG_HOME"),
            home: absolute("HOME"),
            root: rustix::process::geteuid().is_root(),
        }
    }

    /// The daemon's places; `socket` is what the user said about it.
    ///
    /// # Errors
    /// The daemon's configuration file cannot be read or understood: no daemon starts with it either.
    pub(crate) fn paths(self, socket: Option<PathBuf>) -> Result<Paths, Failure> {
        let below_home = |xdg: Option<PathBuf>, dir: &str| {
            xdg.or_else(|| self.home.as_ref().map(|home| home.join(dir))).unwrap_or_else(|| Path::new("/").join(dir))
        };
        let file = match self.config {
            Some(path) => read(&path, true)?,
            None if self.root => read(Path::new("/etc/roost/config.toml"), false)?,
            None => read(&below_home(self.xdg_config_home, ".config").join("roost/config.toml"), false)?,
        };
        let own_state = self.state_dir.or(file.state_dir);
        // A state directory of one's own is a daemon of one's own: its socket lives with it.
        let beside = own_state.is_some() || !self.root;
        let state_dir = match own_state {
            Some(dir) => dir,
            None if self.root => PathBuf::from("/var/lib/roost"),
            None => below_home(self.xdg_state_home, ".local/state").join("roost"),
        };
        let socket = socket.or(file.socket).unwrap_or_else(|| {
            let runtime_dir = self.runtime_dir.or(file.runtime_dir);
            let default = || if beside { state_dir.join("run") } else { PathBuf::from("/run/roost") };
            runtime_dir.unwrap_or_else(default).join("api.sock")
        });
        Ok(Paths { socket, state_dir })
    }
}

fn read(path: &Path, must_exist: bool) -> Result<Places, Failure> {
    let broken = |problem: String| Failure::File { path: path.to_owned(), problem };
    match std::fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text).map_err(|e| broken(e.to_string().trim_end().to_owned())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !must_exist => Ok(Places::default()),
        Err(e) => Err(broken(e.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Option<PathBuf> {
        Some(PathBuf::from(text))
    }

    fn paths(surroundings: Surroundings) -> (String, String) {
        let Paths { socket, state_dir } = surroundings.paths(None).unwrap();
        (socket.display().to_string(), state_dir.display().to_string())
    }

    fn is(socket: &str, state_dir: &str) -> (String, String) {
        (socket.to_owned(), state_dir.to_owned())
    }

    /// A file of this host's own must not decide a test.
    fn empty() -> tempfile::NamedTempFile {
        tempfile::NamedTempFile::new().unwrap()
    }

    #[test]
    fn the_daemon_is_looked_for_where_it_is() {
        let empty = empty();
        let config = || Some(empty.path().to_owned());
        let root = || Surroundings { root: true, home: at("/root"), config: config(), ..Default::default() };
        let user = || Surroundings { home: at("/home/u"), config: config(), ..Default::default() };
        assert_eq!(paths(root()), is("/run/roost/api.sock", "/var/lib/roost"));
        assert_eq!(paths(user()), is("/home/u/.local/state/roost/run/api.sock", "/home/u/.local/state/roost"));
        let elsewhere = Surroundings { xdg_state_home: at("/s"), ..user() };
        assert_eq!(paths(elsewhere), is("/s/roost/run/api.sock", "/s/roost"));
        for who in [root(), user()] {
            let own = Surroundings { state_dir: at("/d"), ..who };
            assert_eq!(paths(own), is("/d/run/api.sock", "/d"));
        }
        let own_run = Surroundings { state_dir: at("/d"), runtime_dir: at("/r"), ..root() };
        assert_eq!(paths(own_run), is("/r/api.sock", "/d"));
        assert_eq!(root().paths(at("/x.sock")).unwrap().socket, PathBuf::from("/x.sock"));
    }

    #[test]
    fn its_file_says_where_it_is_and_the_environment_has_the_last_word() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("roost")).unwrap();
        let file = dir.path().join("roost/config.toml");
        std::fs::write(&file, "state_dir = \"/f\"\nsocket = \"/f.sock\"\nunknown = 1\n[qemu]\n").unwrap();
        let user = || Surroundings { xdg_config_home: Some(dir.path().to_owned()), ..Default::default() };
        assert_eq!(paths(user()), is("/f.sock", "/f"));
        assert_eq!(user().paths(at("/x.sock")).unwrap().socket, PathBuf::from("/x.sock"));
        std::fs::write(&file, "state_dir = \"/f\"").unwrap();
        assert_eq!(paths(user()), is("/f/run/api.sock", "/f"));
        assert_eq!(paths(Surroundings { state_dir: at("/d"), ..user() }), is("/d/run/api.sock", "/d"));
        std::fs::write(&file, "runtime_dir = \"/f\"").unwrap();
        assert_eq!(paths(Surroundings { state_dir: at("/d"), ..user() }), is("/f/api.sock", "/d"));
        assert_eq!(paths(Surroundings { runtime_dir: at("/r"), ..user() }).0, "/r/api.sock");

        std::fs::write(&file, "socket = [").unwrap();
        let told = user().paths(None).unwrap_err().to_string();
        assert!(told.contains("config.toml"), "{told}");
        let missing = Surroundings { config: at("/nonexistent/c.toml"), ..user() };
        assert!(missing.paths(None).unwrap_err().to_string().contains("/nonexistent/c.toml"));
    }
}
