//! What the guest's owner measures himself: programs in a directory, each of which writes one JSON object.
//!
//! A program runs as the agent, so it has to be the agent's owner's, and nobody else may be able to change it or the
//! directory. One that fails says so in the frame under its name; the others are not held up, and it is left out for a
//! while, so that a slow one does not delay every frame.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use roost_guest_proto::metrics::Group;
use roost_guest_proto::parse_strict;
use serde_json::Value;

use super::{Config, Failure, Notes, chain};
use crate::platform::System;
use crate::run::{Cancel, Ending, Program};

/// In the directory, by name.
const MAX_PLUGINS: usize = 16;
const MAX_NAME: usize = 64;
/// Of one object, as it is written.
const MAX_OUTPUT: usize = 16 * 1024;
/// Of all together.
const MAX_ALL: usize = 128 * 1024;
/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(1);
/// The buffers of `run`, and some.
const STACK: usize = 256 * 1024;
/// Nobody waits longer than that.
const LONGEST: Duration = Duration::from_secs(30);
/// One that failed is left out for so many times the interval.
const PENANCE: u32 = 10;

#[derive(Debug)]
pub(super) struct Plugins {
    directory: Option<PathBuf>,
    time: Duration,
    interval: Duration,
    known: BTreeMap<String, Known>,
}

/// What a plug-in said last, and when it is asked again.
#[derive(Debug)]
struct Known {
    outcome: Result<Value, String>,
    again: Instant,
}

impl Plugins {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            directory: config.plugins.clone(),
            time: Duration::from_millis(config.plugin_timeout_ms).min(LONGEST),
            interval: Duration::from_secs(config.plugin_interval_seconds),
            known: BTreeMap::new(),
        }
    }

    pub(super) fn collect(&mut self, notes: &mut Notes) -> Result<BTreeMap<String, Value>, Failure> {
        let Some(directory) = &self.directory else { return Ok(BTreeMap::new()) };
        let found = find(directory, notes)?;
        self.known.retain(|name, _| found.contains_key(name));
        let now = Instant::now();
        let (names, programs): (Vec<_>, Vec<_>) =
            found.into_iter().filter(|(name, _)| self.known.get(name).is_none_or(|known| known.again <= now)).unzip();
        for (name, outcome) in names.into_iter().zip(run_all(&programs, self.time)) {
            let again = now + if outcome.is_ok() { self.interval } else { self.interval * PENANCE };
            self.known.insert(name, Known { outcome, again });
        }
        let mut values = BTreeMap::new();
        let mut length = 0;
        for (name, known) in &self.known {
            match &known.outcome {
                Ok(value) => {
                    length += value.to_string().len();
                    if length > MAX_ALL {
                        let what = format!("left out: all plug-ins together wrote more than {MAX_ALL} bytes");
                        notes.say(Group::Plugins, Some(name), &what);
                    } else {
                        values.insert(name.clone(), value.clone());
                    }
                }
                Err(message) => notes.say(Group::Plugins, Some(name), message),
            }
        }
        Ok(values)
    }
}

/// The programs by name. Those that may not run are noted.
fn find(directory: &PathBuf, notes: &mut Notes) -> Result<BTreeMap<String, PathBuf>, Failure> {
    let failed = |source| Failure::Read { path: directory.clone(), source };
    let about = std::fs::metadata(directory).map_err(failed)?;
    if let Some(what) = objection(&about) {
        return Err(Failure::Other(format!("{}: {what}", directory.display())));
    }
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| is_name(name)) else { continue };
        // Of what a link leads to: that is what runs.
        let Ok(about) = std::fs::metadata(&path) else { continue };
        // A README is no error.
        if !about.is_file() || about.permissions().mode() & 0o111 == 0 {
            continue;
        }
        if let Some(what) = objection(&about) {
            notes.say(Group::Plugins, Some(name), what);
            continue;
        }
        found.insert(name.to_owned(), path);
        if found.len() > MAX_PLUGINS {
            found.pop_last();
            let what = format!("more than {MAX_PLUGINS} plug-ins: the last ones by name are left out");
            notes.say(Group::Plugins, None, &what);
        }
    }
    Ok(found)
}

