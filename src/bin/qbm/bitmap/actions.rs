//! The actions of `qbm bitmap`, in the order in which they stand on the command line.

use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command, FromArgMatches};

/// One of them.
pub enum Action {
    Add,
    Remove,
    Clear,
    Enable,
    Disable,
    /// To this name.
    Rename(String),
    /// From the bitmap of this name.
    Merge(String),
}

/// All of them; there is at least one.
pub struct Actions(Vec<Action>);

impl Actions {
    pub fn iter(&self) -> impl Iterator<Item = &Action> {
        self.0.iter()
    }
}

/// Makes an action; those without a value ignore it.
type Make = fn(&str) -> Action;

/// Of each: its option, its value, what it does, and how it is made.
const KINDS: [(&str, Option<&str>, &str, Make); 7] = [
    ("add", None, "Make BITMAP; it records from now on", |_| {
        Action::Add
    }),
    ("remove", None, "Remove BITMAP, and its file", |_| Action::Remove),
    (
        "clear",
        None,
        "Nothing is dirty any more: the point from which changes are known is now",
        |_| Action::Clear,
    ),
    ("enable", None, "Record from now on what is written", |_| {
        Action::Enable
    }),
    (
        "disable",
        None,
        "Record nothing more; what is dirty stays so",
        |_| Action::Disable,
    ),
    (
        "merge",
        Some("SOURCE"),
        "Whatever is dirty in SOURCE is dirty in BITMAP, too; their granularities may differ. May be repeated",
        |source| Action::Merge(source.to_owned()),
    ),
    (
        "rename",
        Some("NEW"),
        "Call BITMAP NEW; its file keeps its name",
        |name| Action::Rename(name.to_owned()),
    ),
];

impl clap::Args for Actions {
    fn augment_args(command: Command) -> Command {
        let args = KINDS.map(|(name, value, help, _)| {
            let arg = Arg::new(name)
                .long(name)
                .help(help)
                .action(ArgAction::Append)
                .help_heading("Actions");
            match value {
                Some(value) => arg.value_name(value),
                // With no value and no default a flag would not tell where each of its occurrences stood.
                None => arg.num_args(0).default_missing_value(""),
            }
        });
        let names = KINDS.map(|(name, ..)| name);
        command
            .args(args)
            .group(ArgGroup::new("ACTION").args(names).multiple(true).required(true))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Actions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut found = Vec::new();
        for (name, _, _, make) in KINDS {
            let places = matches.indices_of(name).into_iter().flatten();
            let values = matches.get_many::<String>(name).into_iter().flatten();
            found.extend(places.zip(values).map(|(place, value)| (place, make(value))));
        }
        found.sort_by_key(|(place, _)| *place);
        Ok(Self(found.into_iter().map(|(_, action)| action).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
