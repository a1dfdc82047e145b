//! A verb that has two forms: one with options of its own, and one with a subcommand.
//!
//! By hand and not derived, because only so the two are two types, each with all that it needs.

use clap::{ArgMatches, Args, Command, FromArgMatches, Subcommand};

/// What was given.
pub enum Forms<O, S> {
    Options(O),
    Subcommand(S),
}

/// How a verb of two forms is told of; on its options.
pub trait Usage {
    const ABOUT: &'static str;
    /// All the forms, a line each.
    const USAGE: &'static str;
}

impl<O: Args, S: Subcommand> FromArgMatches for Forms<O, S> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        if matches.subcommand_name().is_some() {
            S::from_arg_matches(matches).map(Self::Subcommand)
        } else {
            O::from_arg_matches(matches).map(Self::Options)
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<O: Args + Usage, S: Subcommand> Args for Forms<O, S> {
    fn augment_args(command: Command) -> Command {
        S::augment_subcommands(O::augment_args(command))
            .about(O::ABOUT)
            .override_usage(O::USAGE)
            .args_conflicts_with_subcommands(true)
            .subcommand_negates_reqs(true)
            .subcommand_required(false)
            .arg_required_else_help(false)
            .disable_help_subcommand(true)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
