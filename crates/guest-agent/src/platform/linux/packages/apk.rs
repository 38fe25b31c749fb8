//! apk, of Alpine. What is installed is read from its database (apk-tools' `doc/apk-v2.5.scd`): one letter, a colon
//! and a value on each line, and an empty line behind each package.

use std::io::Read;
use std::path::PathBuf;

use roost_guest_proto::results::Package;
use roost_guest_proto::{ErrorCode, PackageName, PackageVersion, SearchQuery};

use super::{GRACE, MAX_OUTPUT, Manager, Ran, bare, spec, text};
use crate::platform::System;
use crate::run::{Finished, Program};
use crate::safe::{Context, Failure};

pub(super) struct Apk;

/// The most that is read of it. It names every file of every package.
const MAX_DATABASE: u64 = 64 << 20;

/// The older and the newer place.
pub(super) fn database(system: &System) -> Option<PathBuf> {
    let places = ["/lib/apk/db/installed", "/usr/lib/apk/db/installed"];
    places.into_iter().map(|path| system.file(path)).find(|path| path.is_file())
}

fn apk(context: &Context, more: &[&str]) -> Program {
    context.system.program(["apk", "--no-progress"].iter().chain(more)).grace(GRACE)
}

fn installed(system: &System) -> Result<Vec<Package>, Failure> {
    let failure = |error: std::io::Error| Failure::new(ErrorCode::CommandFailed, format!("apk's database: {error}"));
    let Some(path) = database(system) else { return Ok(Vec::new()) };
    let file = std::fs::File::open(path).map_err(failure)?;
    let mut packages = Parser::default();
    // Line by line: most of it is names of files, which are not kept.
    let mut reader = std::io::BufReader::new(file.take(MAX_DATABASE));
    let mut line = Vec::new();
    while std::io::BufRead::read_until(&mut reader.by_ref().take(64 * 1024), b'\n', &mut line).map_err(failure)? > 0 {
        packages.line(&line);
        line.clear();
    }
    Ok(packages.finish())
}

impl Manager for Apk {
    fn name(&self) -> &'static str {
        "apk"
    }

    fn list(&self, context: &Context) -> Ran<Vec<Package>> {
        Ok((installed(&context.system)?, None))
    }

    fn search(&self, context: &Context, query: &SearchQuery) -> Ran<Vec<Package>> {
        let program = apk(context, &["search", "--verbose", "--", query.as_str()]);
        let finished = context.succeed(program.output_limit(MAX_OUTPUT))?;
        Ok((parse_search(&finished.stdout), Some(finished)))
    }

    fn installed(&self, context: &Context, package: &PackageName) -> Result<Option<String>, Failure> {
        let found = installed(&context.system)?.into_iter().find(|it| it.name == bare(package));
        Ok(found.and_then(|it| it.version))
    }

    fn knows(&self, context: &Context, package: &PackageName) -> Result<bool, Failure> {
        let found = context.succeed(apk(context, &["search", "--exact", "--", bare(package)]))?;
        Ok(found.stdout.split(|byte| *byte == b'\n').any(|line| !line.is_empty()))
    }

    fn refresh(&self, context: &Context) -> Result<Finished, Failure> {
        context.succeed(apk(context, &["update"]))
    }

    fn install(
        &self,
        context: &Context,
        package: &PackageName,
        version: Option<&PackageVersion>,
    ) -> Result<Finished, Failure> {
        context.succeed(apk(context, &["add", "--", &spec(package, '=', version)]))
    }

    fn is_stale(&self, failed: &Finished) -> bool {
        let said = [failed.stdout.as_slice(), &failed.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        ["breaks: world", "package mentioned in index not found"].iter().any(|it| said.contains(it))
    }

    fn remove(&self, context: &Context, package: &PackageName) -> Result<Finished, Failure> {
        context.succeed(apk(context, &["del", "--", package.as_str()]))
    }

    fn update(&self, context: &Context, package: Option<&PackageName>) -> Result<Finished, Failure> {
        context.succeed(match package {
            Some(package) => apk(context, &["upgrade", "--", package.as_str()]),
            None => apk(context, &["upgrade"]),
        })
    }
}

#[derive(Default)]
struct Parser {
    packages: Vec<Package>,
    package: Package,
}

impl Parser {
    fn line(&mut self, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end_matches('\n');
        if line.is_empty() {
            self.end();
        }
        let Some((key, value)) = line.split_once(':') else { return };
        match key {
            "P" => self.package.name = value.to_owned(),
            "V" => self.package.version = text(value),
            "A" => self.package.architecture = text(value),
            "I" => self.package.size_bytes = value.parse().ok(),
            "T" => self.package.description = value.to_owned(),
            _ => {}
        }
    }

    fn end(&mut self) {
        let package = std::mem::take(&mut self.package);
        if !package.name.is_empty() {
            self.packages.push(Package { installed: true, ..package });
        }
    }

    fn finish(mut self) -> Vec<Package> {
        self.end();
        self.packages
    }
}

/// `git-2.43.0-r0 - Distributed version control system`: the version is from the last dash but one.
fn parse_search(output: &[u8]) -> Vec<Package> {
    let output = String::from_utf8_lossy(output);
    let package = |line: &str| {
        let (full, description) = line.split_once(" - ").unwrap_or((line, ""));
        let release = full.rfind('-')?;
        let version = full[..release].rfind('-')?;
        Some(Package {
            name: text(&full[..version])?,
            version: text(&full[version + 1..]),
            description: description.trim().to_owned(),
            ..Package::default()
        })
    };
    output.lines().filter_map(package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database() {
        let root = tempfile::tempdir().unwrap();
        let system = System::new(root.path(), Vec::new());
        assert!(database(&system).is_none());
        std::fs::create_dir_all(root.path().join("lib/apk/db")).unwrap();
        let text =
            b"C:Q1abc=\nP:musl\nV:1.2.5-r0\nA:x86_64\nI:622592\nT:the musl c library\nF:lib\nR:ld-musl-x86_64.so.1\n\n\
            P:git\nV:2.43.0-r0\nT:a: b\n\nV:1\n\n";
        std::fs::write(root.path().join("lib/apk/db/installed"), text).unwrap();
        let packages = installed(&system).unwrap();
        assert_eq!(packages.len(), 2);
        assert_eq!((packages[0].name.as_str(), packages[0].size_bytes), ("musl", Some(622_592)));
        assert_eq!((packages[1].version.as_deref(), packages[1].description.as_str()), (Some("2.43.0-r0"), "a: b"));
    }

    #[test]
    fn a_search() {
        let found = parse_search(b"git-doc-2.43.0-r0 - Distributed (documentation)\nlibx-1-r3\nx\n");
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].name.as_str(), found[0].version.as_deref()), ("git-doc", Some("2.43.0-r0")));
        assert_eq!(found[1].name, "libx");
    }
}
