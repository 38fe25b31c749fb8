//! A program with live input and output.
//!
//! ```text
//!   caller ──requests──> steer ──bytes──> feed ──> the guest      steer: signals pass input that waits
//!   caller <──responses── pump <──────────────── the guest      pump: output, the record's end, the last message
//! ```
//!
//! A caller that goes away takes the program with it: nobody would hear of it any more.

use bytes::Bytes;
use connectrpc::{ConnectError, InboundStream};
use futures::{Stream, StreamExt};
use roost_api::vmm::v1;
use roost_api::vmm::v1::exec_request::Message as Asked;
use roost_api::vmm::v1::exec_response::Message as Told;
use roost_api::{from_proto, status, to_proto};
use roost_guest_hub::{ExecControl, Output, Stdin};
use roost_model::Invalid;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::GuestCalls;
use super::failure::told;
use crate::guests::{Guests, Running};

/// Pieces of input that may wait before the caller does.
const PIECES: usize = 16;

type Messages = mpsc::Sender<Result<v1::ExecResponse, ConnectError>>;

pub(super) async fn exec(
    calls: &GuestCalls,
    mut requests: InboundStream<v1::ExecRequest>,
) -> Result<impl Stream<Item = Result<v1::ExecResponse, ConnectError>> + Send + use<>, ConnectError> {
    let first = requests.next().await.ok_or_else(no_start)??.to_owned_message();
    let Some(Asked::Start(start)) = first.message else { return Err(no_start()) };
    let start = from_proto::guest::start(*start).map_err(|e| status::invalid(&e.under("start")))?;
    let vm = calls.vm(start.vm).await?;
    let guests = calls.0.guests.clone();
    let running = guests.start_exec(&vm, start.command, start.stdin, start.terminal).await;
    let mut running = running.map_err(|e| told(&e))?;
    let (send, receive) = mpsc::channel(PIECES);
    let steering = tokio::spawn(steer(requests, running.handle.control(), running.handle.stdin(), send.clone()));
    tokio::spawn(async move {
        pump(&guests, &mut running, send).await;
        steering.abort();
    });
    Ok(ReceiverStream::new(receive))
}

fn no_start() -> ConnectError {
    status::invalid(&Invalid::new("start", "", "is missing").permit(["the first message has it"]))
}

/// Gives output to the caller, and at the end what came of it.
async fn pump(guests: &Guests, running: &mut Running, send: Messages) {
    let message = |told: Told| Ok(v1::ExecResponse { message: Some(told), ..Default::default() });
    let begun = Told::Started(Box::new(to_proto::execution(&running.execution)));
    let mut here = send.send(message(begun)).await.is_ok();
    while here {
        let output = tokio::select! {
            () = send.closed() => None,
            output = running.handle.output() => output,
        };
        let told = match output {
            Some(Output::Stdout(bytes)) => {
                running.keep[0].push(&bytes);
                Told::Stdout(bytes.into())
            }
            Some(Output::Stderr(bytes)) => {
                running.keep[1].push(&bytes);
                Told::Stderr(bytes.into())
            }
            None => break,
        };
        here = send.send(message(told)).await.is_ok();
    }
    if send.is_closed() {
        // Whether it could be told to end or not, what came of it is on record below.
        let _told = running.handle.cancel().await;
    }
    let last = match guests.end_exec(running).await {
        Ok(execution) => message(Told::Finished(Box::new(to_proto::execution(&execution)))),
        Err(failure) => Err(told(&failure)),
    };
    let _gone = send.send(last).await;
}

/// Gives the caller's messages to the program.
async fn steer(
    mut requests: InboundStream<v1::ExecRequest>,
    control: ExecControl,
    stdin: Option<Stdin>,
    send: Messages,
) {
    let (pieces, waiting) = mpsc::channel(PIECES);
    let mut pieces = stdin.map(|stdin| {
        tokio::spawn(feed(stdin, waiting));
        pieces
    });
    while let Some(Ok(request)) = requests.next().await {
        let told = match request.to_owned_message().message {
            Some(Asked::Stdin(bytes)) => match &pieces {
                // A program that has closed its input wants no more of it.
                Some(pieces) => {
                    let _closed = pieces.send(Bytes::from(bytes)).await;
                    Ok(())
                }
                None => Err(Invalid::new("stdin", "", "comes behind its end, or was not announced")),
            },
            Some(Asked::StdinEnd(_)) => {
                pieces = None;
                Ok(())
            }
            Some(Asked::Resize(terminal)) => match from_proto::guest::terminal(*terminal) {
                Ok(size) => {
                    let _over = control.resize(size.rows, size.cols).await;
                    Ok(())
                }
                Err(invalid) => Err(invalid.under("resize")),
            },
            Some(Asked::Signal(signal)) => match control.signal(&signal).await {
                Ok(answer) => match answer.error {
                    Some(body) => Err(Invalid::new("signal", signal, body.message)),
                    None => Ok(()),
                },
                // The program is over, or its end is told by its own answer.
                Err(_) => Ok(()),
            },
            Some(Asked::Start(_)) => Err(Invalid::new("start", "", "may be in the first message only")),
            None => Ok(()),
        };
        if let Err(invalid) = told {
            let _gone = send.send(Err(status::invalid(&invalid))).await;
            return;
        }
    }
}

/// Writes input as fast as the program reads it; its end is the end of the pieces.
async fn feed(mut stdin: Stdin, mut pieces: mpsc::Receiver<Bytes>) {
    while let Some(piece) = pieces.recv().await {
        if stdin.write(piece).await.is_err() {
            return;
        }
    }
    stdin.close();
}
