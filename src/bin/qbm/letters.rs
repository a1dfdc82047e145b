//! qemu-img's letters that say nothing here, and those that ask for what this has not.
//!
//! So that who is used to them is told more than that a letter is unknown. Invariant: a letter that is taken and changes
//! nothing asks for what is done in any case.

use crate::failure::{Failure, Outcome};

/// What a descriptor may be said to be.
#[derive(clap::Args)]
pub struct Described {
    /// What DISK.qbm is: qbm, which it is taken for in any case
    #[arg(short = 'f', long = "format", value_name = "FORMAT", value_parser = parse_qbm)]
    format: Option<()>,
}

fn parse_qbm(text: &str) -> Result<(), String> {
    match text {
        "qbm" => Ok(()),
        _ => Err(
            "what is named here is a descriptor, which is always qbm; \"qbm create --image FILE -f FORMAT\" makes one for \
             another image"
                .to_owned(),
        ),
    }
}

/// Fails with the words of the first letter that was given.
pub fn refuse(letters: &[(bool, &str)]) -> Outcome {
    match letters.iter().find(|(given, _)| *given) {
        Some((_, words)) => Err(Failure::Usage((*words).to_owned())),
        None => Ok(()),
    }
}
