//! Files on streams: a thread does the work, and a pipe joins it to the loop, which treats it like a program's.

use roost_guest_proto::{Channel, CommandType, ErrorBody, ErrorCode, FilePull, FilePush, FileStat};
use rustix::event::epoll::EventFlags;

use super::job::{Reply, Sink, Source, pipe};
use super::serve::respond;
use super::{Agent, Target};
use crate::files;

const FILE: Reply = Reply::Response(CommandType::Safe);

impl Agent {
    pub(super) fn file_push(&mut self, link: u64, request: &FilePush) -> Result<(), ErrorBody> {
        self.check_stream(link, request.stream)?;
        let (read, write) = pipe(false).map_err(no_pipe)?;
        let (roots, asked) = (self.roots(link), request.clone());
        let job = self.on_thread(link, &request.id, FILE, false, move |cancel| {
            respond(files::push(&roots, &asked, read, &cancel))
        })?;
        self.join(link, job, request.stream, |job| job.input = Some(Sink::new(write, false)));
        Ok(())
    }

    pub(super) fn file_pull(&mut self, link: u64, request: &FilePull) -> Result<(), ErrorBody> {
        self.check_stream(link, request.stream)?;
        let (read, write) = pipe(true).map_err(no_pipe)?;
        let token = self.watch(&read, Target::Output(0), EventFlags::IN).map_err(no_pipe)?;
        let (roots, asked) = (self.roots(link), request.clone());
        let job = self.on_thread(link, &request.id, FILE, false, move |cancel| {
            respond(files::pull(&roots, &asked, write, &cancel))
        });
        let job = match job {
            Ok(job) => job,
            Err(error) => {
                self.forget(token);
                return Err(error);
            }
        };
        self.targets.insert(token, Target::Output(job));
        self.join(link, job, request.stream, |job| job.output = Some(Source::new(read, token, None)));
        if let Some(link) = self.links.get_mut(&link) {
            link.outbox.open(request.stream, Channel::Input);
        }
        Ok(())
    }

    pub(super) fn file_stat(&mut self, link: u64, request: &FileStat) -> Result<(), ErrorBody> {
        let (roots, asked) = (self.roots(link), request.clone());
        let id = request.id.clone();
        self.on_thread(link, &id, FILE, false, move |cancel| {
            let info = files::stat(&roots, &asked, &cancel);
            respond(info.map(|info| serde_json::json!(info)))
        })
        .map(drop)
    }

    fn join(&mut self, link: u64, job_id: u64, stream: u32, set: impl FnOnce(&mut super::job::Job)) {
        if let Some(job) = self.jobs.get_mut(&job_id) {
            job.stream = Some(stream);
            set(job);
        }
        if let Some(link) = self.links.get_mut(&link) {
            link.streams.insert(stream, job_id);
        }
    }
}

fn no_pipe(error: std::io::Error) -> ErrorBody {
    ErrorBody::new(ErrorCode::ResourceLimit, format!("no pipe for the stream: {error}"))
}
