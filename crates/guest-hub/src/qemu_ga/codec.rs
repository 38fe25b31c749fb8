//! Requests and answers of QEMU's guest agent: one JSON object a line.

use std::io;
use std::path::Path;
use std::time::Duration;

use roost_guest_proto::{ErrorBody, ErrorCode, parse_strict};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The longest answer that is taken. A command's output may be longer, and is refused then.
const MAX_ANSWER: usize = 4 << 20;
/// Beyond this, a line that does not end ends the connection.
const MAX_SKIP: usize = 64 << 20;
/// It begins the answer to `guest-sync-delimited`, and pushes out whatever half line the agent holds.
const SENTINEL: u8 = 0xFF;
const ANSWER: Duration = Duration::from_secs(15);
/// Freezing waits for what is being written.
const SLOW_ANSWER: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(super) enum Failure {
    #[error("it refused")]
    Refused(#[source] ErrorBody),
    #[error("an answer of {size} bytes; permitted: at most {permitted}")]
    TooLarge { size: usize, permitted: usize },
    #[error("{0}")]
    Broken(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    /// Read, and not yet used.
    buffer: Vec<u8>,
    broken: Option<String>,
}

impl Connection {
    /// Connects, and finds out that an agent answers.
    pub(super) async fn open(path: &Path) -> Result<Self, Failure> {
        let stream = UnixStream::connect(path).await?;
        let mut connection = Self { stream, buffer: Vec::new(), broken: None };
        connection.synchronise().await?;
        Ok(connection)
    }

    async fn synchronise(&mut self) -> Result<(), Failure> {
        // Within what every JSON reader takes for a whole number.
        let id = rand::random::<u64>() >> 12;
        let mut request = vec![SENTINEL];
        request.extend_from_slice(&line("guest-sync-delimited", json!({ "id": id })));
        self.stream.write_all(&request).await?;
        let mut skipped = 0;
        loop {
            // Answers to what somebody else asked come first.
            let Some(at) = self.buffer.iter().position(|&byte| byte == SENTINEL) else {
                skipped += self.buffer.len();
                if skipped > MAX_SKIP {
                    return Err(Failure::Broken("it does not synchronise".to_owned()));
                }
                self.buffer.clear();
                self.fill().await?;
                continue;
            };
            self.buffer.drain(..=at);
            let answer = self.line().await?;
            if parse_strict(&answer).ok().and_then(|value| value.get("return")?.as_u64()) == Some(id) {
                return Ok(());
            }
        }
    }

    /// One request, one answer.
    pub(super) async fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, Failure> {
        if let Some(why) = &self.broken {
            return Err(Failure::Broken(why.clone()));
        }
        let patience = if command.starts_with("guest-fsfreeze") { SLOW_ANSWER } else { ANSWER };
        let result = match timeout(patience, self.exchange(command, arguments)).await {
            Ok(result) => result,
            Err(_) => Err(Failure::Broken(format!("no answer to {command} within {patience:?}"))),
        };
        if let Err(Failure::Broken(why)) = &result {
            self.broken = Some(why.clone());
        }
        result
    }

    /// A request that is not answered if it works.
    pub(super) async fn tell(&mut self, command: &str, arguments: Value) -> Result<(), Failure> {
        self.stream.write_all(&line(command, arguments)).await?;
        Ok(())
    }

    async fn exchange(&mut self, command: &str, arguments: Value) -> Result<Value, Failure> {
        self.stream.write_all(&line(command, arguments)).await?;
        let answer = self.line().await?;
        let broken = |what: &str| Failure::Broken(format!("{what} in answer to {command}"));
        let mut answer = parse_strict(&answer).map_err(|_| broken("no JSON"))?;
        if let Some(value) = answer.get_mut("return") {
            return Ok(value.take());
        }
        let error = answer.get("error").ok_or_else(|| broken("neither a return nor an error"))?;
        let text = |key: &str| -> String {
            error.get(key).and_then(Value::as_str).unwrap_or_default().chars().take(512).collect()
        };
        let code = match text("class").as_str() {
            "CommandNotFound" => ErrorCode::NotSupported,
            _ => ErrorCode::CommandFailed,
        };
        Err(Failure::Refused(ErrorBody::new(code, format!("{command}: {}", text("desc")))))
    }

    /// The next line. Of one that is too long nothing is kept, and the one behind it is next.
    async fn line(&mut self) -> Result<Vec<u8>, Failure> {
        let mut seen = 0;
        let mut skipped = 0;
        loop {
            if let Some(at) = memchr(&self.buffer[seen..]) {
                let mut rest = self.buffer.split_off(seen + at + 1);
                std::mem::swap(&mut self.buffer, &mut rest);
                if skipped > 0 {
                    return Err(Failure::TooLarge { size: skipped + rest.len(), permitted: MAX_ANSWER });
                }
                return Ok(rest);
            }
            seen = self.buffer.len();
            if skipped > 0 || seen > MAX_ANSWER {
                skipped += seen;
                self.buffer = Vec::new();
                seen = 0;
                if skipped > MAX_SKIP {
                    return Err(Failure::Broken("a line without an end".to_owned()));
                }
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<(), Failure> {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk).await? {
            0 => Err(Failure::Broken("its socket was closed".to_owned())),
            len => {
                self.buffer.extend_from_slice(&chunk[..len]);
                Ok(())
            }
        }
    }
}

fn memchr(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|&byte| byte == b'\n')
}

fn line(command: &str, arguments: Value) -> Vec<u8> {
    let mut request = json!({ "execute": command });
    if !arguments.is_null() {
        request["arguments"] = arguments;
    }
    let mut line = request.to_string().into_bytes();
    line.push(b'\n');
    line
}
