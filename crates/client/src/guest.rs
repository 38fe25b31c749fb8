//! What is seen and done in guests.

use std::path::Path;
use std::sync::Arc;

use connectrpc::client::{BidiRecvHalf, BidiSendHalf, ServerStream};
use futures::Stream;
use hyper::body::Incoming;
use roost_api::vmm::v1::exec_request::Message as Asked;
use roost_api::vmm::v1::exec_response::Message as Told;
use roost_api::vmm::v1::*;

use crate::client::Client;
use crate::error::Error;

/// One method for each call that has one question and one answer.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $response:ident;)*) => {
        impl Client {
            $($(#[$doc])*
            pub async fn $name(&self, request: $request) -> Result<$response, Error> {
                Ok(self.answer(self.guests.$name(request)).await?.into_owned())
            })*
        }
    };
}

calls! {
    /// The agent in a VM, and what it says of its system.
    get_guest_info(GetGuestInfoRequest) -> GetGuestInfoResponse;
    /// Runs a program to its end.
    run(RunRequest) -> RunResponse;
    /// One execution.
    get_execution(GetExecutionRequest) -> GetExecutionResponse;
    /// A page of executions.
    list_executions(ListExecutionsRequest) -> ListExecutionsResponse;
    /// Runs several commands, one after the other.
    create_job(CreateJobRequest) -> CreateJobResponse;
    /// One job.
    get_job(GetJobRequest) -> GetJobResponse;
    /// A page of a VM's jobs.
    list_jobs(ListJobsRequest) -> ListJobsResponse;
    /// What a path in a guest is.
    stat_file(StatFileRequest) -> StatFileResponse;
    /// The last metrics, and the last hour.
    get_metrics(GetMetricsRequest) -> GetMetricsResponse;
    /// The services of a guest.
    list_services(ListServicesRequest) -> ListServicesResponse;
    /// Starts, stops, ... a service.
    control_service(ControlServiceRequest) -> ControlServiceResponse;
    /// The packages of a guest.
    list_packages(ListPackagesRequest) -> ListPackagesResponse;
    /// Installs, removes or updates a package.
    change_package(ChangePackageRequest) -> ChangePackageResponse;
    /// The processes of a guest.
    list_processes(ListProcessesRequest) -> ListProcessesResponse;
    /// Ends a process in a guest.
    kill_process(KillProcessRequest) -> KillProcessResponse;
    /// Any of the agent's typed actions.
    run_action(RunActionRequest) -> RunActionResponse;
    /// Stops writing to a guest's file systems.
    freeze(FreezeRequest) -> FreezeResponse;
    /// Writes again.
    thaw(ThawRequest) -> ThawResponse;
}

/// A program that runs in a guest. Dropping it ends the program.
#[derive(Debug)]
pub struct Exec {
    input: ExecInput,
    output: ExecOutput,
}

/// What goes to the program.
#[derive(Debug)]
pub struct ExecInput {
    send: BidiSendHalf<ExecRequest>,
    socket: Arc<Path>,
}

/// What comes from the program.
#[derive(Debug)]
pub struct ExecOutput {
    receive: BidiRecvHalf<Incoming, ExecResponseView<'static>>,
    socket: Arc<Path>,
}

/// A file's bytes as they come. Dropping it ends the call.
#[derive(Debug)]
pub struct PullFile {
    stream: ServerStream<Incoming, PullFileResponseView<'static>>,
    socket: Arc<Path>,
}

/// A guest's metrics as they come. Dropping it ends the call.
#[derive(Debug)]
pub struct WatchMetrics {
    stream: ServerStream<Incoming, WatchMetricsResponseView<'static>>,
    socket: Arc<Path>,
}

impl Client {
    /// Runs a program with live input and output. A refusal is told by the first read.
    pub async fn exec(&self, start: ExecStart) -> Result<Exec, Error> {
        let (send, receive) = self.answer(self.guests.exec()).await?.into_split();
        let mut input = ExecInput { send, socket: self.shared_socket() };
        input.send(Asked::Start(Box::new(start))).await?;
        Ok(Exec { input, output: ExecOutput { receive, socket: self.shared_socket() } })
    }

    /// Writes a file, or a tree of files; the first message has `start`.
    pub async fn push_file(
        &self,
        messages: impl Stream<Item = PushFileRequest> + Send + 'static,
    ) -> Result<PushFileResponse, Error> {
        Ok(self.answer(self.guests.push_file(messages)).await?.into_owned())
    }

    /// Reads a file, or a tree of files.
    pub async fn pull_file(&self, request: PullFileRequest) -> Result<PullFile, Error> {
        let stream = self.answer(self.guests.pull_file(request)).await?;
        Ok(PullFile { stream, socket: self.shared_socket() })
    }

    /// Metrics as they come.
    pub async fn watch_metrics(&self, request: WatchMetricsRequest) -> Result<WatchMetrics, Error> {
        let stream = self.answer(self.guests.watch_metrics(request)).await?;
        Ok(WatchMetrics { stream, socket: self.shared_socket() })
    }
}

impl Exec {
    /// The two directions, for two tasks.
    pub fn into_split(self) -> (ExecInput, ExecOutput) {
        (self.input, self.output)
    }
}

impl ExecInput {
    /// Sends a message. An error says only that the stream is over: why, is told by the output.
    pub async fn send(&mut self, message: Asked) -> Result<(), Error> {
        let message = ExecRequest { message: Some(message), ..Default::default() };
        self.send.send(message).await.map_err(|e| Error::from_call(&e, &self.socket))
    }
}

impl ExecOutput {
    /// The next message; `None` when the daemon ended the stream without an error.
    ///
    /// Cancel-safe: a dropped future loses nothing.
    pub async fn next(&mut self) -> Result<Option<Told>, Error> {
        loop {
            let message = self.receive.message::<ExecResponse>().await;
            match message.map_err(|e| Error::from_call(&e, &self.socket))? {
                None => return Ok(None),
                Some(message) => {
                    if let Some(told) = message.to_owned_message().message {
                        return Ok(Some(told));
                    }
                }
            }
        }
    }
}

impl PullFile {
    /// The next bytes, or the end; `None` when the daemon ended the stream without either.
    pub async fn next(&mut self) -> Result<Option<PullFileResponse>, Error> {
        let message = self.stream.message::<PullFileResponse>().await;
        let message = message.map_err(|e| Error::from_call(&e, &self.socket))?;
        Ok(message.map(|m| m.to_owned_message()))
    }
}

impl WatchMetrics {
    /// The next sample; `None` when the daemon ended the stream without an error.
    pub async fn next(&mut self) -> Result<Option<MetricsSample>, Error> {
        let message = self.stream.message::<WatchMetricsResponse>().await;
        let message = message.map_err(|e| Error::from_call(&e, &self.socket))?;
        Ok(message.and_then(|m| m.to_owned_message().metrics.into_option()))
    }
}
