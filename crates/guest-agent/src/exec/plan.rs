//! From a request to a program: its path, arguments, environment, directory, user. Pure but for the look-up of users.

use std::collections::BTreeMap;
use std::ffi::CString;

use roost_guest_proto::{ErrorBody, ErrorCode, Exec, Secret};
use zeroize::Zeroizing;

use super::users::{Database, User};

/// Where programs are looked for when nothing else is said.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program, ready to be started.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) programs: Vec<CString>,
    pub(crate) argv: Vec<CString>,
    /// `NAME=value` and a NUL each.
    pub(crate) env: Vec<Zeroizing<Vec<u8>>>,
    pub(crate) cwd: CString,
    /// `None`: who the agent is.
    pub(crate) user: Option<User>,
    /// For the log: the program, without its arguments, which may hold what no log should.
    pub(crate) shown: String,
}

/// What a program gets besides what its request says.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    /// Who the agent is.
    pub(crate) own: &'a User,
    /// Who runs what names no user; `None`: the agent.
    pub(crate) default_user: Option<&'a str>,
    /// Secrets that were handed over before.
    pub(crate) held: &'a BTreeMap<String, Secret>,
    /// Marks what descends from this command.
    pub(crate) mark: &'a str,
}

/// The variable whose value marks what descends from one command.
pub(crate) const MARK: &str = "ROOST_EXEC_MARK";

fn text(field: &str, value: &str) -> Result<CString, ErrorBody> {
    CString::new(value).map_err(|_| ErrorBody::field(field, format!("{field}: a NUL byte, where none may be")))
}

/// Lays out the program that a request names.
pub(crate) fn prepare(exec: &Exec, around: &Surroundings<'_>) -> Result<Prepared, ErrorBody> {
    let words: Vec<&str> = match (&exec.command, exec.argv.as_slice()) {
        (None, []) => return Err(ErrorBody::field("argv", "argv, command: one of them is needed")),
        (Some(_), [_, ..]) => return Err(ErrorBody::field("argv", "argv, command: only one of them may be given")),
        (None, argv) => {
            if exec.shell.is_some() {
                return Err(ErrorBody::field("shell", "shell: only a command has one"));
            }
            argv.iter().map(String::as_str).collect()
        }
        (Some(command), []) => vec![exec.shell.as_deref().unwrap_or("/bin/sh"), "-c", command],
    };
    if words[0].is_empty() {
        return Err(ErrorBody::field("argv", "argv: the program's name is empty"));
    }
    let name = exec.user.as_deref().or(around.default_user);
    let user = match name {
        None => None,
        Some(name) => Some(Database::read().user(name)?).filter(|user| user.uid != around.own.uid),
    };
    let who = user.as_ref().unwrap_or(around.own);
    let cwd = match exec.cwd.as_deref() {
        Some(cwd) if cwd.starts_with('/') => cwd,
        Some(cwd) => {
            let shown: String = cwd.chars().take(128).collect();
            return Err(ErrorBody::field("cwd", format!("cwd: {shown:?} is not absolute")));
        }
        None if exec.user.is_some() => &who.home,
        None => "/",
    };
    let env = environment(exec, around, who)?;
    let path = lookup(&env, "PATH").unwrap_or(PATH.as_bytes());
    Ok(Prepared {
        programs: candidates(words[0], path)?,
        argv: words.iter().map(|word| text("argv", word)).collect::<Result<_, _>>()?,
        cwd: text("cwd", cwd)?,
        shown: if exec.command.is_some() { format!("{} -c", words[0]) } else { words[0].chars().take(128).collect() },
        env,
        user,
    })
}

fn environment(exec: &Exec, around: &Surroundings<'_>, who: &User) -> Result<Vec<Zeroizing<Vec<u8>>>, ErrorBody> {
    let term = match &exec.pty {
        Some(pty) => pty.term.as_deref().unwrap_or("xterm-256color"),
        None => "dumb",
    };
    let mut all: BTreeMap<&str, &str> = [
        ("PATH", PATH),
        ("HOME", &who.home),
        ("USER", &who.name),
        ("LOGNAME", &who.name),
        ("SHELL", &who.shell),
        ("LANG", "C.UTF-8"),
        ("TERM", term),
    ]
    .into();
    for (name, value) in &exec.env {
        all.insert(name, value);
    }
    for name in &exec.held_secrets {
        let Some(value) = around.held.get(name) else {
            let shown: String = name.chars().take(64).collect();
            let message = format!("held_secrets: none is held under the name {shown:?}");
            return Err(ErrorBody {
                details: Some(serde_json::json!({ "field": "held_secrets" })),
                ..ErrorBody::new(ErrorCode::NotFound, message)
            });
        };
        all.insert(name, value.expose());
    }
    for (name, value) in &exec.secrets {
        all.insert(name, value.expose());
    }
    all.insert(MARK, around.mark);
    let mut env = Vec::with_capacity(all.len());
    for (name, value) in all {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            let shown: String = name.chars().take(64).collect();
            return Err(ErrorBody::field("env", format!("env: {shown:?} or its value has a character that none may")));
        }
        let mut pair = Zeroizing::new(Vec::with_capacity(name.len() + value.len() + 2));
        pair.extend_from_slice(name.as_bytes());
        pair.push(b'=');
        pair.extend_from_slice(value.as_bytes());
        pair.push(0);
        env.push(pair);
    }
    Ok(env)
}

