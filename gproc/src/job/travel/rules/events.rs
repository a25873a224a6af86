//! What happens at a job's home, and what home is to do.

use consistency::NodeId;

/// Why a process was not moved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::job) enum NotMoved {
    /// It is on its way already.
    #[error("it is moving already")]
    Busy,
    /// It has ended meanwhile.
    #[error("it has ended")]
    Ended,
    /// Its node was lost with it; it goes on from its last checkpoint.
    #[error("it was lost, and goes on from its last checkpoint")]
    Lost,
    /// Its copy could not be made or started; it goes on where it was.
    #[error("{0}")]
    Failed(String),
}

/// Why there is no new checkpoint of a process, which goes on if it has not ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::job) enum NotKept {
    /// It moves, or another one is being made.
    #[error("it is moving, or a checkpoint of it is being made")]
    Busy,
    /// It has ended meanwhile.
    #[error("it has ended")]
    Ended,
    /// No images could be made of it.
    #[error("{0}")]
    NoImages(String),
    /// The images could not be written.
    #[error("its images could not be written: {why}")]
    NotWritten {
        /// As write(2) has it.
        errno: i32,
        why: String,
    },
}

/// What happens at home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Event {
    /// Somebody wants it to move.
    Asked(NodeId),
    /// As [`Self::Asked`], and its pages may go ahead of it.
    AskedAhead(NodeId),
    /// They have gone, but for what changes since.
    Copied,
    /// Somebody wants a checkpoint.
    Keep,
    /// That has been kept, whole, under this number.
    Stored(u64),
    /// That could not be kept.
    NotStored(NotKept),
    /// What has been kept is of no use any more.
    Forget,
    /// The one that was lost cannot run any more.
    Fenced,
    /// What was kept is here, and is to run there.
    Loaded(NodeId),
    /// It cannot be had, or no node is left to run it.
    NotLoaded,
    /// It has been killed while nobody ran it.
    Killed,
    /// The source has frozen it, and its images are all here.
    Dumped,
    /// As [`Self::Dumped`], but most pages are with the source still (post-copy).
    DumpedPartly,
    /// The copy has all pages.
    Whole,
    /// The pages that the source keeps cannot be had any more.
    PagesGone(String),
    /// The source could not make images, and has let it go on.
    NotDumped(String),
    /// The source cannot be reached any more, or the program has ended there.
    SourceGone,
    /// The target has made the copy, which waits.
    Restored,
    /// The target could not make the copy, or cannot be reached, or the copy has ended there.
    TargetGone(String),
    /// The copy runs.
    Running,
}

/// What home is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Action {
    /// Has the source send pages to a target while it runs.
    CopyAhead(NodeId),
    /// Has it send no more of them.
    CopyNoMore,
    /// Has the source freeze it and make images.
    Freeze,
    /// Sends the images to a target.
    Offer(NodeId),
    /// Lets the copy run.
    Run,
    /// The copy is the job from now on; the source keeps its pages.
    Follow,
    /// Has the copy end, which cannot go on without its pages.
    EndCopy,
    /// Has the source end its copy, which is frozen.
    Drop,
    /// Has the source go on.
    Thaw,
    /// Has the target, if there is one, end its copy, which never ran.
    Abort,
    /// Tells who asked.
    Answer(Result<(), NotMoved>),
    /// Has the source make images and go on.
    Image,
    /// Keeps the images that are here.
    Store,
    /// Tells who wanted a checkpoint.
    TellKept(Result<u64, NotKept>),
    /// Finds out when the copy that was lost on this node cannot run any more.
    Fence(NodeId),
    /// Gets what was kept, and a node for it.
    Load,
    /// The job is over: nobody has a copy that may run.
    End,
}
