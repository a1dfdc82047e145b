//! Man pages and shell completions, made from the same definitions that read the command line. Hidden verbs, for
//! packagers and `make install`.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::Tool;
use crate::failure::{Failure, Outcome};

/// The shells whose completions are installed.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// Write all man pages and completions into a folder: qbm.1, qbm-create.1 …, qbm.bash, _qbm, qbm.fish
#[derive(clap::Args)]
pub struct Args {
    /// The folder; made where it does not exist
    #[arg(long)]
    dir: PathBuf,
}

/// Print the completions for a shell
#[derive(clap::Args)]
pub struct CompletionArgs {
    /// The shell
    shell: Shell,
}

/// Print a man page
#[derive(clap::Args)]
pub struct ManArgs {
    /// The command that it is about, in as many words as that has; the whole tool where it is left out
    command: Vec<String>,
}

pub fn completions(args: &CompletionArgs) -> Outcome {
    io::stdout().write_all(&completion(args.shell))?;
    Ok(())
}

pub fn man(args: &ManArgs) -> Outcome {
    let tool = documented();
    let mut command = &tool;
    let mut words = vec!["qbm"];
    for word in &args.command {
        words.push(word);
        command = command.find_subcommand(word).ok_or_else(|| {
            let name = words[1..].join(" ");
            Failure::Usage(format!("there is no command {name:?}"))
        })?;
    }
    let page = Page::of(command, &words)?;
    io::stdout().write_all(&page.roff)?;
    Ok(())
}

pub fn run(args: &Args) -> Outcome {
    std::fs::create_dir_all(&args.dir).map_err(|e| qbm::Error::io("make the folder", &args.dir, &e))?;
    let tool = documented();
    let mut pages = Vec::new();
    Page::collect(&tool, &["qbm"], &mut pages)?;
    for page in pages {
        save(&args.dir.join(page.file_name), &page.roff)?;
    }
    for shell in SHELLS {
        let name = clap_complete::Generator::file_name(&shell, "qbm");
        save(&args.dir.join(name), &completion(shell))?;
    }
    Ok(())
}

fn save(path: &Path, content: &[u8]) -> Outcome {
    Ok(std::fs::write(path, content).map_err(|e| qbm::Error::io("write", path, &e))?)
}

/// The tool as its users see it: the generators show hidden verbs, so those are left out here.
fn documented() -> Command {
    let whole = Tool::command();
    let mut tool = Command::new("qbm").version(env!("CARGO_PKG_VERSION"));
    if let Some(about) = whole.get_about() {
        tool = tool.about(about.clone());
    }
    if let Some(about) = whole.get_long_about() {
        tool = tool.long_about(about.clone());
    }
    if let Some(help) = whole.get_after_help() {
        tool = tool.after_help(help.clone());
    }
    tool.subcommand_required(true).subcommands(
        whole
            .get_subcommands()
            .filter(|verb| !verb.is_hide_set())
            .cloned(),
    )
}

fn completion(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut documented(), "qbm", &mut script);
    script
}

struct Page {
    file_name: String,
    roff: Vec<u8>,
}

impl Page {
    /// Those of `command`, which is called `words`, and of its subcommands.
    fn collect(command: &Command, words: &[&str], pages: &mut Vec<Self>) -> io::Result<()> {
        pages.push(Self::of(command, words)?);
        for verb in command.get_subcommands() {
            Self::collect(verb, &[words, &[verb.get_name()]].concat(), pages)?;
        }
        Ok(())
    }

    /// `qbm create` has the page qbm-create(1).
    fn of(command: &Command, words: &[&str]) -> io::Result<Self> {
        Self::render(
            command
                .clone()
                .bin_name(words.join(" "))
                .display_name(words.join("-")),
        )
    }

    fn render(command: Command) -> io::Result<Self> {
        let help = command
            .get_after_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        // There is no qbm-help(1), so the page must not point to it.
        let has_verbs = command.has_subcommands();
        let page = Man::new(command.disable_help_subcommand(true));
        let mut roff = Vec::new();
        page.render_title(&mut roff)?;
        page.render_name_section(&mut roff)?;
        page.render_synopsis_section(&mut roff)?;
        page.render_description_section(&mut roff)?;
        page.render_options_section(&mut roff)?;
        if has_verbs {
            page.render_subcommands_section(&mut roff)?;
        }
        after_help(&help).to_writer(&mut roff)?;
        Ok(Self {
            file_name: page.get_filename(),
            roff,
        })
    }
}

/// The text behind a verb's options: notes, whose indented lines are tables, and then examples, each a command with
/// what it does below it.
fn after_help(text: &str) -> Roff {
    let (notes, examples) = text.split_once("Examples:\n").unwrap_or((text, ""));
    let mut page = Roff::new();
    page.control("SH", ["NOTES"]);
    for line in notes.trim_end().lines() {
        match line.strip_prefix("  ") {
            Some(row) => {
                let (key, meaning) = row.split_once("  ").unwrap_or((row, ""));
                page.control("TP", [])
                    .text([bold(key)])
                    .text([roman(meaning.trim_start())])
            }
            None if line.is_empty() => page.control("PP", []),
            None => page.text([roman(line)]),
        };
    }
    page.control("SH", ["EXAMPLES"]);
    for line in examples.lines() {
        match line.strip_prefix("      ") {
            Some(meaning) => page.text([roman(meaning)]),
            None => page.control("TP", []).text([bold(line.trim())]),
        };
    }
    page
}
