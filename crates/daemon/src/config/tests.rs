use super::*;

fn sources(env: &[(&str, &str)], flags: &[(&str, &str)]) -> Sources {
    let pairs =
        |rows: &[(&str, &str)]| rows.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Vec<_>>();
    let mut env: BTreeMap<_, _> = pairs(env).into_iter().collect();
    env.entry("HOME".to_owned()).or_insert_with(|| "/nonexistent-home".to_owned());
    Sources { flags: pairs(flags), env, file: None, root: false }
}

#[test]
fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, "backend = \"sim\"\nreconcile_period_seconds = 7\n[qemu]\nbinary = \"/f/qemu\"\n").unwrap();
    let mut s = sources(&[("ROOST_QEMU_BINARY", "/e/qemu")], &[("reconcile_period_seconds", "9")]);
    s.file = Some(file);
    let (config, _) = Config::load(&s).unwrap();
    assert_eq!(config.backend.as_str(), "sim");
    assert_eq!(config.qemu.binary, Path::new("/e/qemu"));
    assert_eq!(config.reconcile_period, Duration::from_secs(9));
    assert_eq!(config.log_format, LogFormat::Text);
}

#[test]
fn the_older_names_are_aliases_and_ours_win() {
    let env =
        [("VMCP_BACKEND", "sim"), ("VMCP_QEMU_KVM", "false"), ("VMCP_QEMU_BINARY", "/a"), ("ROOST_QEMU_BINARY", "/b")];
    let (config, _) = Config::load(&sources(&env, &[])).unwrap();
    assert_eq!(config.backend.as_str(), "sim");
    assert_eq!(config.qemu.accelerator, Accelerator::Tcg);
    assert_eq!(config.qemu.binary, Path::new("/b"));
}

#[test]
fn a_bad_value_names_its_key_and_its_source() {
    for (name, value, key) in [
        ("VMCP_QEMU_KVM", "maybe", "qemu.accelerator"),
        ("ROOST_LOG_FORMAT", "xml", "log.format"),
        ("ROOST_RECONCILE_PERIOD_SECONDS", "0", "reconcile_period_seconds"),
        ("ROOST_BACKEND", "QEMU!", "backend"),
        ("ROOST_BACKEND", "xen", "backend"),
        ("ROOST_LOG_LEVEL", "warning", "log.level"),
    ] {
        let message = Config::load(&sources(&[(name, value)], &[])).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains(key) && message.contains(value), "{message}");
    }
}

#[test]
fn an_unknown_key_names_the_nearest() {
    let message = Config::load(&sources(&[], &[("qemu.binery", "x")])).unwrap_err().to_string();
    assert!(message.contains("did you mean \"qemu.binary\"?"), "{message}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, "[log]\nfromat = \"json\"\n").unwrap();
    let mut s = sources(&[], &[]);
    s.file = Some(file);
    assert!(Config::load(&s).unwrap_err().to_string().contains("log.format"));
}

#[test]
fn directories_follow_the_user_and_the_state_directory() {
    // What logind removes at the end of a session is no place for what outlives it.
    let (config, _) = Config::load(&sources(&[("HOME", "/home/u"), ("XDG_RUNTIME_DIR", "/run/user/7")], &[])).unwrap();
    assert_eq!(config.state_dir, Path::new("/home/u/.local/state/roost"));
    assert_eq!(config.socket, Path::new("/home/u/.local/state/roost/run/api.sock"));
    let (config, _) = Config::load(&sources(&[], &[("state_dir", "/s")])).unwrap();
    assert_eq!(config.socket, Path::new("/s/run/api.sock"));
    let root = Sources { root: true, ..sources(&[], &[]) };
    assert_eq!(Config::load(&root).unwrap().0.socket, Path::new("/run/roost/api.sock"));
}

#[test]
fn a_path_in_a_file_is_absolute() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    for key in ["state_dir", "runtime_dir", "socket"] {
        std::fs::write(&file, format!("{key} = \"here\"\n")).unwrap();
        let s = Sources { file: Some(file.clone()), ..sources(&[("ROOST_CONFIG", "")], &[]) };
        let message = Config::load(&s).unwrap_err().to_string();
        assert!(message.contains(&format!("{key} = \"here\": permitted: an absolute path")), "{message}");
    }
    assert!(Config::load(&sources(&[], &[("socket", "")])).is_err());
    assert!(Config::load(&sources(&[("ROOST_CONFIG", "")], &[("socket", "here")])).unwrap().0.socket.is_absolute());
}

#[test]
fn what_is_shown_is_every_setting_with_its_origin() {
    let (config, shown) = Config::load(&sources(&[], &[("state_dir", "/s")])).unwrap();
    let rows: BTreeMap<_, _> = shown.rows().map(|(key, value, origin)| (key, (value, origin.to_string()))).collect();
    for key in KEYS {
        assert!(rows.get(key.name).is_some_and(|(value, _)| !value.is_empty()), "{} is missing", key.name);
    }
    assert_eq!(rows["state_dir"], ("/s", "command line".to_owned()));
    assert_eq!(rows["socket"], ("/s/run/api.sock", "default".to_owned()));
    assert_eq!(config.socket, Path::new(rows["socket"].0));
}
