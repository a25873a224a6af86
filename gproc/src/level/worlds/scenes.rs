//! Worlds that are made by hand.

use super::*;

fn world_of(nodes: u16) -> World {
    let mut world = World::new(0, None);
    // Nothing fails any more.
    world.now = world.last_change();
    world.processes.clear();
    world.nodes.clear();
    for number in 1..=nodes {
        let machine = machine(2, 1_000, None);
        world.nodes.insert(NodeId(number), machine);
    }
    world
}

fn run_on(world: &mut World, at: NodeId, demand: f64, memory_kib: u64) -> i32 {
    world.start(at);
    let (pid, process) = world.processes.last_entry().map_or_else(
        || unreachable!("one was started"),
        |entry| (*entry.key(), entry.into_mut()),
    );
    (process.demand, process.memory_kib) = (demand, memory_kib);
    process.standing = Standing::Levelled;
    pid
}

#[test]
fn twelve_processes_of_one_node_are_spread_and_stay_put() {
    let mut world = world_of(3);
    for _ in 0..12 {
        run_on(&mut world, NodeId(1), 1.0, 2_000);
    }
    let counts = |world: &World| {
        [1, 2, 3].map(|node| {
            let here = world.processes.values();
            here.filter(|it| it.at == NodeId(node)).count()
        })
    };
    let mut rounds = 0;
    while counts(&world) != [4, 4, 4] {
        world.round().expect("by the rules");
        rounds += 1;
        assert!(rounds < 60, "{:?}", counts(&world));
    }
    println!("spread in {rounds} rounds, {} moves", world.moves);
    assert_eq!(world.moves, 8);
    for _ in 0..300 {
        world.round().expect("by the rules");
    }
    assert_eq!((counts(&world), world.moves), ([4, 4, 4], 8));
}

#[test]
fn a_hog_leaves_before_its_node_swaps() {
    let mut world = world_of(3);
    // Both want a whole processor, and there are two: for speed nobody goes.
    let hog = run_on(&mut world, NodeId(1), 1.0, 300 << 10);
    run_on(&mut world, NodeId(1), 1.0, 4 << 10);
    // One node has no room for it.
    let big = run_on(&mut world, NodeId(2), 0.0, 600 << 10);
    for _ in 0..10 {
        world.round().expect("by the rules");
    }
    assert_eq!(world.moves, 0);
    // It grows, until there is less than a tenth left.
    world.processes.get_mut(&hog).expect("there").memory_kib = 930 << 10;
    let before = world.moves;
    for _ in 0..10 {
        world.round().expect("by the rules");
    }
    // No other node has room for so much: it stays.
    assert_eq!(world.moves, before);
    world.processes.get_mut(&hog).expect("there").memory_kib = 600 << 10;
    run_on(&mut world, NodeId(1), 0.0, 350 << 10);
    for _ in 0..10 {
        world.round().expect("by the rules");
    }
    assert_eq!(world.processes[&hog].at, NodeId(3));
    assert_eq!(world.processes[&big].at, NodeId(2));
    assert_eq!(world.moves, 1);
}

#[test]
fn the_owner_of_a_node_is_left_alone_and_what_drains_is_left() {
    let mut world = world_of(3);
    let guest = run_on(&mut world, NodeId(1), 1.0, 1_000);
    let own = run_on(&mut world, NodeId(2), 0.0, 1_000);
    let process = world.processes.get_mut(&guest).expect("there");
    (process.at, process.came, process.lent) = (NodeId(2), true, false);
    // Its owner is on another node, though it has begun there.
    let lent = run_on(&mut world, NodeId(2), 0.0, 1_000);
    world.processes.get_mut(&lent).expect("there").lent = true;
    world.processes.get_mut(&own).expect("there").lent = false;
    world.nodes.get_mut(&NodeId(2)).expect("there").state.in_use = true;
    for _ in 0..10 {
        world.round().expect("by the rules");
    }
    let at = |world: &World, pid| world.processes[&pid].at;
    assert_eq!((at(&world, guest), at(&world, own)), (NodeId(1), NodeId(2)));
    assert_ne!(at(&world, lent), NodeId(2));
    world.nodes.get_mut(&NodeId(2)).expect("there").state.drains = true;
    for _ in 0..5 {
        world.round().expect("by the rules");
    }
    assert_ne!(at(&world, own), NodeId(2));
}

#[test]
fn a_faster_node_comes_first() {
    let mut world = world_of(3);
    world.nodes.get_mut(&NodeId(3)).expect("there").speed = 2_000;
    let alone = run_on(&mut world, NodeId(1), 1.0, 1_000);
    for _ in 0..10 {
        world.round().expect("by the rules");
    }
    assert_eq!(world.processes[&alone].at, NodeId(3));
    assert_eq!(world.moves, 1);
}
