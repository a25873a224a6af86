//! Moves by post-copy: the copy runs before its memory is there, and home carries pages from the source to it. Until it has
//! all of them the source keeps them (MV10).

use super::super::super::protocol::End;
use super::super::link::{Heard, Link};
use super::super::pages::{Served, answer};
use super::super::places::reached;
use super::super::rules::Event;
use super::super::wire::{FromGuest, ToGuest};
use super::Deputy;
use bytes::Bytes;
use std::sync::{Arc, Mutex};

/// Of one job.
#[derive(Default)]
pub(super) struct Partly {
    /// Whoever has asked for the move wants it so.
    pub(super) wanted: bool,
    /// Pages of the images that are here are with the source.
    pub(super) is_so: bool,
    /// The copy runs, and the source is [`Self::old`] or the original.
    pub(super) follows: bool,
    /// The host that keeps the pages.
    pub(super) old: Option<Link>,
    /// The original does.
    served: Option<Arc<Mutex<Served>>>,
}

impl Partly {
    pub(super) const fn hears_of(&mut self, event: &Event) {
        match event {
            Event::DumpedPartly => self.is_so = true,
            Event::Dumped | Event::Loaded(_) => self.is_so = false,
            _ => {}
        }
    }

    /// Serves the pages of the original, or those of nobody; returns what was served before, which blocks when it is dropped.
    pub(super) fn serve(&mut self, served: Option<Served>) -> Option<Arc<Mutex<Served>>> {
        let served = served.map(|served| Arc::new(Mutex::new(served)));
        std::mem::replace(&mut self.served, served)
    }
}

impl Drop for Partly {
    fn drop(&mut self) {
        // It waits for CRIU.
        let served = self.serve(None);
        if served.is_some() {
            std::thread::spawn(move || drop(served));
        }
    }
}

impl Deputy {
    /// The copy is the job from now on.
    pub(super) fn follow(&mut self) {
        self.partly.old = self.source.take();
        self.source = self.target.take();
        self.partly.follows = true;
        self.images = Vec::new();
    }

    /// Has whoever keeps pages end.
    pub(super) async fn let_pages_go(&mut self) {
        if !std::mem::take(&mut self.partly.follows) {
            return;
        }
        match self.partly.old.take() {
            Some(link) => {
                link.sender.send(&ToGuest::End).await;
            }
            None => self.end_original().await,
        }
    }

    /// Has the source answer what the copy asks for.
    pub(super) async fn pages_wanted(&mut self, asked: Bytes) {
        if let Some(served) = self.partly.served.clone() {
            match answer(served, asked).await {
                Ok(pages) => {
                    for pages in pages {
                        self.pages_come(pages).await;
                    }
                }
                Err(error) => {
                    let why = format!("node {}: {error}", self.travel.node);
                    self.pages_gone(why).await;
                }
            }
            return;
        }
        let source = match self.partly.follows {
            true => &self.partly.old,
            false => &self.source,
        };
        if let Some(link) = source {
            link.sender.send(&ToGuest::WantPages(asked)).await;
        }
    }

    /// Passes pages on to the copy.
    pub(super) async fn pages_come(&mut self, pages: Bytes) {
        let copy = match self.partly.follows {
            true => &self.source,
            false => &self.target,
        };
        reached("home: while pages come");
        self.meter.cost.bytes += pages.len() as u64;
        if let Some(link) = copy {
            link.sender.send(&ToGuest::Pages(pages)).await;
        }
    }

    /// Hears the host that keeps pages of the copy that runs.
    pub(super) async fn hear_old(&mut self, heard: Heard) {
        match heard {
            Ok(FromGuest::Pages(pages)) => self.pages_come(pages).await,
            Ok(FromGuest::PagesLost(why)) => self.pages_gone(why).await,
            Ok(FromGuest::Exited(_) | FromGuest::Killed(_)) => {
                self.pages_gone("the source of its pages has been killed".into())
                    .await;
            }
            Ok(_) => {}
            Err(why) => {
                self.partly.old = None;
                self.pages_gone(why).await;
            }
        }
    }

    /// Pages that the copy needs cannot be had. If it may have run it is lost.
    pub(super) async fn pages_gone(&mut self, why: String) {
        let why = lost_pages(&why);
        self.is_lost(&why);
        self.on(Event::PagesGone(why.clone())).await;
        if self.end.is_some() {
            self.end = Some(End::lost(why));
        }
    }
}

/// Says why a job is lost that lacks pages.
pub(super) fn lost_pages(why: &str) -> String {
    format!("pages of its memory were lost on their way: {why}")
}
