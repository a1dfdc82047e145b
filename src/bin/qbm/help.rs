//! The texts behind the options, as wide as the terminal.

use clap::Command;

/// The command and those below it, with the lines of each paragraph joined: clap breaks them where the terminal ends, and
/// a break of our own besides would leave stubs of lines. What is indented stays as it is.
pub fn flowing(command: Command) -> Command {
    let text = command.get_after_help().map(|text| flow(&text.to_string()));
    let command = match text {
        Some(text) => command.after_help(text),
        None => command,
    };
    command.mut_subcommands(flowing)
}

fn flow(text: &str) -> String {
    let prose = |line: &str| !line.is_empty() && !line.starts_with(' ');
    let mut flowing = String::with_capacity(text.len());
    let mut before = None;
    for line in text.lines() {
        match before {
            None => {}
            Some(before) if prose(before) && prose(line) => flowing.push(' '),
            Some(_) => flowing.push('\n'),
        }
        flowing.push_str(line);
        before = Some(line);
    }
    flowing
}

#[cfg(test)]
mod tests {
    use super::flow;

    #[test]
    fn paragraphs_are_joined_and_lists_are_not() {
        let text = "One\nparagraph.\n\nAnother.\n\nExamples:\n  qbm this\n      What it does.";
        let flowing = "One paragraph.\n\nAnother.\n\nExamples:\n  qbm this\n      What it does.";
        assert_eq!(flow(text), flowing);
    }
}
