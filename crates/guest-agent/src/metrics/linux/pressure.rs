//! How long tasks waited: `/proc/pressure/*`, of kernels that account for it.

use roost_guest_proto::metrics::{Pressure, Stall};

use super::files::Files;
use super::text::{decimal, fields, lines};
use crate::metrics::Failure;

const MAX_PRESSURE: usize = 1024;

/// `None` where the kernel keeps no such account.
pub(super) fn collect(files: &mut Files) -> Result<Option<Pressure>, Failure> {
    let pressure = Pressure {
        cpu: read(files, "proc/pressure/cpu")?,
        memory: read(files, "proc/pressure/memory")?,
        io: read(files, "proc/pressure/io")?,
    };
    Ok((pressure != Pressure::default()).then_some(pressure))
}

pub(super) fn memory(files: &mut Files) -> Result<Option<Stall>, Failure> {
    read(files, "proc/pressure/memory")
}

fn read(files: &mut Files, path: &str) -> Result<Option<Stall>, Failure> {
    Ok(files.read_if_there(path, MAX_PRESSURE)?.and_then(parse))
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same for `full`, which older kernels leave out for `cpu`.
fn parse(text: &[u8]) -> Option<Stall> {
    let (mut some, mut full) = (None, 0.0);
    for line in lines(text) {
        let mut fields = fields(line);
        let kind = fields.next()?;
        let value = fields.find_map(|field| field.strip_prefix(b"avg10=")).and_then(decimal)?.min(100.0);
        match kind {
            b"some" => some = Some(value),
            b"full" => full = value,
            _ => {}
        }
    }
    Some(Stall { some: some?, full })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lines_or_one() {
        let text =
            b"some avg10=1.25 avg60=0.10 avg300=0.00 total=123\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=9\n";
        assert_eq!(parse(text), Some(Stall { some: 1.25, full: 0.5 }));
        assert_eq!(parse(b"some avg10=3.00 avg60=0 avg300=0 total=1\n"), Some(Stall { some: 3.0, full: 0.0 }));
        for wrong in [&b""[..], b"some\n", b"some avg10=\n", b"some avg10=nan\n", b"full avg10=1.0\n", b" \n"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_kernel_without_it_has_none() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(collect(&mut Files::new(root.path().to_owned())).unwrap(), None);
    }
}
