//! `qbm bitmap`: changes of a dirty bitmap, as qemu-img spells them; and, as subcommands, what there is and what it says.
//!
//! qemu-img's form always has an action in it, an option such as `--add`, and what stands behind it is a file and a
//! bitmap. So `list` and `dump` are commands only where no option has come before them: no line that qemu-img would
//! take means something else here, and `qbm bitmap --add list nightly` is about a disk in the file `list`.

mod actions;
mod dump;
mod list;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use qbm::{AddBitmap, BitmapAction, BitmapContent, Disk, Error, ErrorCode, Granularity, MergeSource};

use crate::dirty;
use crate::failure::{Failure, Outcome};
use crate::forms::{Forms, Usage};
use crate::letters::Described;
use crate::open;
use crate::size::parse_granularity;
use actions::{Action, Actions};

const AFTER_HELP: &str = "\
The actions take effect in the order in which they stand, at one point and together: where one
fails, nothing has changed. Each is about the bitmap that is called BITMAP by then, so that an --add
behind a --rename makes a new one.

No program may have the disk open meanwhile; a running hypervisor changes its bitmaps itself.

Examples:
  qbm bitmap --add disk.qbm nightly
      From now on, whatever is written to the disk through libqbm is recorded in the bitmap nightly.
  qbm bitmap --add -g 4k --disable disk.qbm scratch
      A bitmap of 4 KiB granules that does not record.
  qbm bitmap --disable --rename monday --add disk.qbm nightly
      What was recorded until now is kept as monday, and a new nightly goes on, with no write between them.
  qbm bitmap --merge monday --merge tuesday disk.qbm week
      What is dirty in one of the two is dirty in week, too.
  qbm bitmap --merge nightly -b copy.qbm disk.qbm nightly
      The same with the bitmap of another disk, which is as long as this one.
  qbm bitmap list disk.qbm
      Which bitmaps there are.
  qbm bitmap dump disk.qbm nightly
      Which bytes are dirty.";

/// Change, list and show dirty bitmaps, the records of what was written
pub type Args = Forms<Change, Look>;

#[derive(Subcommand)]
pub enum Look {
    List(list::Args),
    Dump(dump::Args),
}

/// Change, list and show dirty bitmaps, the records of what was written
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Change {
    #[command(flatten)]
    actions: Actions,

    /// How many bytes one bit of the new bitmap stands for: a power of two from 512 to 2G [default: 64k]
    #[arg(short, long, value_name = "BYTES", value_parser = parse_granularity, requires = "add")]
    granularity: Option<Granularity>,

    /// The bitmaps to --merge from are those of the disk FILE
    #[arg(short = 'b', long, value_name = "FILE", requires = "merge")]
    source_file: Option<PathBuf>,

    /// What FILE is: qbm, which it is taken for in any case, as nothing else is supported
    #[arg(short = 'F', long, value_name = "FORMAT", requires = "source_file")]
    source_format: Option<String>,

    #[command(flatten)]
    described: Described,

    /// The disk's descriptor
    #[arg(value_name = "DISK.qbm")]
    disk: PathBuf,

    /// The bitmap's name
    bitmap: String,
}

impl Usage for Change {
    const ABOUT: &'static str = "Change, list and show dirty bitmaps, the records of what was written";
    const USAGE: &'static str = "qbm bitmap [OPTIONS] <ACTION>... <DISK.qbm> <BITMAP>\n       \
        qbm bitmap list [OPTIONS] <DISK.qbm>\n       \
        qbm bitmap dump [OPTIONS] <DISK.qbm> <BITMAP>";
}

pub fn run(args: &Args) -> Outcome {
    match args {
        Args::Options(change) => change.run(),
        Args::Subcommand(Look::List(args)) => list::run(args),
        Args::Subcommand(Look::Dump(args)) => dump::run(args),
    }
}

