//! Who is who, by /etc/passwd and /etc/group. A static program has no name service modules: users of a directory
//! service are given by number.

use std::fs;

use roost_guest_proto::{ErrorBody, ErrorCode};

/// The longest file of users that is looked at.
const MAX_FILE: u64 = 4 << 20;

/// A user, as a program that runs under the name needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: String,
    pub(crate) shell: String,
    pub(crate) groups: Vec<u32>,
}

/// The two files' content.
#[derive(Debug, Clone, Default)]
pub(crate) struct Database {
    passwd: String,
    group: String,
}

impl Database {
    /// What the files say now. One that cannot be read says nothing.
    pub(crate) fn read() -> Self {
        let read = |path: &str| match fs::metadata(path) {
            Ok(meta) if meta.len() <= MAX_FILE => {
                fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
            }
            _ => String::new(),
        };
        Self { passwd: read("/etc/passwd"), group: read("/etc/group") }
    }

    /// The user of a name or number. A number that nobody has is a user without a name.
    pub(crate) fn user(&self, text: &str) -> Result<User, ErrorBody> {
        let number = text.parse::<u32>().ok();
        let found = self.passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            let (_, home, shell) = (fields.next()?, fields.next()?, fields.next()?);
            let uid = uid.parse::<u32>().ok()?;
            if name != text && number != Some(uid) {
                return None;
            }
            Some((name.to_owned(), uid, gid.parse::<u32>().ok()?, home.to_owned(), shell.to_owned()))
        });
        let or = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
        match (found, number) {
            (Some((name, uid, gid, home, shell)), _) => {
                let groups = self.groups_of(&name, gid);
                Ok(User { name, uid, gid, home: or(home, "/"), shell: or(shell, "/bin/sh"), groups })
            }
            (None, Some(uid)) if uid != u32::MAX => Ok(User {
                name: uid.to_string(),
                uid,
                gid: uid,
                home: "/".into(),
                shell: "/bin/sh".into(),
                groups: vec![uid],
            }),
            _ => Err(ErrorBody {
                details: Some(serde_json::json!({ "field": "user" })),
                ..ErrorBody::new(ErrorCode::NotFound, format!("user: /etc/passwd has no {:?}", shown(text)))
            }),
        }
    }

    /// The number of a group.
    pub(crate) fn group(&self, text: &str) -> Result<u32, ErrorBody> {
        let number = text.parse::<u32>().ok().filter(|&gid| gid != u32::MAX);
        let named = self.group.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
            if name == text { gid.parse().ok() } else { None }
        });
        named
            .or(number)
            .ok_or_else(|| ErrorBody::new(ErrorCode::NotFound, format!("group: /etc/group has no {:?}", shown(text))))
    }

    fn groups_of(&self, name: &str, gid: u32) -> Vec<u32> {
        let mut groups = vec![gid];
        for line in self.group.lines() {
            let mut fields = line.split(':');
            let (Some(_), Some(_), Some(number), Some(members)) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            if let Ok(number) = number.parse()
                && members.split(',').any(|member| member == name)
                && !groups.contains(&number)
            {
                groups.push(number);
            }
        }
        groups
    }
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> Database {
        Database {
            passwd: "root:x:0:0:root:/root:/bin/bash\nbroken\nann:x:1000:1001:Ann,,,:/home/ann:\nx:y:z:\n".into(),
            group: "root:x:0:\nann:x:1001:\naudio:x:29:bob,ann\nann2:x:30:anna\nbad:x:no:ann\n".into(),
        }
    }

    #[test]
    fn by_name_and_number() {
        let ann = database().user("ann").unwrap();
        assert_eq!((ann.uid, ann.gid, ann.home.as_str(), ann.shell.as_str()), (1000, 1001, "/home/ann", "/bin/sh"));
        assert_eq!(ann.groups, [1001, 29]);
        assert_eq!(database().user("1000").unwrap(), ann);
        assert_eq!(database().user("4242").unwrap().gid, 4242);
        assert_eq!(database().user("nobody-here").unwrap_err().code, ErrorCode::NotFound);
        assert!(database().user("4294967295").is_err(), "the number that means: no change");
        assert_eq!(database().group("audio").unwrap(), 29);
        assert_eq!(database().group("77").unwrap(), 77);
        assert!(database().group("bad").is_err());
    }
}
