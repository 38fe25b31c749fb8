//! What system this is, since when, and its load: `/etc/os-release`, uname, `/proc/uptime`, `/proc/loadavg`.

use roost_guest_proto::metrics::{HostInfo, LoadAverage, OsMetrics};

use super::files::Files;
use super::text::{decimal, fields, lines, printable};
use crate::metrics::Failure;

const MAX_OS_RELEASE: usize = 64 * 1024;
const MAX_LINE_FILE: usize = 4096;
/// One processor's paragraph; the others' say the same.
const MAX_CPUINFO: usize = 4096;
/// Of a name that is shown.
const MAX_NAME: usize = 128;

pub(super) fn collect(files: &mut Files) -> Result<OsMetrics, Failure> {
    let uptime = files.read("proc/uptime", MAX_LINE_FILE)?;
    let uptime_seconds = fields(uptime)
        .next()
        .and_then(decimal)
        .ok_or(Failure::Content { path: "proc/uptime", what: "no number of seconds" })? as u64;
    let load_average = parse_load(files.read("proc/loadavg", MAX_LINE_FILE)?);
    let uname = rustix::system::uname();
    let (name, os_version) = match os_release(files)? {
        Some(text) => parse_os_release(text),
        None => (None, None),
    };
    Ok(OsMetrics {
        uptime_seconds,
        name: name.unwrap_or_else(|| "Linux".to_owned()),
        os_version: os_version.unwrap_or_default(),
        kernel_version: printable(uname.release().to_bytes(), MAX_NAME),
        hostname: printable(uname.nodename().to_bytes(), MAX_NAME),
        load_average,
    })
}

/// What stays as it is until the next boot, or migration.
pub(super) fn host(files: &mut Files, service_manager: Option<&str>) -> Result<HostInfo, Failure> {
    let boot_id = files.read_if_there("proc/sys/kernel/random/boot_id", MAX_LINE_FILE)?;
    let boot_id = boot_id.and_then(|text| lines(text).next()).map(|line| printable(line, MAX_NAME));
    let online = files.read_if_there("sys/devices/system/cpu/online", MAX_LINE_FILE)?;
    let cpu_count = online.and_then(parse_list_of_processors);
    let cpu_model = parse_cpu_model(files.read_if_there("proc/cpuinfo", MAX_CPUINFO)?.unwrap_or_default());
    Ok(HostInfo {
        architecture: printable(rustix::system::uname().machine().to_bytes(), MAX_NAME),
        cpu_model,
        cpu_count: cpu_count.unwrap_or(1),
        boot_id,
        service_manager: service_manager.map(str::to_owned),
    })
}

fn os_release(files: &mut Files) -> Result<Option<&[u8]>, Failure> {
    // Twice, because a borrow that is returned on one path lasts on the other too.
    if files.read_if_there("etc/os-release", MAX_OS_RELEASE)?.is_some() {
        return files.read_if_there("etc/os-release", MAX_OS_RELEASE);
    }
    files.read_if_there("usr/lib/os-release", MAX_OS_RELEASE)
}

/// `NAME` and `VERSION_ID`, as os-release(5) has them: assignments of a shell, quoted or not.
fn parse_os_release(text: &[u8]) -> (Option<String>, Option<String>) {
    let (mut name, mut version) = (None, None);
    for line in lines(text) {
        let Some(equals) = memchr::memchr(b'=', line) else { continue };
        match line[..equals].trim_ascii() {
            b"NAME" => name = Some(unquoted(&line[equals + 1..])),
            b"VERSION_ID" => version = Some(unquoted(&line[equals + 1..])),
            _ => {}
        }
    }
    (name.filter(|name| !name.is_empty()), version)
}

fn unquoted(value: &[u8]) -> String {
    let value = value.trim_ascii();
    let inner = match value {
        [b'"', inner @ .., b'"'] => inner,
        [b'\'', inner @ .., b'\''] => return printable(inner, MAX_NAME),
        _ => value,
    };
    let mut plain = Vec::with_capacity(inner.len().min(MAX_NAME));
    let mut bytes = inner.iter().copied();
    while let Some(byte) = bytes.next().filter(|_| plain.len() < MAX_NAME) {
        plain.push(if byte == b'\\' { bytes.next().unwrap_or(byte) } else { byte });
    }
    printable(&plain, MAX_NAME)
}

