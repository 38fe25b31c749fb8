//! Packages with the real apt and dpkg: a repository of packages that the test makes, and a system in a directory.
//! This machine's own packages are not touched.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use roost_guest_agent::platform::System;
use roost_guest_agent::run::Cancel;
use roost_guest_agent::safe::{self, Context};
use roost_guest_proto::{ErrorCode, Response, SafeCommand};
use serde_json::{Value, json};

struct Guest {
    directory: tempfile::TempDir,
    context: Context,
}

impl Guest {
    /// None where there is no apt, or no root to run dpkg as.
    fn new() -> Option<Self> {
        let there = ["apt-get", "dpkg-deb"].iter().all(|it| Path::new("/usr/bin").join(it).exists());
        if !there || !rustix::process::geteuid().is_root() {
            eprintln!("skipped: apt-get, dpkg-deb and root are needed");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        // apt fetches as a user of its own.
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let root = directory.path().join("root");
        for path in [
            "etc/apt/apt.conf.d",
            "etc/apt/preferences.d",
            "etc/apt/trusted.gpg.d",
            "var/lib/dpkg/info",
            "var/lib/dpkg/updates",
            "var/lib/apt/lists/partial",
            "var/cache/apt/archives/partial",
            "var/log/apt",
        ] {
            std::fs::create_dir_all(root.join(path)).unwrap();
        }
        std::fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
        let repository = directory.path().join("repository");
        std::fs::create_dir_all(&repository).unwrap();
        std::fs::write(
            root.join("etc/apt/sources.list"),
            format!("deb [trusted=yes] copy:{} ./\n", repository.display()),
        )
        .unwrap();
        let architecture = Command::new("dpkg").arg("--print-architecture").output().unwrap().stdout;
        let config = format!(
            "Dir \"{root}\";\nDir::State::status \"{root}/var/lib/dpkg/status\";\nDir::Bin::dpkg \"/usr/bin/dpkg\";\n\
             APT::Architecture \"{}\";\nDPkg::Options {{ \"--root={root}\"; \"--log=/dev/null\"; }};\nAPT::Sandbox::User \"root\";\n",
            String::from_utf8(architecture).unwrap().trim(),
            root = root.display(),
        );
        let config_file = directory.path().join("apt.conf");
        std::fs::write(&config_file, config).unwrap();
        let path = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
        let system = System::new(&root, path.into())
            .env("APT_CONFIG", config_file)
            .env("DPKG_ROOT", &root)
            .env("DPKG_ADMINDIR", root.join("var/lib/dpkg"));
        let context = Context::new(system, Cancel::new().unwrap(), Arc::default());
        Some(Self { directory, context })
    }

    /// A package whose one file says its version.
    fn publish(&self, name: &str, version: &str) {
        let repository = self.directory.path().join("repository");
        let tree = self.directory.path().join("tree");
        std::fs::create_dir_all(tree.join("DEBIAN")).unwrap();
        std::fs::create_dir_all(tree.join("opt")).unwrap();
        let control = format!(
            "Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: T <t@example.org>\nInstalled-Size: 3\n\
             Description: made for a test of {name}\n"
        );
        std::fs::write(tree.join("DEBIAN/control"), &control).unwrap();
        std::fs::write(tree.join("opt").join(name), version).unwrap();
        let file = format!("{name}_{version}_all.deb");
        let built = Command::new("dpkg-deb")
            .args(["--build", "--root-owner-group"])
            .arg(&tree)
            .arg(repository.join(&file))
            .output();
        let built = built.unwrap();
        assert!(built.status.success(), "{built:?}");
        std::fs::remove_dir_all(tree).unwrap();
        let sum = Command::new("sha256sum").arg(repository.join(&file)).output().unwrap().stdout;
        let sum = String::from_utf8(sum).unwrap();
        let size = std::fs::metadata(repository.join(&file)).unwrap().len();
        let mut packages = std::fs::read_to_string(repository.join("Packages")).unwrap_or_default();
        let sum = sum.split(' ').next().unwrap();
        write!(packages, "{control}Filename: ./{file}\nSize: {size}\nSHA256: {sum}\n\n").unwrap();
        std::fs::write(repository.join("Packages"), packages).unwrap();
    }

    fn run(&self, command_type: Value) -> Response {
        let command = SafeCommand { id: "1".to_owned(), command_type, params: None, timeout: Some(120) };
        safe::run(&command, &self.context)
    }

    fn data(&self, command_type: Value) -> Value {
        let response = self.run(command_type);
        assert!(response.success, "{:?}\n{}\n{}", response.error, response.stdout, response.stderr);
        response.data.unwrap()
    }

    fn installed_file(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.directory.path().join("root/opt").join(name)).ok()
    }
}

