//! Home's end of a job on another node: passes frames on, and tells the owner when the host is lost.

use super::frame::{FrameReader, FrameSender, FrameWriter};
use super::protocol::{
    End, FIRST_BYTES_MAX, FRAME_BYTES_MAX, FromJob, PING_EVERY, Start, ToJob, frame,
};
use consistency::NodeId;
use gfs::net::{ServiceId, Transport};
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// How long the host may take to accept a stream.
const OPEN_WITHIN: Duration = Duration::from_secs(10);

/// Has a job run on `host`. Returns what is to be told the owner beyond the host's own frames; `None`: nothing, as
/// the host has told the end or the owner is gone (dropping the stream then ends the job).
pub(super) async fn relay(
    transport: &dyn Transport,
    host: NodeId,
    start: Box<Start>,
    owner: &mut FrameReader<impl AsyncRead + Unpin>,
    to_owner: &FrameSender,
    silence: Duration,
) -> Option<End> {
    let first = frame(&ToJob::Start(start));
    if first.len() - 4 > FIRST_BYTES_MAX {
        return Some(End::lost("arguments and environment are too long"));
    }
    let stream = match timeout(OPEN_WITHIN, transport.open(host, ServiceId::Job)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Some(End::lost(error.to_string())),
        Err(_) => {
            let why = format!("node {host} did not accept the job within {OPEN_WITHIN:?}");
            return Some(End::lost(why));
        }
    };
    let mut from_host = FrameReader::new(stream.reader);
    let writer = FrameWriter::new(stream.writer);
    let to_host = writer.sender();
    to_host.send_whole(first.into()).await;

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
    let down = async {
        loop {
            let why = match timeout(silence, from_host.next_whole(FRAME_BYTES_MAX)).await {
                Ok(Ok(Some(frame))) => {
                    let last = FromJob::is_last(&frame);
                    if !to_owner.send_whole(frame).await || last {
                        return None;
                    }
                    continue;
                }
                Ok(Ok(None)) => "its daemon has ended".into(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("nothing came from it for {silence:?}"),
            };
            return Some(End::lost(format!(
                "node {host} was lost with the job: {why}"
            )));
        }
    };
    tokio::select! {
        () = up => None,
        end = down => end,
    }
}