fn parse_load(text: &[u8]) -> Option<LoadAverage> {
    let mut values = fields(text).map(decimal);
    let mut next = || values.next().flatten();
    Some(LoadAverage { load_1min: next()?, load_5min: next()?, load_15min: next()? })
}

/// `0-3,8`
fn parse_list_of_processors(text: &[u8]) -> Option<u32> {
    let number = |text: &[u8]| super::text::number(text).and_then(|number| u32::try_from(number).ok());
    text.trim_ascii().split(|&byte| byte == b',').try_fold(0u32, |count, range| {
        let mut ends = range.splitn(2, |&byte| byte == b'-');
        let first = number(ends.next()?)?;
        let last = ends.next().map_or(Some(first), number)?;
        count.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

fn parse_cpu_model(text: &[u8]) -> Option<String> {
    // x86, then what some other architectures call it.
    [&b"model name"[..], b"cpu model", b"Processor", b"cpu"].into_iter().find_map(|wanted| {
        lines(text).find_map(|line| {
            let colon = memchr::memchr(b':', line)?;
            let value = line[colon + 1..].trim_ascii();
            (line[..colon].trim_ascii() == wanted && !value.is_empty()).then(|| printable(value, MAX_NAME))
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_of_distributions() {
        let debian = b"PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\n";
        assert_eq!(parse_os_release(debian), (Some("Debian GNU/Linux".into()), Some("12".into())));
        let alpine = b"NAME=Alpine\nID=alpine\nVERSION_ID=3.20.1\n";
        assert_eq!(parse_os_release(alpine), (Some("Alpine".into()), Some("3.20.1".into())));
        let odd = b"# NAME=no\nNAME='single \\ quotes'\nVERSION_ID=\"a \\\"b\\\" \\$c\"\n";
        assert_eq!(parse_os_release(odd), (Some("single \\ quotes".into()), Some("a \"b\" $c".into())));
        assert_eq!(parse_os_release(b"NAME=\"\"\nNAME"), (None, None));
        assert_eq!(parse_os_release(b"NAME=\"\x1b[2J\"\n").0.unwrap(), "?[2J");
        assert_eq!(parse_os_release(b"NAME=\"\nVERSION_ID=\\\n"), (Some("\"".into()), Some("\\".into())));
    }

    #[test]
    fn loads() {
        let load = parse_load(b"0.52 1.00 2.50 3/250 12345\n").unwrap();
        assert_eq!((load.load_1min, load.load_5min, load.load_15min), (0.52, 1.0, 2.5));
        assert_eq!(parse_load(b"0.52 1.00\n"), None);
        assert_eq!(parse_load(b"nan 1 1"), None);
    }

    #[test]
    fn processors() {
        assert_eq!(parse_list_of_processors(b"0-3,8\n"), Some(5));
        assert_eq!(parse_list_of_processors(b"0\n"), Some(1));
        for wrong in [&b""[..], b"3-1", b"0-4294967295", b"a", b"0,"] {
            assert_eq!(parse_list_of_processors(wrong), None, "{wrong:?}");
        }
        let cpuinfo = b"processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: QEMU TCG CPU version 2.5+\n";
        assert_eq!(parse_cpu_model(cpuinfo).unwrap(), "QEMU TCG CPU version 2.5+");
        assert_eq!(parse_cpu_model(b"processor: 0\nmodel name:\n"), None);
    }

    proptest! {
        #[test]
        fn no_text_breaks_a_parser(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            parse_load(&text);
            parse_list_of_processors(&text);
            parse_cpu_model(&text);
            let mut line = b"NAME=".to_vec();
            line.extend(&text);
            let (name, _) = parse_os_release(&line);
            prop_assert!(name.is_none_or(|name| name.len() <= MAX_NAME));
        }
    }
}