fn lookup<'a>(env: &'a [Zeroizing<Vec<u8>>], name: &str) -> Option<&'a [u8]> {
    env.iter().find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?.strip_suffix(b"\0"))
}

fn candidates(program: &str, path: &[u8]) -> Result<Vec<CString>, ErrorBody> {
    if program.contains('/') {
        return Ok(vec![text("argv", program)?]);
    }
    let mut found = Vec::new();
    for directory in path.split(|&byte| byte == b':').filter(|directory| directory.starts_with(b"/")).take(64) {
        let full = [directory, b"/", program.as_bytes()].concat();
        found.push(CString::new(full).map_err(|_| ErrorBody::field("argv", "argv: a NUL byte, where none may be"))?);
    }
    if found.is_empty() {
        return Err(ErrorBody::new(ErrorCode::NotFound, "PATH names no directory to look for the program in"));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(exec: &Exec) -> Result<Prepared, ErrorBody> {
        let own = User {
            name: "root".into(),
            uid: 0,
            gid: 0,
            home: "/root".into(),
            shell: "/bin/sh".into(),
            groups: vec![0],
        };
        let held = BTreeMap::from([("TOKEN".to_owned(), Secret::new("held".into()))]);
        prepare(exec, &Surroundings { own: &own, default_user: None, held: &held, mark: "m" })
    }

    fn exec(argv: &[&str]) -> Exec {
        Exec { argv: argv.iter().map(|&word| word.to_owned()).collect(), ..Exec::default() }
    }

    #[test]
    fn a_name_is_looked_for_and_a_path_is_not() {
        let found = prepared(&exec(&["ls", "-l"])).unwrap();
        assert_eq!(found.programs.len(), 6);
        assert_eq!(found.programs[5], c"/bin/ls".to_owned());
        let mut request = exec(&["ls"]);
        request.env.insert("PATH".into(), "relative:/opt/x:".into());
        assert_eq!(prepared(&request).unwrap().programs, [c"/opt/x/ls".to_owned()]);
        assert_eq!(prepared(&exec(&["./a"])).unwrap().programs, [c"./a".to_owned()]);
    }

    #[test]
    fn the_environment_is_small_and_secrets_win() {
        let mut request = exec(&["x"]);
        request.env.insert("TOKEN".into(), "open".into());
        request.held_secrets.push("TOKEN".into());
        let found = prepared(&request).unwrap();
        assert_eq!(lookup(&found.env, "TOKEN"), Some(b"held".as_slice()));
        assert_eq!(lookup(&found.env, "HOME"), Some(b"/root".as_slice()));
        assert_eq!(found.env.len(), 9);
        assert!(!format!("{:?}", request).contains("held\""), "no secret is shown");
        request.held_secrets.push("OTHER".into());
        assert_eq!(prepared(&request).unwrap_err().code, ErrorCode::NotFound);
    }

    #[test]
    fn what_is_refused() {
        let field = |request: &Exec| prepared(request).unwrap_err().details.unwrap()["field"].clone();
        assert_eq!(field(&Exec::default()), "argv");
        assert_eq!(field(&exec(&[""])), "argv");
        assert_eq!(field(&exec(&["a\0b"])), "argv");
        assert_eq!(field(&Exec { command: Some("x".into()), ..exec(&["x"]) }), "argv");
        assert_eq!(field(&Exec { shell: Some("x".into()), ..exec(&["x"]) }), "shell");
        assert_eq!(field(&Exec { cwd: Some("x".into()), ..exec(&["x"]) }), "cwd");
        assert_eq!(field(&Exec { env: [("A=B".into(), "c".into())].into(), ..exec(&["x"]) }), "env");
        assert_eq!(field(&Exec { env: [("A".into(), "c\0".into())].into(), ..exec(&["x"]) }), "env");
    }
}
