//! Random documents: what is saved is what was read, with every key that the library does not know.

use std::collections::HashSet;

use proptest::prelude::*;
use qbm::descriptor::Descriptor;
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::oracle::survives_saving;

/// JSON whose keys keep their order, printed by `serde_json` and not by the code under test.
#[derive(Clone, Debug)]
enum Tree {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Text(String),
    List(Vec<Tree>),
    Object(Vec<(String, Tree)>),
}

impl Serialize for Tree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Unsigned(value) => serializer.serialize_u64(*value),
            Self::Signed(value) => serializer.serialize_i64(*value),
            Self::Text(value) => serializer.serialize_str(value),
            Self::List(list) => serializer.collect_seq(list),
            Self::Object(members) => {
                let mut map = serializer.serialize_map(Some(members.len()))?;
                for (key, value) in members {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

fn text(word: &str) -> Tree {
    Tree::Text(word.to_owned())
}

/// Keys that come early win, so that no key is there twice.
fn unique(members: Vec<(String, Tree)>) -> Vec<(String, Tree)> {
    let mut seen = HashSet::new();
    members
        .into_iter()
        .filter(|(key, _)| seen.insert(key.clone()))
        .collect()
}

fn any_key() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), "[a-c\"\\\\\u{0}\n:,{}]{0,3}"]
}

fn any_tree() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        Just(Tree::Null),
        any::<bool>().prop_map(Tree::Bool),
        any::<u64>().prop_map(Tree::Unsigned),
        any::<i64>().prop_map(Tree::Signed),
        any_key().prop_map(Tree::Text),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Tree::List),
            prop::collection::vec((any_key(), inner), 0..5).prop_map(|members| Tree::Object(unique(members))),
        ]
    })
}

/// An object of `known` keys and some unknown ones (whose names begin with `x-`), in any order.
fn object(known: Vec<(&'static str, BoxedStrategy<Tree>)>) -> BoxedStrategy<Tree> {
    let known: Vec<_> = known
        .into_iter()
        .map(|(key, value)| value.prop_map(move |value| (key.to_owned(), value)))
        .collect();
    let unknown = prop::collection::vec((any_key().prop_map(|key| format!("x-{key}")), any_tree()), 0..3);
    (known, unknown)
        .prop_map(|(known, unknown)| unique(known.into_iter().chain(unknown).collect()))
        .prop_shuffle()
        .prop_map(Tree::Object)
        .boxed()
}

fn format() -> BoxedStrategy<Tree> {
    prop::sample::select(vec!["raw", "qbm", "qcow2", "vmdk"])
        .prop_map(text)
        .boxed()
}

fn file() -> BoxedStrategy<Tree> {
    "(file:|/|\\./)?[a-zä %\"\\\\]{1,9}".prop_map(Tree::Text).boxed()
}

fn bitmap() -> BoxedStrategy<Tree> {
    object(vec![
        ("file", file()),
        ("type", Just(text("dirty")).boxed()),
        (
            "granularity-bytes",
            (9_u32..=31).prop_map(|shift| Tree::Unsigned(1 << shift)).boxed(),
        ),
        ("recording", any::<bool>().prop_map(Tree::Bool).boxed()),
        ("epoch", "[0-9a-f]{1,8}".prop_map(Tree::Text).boxed()),
        (
            "start-length",
            (0..=i64::MAX as u64).prop_map(Tree::Unsigned).boxed(),
        ),
    ])
}

fn descriptor() -> impl Strategy<Value = Tree> {
    let bitmap_name = any_key().prop_map(|key| format!("b{}", key.replace('\0', "")));
    let bitmaps = prop::collection::vec((bitmap_name, bitmap()), 0..5)
        .prop_map(|members| Tree::Object(unique(members)))
        .boxed();
    let region = (9_u32..=62).prop_map(|shift| Tree::Unsigned(1 << shift)).boxed();
    let qbm = object(vec![
        ("version", Just(Tree::Unsigned(1)).boxed()),
        ("creator", any_tree().boxed()),
        ("image", object(vec![("file", file()), ("format", format())])),
        ("bitmaps", bitmaps),
        ("state", object(vec![("file", file()), ("region-bytes", region)])),
        (
            "features",
            object(vec![("incompatible", Just(Tree::List(vec![])).boxed())]),
        ),
    ]);
    object(vec![("QBM", qbm)])
}

proptest! {
    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        survives_saving(&bytes);
    }

    /// Read from one line and saved over many: `serde_json` printed both, so order and content are its own.
    #[test]
    fn saving_is_the_identity(tree in descriptor()) {
        let one_line = serde_json::to_vec(&tree).unwrap();
        let mut lines = serde_json::to_string_pretty(&tree).unwrap();
        lines.push('\n');
        let descriptor = Descriptor::parse(&one_line).unwrap();
        prop_assert_eq!(String::from_utf8(descriptor.to_json()).unwrap(), lines);
        survives_saving(&one_line);
    }

    /// A double in an unknown key is the same double after any number of saves.
    #[test]
    fn doubles_stay(value in any::<f64>().prop_filter("JSON has none", |value| value.is_finite())) {
        let document = format!(
            r#"{{"QBM":{{"version":1,"image":{{"file":"d","format":"raw"}},"bitmaps":{{}},"x":{value:?}}}}}"#
        );
        let saved = Descriptor::parse(document.as_bytes()).unwrap().to_json();
        let read: serde_json::Value = serde_json::from_slice(&saved).unwrap();
        prop_assert_eq!(read["QBM"]["x"].as_f64().map(f64::to_bits), Some(value.to_bits()));
        survives_saving(document.as_bytes());
    }

    /// A valid descriptor with some bytes changed, taken out or repeated.
    #[test]
    fn mutations_are_answered(
        tree in descriptor(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..8),
    ) {
        let mut bytes = serde_json::to_vec(&tree).unwrap();
        for (at, byte, edit) in edits {
            let at = at.index(bytes.len());
            match edit {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 => bytes.truncate(at.max(1)),
                _ => bytes.extend_from_within(at..),
            }
        }
        survives_saving(&bytes);
    }

    #[test]
    fn mutations_of_the_corpus_are_answered(
        file in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let corpus = super::corpus();
        let mut bytes = corpus[file.index(corpus.len())].clone();
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        survives_saving(&bytes);
    }
}
