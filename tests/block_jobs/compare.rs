//! Others look at a disk, or at what a job has made: QEMU, and the library's own comparison and measure.

use std::path::{Path, PathBuf};
use std::process::Command;

use qbm::convert::{Compare, Convert, MeasureSource, QCOW2_CLUSTER, Verdict, measure};
use qbm::{Format, OpenOptions};

use super::drawn::small;
use super::world::World;

/// QEMU finds nothing wrong with a qcow2, and this content in it.
pub fn accepted(image: &Path, content: &[u8]) {
    let model = image.with_extension("model");
    std::fs::write(&model, content).expect("written");
    let run = |args: &[&str], files: &[&Path]| {
        let output = Command::new("qemu-img").args(args).args(files).output();
        let output = output.expect("it runs");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(
            output.status.success() && !said.contains("mismatch"),
            "{args:?}: {said}"
        );
    };
    run(&["check", "-f", "qcow2"], &[image]);
    run(&["compare", "-f", "qcow2", "-F", "raw"], &[image, &model]);
}

/// QEMU finds the same in what was read and in what should be there; and in a raw image that all was committed into.
pub fn compare(world: &World, found: &[u8]) {
    let file = |name: &str, content: &[u8]| {
        let path = world.room.dir.path().join(name);
        std::fs::write(&path, content).expect("written");
        path
    };
    let same = |a: &PathBuf, b: &PathBuf| {
        let output = Command::new("qemu-img")
            .args(["compare", "-q", "-f", "raw", "-F", "raw"])
            .args([a, b])
            .output()
            .expect("it runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
    };
    // QEMU rounds lengths up to sectors, and so does this.
    let padded = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    };
    let model = file("model.img", &padded(&world.top.content));
    same(&file("found.img", &padded(found)), &model);
    let converted = world.room.dir.path().join("converted.img");
    let done = Convert::new().create(world.disk(), &converted, Format::Raw, &mut World::watched());
    done.expect("converted");
    let content = std::fs::read(&converted).expect("read");
    std::fs::write(&converted, padded(&content)).expect("written");
    same(&converted, &model);
    if let Some(image) = world.below.first().filter(|image| image.format() == Format::Raw) {
        let content = std::fs::read(world.room.path(image)).expect("read");
        same(
            &file("raw.img", &padded(&content)),
            &file("model.img", &padded(&image.content)),
        );
    }
}

/// The library's own comparison finds the model the same; and with one byte changed, it finds that byte.
pub fn compare_with_the_model(world: &World, at: u64) {
    let model = world.room.dir.path().join("own.img");
    let verdict = |content: &[u8]| {
        std::fs::write(&model, content).expect("written");
        let options = OpenOptions::new().read_only(true).image_format(Format::Raw);
        let raw = options.open(&model).expect("it opens");
        let compared = Compare::new().run(world.disk(), &raw, &mut World::watched());
        compared.map_err(|it| it.error).expect("compared")
    };
    let mut content = world.top.content.clone();
    assert_eq!(verdict(&content), Verdict::Identical);
    let at = at % world.length();
    content[small(at)] ^= 0x55;
    assert_eq!(verdict(&content), Verdict::Differs(at));
}

/// What is measured is enough for all that is no zeros, and for what a conversion makes of it.
pub fn measured(world: &World, format: Format) {
    let measured = measure(MeasureSource::Image(world.disk()), format, QCOW2_CLUSTER).expect("measured");
    let (required, most) = (measured.required, measured.fully_allocated);
    let unit = match format {
        Format::Raw => {
            let whole = world.length().next_multiple_of(512);
            assert_eq!((required, most), (whole, whole));
            return;
        }
        Format::Qcow2 => QCOW2_CLUSTER,
        _ => 4096,
    };
    let has_data = |piece: &&[u8]| piece.iter().any(|byte| *byte != 0);
    let pieces = world.top.content.chunks(small(unit)).filter(has_data).count() as u64;
    assert!(
        pieces * unit <= required && required <= most,
        "{pieces} of {unit}: {measured:?}"
    );
    if format == Format::Qcow2 && world.length().is_multiple_of(512) {
        let converted = world.room.dir.path().join("measured.qcow2");
        let done = Convert::new().create(world.disk(), &converted, format, &mut World::watched());
        done.expect("converted");
        let takes = std::fs::metadata(&converted).expect("it is there").len();
        assert!(takes <= required, "{takes}: {measured:?}");
    }
}
