//! What a target is told of a job.

use super::super::super::limits::Limits;
use super::super::super::private::Private;
use super::super::super::protocol::{ToJob, Went};
use super::super::link::Link;
use super::super::wire::{Arrival, ToGuest};
use super::Deputy;
use consistency::NodeId;
use tokio::time::Instant;

impl Deputy {
    /// Connects to a target.
    pub(super) async fn connect(&mut self, to: NodeId) -> Result<Link, String> {
        let arrival = Box::new(Arrival {
            pid: self.original.pid,
            pipes: self.pipes.clone(),
        });
        let transport = self.travel.transport().map_err(|error| error.to_string())?;
        let link = Link::open(&**transport, to).await?;
        link.sender.send(&ToJob::Receive(arrival)).await;
        Ok(link)
    }

    /// Sends it all to a target.
    pub(super) async fn offer(&mut self, to: NodeId) -> Result<(), String> {
        let mut link = match self.ahead.wanted {
            true => self.target.take().ok_or_else(|| self.ahead.why_gone())?,
            false => self.connect(to).await?,
        };
        let private = self.private != Private::default();
        let limited = self.limits != Limits::default();
        if private && !link.knows_private()
            || limited && !link.knows_limits()
            || self.input_file.is_some() && !link.knows_input_files()
        {
            return Err(format!("the Glu of node {to} is older"));
        }
        let (went, made) = match (self.ahead.is_so, self.partly.is_so) {
            (true, _) => (Went::PreCopy, ToGuest::MadeAhead),
            (_, true) => (Went::PostCopy, ToGuest::MadePartly),
            _ => (Went::Whole, ToGuest::Made),
        };
        self.meter.sends(went, &self.images, self.ahead.bytes);
        if self.ahead.wanted {
            link.sender.send(&ToGuest::Pipes(self.pipes.clone())).await;
        }
        if link.knows_users() {
            link.sender.send(&ToGuest::For(self.user.clone())).await;
        }
        if private {
            link.sender.send(&ToGuest::Private(self.private)).await;
        }
        if limited {
            link.sender.send(&ToGuest::Limits(self.limits)).await;
        }
        if let Some(input_file) = self.input_file {
            link.sender.send(&ToGuest::InputFile(input_file)).await;
        }
        match &self.terminal {
            Some(_) if !link.knows_terminals() => {
                return Err(format!(
                    "the Glu of node {to} is older: jobs with a terminal do not move there"
                ));
            }
            Some(carried) => drop(link.sender.send(&ToGuest::Terminal(carried.clone())).await),
            None => {}
        }
        for image in &self.images {
            let image = ToGuest::Image(image.clone());
            if !link.sender.send(&image).await {
                break;
            }
        }
        link.sender.send(&made).await;
        link.heard = Instant::now();
        self.target = Some(link);
        Ok(())
    }
}
