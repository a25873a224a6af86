//! What may come next of the checkpoints of a job.

use super::super::{Copy, Event, NotKept};
use super::{Missing, NODES, World};
use consistency::NodeId;

/// Takes what changes a world into another that may come next.
type Add<'a> = dyn FnMut(&dyn Fn(&mut World)) + 'a;

impl World {
    pub(super) fn next_of_checkpoints(&self, missing: Missing, add: &mut Add<'_>) {
        if self.keeps < self.wishes.keeps {
            add(&|world: &mut Self| {
                world.keeps += 1;
                world.at_home(Event::Keep, missing);
            });
        }
        if self.writes {
            for well in [true, false] {
                add(&|world: &mut Self| {
                    world.writes = false;
                    world.written += u64::from(well);
                    let event = if well || missing == Missing::Whole {
                        Event::Stored(world.written)
                    } else {
                        Event::NotStored(NotKept::Busy)
                    };
                    world.at_home(event, missing);
                });
            }
        }
        if let Some(host) = self.fence {
            let copy = self.hosts[host].copy;
            if copy.is_none_or(|copy| copy == Copy::Gone) || missing == Missing::Fence {
                add(&|world: &mut Self| {
                    world.fence = None;
                    world.at_home(Event::Fenced, missing);
                });
            }
        }
        if self.reads {
            add(&|world: &mut Self| {
                world.reads = false;
                world.at_home(Event::NotLoaded, missing);
            });
            for to in (0..NODES).filter(|to| *to != self.source) {
                let free = self.hosts[to].copy.is_none_or(|copy| copy == Copy::Gone);
                if free {
                    let to = NodeId(u16::try_from(to).expect("a handful"));
                    add(&|world: &mut Self| {
                        world.reads = false;
                        world.at_home(Event::Loaded(to), missing);
                    });
                }
            }
        }
    }
}
