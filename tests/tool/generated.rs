//! Man pages and completions: all verbs, all options, nothing that is hidden.

use super::room::{Room, text};

const VERBS: [&str; 18] = [
    "create",
    "info",
    "map",
    "resize",
    "commit",
    "rebase",
    "snapshot",
    "import",
    "export",
    "bitmap",
    "bitmap list",
    "bitmap dump",
    "backup",
    "backup list",
    "backup verify",
    "backup prune",
    "restore",
    "check",
];

#[test]
fn generate_writes_a_page_for_every_verb_and_completions_for_every_shell() {
    let room = Room::new();
    assert_eq!(room.done(&["generate", "--dir", "out"]), "");
    for file in ["qbm.1", "qbm.bash", "_qbm", "qbm.fish"] {
        let content = text(&room.read(&format!("out/{file}")));
        for word in VERBS.join(" ").split(' ') {
            // The page of the tool names its own commands only; what is below them has its own.
            let known = file == "qbm.1" && ["list", "dump", "verify", "prune"].contains(&word)
                || content.contains(word);
            assert!(known, "{file} does not know {word}");
        }
        for hidden in ["completions", "generate"] {
            assert!(!content.contains(hidden), "{file} shows {hidden}");
        }
    }
    for verb in VERBS {
        let page = text(&room.read(&format!("out/qbm-{}.1", verb.replace(' ', "-"))));
        assert_eq!(page, room.done(&words("man", verb)));
        assert!(page.contains(".SH EXAMPLES\n"), "{verb}");
        assert!(page.contains(&format!("qbm {verb} ")), "{verb}");
    }
}

fn words<'w>(first: &'w str, others: &'w str) -> Vec<&'w str> {
    [first].into_iter().chain(others.split(' ')).collect()
}

#[test]
fn every_verb_teaches_by_example() {
    let room = Room::new();
    for verb in VERBS {
        let help = room.done(&words("help", verb));
        assert!(help.contains(&format!("\nExamples:\n  qbm {verb} ")), "{help}");
    }
    assert!(!room.done(&["--help"]).contains("generate"));
}

#[test]
fn the_man_page_of_no_verb_is_refused() {
    let room = Room::new();
    assert_eq!(
        room.fails(&["man", "frob"]),
        (2, "qbm: there is no command \"frob\"\n".to_owned())
    );
    assert_eq!(
        room.fails(&["man", "bitmap", "frob"]),
        (2, "qbm: there is no command \"bitmap frob\"\n".to_owned())
    );
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let room = Room::new();
    room.write("file", b"");
    assert_eq!(
        room.fails(&["generate", "--dir", "file/sub"]),
        (
            1,
            "qbm: cannot make the folder file/sub: Not a directory\n".to_owned()
        )
    );
}
