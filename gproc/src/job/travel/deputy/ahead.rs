//! Moves with pages that go ahead of their job: the target is there from the beginning, and home passes on what the source
//! sends to it while the job runs.

use super::super::super::group::Group;
use super::super::ahead::{self, Copying, Gone, Sink, copied};
use super::super::rules::Event;
use super::super::wire::{Piece, ToGuest};
use super::Deputy;
use consistency::NodeId;

/// Of one job.
#[derive(Default)]
pub(super) struct Ahead {
    /// The move under way is one.
    pub(super) wanted: bool,
    /// What the images that are here lack has gone ahead.
    pub(super) is_so: bool,
    /// What has gone, in bytes.
    pub(super) bytes: u64,
    /// Pages of the original are on their way.
    copying: Option<Copying>,
    /// What of them has gone.
    gone: Option<Gone>,
    /// Why the target is not there any more.
    why_gone: Option<String>,
}

impl Ahead {
    /// A move begins.
    pub(super) fn begin(&mut self, wanted: bool) {
        *self = Self {
            wanted,
            ..Self::default()
        };
    }

    pub(super) fn hears_of(&mut self, event: &Event) {
        match event {
            Event::TargetGone(why) => self.why_gone = Some(why.clone()),
            // It starts from a checkpoint.
            Event::Loaded(_) => self.begin(false),
            _ => {}
        }
    }

    pub(super) fn why_gone(&self) -> String {
        let why = self.why_gone.as_deref();
        why.unwrap_or("the target is gone").to_owned()
    }

    /// Waits until most pages of the original are there; for ever if none are on their way. Cancel-safe.
    pub(super) async fn copied(&mut self) -> Option<Gone> {
        copied(&mut self.copying).await
    }

    pub(super) fn has_copied(&mut self, gone: Option<Gone>) {
        (self.copying, self.gone) = (None, gone);
    }

    /// All pages have gone that images lack, in so many bytes.
    pub(super) const fn is_so(&mut self, bytes: u64) {
        (self.is_so, self.bytes) = (true, bytes);
    }
}

impl Deputy {
    /// Has the source send pages to a target.
    pub(super) async fn copy_ahead(&mut self, to: NodeId) -> Result<(), String> {
        self.pipes.clear();
        let target = self.connect(to).await?;
        match &self.source {
            Some(link) => {
                link.sender.send(&ToGuest::CopyAhead).await;
            }
            None => {
                let send = ahead::by(target.sender.clone(), ToGuest::Ahead);
                let dir = self.original.group.get().and_then(Group::dir);
                let dir = dir.ok_or("it has no cgroup")?.to_owned();
                let leader = self.original.terminal.as_ref().map(|of| of.leader);
                self.ahead.copying = Some(Copying::start(dir, self.original.pid, leader, send));
            }
        }
        self.target = Some(target);
        Ok(())
    }

    /// Returns what of the original has gone, and where what has changed is to go.
    pub(super) fn has_gone_ahead(&mut self) -> Option<(Gone, Sink)> {
        let gone = self.ahead.gone.take()?;
        let target = self.target.as_ref()?;
        Some((gone, ahead::by(target.sender.clone(), ToGuest::Ahead)))
    }

    /// Has it send no more.
    pub(super) async fn copy_no_more(&mut self) {
        self.ahead.begin(false);
        if let Some(link) = &self.source {
            link.sender.send(&ToGuest::Thaw).await;
        }
    }

    /// Passes on what the source sends.
    pub(super) async fn goes_ahead(&mut self, piece: Piece) {
        self.ahead.bytes += piece.content.len() as u64;
        if let Some(link) = &self.target {
            link.sender.send(&ToGuest::Ahead(piece)).await;
        }
    }
}
