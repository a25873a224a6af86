//! What home hears from the host that has a job, and from the one that gets it.

use super::super::super::pause::Its;
use super::super::super::protocol::{End, FromJob};
use super::super::link::Heard;
use super::super::remains::{Body, Leads};
use super::super::rules::Event;
use super::super::terminal::AtHome;
use super::super::wire::FromGuest;
use super::Deputy;
use super::partly::lost_pages;
use std::sync::Arc;

impl Deputy {
    pub(super) async fn hear_source(&mut self, heard: Heard) {
        match heard {
            Ok(FromGuest::Image(image)) => self.images.push(image),
            Ok(FromGuest::Unread(bytes)) => self.input.unread.push_back(bytes),
            Ok(FromGuest::Dumped(pipes)) => {
                self.pipes = pipes;
                self.on(Event::Dumped).await;
            }
            Ok(FromGuest::DumpedPartly(pipes)) => {
                self.pipes = pipes;
                self.on(Event::DumpedPartly).await;
            }
            Ok(FromGuest::CopiedAhead) => self.on(Event::Copied).await,
            Ok(FromGuest::Ahead(piece)) => self.goes_ahead(piece).await,
            Ok(FromGuest::DumpedAhead(pipes)) => {
                self.pipes = pipes;
                self.ahead.is_so = true;
                self.on(Event::Dumped).await;
            }
            // Of the source.
            Ok(FromGuest::Pages(pages)) => self.pages_come(pages).await,
            // Of the copy that runs.
            Ok(FromGuest::WantPages(asked)) => self.pages_wanted(asked).await,
            Ok(FromGuest::Whole) => self.on(Event::Whole).await,
            Ok(FromGuest::PagesLost(why)) if self.partly.follows => {
                self.source_ended(End::lost(lost_pages(&why))).await;
            }
            Ok(FromGuest::PagesLost(why)) => self.pages_gone(why).await,
            Ok(FromGuest::NotDumped(why)) => {
                self.input.stay();
                self.on(Event::NotDumped(why)).await;
            }
            Ok(FromGuest::Terminal(carried)) => self.terminal = Some(carried),
            Ok(FromGuest::InputFile(told)) => {
                self.input_file = Some(told);
                self.seat.reads_on_at(told.at);
            }
            Ok(FromGuest::OutOfMemory(processes)) => self.seat.count_out_of_memory(processes),
            Ok(FromGuest::Output(stream, bytes)) => {
                if let Some(out) = self.outs.iter_mut().find(|out| out.stream == stream) {
                    out.waiting.push_back(bytes);
                }
            }
            Ok(FromGuest::OutputEnd(stream)) => {
                // Of one that may be started again it is not known whether it was the last.
                let out = self.outs.iter_mut().find(|out| out.stream == stream);
                if let Some(out) = out.filter(|_| !self.wants_restart) {
                    out.ended = true;
                }
                self.outs.retain(|out| !out.is_over());
            }
            Ok(FromGuest::InputCredit(bytes)) => self.input.credit += bytes as usize,
            Ok(FromGuest::InputClosed) => self.input.pipe = None,
            Ok(FromGuest::Exited(status)) => self.source_ended(End::Exited(status)).await,
            Ok(FromGuest::Killed(signal)) => self.source_ended(End::Killed(signal)).await,
            Ok(
                FromGuest::Restored
                | FromGuest::NotRestored(_)
                | FromGuest::Running
                | FromGuest::Ping,
            ) => {}
            Err(why) => self.source_ended(End::lost(why)).await,
        }
    }

    async fn source_ended(&mut self, end: End) {
        self.source = None;
        if !matches!(end, End::Failed { .. }) {
            // It has ended by itself, so no copy of it is to run.
            self.target = None;
            self.end = Some(end);
            return;
        }
        if let End::Failed { message, .. } = &end {
            self.is_lost(message);
        }
        self.on(Event::SourceGone).await;
        if self.end.is_some() {
            self.end = Some(end);
        }
    }

    pub(super) async fn hear_target(&mut self, heard: Heard) {
        match heard {
            Ok(FromGuest::Restored) => {
                // The original may have been killed and taken for ended meanwhile.
                if self.leaves() {
                    self.on(Event::Restored).await;
                }
            }
            Ok(FromGuest::Running) => self.runs().await,
            Ok(FromGuest::WantPages(asked)) => self.pages_wanted(asked).await,
            Ok(FromGuest::NotRestored(why)) | Err(why) => self.target_gone(why).await,
            Ok(FromGuest::PagesLost(why)) => self.target_gone(lost_pages(&why)).await,
            Ok(FromGuest::Ping) => {}
            Ok(other) => {
                tracing::warn!(?other, "a host says what is not due");
                self.target_gone("the host broke the protocol".into()).await;
            }
        }
    }

    /// The original counts no more, if it has not ended.
    fn leaves(&mut self) -> bool {
        if self.reads_pipe_itself() {
            self.home.on(Event::Forget);
        }
        let keeps = !self.seat.is_away() && !self.original.forked;
        let original = keeps.then(|| self.original.pidfd.try_clone());
        let left = self.seat.leave();
        // From now on nobody else waits for it.
        if let Some(Ok(pidfd)) = original.filter(|_| left) {
            let group = Its::Slot(Arc::clone(&self.original.group));
            let leads = |_: &AtHome| Leads {
                group,
                parent: None,
            };
            let leads = self.original.terminal.as_ref().map(leads);
            self.remains.keep(Body { pidfd, leads });
        }
        left
    }

    async fn runs(&mut self) {
        let restarts = self.home.restarts();
        self.on(Event::Running).await;
        self.tell_size().await;
        if restarts > self.told_restarts {
            self.told_restarts = restarts;
            if let Some((to_owner, note)) = self.restart_note() {
                to_owner.send(&FromJob::Note(note)).await;
            }
        }
    }

    async fn target_gone(&mut self, why: String) {
        let lost = End::lost(why.clone());
        self.target = None;
        self.is_lost(&why);
        self.on(Event::TargetGone(why)).await;
        if self.end.is_some() {
            self.end = Some(lost);
        }
    }
}