impl Change {
    fn run(&self) -> Outcome {
        let contents = match &self.source_file {
            Some(file) => self.contents_of(file)?,
            None => Vec::new(),
        };
        let disk = open::to_write(&self.disk)?;
        if let (Some(file), Some(content)) = (&self.source_file, contents.first()) {
            self.check_length(file, content, &disk)?;
        }
        let mut contents = contents.iter();
        let actions: Vec<BitmapAction<'_>> = self
            .actions
            .iter()
            .map(|action| self.to_engine(action, &mut contents))
            .collect();
        disk.bitmap_transaction(&actions)
            .map_err(|error| self.explain(error, &disk))?;
        disk.close().map_err(|error| self.on_disk(error).into())
    }

    /// What each of the merges takes from the disk `file`; nothing where that is the disk itself.
    fn contents_of(&self, file: &Path) -> Outcome<Vec<BitmapContent>> {
        if let Some(format) = self.source_format.as_deref().filter(|format| *format != "qbm") {
            return Err(Failure::Usage(format!(
                "cannot merge from {}: its format is given as {format:?}, and only the bitmaps of QBM disks can be merged \
                 (-F qbm)",
                file.display()
            )));
        }
        // As if it had not been given: the merges see what the actions before them do.
        if is_same_file(file, &self.disk) {
            return Ok(Vec::new());
        }
        let disk = open::to_read(file)?;
        self.sources()
            .map(|name| {
                disk.bitmap_content(name).map_err(|error| {
                    let error = error.context(format_args!("cannot merge from {}", file.display()));
                    dirty::explain(error, &disk)
                })
            })
            .collect()
    }

    fn check_length(&self, file: &Path, content: &BitmapContent, disk: &Disk) -> Outcome {
        if content.length() == disk.length() {
            return Ok(());
        }
        Err(Failure::Refused(format!(
            "cannot merge from {}: it is {} bytes long, and {} is {}; a merge is between disks of the same length",
            file.display(),
            content.length(),
            self.disk.display(),
            disk.length()
        )))
    }

    fn to_engine<'a>(
        &'a self,
        action: &'a Action,
        contents: &mut impl Iterator<Item = &'a BitmapContent>,
    ) -> BitmapAction<'a> {
        let name = self.bitmap.as_str();
        match action {
            Action::Add => BitmapAction::Add {
                name,
                options: AddBitmap {
                    granularity: self.granularity.unwrap_or_default(),
                    ..AddBitmap::default()
                },
            },
            Action::Remove => BitmapAction::Remove { name },
            Action::Clear => BitmapAction::Clear { name },
            Action::Enable => BitmapAction::Enable { name },
            Action::Disable => BitmapAction::Disable { name },
            Action::Rename(to) => BitmapAction::Rename { name, to },
            Action::Merge(source) => {
                let source = contents
                    .next()
                    .map_or(MergeSource::Bitmap(source), MergeSource::Content);
                BitmapAction::Merge {
                    target: name,
                    sources: vec![source],
                }
            }
        }
    }

    /// The bitmaps that are merged from, in their order.
    fn sources(&self) -> impl Iterator<Item = &str> {
        self.actions.iter().filter_map(|action| match action {
            Action::Merge(source) => Some(source.as_str()),
            _ => None,
        })
    }

    fn explain(&self, error: Error, disk: &Disk) -> Failure {
        let error = self.on_disk(error);
        if error.code() == ErrorCode::BitmapNotFound && self.names_are_all_there(disk) {
            let hint = "an action before it has taken that name away, and nothing was changed".to_owned();
            return Failure::Hint(error, hint);
        }
        dirty::explain(error, disk)
    }

    fn names_are_all_there(&self, disk: &Disk) -> bool {
        let own = self.sources().filter(|_| self.source_file.is_none());
        disk.bitmap_list().is_ok_and(|list| {
            own.chain([self.bitmap.as_str()])
                .all(|name| list.iter().any(|info| info.name == name))
        })
    }

    fn on_disk(&self, error: Error) -> Error {
        error.context(self.disk.display())
    }
}

/// Where one of them cannot be looked at, opening it says why.
fn is_same_file(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}
