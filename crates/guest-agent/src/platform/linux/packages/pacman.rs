//! pacman, of Arch. Its sources have one version of a package: the newest.

use roost_guest_proto::results::Package;
use roost_guest_proto::{PackageName, PackageVersion, SearchQuery};

use super::{GRACE, MAX_OUTPUT, Manager, Ran, bare, text};
use crate::run::{Finished, Program};
use crate::safe::{Context, Failure, check_success, not_supported};

pub(super) struct Pacman;

fn pacman(context: &Context, operation: &str, more: &[&str]) -> Program {
    let argv = ["pacman", operation, "--noconfirm", "--color=never"];
    context.system.program(argv.iter().chain(more)).grace(GRACE)
}

impl Manager for Pacman {
    fn name(&self) -> &'static str {
        "pacman"
    }

    fn list(&self, context: &Context) -> Ran<Vec<Package>> {
        let finished = context.finish(pacman(context, "-Qi", &[]).output_limit(MAX_OUTPUT))?;
        // Where nothing at all is installed it fails, and says nothing.
        let nothing = finished.stdout.is_empty() && finished.stderr.is_empty();
        let finished = if nothing { finished } else { check_success(finished)? };
        Ok((parse_info(&finished.stdout), Some(finished)))
    }

    fn search(&self, context: &Context, query: &SearchQuery) -> Ran<Vec<Package>> {
        // It fails where it finds nothing.
        let finished = context.finish(pacman(context, "-Ss", &["--", query.as_str()]).output_limit(MAX_OUTPUT))?;
        Ok((parse_search(&finished.stdout), Some(finished)))
    }

    fn installed(&self, context: &Context, package: &PackageName) -> Result<Option<String>, Failure> {
        let finished = context.finish(pacman(context, "-Q", &["--", bare(package)]))?;
        Ok(String::from_utf8_lossy(&finished.stdout).split_whitespace().nth(1).and_then(text))
    }

    fn knows(&self, context: &Context, package: &PackageName) -> Result<bool, Failure> {
        Ok(context.finish(pacman(context, "-Si", &["--", bare(package)]))?.succeeded())
    }

    fn refresh(&self, context: &Context) -> Result<Finished, Failure> {
        context.succeed(pacman(context, "-Sy", &[]))
    }

    fn install(
        &self,
        context: &Context,
        package: &PackageName,
        version: Option<&PackageVersion>,
    ) -> Result<Finished, Failure> {
        if version.is_some() {
            return Err(not_supported("version: pacman's sources have the newest version only; leave it out"));
        }
        context.succeed(pacman(context, "-S", &["--needed", "--", bare(package)]))
    }

    fn is_stale(&self, failed: &Finished) -> bool {
        let said = String::from_utf8_lossy(&failed.stderr);
        ["failed retrieving file", "404"].iter().any(|it| said.contains(it))
    }

    fn remove(&self, context: &Context, package: &PackageName) -> Result<Finished, Failure> {
        context.succeed(pacman(context, "-R", &["--", bare(package)]))
    }

    fn update(&self, context: &Context, package: Option<&PackageName>) -> Result<Finished, Failure> {
        context.succeed(match package {
            Some(package) => pacman(context, "-S", &["--needed", "--", bare(package)]),
            None => pacman(context, "-Su", &[]),
        })
    }
}

/// `Name            : git`, and an empty line behind each package.
fn parse_info(output: &[u8]) -> Vec<Package> {
    let output = String::from_utf8_lossy(output);
    let mut packages = Vec::new();
    for block in output.split("\n\n") {
        let mut package = Package { installed: true, ..Package::default() };
        for (key, value) in block.lines().filter_map(|line| line.split_once(" : ")) {
            match key.trim() {
                "Name" => package.name = value.trim().to_owned(),
                "Version" => package.version = text(value.trim()),
                "Architecture" => package.architecture = text(value.trim()),
                "Description" => package.description = value.trim().to_owned(),
                "Installed Size" => package.size_bytes = size(value),
                _ => {}
            }
        }
        if !package.name.is_empty() {
            packages.push(package);
        }
    }
    packages
}

/// `12.50 MiB`
fn size(text: &str) -> Option<u64> {
    let (number, unit) = text.trim().split_once(' ')?;
    let unit = match unit {
        "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let bytes = number.parse::<f64>().ok()? * unit;
    (0.0..1e18).contains(&bytes).then_some(bytes as u64)
}

/// `core/git 2.43.0-1 (group) [installed]`, and the description on the next line, indented.
fn parse_search(output: &[u8]) -> Vec<Package> {
    let output = String::from_utf8_lossy(output);
    let mut packages: Vec<Package> = Vec::new();
    for line in output.lines() {
        if line.starts_with(char::is_whitespace) {
            if let Some(package) = packages.last_mut() {
                package.description = line.trim().to_owned();
            }
            continue;
        }
        let mut words = line.split_whitespace();
        let Some((_, name)) = words.next().and_then(|word| word.split_once('/')) else { continue };
        let version = words.next().and_then(text);
        packages.push(Package { name: name.to_owned(), version, ..Package::default() });
    }
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let packages = parse_info(
            b"Name            : git\nVersion         : 2.43.0-1\nDescription     : the fast : one\nArchitecture    : x86_64\n\
              Depends On      : curl  expat\n                  perl\nInstalled Size  : 42.50 KiB\n\nName            : b\n\n\n",
        );
        assert_eq!(packages.len(), 2);
        assert_eq!((packages[0].size_bytes, packages[0].description.as_str()), (Some(43520), "the fast : one"));
        let found =
            parse_search(b"core/git 2.43.0-1 [installed: 2.42]\n    the fast one\nextra/tig 2.5-1\n    text\nx\n");
        let found: Vec<_> = found.iter().map(|it| (it.name.as_str(), it.description.as_str())).collect();
        assert_eq!(found, [("git", "the fast one"), ("tig", "text")]);
    }

    #[test]
    fn sizes() {
        assert_eq!((size("1.00 MiB"), size("-1 B"), size("x"), size("NaN B")), (Some(1 << 20), None, None, None));
    }
}
