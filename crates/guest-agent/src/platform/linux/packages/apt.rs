//! apt-get, apt-cache and dpkg-query: the ones whose output is meant for programs.

use roost_guest_proto::results::Package;
use roost_guest_proto::{PackageName, PackageVersion, SearchQuery};

use super::{GRACE, MAX_OUTPUT, Manager, Ran, bare, spec, text};
use crate::platform::System;
use crate::run::{Finished, Program};
use crate::safe::{Context, Failure};

pub(super) struct Apt;

/// Questions are answered by the package, and a changed configuration file stays as it is. Another apt's lock is
/// waited for; how long is the command's time.
const GET: &[&str] = &[
    "apt-get",
    "--quiet",
    "--assume-yes",
    "--option=DPkg::Lock::Timeout=-1",
    "--option=Dpkg::Use-Pty=0",
    "--option=Dpkg::Options::=--force-confdef",
    "--option=Dpkg::Options::=--force-confold",
];

fn get(context: &Context, more: &[&str]) -> Program {
    unasked(context.system.program(GET.iter().chain(more)))
}

fn unasked(program: Program) -> Program {
    program
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("APT_LISTCHANGES_FRONTEND", "none")
        .env("NEEDRESTART_MODE", "l")
        .grace(GRACE)
}

/// Changes packages. A dpkg that was killed, by a time limit or with the machine, has left a journal; apt-get does nothing
/// while it is there, so what was begun is finished first.
fn change(context: &Context, more: &[&str]) -> Result<Finished, Failure> {
    if was_interrupted(&context.system) {
        let argv = ["dpkg", "--force-confdef", "--force-confold", "--configure", "--pending"];
        context.succeed(unasked(context.system.program(argv)))?;
    }
    context.succeed(get(context, more))
}

/// As apt itself finds out: a file whose name is a number.
fn was_interrupted(system: &System) -> bool {
    let journal = std::fs::read_dir(system.file("/var/lib/dpkg/updates")).into_iter().flatten().flatten();
    let mut names = journal.map(|entry| entry.file_name());
    names.any(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
}

impl Manager for Apt {
    fn name(&self) -> &'static str {
        "apt"
    }

    fn list(&self, context: &Context) -> Ran<Vec<Package>> {
        let format = "--showformat=${db:Status-Abbrev}\\t${Package}\\t${Version}\\t${Architecture}\\t${Installed-Size}\\t${binary:Summary}\\n";
        let argv = ["dpkg-query", "--show", format];
        let finished = context.succeed(context.system.program(argv).output_limit(MAX_OUTPUT))?;
        Ok((parse_list(&finished.stdout), Some(finished)))
    }

    fn search(&self, context: &Context, query: &SearchQuery) -> Ran<Vec<Package>> {
        // It takes a regular expression, in which these two of the query's letters mean something.
        let pattern = query.as_str().replace('.', "\\.").replace('+', "\\+");
        let argv = ["apt-cache", "search", "--", &pattern];
        let finished = context.succeed(context.system.program(argv).output_limit(MAX_OUTPUT))?;
        Ok((parse_search(&finished.stdout), Some(finished)))
    }

    fn installed(&self, context: &Context, package: &PackageName) -> Result<Option<String>, Failure> {
        let format = "--showformat=${db:Status-Abbrev}\\t${Version}\\n";
        let argv = ["dpkg-query", "--show", format, "--", package.as_str()];
        // It fails where dpkg has never heard of the package.
        Ok(parse_installed(&context.finish(context.system.program(argv))?.stdout))
    }

    fn knows(&self, context: &Context, package: &PackageName) -> Result<bool, Failure> {
        // apt-get takes a name that it does not know, and that has a dot, for a regular expression: this does not.
        let name = bare(package);
        let argv = ["apt-cache", "pkgnames", "--", name];
        let names = context.succeed(context.system.program(argv).output_limit(MAX_OUTPUT))?;
        Ok(names.stdout.split(|byte| *byte == b'\n').any(|line| line == name.as_bytes()))
    }

    fn refresh(&self, context: &Context) -> Result<Finished, Failure> {
        context.succeed(get(context, &["update"]))
    }

    fn install(
        &self,
        context: &Context,
        package: &PackageName,
        version: Option<&PackageVersion>,
    ) -> Result<Finished, Failure> {
        let spec = spec(package, '=', version);
        // Whoever names a version means it, though it be older.
        let downgrades = version.map(|_| "--allow-downgrades");
        let argv: Vec<_> = ["install"].into_iter().chain(downgrades).chain(["--", &spec]).collect();
        change(context, &argv)
    }

    fn is_stale(&self, failed: &Finished) -> bool {
        let said = String::from_utf8_lossy(&failed.stderr);
        ["was not found", "Failed to fetch", "has no installation candidate"].iter().any(|it| said.contains(it))
    }

    fn remove(&self, context: &Context, package: &PackageName) -> Result<Finished, Failure> {
        change(context, &["remove", "--", package.as_str()])
    }

    fn update(&self, context: &Context, package: Option<&PackageName>) -> Result<Finished, Failure> {
        match package {
            Some(package) => change(context, &["install", "--only-upgrade", "--", package.as_str()]),
            None => change(context, &["upgrade"]),
        }
    }
}

/// `ii ` is: wanted, and installed. What was removed but for its configuration is `rc `.
fn is_installed(status: &str) -> bool {
    status.as_bytes().get(1) == Some(&b'i')
}

fn parse_list(output: &[u8]) -> Vec<Package> {
    let output = String::from_utf8_lossy(output);
    let package = |line: &str| {
        let mut fields = line.splitn(6, '\t');
        let status = fields.next()?;
        let (name, version, architecture) = (fields.next()?, fields.next()?, fields.next()?);
        let size_kib: Option<u64> = fields.next()?.parse().ok();
        is_installed(status).then(|| Package {
            name: name.to_owned(),
            version: text(version),
            architecture: text(architecture),
            size_bytes: size_kib.and_then(|kib| kib.checked_mul(1024)),
            description: fields.next().unwrap_or_default().to_owned(),
            installed: true,
        })
    };
    output.lines().filter_map(package).collect()
}

fn parse_installed(output: &[u8]) -> Option<String> {
    let output = String::from_utf8_lossy(output);
    let versions = output.lines().filter_map(|line| line.split_once('\t'));
    versions.filter(|(status, _)| is_installed(status)).find_map(|(_, version)| text(version))
}

fn parse_search(output: &[u8]) -> Vec<Package> {
    let output = String::from_utf8_lossy(output);
    let lines = output.lines().filter_map(|line| line.split_once(" - "));
    lines
        .map(|(name, about)| Package { name: name.to_owned(), description: about.to_owned(), ..Package::default() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let packages = parse_list(
            b"ii \tgit\t1:2.39.5-0+deb12u2\tamd64\t45672\tfast, scalable, distributed\n\
              rc \told\t1\tall\t1\tgone\nhi \theld\t2\tall\t\tno size\nbroken line\n",
        );
        assert_eq!(packages.len(), 2);
        assert_eq!(packages[0].version.as_deref(), Some("1:2.39.5-0+deb12u2"));
        assert_eq!((packages[0].size_bytes, packages[1].size_bytes), (Some(45672 * 1024), None));
        assert_eq!(parse_installed(b"rc \t1\nii \t2\n").as_deref(), Some("2"));
        assert_eq!(parse_installed(b""), None);
        let found = parse_search(b"git - fast - scalable\nno separator\n");
        assert_eq!((found.len(), found[0].description.as_str()), (1, "fast - scalable"));
    }
}
