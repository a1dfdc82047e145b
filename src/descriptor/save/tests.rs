use super::*;
use crate::descriptor::fake::FakeFolder;
use crate::descriptor::{Format, ImageEntry};
use crate::error::Result;

const NAME: &str = "disk.qbm";

fn descriptor(file: &str) -> Descriptor {
    let image = ImageEntry {
        file: file.to_owned(),
        format: Format::Raw,
        checksum: None,
    };
    Descriptor::new("a test", image).unwrap()
}

/// A folder with an old descriptor in it, and the new one to put there.
fn folder() -> (FakeFolder, Vec<u8>, Descriptor) {
    let folder = FakeFolder::default();
    let old = descriptor("old.img").to_json();
    folder.put(NAME, &old, "0640 alice");
    (folder, old, descriptor("new.img"))
}

#[test]
fn replace_goes_step_by_step() {
    let (folder, _, new) = folder();
    replace(&folder, Path::new(NAME), &new).unwrap();
    let calls = [
        "check_writable",
        "create .disk.qbm.tmp",
        "copy_attributes disk.qbm .disk.qbm.tmp",
        "write",
        "sync All",
        "rename .disk.qbm.tmp disk.qbm",
        "sync the folder",
    ];
    assert_eq!(folder.calls(), calls);
    assert_eq!(folder.names(), [NAME]);
    let durable = Some((new.to_json(), "0640 alice"));
    assert_eq!(folder.after_power_cut(NAME), [durable.clone(), durable]);
}

/// M1: whichever call fails, and whether power is cut then or not, the file is the old one or the new one.
#[test]
fn replace_is_old_or_new_whatever_fails() {
    let steps = {
        let (folder, _, new) = folder();
        replace(&folder, Path::new(NAME), &new).unwrap();
        folder.calls().len()
    };
    for step in 0..steps {
        // Alone, and together with the clean-up that follows.
        for failing in [vec![step], vec![step, step + 1]] {
            let (folder, old, new) = folder();
            folder.fail(&failing);
            let error = replace(&folder, Path::new(NAME), &new).unwrap_err();
            let bytes_of_new = new.to_json();
            for (bytes, attributes) in folder.after_power_cut(NAME).into_iter().flatten() {
                assert!(
                    bytes == old || bytes == bytes_of_new,
                    "{failing:?}: neither old nor new"
                );
                assert_eq!(attributes, "0640 alice", "{failing:?}");
            }
            let now = folder.content(NAME).unwrap();
            match error {
                SaveError::Unchanged(error) => {
                    assert_eq!(now, old, "{failing:?}: {error}");
                    assert_eq!(error.errno(), libc::EIO);
                    if failing.len() == 1 {
                        assert_eq!(folder.names(), [NAME], "{failing:?}");
                    }
                }
                SaveError::Unsure(_) => assert!(step + 2 >= steps, "{failing:?}: the old one stands"),
            }
        }
    }
}

#[test]
fn a_failed_folder_sync_is_told_apart() {
    let (folder, _, new) = folder();
    folder.fail(&[6]);
    let error = replace(&folder, Path::new(NAME), &new).unwrap_err();
    assert!(matches!(error, SaveError::Unsure(_)));
    assert_eq!(
        Error::from(error).message(),
        "a power cut may leave the old descriptor or the new one: \
         cannot sync the folder of disk.qbm: Input/output error"
    );
    assert_eq!(folder.content(NAME), Some(new.to_json()));
}

/// A network file system can lose the answer to a rename that it has done: then no file of the new one may go.
#[test]
fn a_rename_that_failed_but_happened_is_unsure() {
    let (folder, _, new) = folder();
    folder.fail(&[5]);
    folder.rename_lies();
    let error = replace(&folder, Path::new(NAME), &new).unwrap_err();
    assert!(matches!(error, SaveError::Unsure(_)));
}

#[test]
fn a_stray_temporary_is_left_alone() {
    let (folder, _, new) = folder();
    folder.put(".disk.qbm.tmp", b"of a crash", "");
    replace(&folder, Path::new(NAME), &new).unwrap();
    assert_eq!(folder.content(".disk.qbm.tmp").unwrap(), b"of a crash");
    assert_eq!(folder.names(), [".disk.qbm.tmp", NAME]);
}

#[test]
fn what_could_not_be_opened_again_is_not_saved() {
    let (folder, old, mut new) = folder();
    let length = usize::try_from(Descriptor::MAX_BYTES).unwrap();
    new.set_image(ImageEntry {
        file: "x".repeat(length),
        format: Format::Raw,
        checksum: None,
    })
    .unwrap();
    let error = Error::from(replace(&folder, Path::new(NAME), &new).unwrap_err());
    assert_eq!(error.code(), ErrorCode::NotSupported);
    assert!(
        error
            .message()
            .contains("more than the limit of 33554432 (32 MiB)"),
        "{error}"
    );
    assert!(folder.calls().is_empty());
    assert_eq!(folder.content(NAME), Some(old));
}

#[test]
fn create_new_leaves_nothing_behind_when_it_fails() {
    let create = |failing: &[usize]| -> (FakeFolder, Result<()>) {
        let folder = FakeFolder::default();
        folder.fail(failing);
        let result = create_new(&folder, Path::new(NAME), &descriptor("disk-data.img"), None);
        (folder, result)
    };
    let (folder, result) = create(&[]);
    result.unwrap();
    assert_eq!(
        folder.calls(),
        [
            "check_writable",
            "create disk.qbm",
            "write",
            "sync All",
            "sync the folder"
        ]
    );
    let durable = Some((descriptor("disk-data.img").to_json(), ""));
    assert_eq!(folder.after_power_cut(NAME), [durable.clone(), durable]);
    for step in 0..5 {
        let (folder, result) = create(&[step]);
        assert_eq!(result.unwrap_err().errno(), libc::EIO, "{step}");
        assert!(folder.names().is_empty(), "{step}");
    }
}

#[test]
fn create_new_never_overwrites() {
    let (folder, old, new) = folder();
    let error = create_new(&folder, Path::new(NAME), &new, None).unwrap_err();
    assert_eq!(error.code(), ErrorCode::FileExists);
    assert_eq!(error.message(), "cannot create disk.qbm: File exists");
    assert_eq!(folder.content(NAME), Some(old));
}
