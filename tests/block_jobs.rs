//! Random chains of images and random work on them against plain vectors: what guests do, and every job that moves what an
//! overlay has or what it is on. What the disk shows is read through the library, and compared by QEMU.

#![allow(
    clippy::expect_used,
    reason = "helpers beside the tests may fail as loudly as the tests"
)]

#[path = "block_jobs/compare.rs"]
mod compare;
#[path = "block_jobs/drawn.rs"]
mod drawn;
#[path = "block_jobs/images.rs"]
mod images;
#[path = "block_jobs/jobs.rs"]
mod jobs;
#[path = "common/skip.rs"]
mod skip;
#[path = "block_jobs/world.rs"]
mod world;

use compare::{accepted, compare, compare_with_the_model, measured};
use drawn::{Step, drawn, step};
use images::have_qemu;
use proptest::prelude::*;
use qbm::{Format, OpenOptions};
use world::World;

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn jobs_keep_what_the_model_has(
        below in proptest::collection::vec(drawn(), 0..=5),
        top in drawn(),
        steps in proptest::collection::vec(step(), 0..20),
        differs in any::<u64>(),
        format in prop_oneof![Just(Format::Raw), Just(Format::Qbm), Just(Format::Qcow2)],
    ) {
        let mut world = World::new(&below, &top);
        world.check()?;
        for step in &steps {
            world.step(step);
            world.check()?;
        }
        world.step(&Step::Reopen);
        let found = world.check()?;
        if have_qemu() {
            compare(&world, &found);
            for image in world.below.iter().filter(|image| image.format() == Format::Qcow2) {
                accepted(&world.room.path(image), &image.content);
            }
        }
        compare_with_the_model(&world, differs);
        measured(&world, format);
        // And as a chain that nobody writes to.
        world.disk.take().expect("it is open").close().expect("it closes");
        let disk = OpenOptions::new().read_only(true).open(world.room.path(&world.top)).expect("it opens");
        world.disk = Some(disk);
        world.check()?;
    }
}

#[test]
fn it_is_said_where_qemu_is_missing() {
    if !have_qemu() {
        skip::skipped(
            "qemu-img and qemu-io are not installed: no qcow2 and no vmdk was in the chains, and nothing compared by QEMU",
        );
    }
}
