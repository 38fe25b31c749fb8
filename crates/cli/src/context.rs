//! What every command works with.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io::{self, IsTerminal};
use std::path::PathBuf;

use clap::Args;
use roost_client::Client;
use serde::Serialize;

use crate::error::Failure;
use crate::escape;
use crate::output::{self, Format};
use crate::paths::{Paths, Surroundings};

/// Flags of every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// How to print the answer
    #[arg(short, long, global = true, value_enum, default_value = "table", value_name = "FORMAT")]
    pub(crate) output: Format,
    /// The daemon's socket [default: that of the daemon that this user's environment and file mean]
    #[arg(long, global = true, env = "ROOST_SOCKET", value_name = "PATH", value_hint = clap::ValueHint::FilePath)]
    pub(crate) socket: Option<PathBuf>,
    /// Neither progress nor result lines; lists show names only
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
}

/// What every command works with.
#[derive(Debug)]
pub(crate) struct Context {
    /// The daemon, asked on first use.
    pub(crate) client: Client,
    /// How answers are printed.
    pub(crate) format: Format,
    /// Nothing but answers and errors.
    pub(crate) quiet: bool,
    /// Where the daemon is looked for.
    pub(crate) paths: Paths,
    /// Whether the user said where the socket is.
    pub(crate) socket_given: bool,
    going_on: RefCell<Vec<String>>,
    asking: Cell<bool>,
}

impl Context {
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// It cannot be told where the daemon is.
    pub(crate) fn new(global: &Global) -> Result<Self, Failure> {
        let socket = global.socket.clone().filter(|s| !s.as_os_str().is_empty());
        let socket_given = socket.is_some();
        let paths = Surroundings::of_process().paths(socket)?;
        Ok(Self {
            client: Client::connect_unix(&paths.socket),
            format: global.output,
            quiet: global.quiet,
            paths,
            socket_given,
            going_on: RefCell::default(),
            asking: Cell::new(false),
        })
    }

    /// Whether the answer is for people.
    pub(crate) fn for_people(&self) -> bool {
        self.format == Format::Table
    }

    /// Whether somebody watches who likes to see that something happens.
    pub(crate) fn shows_progress(&self) -> bool {
        !self.quiet && io::stderr().is_terminal()
    }

    /// A line about what was done, where one is wanted.
    pub(crate) fn say(&self, text: &str) -> Result<(), Failure> {
        if self.quiet { Ok(()) } else { output::print(&format!("{}\n", escape::line(text))) }
    }

    /// Lines that are the answer, escaped already.
    pub(crate) fn say_lines(&self, text: &str) -> Result<(), Failure> {
        if self.quiet { Ok(()) } else { output::print(text) }
    }

    /// The answer as a document in the format that was asked for.
    pub(crate) fn document(&self, value: &impl Serialize) -> Result<(), Failure> {
        output::document(value, self.format)
    }

    /// Asks the daemon for a change. While this is under way an interruption cannot say yet how to
    /// come back.
    pub(crate) async fn ask<T>(&self, call: impl Future<Output = T>) -> T {
        self.asking.set(true);
        let answer = call.await;
        self.asking.set(false);
        answer
    }

    /// Whether a change was asked for and not answered yet.
    pub(crate) fn is_asking(&self) -> bool {
        self.asking.get()
    }

    /// Operations that go on when we are interrupted now.
    pub(crate) fn going_on(&self) -> Vec<String> {
        self.going_on.borrow().clone()
    }

    /// From here on this operation goes on without us.
    pub(crate) fn waits_for(&self, operation: &str) {
        self.going_on.borrow_mut().push(operation.to_owned());
    }

    /// It has ended.
    pub(crate) fn has_ended(&self, operation: &str) {
        self.going_on.borrow_mut().retain(|o| o != operation);
    }
}
