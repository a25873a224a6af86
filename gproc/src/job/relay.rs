//! Home's end of a job on another node: passes frames on, and tells the owner when the host is lost.

use super::frame::{FrameReader, FrameSender, FrameWriter};
use super::protocol::{
    End, FIRST_BYTES_MAX, FRAME_BYTES_MAX, FromJob, PING_EVERY, Start, ToJob, frame,
};
use super::roll::Seat;
use super::terminal::Extra;
use consistency::NodeId;
use gfs::net::{ServiceId, Transport};
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// How long the host may take to accept a stream.
const OPEN_WITHIN: Duration = Duration::from_secs(10);

/// What is to run.
pub(super) struct Job {
    pub(super) start: Box<Start>,
    pub(super) extras: Vec<Extra>,
    /// What home knows of it.
    pub(super) seat: Option<Seat>,
}

impl Job {
    fn first_frame(&self) -> Vec<u8> {
        let start = self.start.clone();
        if self.extras.is_empty() {
            frame(&ToJob::Start(start))
        } else {
            frame(&ToJob::StartWith(start, self.extras.clone()))
        }
    }

    /// Does without what a node of this version does not know, and the job can do without (V1).
    fn keep_known(&mut self, version: Option<u32>) {
        let known = |extra: &Extra| version.is_none_or(|spoken| spoken >= extra.since());
        self.extras
            .retain(|extra| known(extra) || !extra.is_optional());
    }
}

/// How one attempt has ended.
enum Attempt {
    /// The host has told the end, or the owner is gone.
    Over,
    /// The owner is to be told this.
    Failed(End),
    /// The host has ended the stream without a frame.
    NotTaken,
}

/// Has a job run on `host`. Returns what is to be told the owner beyond the host's own frames; `None`: nothing, as
/// the host has told the end or the owner is gone (dropping the stream then ends the job).
pub(super) async fn relay(
    transport: &dyn Transport,
    host: NodeId,
    mut job: Job,
    owner: &mut FrameReader<impl AsyncRead + Unpin>,
    to_owner: &FrameSender,
    silence: Duration,
) -> Option<End> {
    loop {
        match attempt(transport, host, &mut job, owner, to_owner, silence).await {
            Attempt::Over => return None,
            Attempt::Failed(end) => return Some(end),
            Attempt::NotTaken if job.extras.is_empty() => {
                return Some(lost(host, "its daemon has ended"));
            }
            // A node of an older revision.
            Attempt::NotTaken if job.extras.iter().all(Extra::is_optional) => job.extras.clear(),
            Attempt::NotTaken => {
                let needed = job.extras.iter().find(|extra| !extra.is_optional());
                let what = needed.map_or("extras", Extra::name);
                let why = format!(
                    "node {host} does not take jobs with {what}: its Glu is older, or its daemon has ended"
                );
                return Some(End::lost(why));
            }
        }
    }
}

async fn attempt(
    transport: &dyn Transport,
    host: NodeId,
    job: &mut Job,
    owner: &mut FrameReader<impl AsyncRead + Unpin>,
    to_owner: &FrameSender,
    silence: Duration,
) -> Attempt {
    // Not known before the first connection: an older node then ends the stream.
    job.keep_known(transport.version_of(host));
    let first = job.first_frame();
    if first.len() - 4 > FIRST_BYTES_MAX {
        return Attempt::Failed(End::lost("arguments and environment are too long"));
    }
    let opened = transport.open_with(host, ServiceId::Job, first.into());
    let stream = match timeout(OPEN_WITHIN, opened).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Attempt::Failed(End::lost(error.to_string())),
        Err(_) => {
            let why = format!("node {host} did not accept the job within {OPEN_WITHIN:?}");
            return Attempt::Failed(End::lost(why));
        }
    };
    let mut from_host = FrameReader::new(stream.reader);
    let writer = FrameWriter::new(stream.writer);
    let to_host = writer.sender();

    let up = async {
        let mut ping = interval(PING_EVERY.min(silence / 4));
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                frame = owner.next_whole(FRAME_BYTES_MAX) => match frame {
                    Ok(Some(frame)) => {
                        if !to_host.send_whole(frame).await {
                            // The host is lost; the other direction finds out why.
                            std::future::pending::<()>().await;
                        }
                    }
                    Ok(None) | Err(_) => return,
                },
                _ = ping.tick() => to_host.send_if_idle(&ToJob::Ping),
            }
        }
    };
    let mut seat = job.seat.as_ref();
    let down = async {
        let mut taken = false;
        loop {
            let why = match timeout(silence, from_host.next_whole(FRAME_BYTES_MAX)).await {
                Ok(Ok(Some(frame))) => {
                    taken = true;
                    if let (Some(of), Some((node, pid))) = (seat, FromJob::started(&frame)) {
                        of.runs(node, pid);
                        seat = None;
                    }
                    let last = FromJob::is_last(&frame);
                    if !to_owner.send_whole(frame).await || last {
                        return Attempt::Over;
                    }
                    continue;
                }
                Ok(Ok(None)) if !taken => return Attempt::NotTaken,
                Ok(Ok(None)) => "its daemon has ended".into(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("nothing came from it for {silence:?}"),
            };
            return Attempt::Failed(lost(host, &why));
        }
    };
    tokio::select! {
        () = up => Attempt::Over,
        end = down => end,
    }
}

fn lost(host: NodeId, why: &str) -> End {
    End::lost(format!("node {host} was lost with the job: {why}"))
}

#[cfg(test)]
mod tests {
    use super::super::protocol::{Credentials, Request, Stdio};
    use super::*;
    use bytes::Bytes;

    #[test]
    fn an_older_node_gets_what_it_knows() {
        let check = |version, expected: &[Extra]| {
            let request = Request {
                argv: Vec::new(),
                env: Vec::new(),
                cwd: Bytes::new(),
                umask: 0,
                ignored: 0,
                stdio: [Stdio::Null; 3],
                nodes: Vec::new(),
                npid: 1,
                vnn: 0,
            };
            let credentials = Credentials {
                uid: 0,
                gid: 0,
                groups: Vec::new(),
            };
            let start = Box::new(Start {
                request,
                credentials,
                limits: Vec::new(),
                nice: 0,
            });
            let extras = vec![
                Extra::TellInput,
                Extra::FollowInput,
                Extra::Gather(7),
                Extra::Gang,
            ];
            let mut job = Job {
                start,
                extras,
                seat: None,
            };
            job.keep_known(version);
            assert_eq!(job.extras, expected, "{version:?}");
        };
        let all = [
            Extra::TellInput,
            Extra::FollowInput,
            Extra::Gather(7),
            Extra::Gang,
        ];
        check(Some(10), &[Extra::TellInput]);
        check(Some(11), &all);
        check(None, &all);
    }
}
