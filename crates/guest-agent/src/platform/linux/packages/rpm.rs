//! What rpm itself tells: for dnf and zypper alike.

use roost_guest_proto::PackageName;
use roost_guest_proto::results::Package;

use super::{MAX_OUTPUT, Ran, text};
use crate::safe::{Context, Failure};

pub(super) fn list(context: &Context) -> Ran<Vec<Package>> {
    let format = "%{NAME}\\t%{EVR}\\t%{ARCH}\\t%{SIZE}\\t%{SUMMARY}\\n";
    let argv = ["rpm", "--query", "--all", "--queryformat", format];
    let finished = context.succeed(context.system.program(argv).output_limit(MAX_OUTPUT))?;
    Ok((parse(&finished.stdout, true), Some(finished)))
}

pub(super) fn installed(context: &Context, package: &PackageName) -> Result<Option<String>, Failure> {
    let argv = ["rpm", "--query", "--queryformat", "%{EVR}\\n", "--", package.as_str()];
    let finished = context.finish(context.system.program(argv))?;
    if !finished.succeeded() {
        return Ok(None);
    }
    Ok(String::from_utf8_lossy(&finished.stdout).lines().next().and_then(text))
}

/// Name, version, architecture, size and summary, with tabs between.
pub(super) fn parse(output: &[u8], installed: bool) -> Vec<Package> {
    let output = String::from_utf8_lossy(output);
    let package = |line: &str| {
        let mut fields = line.splitn(5, '\t');
        let (name, version, architecture) = (fields.next()?, fields.next()?, fields.next()?);
        // A key that signs packages is in the list, and is none.
        (name != "gpg-pubkey" && !name.is_empty()).then(|| Package {
            name: name.to_owned(),
            version: text(version),
            architecture: text(architecture),
            size_bytes: fields.next().and_then(|size| size.parse().ok()),
            description: fields.next().unwrap_or_default().to_owned(),
            installed,
        })
    };
    output.lines().filter_map(package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list() {
        let packages = parse(
            b"bash\t5.2.26-3.fc40\tx86_64\t8284104\tThe GNU Bourne Again shell\n\
              gpg-pubkey\ta15b79cc-63d04c2c\t(none)\t0\tFedora\n\nvim\t2:9.1-1\tx86_64\t1\tx\n",
            true,
        );
        assert_eq!(packages.len(), 2);
        assert_eq!(packages[1].version.as_deref(), Some("2:9.1-1"));
        assert_eq!(packages[0].size_bytes, Some(8_284_104));
    }
}
