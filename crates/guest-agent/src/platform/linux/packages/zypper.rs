//! zypper.

use roost_guest_proto::results::Package;
use roost_guest_proto::{PackageName, PackageVersion, SearchQuery};

use super::{GRACE, MAX_OUTPUT, Manager, Ran, bare, rpm, spec};
use crate::run::{Ending, Finished, Program};
use crate::safe::{Context, Failure, check_success};

pub(super) struct Zypper;

/// zypper(8), EXIT CODES: nothing was found.
const NOTHING_FOUND: i32 = 104;
/// It worked, and there are updates (100, 101), or a reboot (102) or a restart of zypper (103) is asked for.
const WORKED: std::ops::RangeInclusive<i32> = 100..=103;

fn zypper(context: &Context, more: &[&str]) -> Program {
    context.system.program(["zypper", "--non-interactive"].iter().chain(more)).grace(GRACE)
}

fn worked(finished: Finished) -> Result<Finished, Failure> {
    match finished.exit_code() {
        Some(code) if finished.ending == Ending::ByItself && WORKED.contains(&code) => Ok(finished),
        _ => check_success(finished),
    }
}

fn search(context: &Context, more: &[&str]) -> Result<Finished, Failure> {
    let argv = [&["--quiet", "--no-refresh", "search", "--type=package"], more].concat();
    let finished = context.finish(zypper(context, &argv).output_limit(MAX_OUTPUT))?;
    if finished.exit_code() == Some(NOTHING_FOUND) { Ok(finished) } else { worked(finished) }
}

impl Manager for Zypper {
    fn name(&self) -> &'static str {
        "zypper"
    }

    fn list(&self, context: &Context) -> Ran<Vec<Package>> {
        rpm::list(context)
    }

    fn search(&self, context: &Context, query: &SearchQuery) -> Ran<Vec<Package>> {
        let finished = search(context, &["--", query.as_str()])?;
        Ok((parse_search(&finished.stdout), Some(finished)))
    }

    fn installed(&self, context: &Context, package: &PackageName) -> Result<Option<String>, Failure> {
        rpm::installed(context, package)
    }

    fn knows(&self, context: &Context, package: &PackageName) -> Result<bool, Failure> {
        let name = bare(package);
        let found = parse_search(&search(context, &["--match-exact", "--", name])?.stdout);
        Ok(found.iter().any(|it| it.name == name))
    }

    fn refresh(&self, context: &Context) -> Result<Finished, Failure> {
        worked(context.finish(zypper(context, &["refresh"]))?)
    }

    fn install(
        &self,
        context: &Context,
        package: &PackageName,
        version: Option<&PackageVersion>,
    ) -> Result<Finished, Failure> {
        let spec = spec(package, '=', version);
        let older = version.map(|_| "--oldpackage");
        let argv = ["install", "--auto-agree-with-licenses"].into_iter().chain(older).chain(["--", &spec]);
        worked(context.finish(zypper(context, &argv.collect::<Vec<_>>()))?)
    }

    fn is_stale(&self, failed: &Finished) -> bool {
        // It refreshes by itself; what it does not find then is not there.
        failed.exit_code() == Some(NOTHING_FOUND)
    }

    fn remove(&self, context: &Context, package: &PackageName) -> Result<Finished, Failure> {
        worked(context.finish(zypper(context, &["remove", "--", package.as_str()]))?)
    }

    fn update(&self, context: &Context, package: Option<&PackageName>) -> Result<Finished, Failure> {
        let update = match package {
            Some(package) => vec!["update", "--", package.as_str()],
            None => vec!["update"],
        };
        worked(context.finish(zypper(context, &update))?)
    }
}

/// `i+ | bash | The GNU Shell | package`, below a header and a rule.
fn parse_search(output: &[u8]) -> Vec<Package> {
    let output = String::from_utf8_lossy(output);
    let package = |line: &str| {
        let columns: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, name, summary, "package"] = columns[..] else { return None };
        Some(Package { name: name.to_owned(), description: summary.to_owned(), ..Package::default() })
    };
    output.lines().filter_map(package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search() {
        let found = parse_search(
            b"\nS  | Name      | Summary                 | Type\n---+-----------+-------------------------+--------\n\
              i+ | git       | Fast, scalable revision | package\n   | git-core  | Core git tools          | package\n\
              x | y\n",
        );
        let found: Vec<_> = found.iter().map(|it| (it.name.as_str(), it.description.as_str())).collect();
        assert_eq!(found, [("git", "Fast, scalable revision"), ("git-core", "Core git tools")]);
    }
}