/// Editors and package managers leave files with other characters behind.
fn is_name(name: &str) -> bool {
    let is_ordinary = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    name.len() <= MAX_NAME && !name.starts_with('.') && name.bytes().all(is_ordinary)
}

/// Why somebody else could put his own program there.
fn objection(about: &Metadata) -> Option<&'static str> {
    if about.uid() != 0 && about.uid() != rustix::process::geteuid().as_raw() {
        Some("owned by another user than root or the agent's")
    } else if about.permissions().mode() & 0o022 != 0 {
        Some("its group or others may write to it")
    } else {
        None
    }
}

/// What each says, in their order. They run at the same time.
fn run_all(programs: &[PathBuf], time: Duration) -> Vec<Result<Value, String>> {
    std::thread::scope(|scope| {
        let start = |program| {
            let thread = std::thread::Builder::new().name("plug-in".into()).stack_size(STACK);
            thread.spawn_scoped(scope, move || run(program, time))
        };
        let threads: Vec<_> = programs.iter().map(start).collect();
        let joined = threads.into_iter().map(|thread| match thread.map(|thread| thread.join()) {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err("its thread ended".to_owned()),
            Err(error) => Err(format!("not started: {error}")),
        });
        joined.collect()
    })
}

fn run(program: &PathBuf, time: Duration) -> Result<Value, String> {
    let cancel = Cancel::new().map_err(|error| format!("not started: {error}"))?;
    let program = Program::new([program]).time(time).grace(GRACE).output_limit(MAX_OUTPUT).leave_nothing();
    let finished = program.run(System::default().path(), &cancel).map_err(|error| chain(&error))?;
    if finished.ending != Ending::ByItself {
        return Err(format!("took longer than {} ms, and was killed", time.as_millis()));
    }
    if !finished.succeeded() {
        let said = String::from_utf8_lossy(finished.stderr.trim_ascii()).into_owned();
        return Err(format!("ended with {}: {said}", finished.status));
    }
    if finished.stdout_dropped > 0 {
        return Err(format!("wrote more than {MAX_OUTPUT} bytes"));
    }
    parse(&finished.stdout)
}

