//! Randomness of this VM's own. Two clones of one memory have one generator in one state, and one seed file on disk:
//! until both are replaced they draw the same keys.

use std::fs::File;
use std::io::{self, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use roost_guest_proto::{ErrorBody, ErrorCode, Secret};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::platform::{self, System};

/// Less is no seed.
const MIN: usize = 16;
/// More is of no use.
const MAX: usize = 4096;

/// What a kernel's generator is fed with at the next boot: systemd's file, and those of older systems.
const FILES: &[&str] = &["/var/lib/systemd/random-seed", "/var/lib/urandom/random-seed", "/var/lib/misc/random-seed"];

/// How much a seed file holds.
const FILE_BYTES: usize = 512;

pub(super) struct Seed(Zeroizing<Vec<u8>>);

impl Seed {
    pub(super) fn parse(entropy: &Secret) -> Result<Self, ErrorBody> {
        let bytes = STANDARD.decode(entropy.expose()).map(Zeroizing::new);
        match bytes {
            Ok(bytes) if (MIN..=MAX).contains(&bytes.len()) => Ok(Self(bytes)),
            _ => Err(ErrorBody::field("entropy", format!("entropy: permitted: {MIN} to {MAX} bytes in base64"))),
        }
    }

    /// Into the kernel's pool, and from there into its generator at once; and then new seed files.
    pub(super) fn apply(&self, system: &System) -> Result<Value, ErrorBody> {
        let failure = |what: &str, error: io::Error| {
            let (code, why) = match error.kind() {
                io::ErrorKind::PermissionDenied => (ErrorCode::PermissionDenied, "CAP_SYS_ADMIN is needed".to_owned()),
                _ => (ErrorCode::CommandFailed, error.to_string()),
            };
            ErrorBody::new(code, format!("{what}: {why}"))
        };
        if system.is_live() {
            self.feed().map_err(|error| failure("/dev/urandom", error))?;
        }
        let mut replaced = Vec::new();
        for path in FILES {
            let file = system.file(path);
            if file.is_file() {
                let bytes = random(FILE_BYTES).map_err(|error| failure("/dev/urandom", error))?;
                platform::replace(&file, &bytes, 0o600).map_err(|error| failure(path, error))?;
                replaced.push(*path);
            }
        }
        Ok(json!({ "bytes": self.0.len(), "seed_files": replaced }))
    }

    fn feed(&self) -> io::Result<()> {
        let random = File::options().write(true).open("/dev/urandom")?;
        for chunk in self.0.chunks(platform::MAX_ENTROPY) {
            platform::add_entropy(&random, chunk)?;
        }
        Ok(platform::reseed(&random)?)
    }
}

fn random(bytes: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut buffer = Zeroizing::new(vec![0; bytes]);
    File::open("/dev/urandom")?.read_exact(&mut buffer)?;
    Ok(buffer)
}
