//! `qbm commit`: what an overlay has goes into its backing.

use std::io::{self, IsTerminal as _, Write as _};
use std::ops::ControlFlow;
use std::path::PathBuf;

use crate::failure::{Failure, Outcome};
use crate::open;
use crate::output::short_size;

const AFTER_HELP: &str = "\
The overlay is empty afterwards and shows the same as before, since its backing has it all now. A backing that is
shorter is grown; holes stay holes. Nothing else may use that backing: it would see the change. Whatever goes wrong in
the middle, the overlay shows what it showed; the same command does the rest.

Examples:
  qbm commit clone.qbm
      What clone.qbm has of its own goes into the image that it is on.
  qbm info --backing-chain clone.qbm
      Which image that is.";

/// Write what an overlay has into its backing image, and empty it
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Print nothing, neither how far it is nor when it is done
    #[arg(short, long)]
    quiet: bool,

    /// The overlay's descriptor
    #[arg(value_name = "DISK.qbm")]
    disk: PathBuf,
}

pub fn run(args: &Args) -> Outcome {
    let disk = open::to_write(&args.disk)?;
    let backing = disk.info()?.overlay.and_then(|overlay| overlay.backing);
    let watched = !args.quiet && io::stderr().is_terminal();
    let (mut shown, mut copied) = (None, 0);
    let committed = disk.commit(&mut |done, total| {
        copied = done;
        let percent = done.saturating_mul(100) / total.max(1);
        if watched && shown != Some(percent) {
            shown = Some(percent);
            // Where it cannot be shown, it is done all the same.
            let _ = write!(io::stderr(), "\r{percent:3} %");
        }
        ControlFlow::Continue(())
    });
    if shown.is_some() {
        let _ = write!(io::stderr(), "\r     \r");
    }
    committed.and_then(|()| disk.close()).map_err(Failure::Engine)?;
    if !args.quiet {
        let into = backing.map_or_else(String::new, |backing| format!(" into {}", backing.file));
        writeln!(
            io::stdout(),
            "committed {} of {}{into}",
            short_size(copied),
            args.disk.display()
        )?;
    }
    Ok(())
}
