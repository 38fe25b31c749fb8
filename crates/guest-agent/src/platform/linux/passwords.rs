//! A user's password, through chpasswd: it knows the guest's files, hashes and rules. It is told on its input, so no
//! list of processes ever shows a password.

use roost_guest_proto::{ErrorBody, ErrorCode, Secret, UserName};
use zeroize::Zeroizing;

use super::accounts::accounts;
use crate::run::Finished;
use crate::safe::{Context, Failure};

/// The longest password; PAM's own limit.
const MAX_PASSWORD: usize = 512;

pub(crate) fn set_password(
    context: &Context,
    user: &UserName,
    password: &Secret,
    encrypted: bool,
) -> Result<Finished, Failure> {
    let text = password.expose();
    if text.is_empty() || text.len() > MAX_PASSWORD || text.chars().any(char::is_control) {
        let message = format!("password: permitted: 1 to {MAX_PASSWORD} bytes without control characters");
        return Err(ErrorBody::field("password", message).into());
    }
    if encrypted && text.contains(':') {
        return Err(ErrorBody::field("password", "password: a hash has no colon").into());
    }
    if !accounts(&context.system).unwrap_or_default().iter().any(|account| account.name == user.as_str()) {
        let message = format!("user: {user:?} is not in the guest's /etc/passwd");
        return Err(Failure::new(ErrorCode::NotFound, message));
    }
    let mut line = Zeroizing::new(Vec::with_capacity(user.as_str().len() + text.len() + 2));
    for part in [user.as_str(), ":", text, "\n"] {
        line.extend_from_slice(part.as_bytes());
    }
    let argv = if encrypted { vec!["chpasswd", "-e"] } else { vec!["chpasswd"] };
    context.succeed(context.system.program(argv).input(line))
}