#[test]
fn installed_listed_updated_and_removed() {
    let Some(guest) = Guest::new() else { return };
    guest.publish("roost-hello", "1.0-1");
    guest.publish("roost-hello-extra", "1.0-1");
    // The lists were never fetched: an installation does it.
    let change = guest.data(json!({"action": "PackageInstall", "package": "roost-hello"}));
    assert_eq!(
        change,
        json!({"manager": "apt", "package": "roost-hello", "version": "1.0-1", "previous_version": null, "changed": true})
    );
    assert_eq!(guest.installed_file("roost-hello").as_deref(), Some("1.0-1"));
    let again = guest.data(json!({"action": "PackageInstall", "package": "roost-hello"}));
    assert_eq!((&again["changed"], &again["version"]), (&json!(false), &json!("1.0-1")));

    let list = guest.data(json!({"action": "PackageList"}));
    assert_eq!((&list["total"], &list["truncated"]), (&json!(1), &json!(false)));
    assert_eq!(
        list["packages"][0],
        json!({"name": "roost-hello", "version": "1.0-1", "architecture": "all", "size_bytes": 3072,
            "description": "made for a test of roost-hello", "installed": true})
    );
    let found = guest.data(json!({"action": "PackageSearch", "query": "roost-hello"}));
    let found: Vec<_> =
        found["packages"].as_array().unwrap().iter().map(|it| (it["name"].clone(), it["installed"].clone())).collect();
    assert_eq!(found, [(json!("roost-hello"), json!(true)), (json!("roost-hello-extra"), json!(false))]);

    guest.publish("roost-hello", "2.0-1");
    let change = guest.data(json!({"action": "PackageUpdate", "package": "roost-hello"}));
    assert_eq!((&change["previous_version"], &change["version"]), (&json!("1.0-1"), &json!("2.0-1")));
    let change = guest.data(json!({"action": "PackageInstall", "package": "roost-hello", "version": "1.0-1"}));
    assert_eq!((&change["version"], guest.installed_file("roost-hello").as_deref()), (&json!("1.0-1"), Some("1.0-1")));
    guest.data(json!({"action": "PackageUpdate"}));
    assert_eq!(guest.installed_file("roost-hello").as_deref(), Some("2.0-1"));

    let change = guest.data(json!({"action": "PackageRemove", "package": "roost-hello"}));
    assert_eq!((&change["version"], &change["previous_version"]), (&json!(null), &json!("2.0-1")));
    assert_eq!(guest.installed_file("roost-hello"), None);
    let again = guest.data(json!({"action": "PackageRemove", "package": "roost-hello"}));
    assert_eq!(again["changed"], false);
}

#[test]
fn a_version_that_came_after_the_lists_were_fetched() {
    let Some(guest) = Guest::new() else { return };
    guest.publish("roost-late", "1.0");
    guest.data(json!({"action": "PackageInstall", "package": "roost-late"}));
    guest.publish("roost-late", "3.0");
    let error =
        guest.run(json!({"action": "PackageInstall", "package": "roost-late", "version": "3.0", "refresh": false}));
    assert_eq!(error.error.unwrap().code, ErrorCode::CommandFailed);
    let change = guest.data(json!({"action": "PackageInstall", "package": "roost-late", "version": "3.0"}));
    assert_eq!(change["version"], "3.0");
}

#[test]
fn what_a_killed_dpkg_has_begun_is_finished_first() {
    let Some(guest) = Guest::new() else { return };
    guest.publish("roost-begun", "1.0");
    guest.publish("roost-next", "1.0");
    guest.data(json!({"action": "PackageInstall", "package": "roost-begun"}));
    // The journal of one that had unpacked it, and was killed then.
    let state = guest.directory.path().join("root/var/lib/dpkg");
    let status = std::fs::read_to_string(state.join("status")).unwrap();
    let journal = status.replace("Status: install ok installed", "Status: install ok unpacked");
    assert_ne!(journal, status);
    std::fs::write(state.join("updates/0000"), journal).unwrap();
    guest.data(json!({"action": "PackageInstall", "package": "roost-next"}));
    assert_eq!(guest.data(json!({"action": "PackageList"}))["total"], 2);
    assert_eq!(std::fs::read_dir(state.join("updates")).unwrap().count(), 0);
}

