//! `qbm compare`: whether two images show the same.
//!
//! Invariant: words and exit codes are qemu-img's.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use qbm::Format;
use qbm::convert::{Compare, CompareStep, Verdict};
use serde_json::json;

use crate::bar::Bar;
use crate::failure::{Failure, Outcome};
use crate::image::{self, parse_format};
use crate::open::Share;
use crate::output::Output;

const AFTER_HELP: &str = "\
Where one image is longer, the rest of it must be zeros. With -s the lengths must be the same, and so must be what is
data and what is a hole.

The offset that is printed is that of the first block of 512 bytes that differs, as qemu-img counts; --output json has
the byte as well. What is a hole in both images is not read, nor what they have in common: overlays of one backing are
compared by what is in them.

Each image is read as the format that is given for it, and never as what it looks like; only a name that ends in .qbm is
taken for a descriptor without being told.

Exit status, qemu-img compare's: 0 the images are identical; 1 they differ; 2 an image cannot be opened, or the command
line makes no sense; 3 it cannot be found out what is where in one; 4 one cannot be read.

Examples:
  qbm compare -F raw disk.qbm copy.img
  qbm compare -s -f raw -F raw one.img other.img";

/// Say whether two images show the same, and where they first differ
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// What the first image is [default: qbm, of a name that ends in .qbm; otherwise it must be given]
    #[arg(short, long = "a-format", value_name = "FORMAT", value_parser = parse_format)]
    format: Option<Format>,

    /// What the second image is, likewise
    #[arg(short = 'F', long = "b-format", value_name = "FORMAT", value_parser = parse_format)]
    second_format: Option<Format>,

    /// The lengths, and what is a hole, must be the same too
    #[arg(short, long)]
    strict: bool,

    /// Read by so many threads, 1 to 16 [default: 4]
    #[arg(short = 'm', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    threads: Option<u16>,

    /// Show how far it is, on a terminal
    #[arg(short, long)]
    progress: bool,

    /// Print for people or for programs
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    output: Output,

    /// Print nothing: the exit status says it
    #[arg(short, long)]
    quiet: bool,

    #[command(flatten)]
    share: Share,

    /// One image
    #[arg(value_name = "A")]
    one: PathBuf,

    /// The other
    #[arg(value_name = "B")]
    other: PathBuf,
}

/// What an end is for the exit status.
enum End {
    Opening(Failure),
    Status(Failure),
    Reading(Failure),
}

pub fn run(args: &Args) -> Outcome<ExitCode> {
    let (failure, code) = match compare(args) {
        Ok(found) => return say(&found, args),
        Err(End::Opening(failure)) => (failure, 2),
        Err(End::Status(failure)) => (failure, 3),
        Err(End::Reading(failure)) => (failure, 4),
    };
    // Where standard error is gone too, only the exit code is left to say it.
    let _ = writeln!(io::stderr(), "qbm: {failure}");
    Ok(ExitCode::from(code))
}

/// What was found, and how long the two are.
struct Found {
    verdict: Verdict,
    lengths: [u64; 2],
}

fn compare(args: &Args) -> Result<Found, End> {
    let one = image::to_read(&args.one, args.format, &args.share, "-f").map_err(End::Opening)?;
    let other = image::to_read(&args.other, args.second_format, &args.share, "-F").map_err(End::Opening)?;
    let mut how = Compare::new().strict(args.strict);
    if let Some(threads) = args.threads {
        how = how.threads(threads.into());
    }
    let bar = Bar::new(args.quiet || !args.progress, "comparing");
    let verdict = how.run(&one, &other, &mut |done, total| bar.show(done, total));
    drop(bar);
    let verdict = verdict.map_err(|failed| match failed.step {
        CompareStep::Status => End::Status(failed.error.into()),
        CompareStep::Read | CompareStep::Canceled => End::Reading(failed.error.into()),
    })?;
    Ok(Found {
        verdict,
        lengths: [one.length(), other.length()],
    })
}

fn say(found: &Found, args: &Args) -> Outcome<ExitCode> {
    let &Found { verdict, lengths } = found;
    let code = ExitCode::from(u8::from(verdict != Verdict::Identical));
    if args.quiet {
        return Ok(code);
    }
    let mut out = io::stdout().lock();
    if args.output == Output::Json {
        let mut facts = json!({"identical": verdict == Verdict::Identical, "lengths": lengths});
        match verdict {
            Verdict::Identical => {}
            Verdict::LengthDiffers => facts["differs"] = "length".into(),
            Verdict::Differs(at) => {
                facts["differs"] = "content".into();
                facts["offset"] = sector(at).into();
                facts["byte"] = at.into();
            }
            Verdict::AllocationDiffers(at) => {
                facts["differs"] = "allocation".into();
                facts["offset"] = at.into();
            }
        }
        writeln!(out, "{facts:#}")?;
        return Ok(code);
    }
    if !args.strict && lengths[0] != lengths[1] {
        writeln!(out, "Warning: Image size mismatch!")?;
    }
    match verdict {
        Verdict::Identical => writeln!(out, "Images are identical.")?,
        Verdict::LengthDiffers => writeln!(out, "Strict mode: Image size mismatch!")?,
        Verdict::Differs(at) => writeln!(out, "Content mismatch at offset {}!", sector(at))?,
        Verdict::AllocationDiffers(at) => {
            writeln!(out, "Strict mode: Offset {at} block status mismatch!")?;
        }
    }
    Ok(code)
}

/// qemu-img compares in blocks of 512 bytes.
fn sector(at: u64) -> u64 {
    at - at % 512
}
