//! A job's place among those that may move.

use super::super::terminal::WindowSize;
use super::remains::{self, Remains};
use super::seat::Seat;
use super::{Order, Travel};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// A job's place among those that may move; dropped, its copies elsewhere end.
#[derive(Debug)]
pub(in crate::job) struct Ticket {
    pub(super) travel: Arc<Travel>,
    pub(super) pid: i32,
    pub(super) orders: mpsc::Sender<Order>,
    pub(super) seat: Arc<Seat>,
    pub(super) remains: Arc<Remains>,
    pub(super) deputy: JoinHandle<()>,
    /// Makes checkpoints.
    pub(super) keeper: Option<JoinHandle<()>>,
}

impl Ticket {
    pub(in crate::job) fn seat(&self) -> &Seat {
        &self.seat
    }

    /// Sends a signal by way of the deputy; `false`: the job is here.
    pub(in crate::job) fn signal(&self, number: i32, group: bool) -> bool {
        let order = Order::Signal { number, group };
        self.seat.is_away_or_moves() && self.orders.try_send(order).is_ok()
    }

    /// Tells the job of another size of its terminal, if it is not here.
    pub(in crate::job) fn resize(&self, size: WindowSize) {
        if self.seat.is_away() {
            // The newest counts, and is told again when it moves.
            self.orders.try_send(Order::Resize(size)).ok();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.deputy.abort();
        if let Some(keeper) = &self.keeper {
            keeper.abort();
        }
        self.travel.jobs().remove(&self.pid);
        // What is kept from now on nobody would take: `keep_or_bury` keeps nothing of a job that is over.
        if let Some(pidfd) = self.remains.take() {
            tokio::spawn(remains::bury(self.pid, pidfd));
        }
    }
}
