//! Images in the formats of other programs, made by those programs: libqbm shows what they show.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers beside the tests may fail as loudly as the tests"
)]

#[path = "formats/backing.rs"]
mod backing;
#[path = "formats/commit.rs"]
mod commit;
#[path = "formats/image.rs"]
mod image;
#[path = "formats/memory.rs"]
mod memory;
#[path = "common/random.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod random;
#[path = "formats/refused.rs"]
mod refused;
#[path = "formats/room.rs"]
mod room;
#[path = "common/skip.rs"]
mod skip;
#[path = "formats/tool.rs"]
mod tool;
