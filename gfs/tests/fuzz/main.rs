//! What a hostile or broken client can send, in great numbers and without a network: nothing panics, and what must
//! always hold still does. `FUZZ_CASES` sets the requests of each test, `SEED` the dice.

mod chunks;
mod dice;
mod leases;
mod locks;
mod metadata;
