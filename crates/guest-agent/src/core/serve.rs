//! Requests that are carried out on threads: safe commands, freezing, identity, metrics.

use std::time::Instant;

use roost_guest_proto::{CommandType, ErrorBody, ErrorCode, Request, Response, SafeCommand};
use serde_json::Value;

use super::job::{Job, Reply, Work};
use super::{Agent, Outcome};
use crate::run::Cancel;
use crate::{identity, safe};

/// The kind of an answer to a request that is typed.
const SAFE: Reply = Reply::Response(CommandType::Safe);

impl Agent {
    pub(super) fn serve(&mut self, link: u64, epoch: Option<u64>, request: &Request) {
        let result = self.admit().and_then(|()| match request {
            Request::SafeCommand(command) => self.safe_command(link, command.clone(), SAFE),
            Request::Freeze(freeze) => {
                let (freezer, freeze) = (self.freezer.clone(), freeze.clone());
                self.on_thread(link, &freeze.id.clone(), SAFE, true, move |_| {
                    crate::log::set_quiet(true);
                    let result = freezer.freeze(&freeze);
                    crate::log::set_quiet(freezer.frozen().load(std::sync::atomic::Ordering::Acquire));
                    respond(result)
                })
                .map(drop)
            }
            Request::Thaw(thaw) => {
                let freezer = self.freezer.clone();
                self.on_thread(link, &thaw.id, SAFE, true, move |_| {
                    let result = freezer.thaw();
                    crate::log::set_quiet(freezer.frozen().load(std::sync::atomic::Ordering::Acquire));
                    respond(result)
                })
                .map(drop)
            }
            Request::Identity(identity) => {
                let Some(epoch) = epoch else {
                    return Err(ErrorBody::field("epoch", "epoch: missing; an identity is for a new one"));
                };
                let asked = identity.clone();
                self.on_thread(link, &identity.id, SAFE, true, move |_| respond(identity::apply(&asked)))?;
                self.next_epoch = Some((identity.id.clone(), epoch));
                Ok(())
            }
            Request::Metrics(metrics) => self.metrics_request(link, metrics),
            Request::Subscribe(subscribe) => self.subscribe(link, subscribe),
            _ => Err(ErrorBody::new(ErrorCode::NotSupported, "this agent has no means for it")),
        });
        if let Err(error) = result {
            self.fail(link, request, error);
        }
    }

    fn safe_command(&mut self, link: u64, command: SafeCommand, reply: Reply) -> Result<(), ErrorBody> {
        let (system, frozen) = (crate::platform::System::default(), self.freezer.frozen());
        self.on_thread(link, &command.id.clone(), reply, false, move |cancel| {
            safe::run(&command, &safe::Context::new(system, cancel, frozen))
        })
        .map(drop)
    }

    /// Ends the guest, as an older peer asks.
    pub(super) fn power_off(&mut self, link: u64) -> Result<(), ErrorBody> {
        let command_type = serde_json::json!({ "action": "Shutdown" });
        let command = SafeCommand { id: String::new(), command_type, params: None, timeout: None };
        self.safe_command(link, command, Reply::Execute)
    }

    /// Starts work on a thread. `urgent`: it does not wait for a free one.
    pub(super) fn on_thread(
        &mut self,
        link: u64,
        id: &str,
        reply: Reply,
        urgent: bool,
        work: impl FnOnce(Cancel) -> Response + Send + 'static,
    ) -> Result<u64, ErrorBody> {
        let cancel = Cancel::new().map_err(|error| ErrorBody::new(ErrorCode::ResourceLimit, error.to_string()))?;
        let job_id = self.next;
        self.next += 1;
        let flag = cancel.clone();
        let task = Box::new(move || Outcome::Response(Box::new(work(flag))));
        let started = if urgent { self.workers.run_now(job_id, task) } else { self.workers.run(job_id, task) };
        if started.is_err() {
            return Err(ErrorBody::new(ErrorCode::ResourceLimit, "no thread is free for it, and too many wait"));
        }
        let job = Job {
            id: id.to_owned(),
            link: Some(link),
            stream: None,
            reply,
            started: Instant::now(),
            work: Work::Thread { cancel, result: None },
            input: None,
            output: None,
            error: None,
            verdict: None,
        };
        self.jobs.insert(job_id, job);
        Ok(job_id)
    }
}

pub(super) fn respond(result: Result<Value, ErrorBody>) -> Response {
    match result {
        Ok(data) => Response { success: true, data: Some(data), ..Response::default() },
        Err(error) => Response { error: Some(error), ..Response::default() },
    }
}