fn parse(output: &[u8]) -> Result<Value, String> {
    match parse_strict(output) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err("wrote JSON that is no object".to_owned()),
        Err(error) => Err(format!("wrote no JSON: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn write(directory: &Path, name: &str, script: &str, mode: u32) {
        let path = directory.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn plugins(directory: &Path, interval: u64) -> Plugins {
        Plugins::new(&Config {
            plugins: Some(directory.to_owned()),
            plugin_timeout_ms: 20_000,
            plugin_interval_seconds: interval,
            ..Config::default()
        })
    }

    fn directory() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        directory
    }

    #[test]
    fn each_says_its_own_and_one_that_fails_says_why() {
        let directory = directory();
        write(directory.path(), "queue", r#"echo '{"length": 3}'"#, 0o755);
        write(directory.path(), "list", "echo '[1]'", 0o755);
        write(directory.path(), "words", "echo hello", 0o755);
        write(directory.path(), "twice", r#"echo '{"a": 1, "a": 2}'"#, 0o755);
        write(directory.path(), "broken", "echo no such table >&2; exit 4", 0o755);
        write(directory.path(), "long", "head -c 20000 /dev/zero", 0o755);
        write(directory.path(), "loose", "echo '{}'", 0o757);
        write(directory.path(), "README", "echo '{}'", 0o644);
        write(directory.path(), "editor~", "echo '{}'", 0o755);
        let mut notes = Notes::default();
        let told = plugins(directory.path(), 30).collect(&mut notes).unwrap();
        assert_eq!(serde_json::to_string(&told).unwrap(), r#"{"queue":{"length":3}}"#);
        let errors: Vec<_> =
            notes.errors.iter().map(|it| (it.source.as_deref().unwrap(), it.message.as_str())).collect();
        assert_eq!(errors[0], ("loose", "its group or others may write to it"));
        assert_eq!(errors[1], ("broken", "ended with exit status: 4: no such table"));
        assert_eq!(errors[2], ("list", "wrote JSON that is no object"));
        assert_eq!(errors[3], ("long", "wrote more than 16384 bytes"));
        assert!(errors[4].0 == "twice" && errors[5].0 == "words" && errors.len() == 6, "{errors:?}");
    }

    /// The read end of a FIFO that a program's child holds open: its end of file tells when that is gone.
    fn fifo(directory: &Path) -> (PathBuf, fs::File) {
        use rustix::fs::{CWD, FileType, Mode, OFlags};
        let path = directory.join("fifo");
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let end = rustix::fs::open(&path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        rustix::io::ioctl_fionbio(&end, false).unwrap();
        (path, end.into())
    }

    #[test]
    fn one_that_takes_too_long_is_killed_with_its_children_and_the_others_are_there() {
        let directory = directory();
        let state = tempfile::tempdir().unwrap();
        let (path, mut end) = fifo(state.path());
        let slow = format!("trap '' TERM; sleep 1000 > {} & wait; wait", path.display());
        write(directory.path(), "slow", &slow, 0o755);
        write(directory.path(), "quick", "echo '{}'", 0o755);
        let mut plugins = Plugins { time: Duration::from_millis(500), ..plugins(directory.path(), 30) };
        let mut notes = Notes::default();
        let told = plugins.collect(&mut notes).unwrap();
        assert_eq!(told.keys().collect::<Vec<_>>(), ["quick"]);
        assert_eq!(notes.errors[0].message, "took longer than 500 ms, and was killed");
        assert_eq!(std::io::Read::read(&mut end, &mut [0; 8]).unwrap(), 0);
    }

    #[test]
    fn what_one_leaves_behind_is_killed_when_it_ends() {
        let directory = directory();
        let state = tempfile::tempdir().unwrap();
        let (path, mut end) = fifo(state.path());
        write(directory.path(), "leaves", &format!("echo '{{}}'; sleep 1000 > {} &", path.display()), 0o755);
        assert!(plugins(directory.path(), 30).collect(&mut Notes::default()).unwrap().contains_key("leaves"));
        assert_eq!(std::io::Read::read(&mut end, &mut [0; 8]).unwrap(), 0);
    }

    #[test]
    fn within_the_interval_what_it_said_stands_and_a_failure_stands_longer() {
        let directory = directory();
        let state = tempfile::tempdir().unwrap();
        let count = format!("echo x >> {}/count; echo \"{{\\\"n\\\": $(wc -l < {0}/count)}}\"", state.path().display());
        write(directory.path(), "count", &count, 0o755);
        write(directory.path(), "fails", &format!("echo x >> {}/fails; exit 1", state.path().display()), 0o755);
        let mut slow = plugins(directory.path(), 3600);
        for _ in 0..3 {
            let mut notes = Notes::default();
            assert_eq!(slow.collect(&mut notes).unwrap()["count"]["n"], 1);
            assert_eq!(notes.errors.len(), 1);
        }
        let mut eager = plugins(directory.path(), 0);
        for n in 2..5 {
            assert_eq!(eager.collect(&mut Notes::default()).unwrap()["count"]["n"], n);
        }
        assert_eq!(fs::read_to_string(state.path().join("fails")).unwrap().lines().count(), 4);
    }

    #[test]
    fn a_directory_that_others_may_write_to_runs_nothing() {
        let directory = directory();
        write(directory.path(), "queue", "echo '{}'", 0o755);
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let failure = plugins(directory.path(), 30).collect(&mut Notes::default()).unwrap_err();
        assert!(failure.to_string().ends_with("its group or others may write to it"));
        assert!(plugins(Path::new("/no/such/place"), 30).collect(&mut Notes::default()).is_err());
        assert!(Plugins::new(&Config::default()).collect(&mut Notes::default()).unwrap().is_empty());
    }

    #[test]
    fn there_are_limits_to_how_many_and_how_much() {
        let directory = directory();
        for n in 0..20 {
            let script = r#"printf '{"a": "%015000d"}' 1"#;
            write(directory.path(), &format!("p{n:02}"), script, 0o755);
        }
        let mut notes = Notes::default();
        let told = plugins(directory.path(), 30).collect(&mut notes).unwrap();
        assert!(told.contains_key("p00") && !told.contains_key("p16"), "{:?}", told.keys());
        let length: usize = told.values().map(|value| value.to_string().len()).sum();
        assert!(length <= MAX_ALL);
        assert!(notes.errors.iter().any(|it| it.source.as_deref() == Some("p15")));
    }
}
