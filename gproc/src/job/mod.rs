//! Remote execution: runs an unmodified program on the best node as if it ran here.
//!
//! Words: a *job* is one program started through Glu with all its descendants. Its *home* is the node of the
//! process that asked for it (`glurun`, the *owner*); its *host* is the node that runs it. One command may start
//! several jobs; they share the NPID (the owner's pid) and are numbered by VNN from 0.
//!
//! ```text
//! glurun --unix socket--> JobServer (home) --stream of the transport--> Agent (host) --spawns--> program
//!                             \------------- same process, descriptors passed ------------/
//! ```
//!
//! - [`protocol`]: the frames of both hops; the second hop carries the first one's frames unchanged.
//! - [`place`]: which node; pure. [`view`]: what is known about the nodes.
//! - [`admission`]: whom a node is for.
//! - [`server`]: the unix socket of a node; knows who asks. [`relay`]: home's end of a remote job.
//! - [`agent`]: the host's end; [`stdio`], [`input`], [`spawn`], [`group`], [`mark`], [`sys`] are its parts.
//! - [`forked`]: processes that are children of their owner, and become jobs.
//! - [`roll`]: the jobs of a home, for the record of them (J8).
//! - [`gang`]: commands that take turns. [`pause`]: guests that wait for a node's owner to go.
//! - [`barrier`], [`gather`]: barriers of the processes of one command.
//! - [`travel`]: jobs that move to other nodes while they run.
//! - [`terminal`]: pseudo terminals, and what else a job may want; [`leader`]: the leader of a session with one.
//!
//! Rules:
//! - J1 **Nobody is somebody else.** The socket's peer credentials say who asks; the request cannot.
//! - J2 **Nothing outlives its owner.** The end of the owner's connection, of the home node or of the host's
//!   daemon ends every process of the job, daemonised ones too. So does the end of the program itself.
//! - J3 **Every byte is paid for.** Input is sent, and output is read from the job, only against credit of the
//!   other end: nothing queues without bound, and signals and the end of the job always get through.
//! - J4 **The cluster's tree may hang.** Whatever may touch a file (change of directory, exec) happens in a child
//!   or on a spawn thread, never on a thread of the runtime, which may be the one that serves the file.
//! - J5 **A node runs what it is for.** Whom that is the node itself says ([`admission`]), whatever home believes.
//! - J6 **What is not read stays.** Of a pipe as input nothing is taken out but what the job has read ([`peek`]).
//! - J7 **Limits are kept.** What cannot be limited as asked is not run ([`limits`]).
//! - J8 **A job is on record.** Home tells of each that is not over at once ([`roll`]); what it tells is what the kernel and the
//!   hosts say, not the owner. The record is a hint: a signal goes to a process that is seen to be the job's.
//! - J9 **Through a barrier go all or none.** Nobody goes on before all are in; who waits for one that is gone is ended. A
//!   node tells the owner of all its processes at once ([`gather`]).
//! - J10 **A gang runs together.** In a turn it runs on all of its nodes or on none, and no node has two of them ([`gang`]).
//! - J11 **Each has its turn.** A gang is held only while one runs that shares a node with it and, while the gangs are the
//!   same, never for more turns than there are gangs; who is not heard of holds nobody.
//! - J12 **The owner comes first.** A guest stands still while somebody works at a node that wants that, and nothing else does
//!   ([`pause`]).
//!
//! Lock order: the mutexes of this module are leaves; none is held while another is taken.

pub mod admission;
pub mod agent;
mod barrier;
mod forked;
mod frame;
pub mod gang;
pub mod gather;
mod group;
pub mod holder;
mod input;
pub mod leader;
pub mod limits;
mod mark;
mod pause;
pub mod peek;
mod peer;
pub mod place;
pub mod private;
pub mod protocol;
mod relay;
mod roll;
pub mod server;
mod spawn;
mod stdio;
mod sys;
pub mod terminal;
#[cfg(test)]
mod tests;
mod travel;
pub mod view;

pub use agent::Agent;
pub use gang::driver::GangList;
pub(crate) use protocol::{Asked, Told};
pub use roll::AGE_MIN;
pub use server::{JobServer, bind};
pub(crate) use travel::ask;
pub use travel::{Flush, Keeping, Levelling, Locked, MovesCounted, forget_homes};
pub use view::Nodes;

/// Where the socket for jobs is unless the environment names another in [`SOCKET_ENV`].
pub const SOCKET_PATH: &str = "/run/glu/jobs.sock";

/// 1 in the environment of a job has it levelled, whatever its program is.
pub const LEVEL_ENV: &str = "GLU_LOADLEVEL";

/// Names another socket for jobs.
pub const SOCKET_ENV: &str = "GLU_JOBS_SOCKET";
