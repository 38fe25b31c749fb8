//! Users: /etc/passwd (passwd(5)). Users that only a name service knows have numbers here, and no home.

use std::collections::HashMap;
use std::io::{self, Read};

use crate::platform::System;

/// The most that is read of it.
const MAX_PASSWD: u64 = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: String,
}

/// Every user that the file has.
pub(crate) fn accounts(system: &System) -> io::Result<Vec<Account>> {
    let mut text = Vec::new();
    std::fs::File::open(system.file("/etc/passwd"))?.take(MAX_PASSWD).read_to_end(&mut text)?;
    Ok(parse(&text))
}

/// The names behind numbers.
pub(crate) fn user_names(system: &System) -> HashMap<u32, String> {
    // The first one of a number is its name, as it is to getpwuid.
    let mut names = HashMap::new();
    for account in accounts(system).unwrap_or_default() {
        names.entry(account.uid).or_insert(account.name);
    }
    names
}

fn parse(text: &[u8]) -> Vec<Account> {
    let account = |line: &str| {
        let mut fields = line.split(':');
        let (name, _password, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let home = fields.nth(1)?;
        Some(Account { name: name.to_owned(), uid: uid.parse().ok()?, gid: gid.parse().ok()?, home: home.to_owned() })
    };
    String::from_utf8_lossy(text).lines().filter_map(account).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passwd() {
        let accounts =
            parse(b"root:x:0:0:root:/root:/bin/bash\n#c\nx:y\nweb:x:1000:100:,,,:/home/web:/bin/sh\n+::::::\n");
        assert_eq!(accounts.len(), 2);
        assert_eq!((accounts[1].uid, accounts[1].gid, accounts[1].home.as_str()), (1000, 100, "/home/web"));
    }
}
