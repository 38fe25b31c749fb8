//! dnf, in its versions 4 and 5, and the yum that came before.

use roost_guest_proto::results::Package;
use roost_guest_proto::{PackageName, PackageVersion, SearchQuery};

use super::{GRACE, MAX_OUTPUT, Manager, Ran, bare, rpm, spec};
use crate::platform::System;
use crate::run::{Finished, Program};
use crate::safe::{Context, Failure};

pub(super) struct Dnf;

pub(super) fn program(system: &System) -> Option<&'static str> {
    ["dnf", "dnf5", "yum"].into_iter().find(|program| system.has(program))
}

/// Not all of its versions know `--`; no name begins with a dash.
fn dnf(context: &Context, more: &[&str]) -> Program {
    let argv = [program(&context.system).unwrap_or("dnf"), "--assumeyes"];
    context.system.program(argv.iter().chain(more)).grace(GRACE)
}

fn query(context: &Context, pattern: &str) -> Result<Finished, Failure> {
    let format = "--queryformat=%{name}\\t%{evr}\\t%{arch}\\t%{installsize}\\t%{summary}\\n";
    let program = dnf(context, &["--quiet", "repoquery", "--latest-limit=1", format, pattern]);
    context.succeed(program.output_limit(MAX_OUTPUT))
}

impl Manager for Dnf {
    fn name(&self) -> &'static str {
        "dnf"
    }

    fn list(&self, context: &Context) -> Ran<Vec<Package>> {
        rpm::list(context)
    }

    fn search(&self, context: &Context, search: &SearchQuery) -> Ran<Vec<Package>> {
        let finished = query(context, &format!("*{search}*"))?;
        Ok((rpm::parse(&finished.stdout, false), Some(finished)))
    }

    fn installed(&self, context: &Context, package: &PackageName) -> Result<Option<String>, Failure> {
        rpm::installed(context, package)
    }

    fn knows(&self, context: &Context, package: &PackageName) -> Result<bool, Failure> {
        let found = rpm::parse(&query(context, bare(package))?.stdout, false);
        Ok(found.iter().any(|it| it.name == bare(package)))
    }

    fn refresh(&self, context: &Context) -> Result<Finished, Failure> {
        context.succeed(dnf(context, &["makecache"]))
    }

    fn install(
        &self,
        context: &Context,
        package: &PackageName,
        version: Option<&PackageVersion>,
    ) -> Result<Finished, Failure> {
        context.succeed(dnf(context, &["install", &spec(package, '-', version)]))
    }

    fn is_stale(&self, failed: &Finished) -> bool {
        let said = String::from_utf8_lossy(&failed.stderr);
        ["Unable to find a match", "No match for argument", "Status code: 404"].iter().any(|it| said.contains(it))
    }

    fn remove(&self, context: &Context, package: &PackageName) -> Result<Finished, Failure> {
        context.succeed(dnf(context, &["remove", package.as_str()]))
    }

    fn update(&self, context: &Context, package: Option<&PackageName>) -> Result<Finished, Failure> {
        let upgrade = ["upgrade"].into_iter().chain(package.map(PackageName::as_str));
        context.succeed(dnf(context, &upgrade.collect::<Vec<_>>()))
    }
}
