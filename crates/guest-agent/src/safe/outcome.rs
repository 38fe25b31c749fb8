//! What an action comes to, and the response that it becomes.

use roost_guest_proto::{ErrorBody, ErrorCode, MAX_STDERR, MAX_STDOUT, Response};
use serde::Serialize;
use serde_json::Value;

use crate::run::{Capture, Ending, Finished, RunError};

/// It worked.
#[derive(Debug)]
pub(crate) struct Outcome {
    data: Value,
    ran: Option<Finished>,
}

/// It did not.
#[derive(Debug)]
pub(crate) struct Failure {
    error: ErrorBody,
    ran: Option<Box<Finished>>,
}

impl Outcome {
    /// By the agent itself.
    pub(crate) fn data(data: &impl Serialize) -> Self {
        let data = serde_json::to_value(data).expect("keys are texts, and nothing in it fails");
        Self { data, ran: None }
    }

    /// With what the program said that did it.
    pub(crate) fn ran(mut self, finished: impl Into<Option<Finished>>) -> Self {
        self.ran = finished.into();
        self
    }

    pub(super) fn into_response(self, id: &str) -> Response {
        let response = Response { data: Some(self.data), ..Response::success(id) };
        said(response, self.ran)
    }
}

impl Failure {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        ErrorBody::new(code, message).into()
    }

    pub(crate) fn ran(mut self, finished: Finished) -> Self {
        self.ran = Some(Box::new(finished));
        self
    }

    pub(crate) fn error(&self) -> &ErrorBody {
        &self.error
    }

    /// What the program said that failed, if one ran.
    pub(crate) fn finished(&self) -> Option<&Finished> {
        self.ran.as_deref()
    }

    pub(super) fn into_response(self, id: &str) -> Response {
        said(Response::failure(id, self.error), self.ran.map(|ran| *ran))
    }
}

impl From<ErrorBody> for Failure {
    fn from(error: ErrorBody) -> Self {
        Self { error, ran: None }
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        match &error {
            RunError::NoSuchProgram(..) => Self::new(ErrorCode::NotSupported, error.to_string()),
            RunError::Unkillable(_) => Self::new(ErrorCode::CommandTimeout, error.to_string()),
            RunError::Spawn(_, source) | RunError::Lost(_, source) => {
                Self::new(ErrorCode::CommandFailed, format!("{error}: {source}"))
            }
        }
    }
}

/// The guest has no means for it.
pub(crate) fn not_supported(message: impl Into<String>) -> Failure {
    Failure::new(ErrorCode::NotSupported, message)
}

pub(super) fn check_ending(finished: Finished) -> Result<Finished, Failure> {
    let failure = match finished.ending {
        Ending::ByItself => return Ok(finished),
        Ending::TimeUp => Failure::new(ErrorCode::CommandTimeout, "its time was up: it was ended"),
        Ending::Cancelled => Failure::new(ErrorCode::Cancelled, "cancelled: it was ended"),
    };
    Err(failure.ran(finished))
}

/// It ended by itself, and says that it worked.
pub(crate) fn check_success(finished: Finished) -> Result<Finished, Failure> {
    if finished.succeeded() {
        return Ok(finished);
    }
    let why = reason(&finished);
    Err(Failure::new(ErrorCode::CommandFailed, why).ran(finished))
}

/// What a program that failed gives as its reason, on one line.
fn reason(finished: &Finished) -> String {
    let text = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        // Warnings come first, and what it came to comes last.
        let line = lines.clone().find(|line| line.starts_with("E:") || line.to_lowercase().starts_with("error"));
        line.or_else(|| lines.next_back()).map(|line| line.chars().take(512).collect::<String>())
    };
    let said = text(&finished.stderr).or_else(|| text(&finished.stdout)).unwrap_or_default();
    match (finished.exit_code(), finished.signal()) {
        (Some(code), _) => format!("exit code {code}: {said}"),
        (None, signal) => format!("ended by signal {}: {said}", signal.unwrap_or_default()),
    }
}

fn said(mut response: Response, ran: Option<Finished>) -> Response {
    let Some(finished) = ran else { return response };
    response.exit_code = finished.exit_code();
    response.signal = finished.signal();
    (response.stdout, response.stdout_truncated, response.stdout_lossy) =
        text(finished.stdout, finished.stdout_dropped, MAX_STDOUT);
    (response.stderr, response.stderr_truncated, response.stderr_lossy) =
        text(finished.stderr, finished.stderr_dropped, MAX_STDERR);
    response
}

/// Cuts what was kept for a parser to what an answer may hold.
fn text(bytes: Vec<u8>, dropped: u64, limit: usize) -> (String, u64, bool) {
    let (bytes, cut) = if bytes.len() > limit {
        let mut capture = Capture::new(limit);
        capture.push(&bytes);
        capture.finish()
    } else {
        (bytes, 0)
    };
    match String::from_utf8(bytes) {
        Ok(text) => (text, dropped + cut, false),
        Err(error) => (String::from_utf8_lossy(error.as_bytes()).into_owned(), dropped + cut, true),
    }
}