#[test]
fn what_there_is_not_says_so() {
    let Some(guest) = Guest::new() else { return };
    guest.publish("roost-hello", "1.0");
    let error = |command_type| guest.run(command_type).error.unwrap();
    // apt-get would take this for a regular expression that roost-hello matches.
    for name in ["roost.hello", "roost-hell", "roost-hello-extra"] {
        assert_eq!(error(json!({"action": "PackageInstall", "package": name})).code, ErrorCode::NotFound);
        assert_eq!(guest.installed_file("roost-hello"), None);
    }
    assert_eq!(error(json!({"action": "PackageUpdate", "package": "roost-hello"})).code, ErrorCode::NotFound);
    let missing = error(json!({"action": "PackageInstall", "package": "roost-hello", "version": "9"}));
    assert_eq!(missing.code, ErrorCode::CommandFailed);
    assert!(missing.message.contains("Version '9' for 'roost-hello' was not found"), "{missing}");
    // `name-` is apt's way to say: remove it.
    assert_eq!(error(json!({"action": "PackageInstall", "package": "roost-hello-"})).code, ErrorCode::InvalidMessage);
}

/// Whatever manager this guest has, for real. It changes the guest's packages, so it runs only where it is asked to:
/// `ROOST_TEST_PACKAGE=hello ROOST_TEST_VERSION=2.10-3 packages --ignored --nocapture`.
#[test]
#[ignore = "changes the packages of the system that it runs in (ROOST_TEST_PACKAGE)"]
fn a_real_package_manager() {
    let package =
        std::env::var("ROOST_TEST_PACKAGE").expect("ROOST_TEST_PACKAGE names a package that is not installed");
    let version = std::env::var("ROOST_TEST_VERSION").ok();
    let context = Context::new(System::default(), Cancel::new().unwrap(), Arc::default());
    let run = |command_type: Value| {
        let command = SafeCommand { id: "1".to_owned(), command_type, params: None, timeout: Some(600) };
        safe::run(&command, &context)
    };
    let data = |command_type: Value| {
        let response = run(command_type.clone());
        assert!(response.success, "{command_type}: {:?}\n{}\n{}", response.error, response.stdout, response.stderr);
        response.data.unwrap()
    };
    let has = |list: &Value| {
        let all = list["packages"].as_array().unwrap();
        all.iter().find(|it| it["name"] == package.as_str()).map(|it| it["installed"] == true)
    };
    let change = data(json!({"action": "PackageInstall", "package": package}));
    println!("{change}");
    assert!(
        change["changed"] == true && change["previous_version"].is_null() && !change["version"].is_null(),
        "{change}"
    );
    let list = data(json!({"action": "PackageList"}));
    assert_eq!(has(&list), Some(true), "{}", list["total"]);
    assert_eq!(has(&data(json!({"action": "PackageSearch", "query": package}))), Some(true));
    assert_eq!(data(json!({"action": "PackageInstall", "package": package}))["changed"], false);
    assert_eq!(data(json!({"action": "PackageUpdate", "package": package}))["changed"], false);
    assert_eq!(data(json!({"action": "PackageRemove", "package": package}))["changed"], true);
    assert_eq!(has(&data(json!({"action": "PackageSearch", "query": package}))), Some(false));
    if let Some(version) = version {
        let change = data(json!({"action": "PackageInstall", "package": package, "version": version}));
        println!("{change}");
        assert!(change["version"].as_str().unwrap().contains(&version), "{change}");
        data(json!({"action": "PackageRemove", "package": package}));
    }
    let error = run(json!({"action": "PackageInstall", "package": "roost-no-such-package"})).error.unwrap();
    assert_eq!(error.code, ErrorCode::NotFound, "{error}");
    let nothing = data(json!({"action": "PackageSearch", "query": "roost-no-such-package"}));
    assert_eq!(nothing["total"], 0);
}
