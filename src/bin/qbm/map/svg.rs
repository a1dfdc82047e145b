//! A grid as SVG, with nothing in it but what every viewer draws: rectangles, paths and text with attributes.

use std::fmt::{self, Write as _};

use super::grid::{Grid, Shade};
use super::picture::Captions;
use crate::output::short_size;

/// From one cell to the next; one unit of it is the gap.
const STEP: usize = 11;
const MARGIN: usize = 16;
/// The room for the offset at which a row begins.
const LABEL: usize = 64;
const LINE: usize = 20;
/// From one entry of the legend to the next.
const ENTRY: usize = 100;
/// So many characters of a line surely fit.
const FIT: usize = 90;

/// The whole document.
pub fn render(grid: &Grid, captions: &Captions) -> String {
    let mut text = String::new();
    // A String takes everything that is written to it.
    let _ = write(grid, captions, &mut text);
    text
}

fn write(grid: &Grid, captions: &Captions, out: &mut String) -> fmt::Result {
    let rows: Vec<_> = grid.rows().collect();
    let width = 2 * MARGIN + LABEL + grid.columns() * STEP;
    let top = MARGIN + 2 * LINE;
    let bottom = top + rows.len() * STEP + LINE;
    let height = bottom + 2 * LINE + MARGIN;
    let title = escape(&captions.title);
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" role=\"img\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#333333\">"
    )?;
    writeln!(out, "<title>{title}</title>")?;
    writeln!(
        out,
        "<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>"
    )?;
    let baseline = MARGIN + LINE / 2;
    writeln!(
        out,
        "<text x=\"{MARGIN}\" y=\"{baseline}\" font-size=\"14\" font-weight=\"bold\">{}</text>",
        escape(&tail(&captions.title))
    )?;

    writeln!(out, "<g text-anchor=\"end\" font-size=\"10\">")?;
    for (index, (start, _)) in rows.iter().enumerate() {
        let (x, y) = (MARGIN + LABEL - 8, top + index * STEP + STEP - 2);
        writeln!(out, "<text x=\"{x}\" y=\"{y}\">{}</text>", short_size(*start))?;
    }
    writeln!(out, "</g>")?;
    for shade in Shade::ALL {
        let mut path = String::new();
        for (index, (_, row)) in rows.iter().enumerate() {
            let y = top + index * STEP;
            for (column, _) in row.iter().enumerate().filter(|(_, cell)| **cell == shade) {
                let x = MARGIN + LABEL + column * STEP;
                write!(path, "M{x} {y}h10v10h-10z")?;
            }
        }
        if !path.is_empty() {
            writeln!(out, "<path fill=\"{}\" d=\"{path}\"/>", colour(shade))?;
        }
    }

    for (index, shade) in captions.shades().iter().enumerate() {
        let x = MARGIN + LABEL + index * ENTRY;
        writeln!(
            out,
            "<rect x=\"{x}\" y=\"{}\" width=\"10\" height=\"10\" fill=\"{}\"/><text x=\"{}\" y=\"{bottom}\">{}</text>",
            bottom - 9,
            colour(*shade),
            x + 16,
            shade.words()
        )?;
    }
    let facts = captions
        .dirty
        .iter()
        .fold(captions.data.clone(), |data, dirty| format!("{data}; {dirty}"));
    let (x, y) = (MARGIN + LABEL, bottom + LINE);
    writeln!(out, "<text x=\"{x}\" y=\"{y}\">{}</text>", escape(&head(&facts)))?;
    writeln!(out, "</svg>")
}

/// Blue and orange, light and dark: told apart also by those who see no red or no green.
fn colour(shade: Shade) -> &'static str {
    match shade {
        Shade::Zeros => "#e8e8e8",
        Shade::SomeData => "#9ecae1",
        Shade::Data => "#3182bd",
        Shade::SomeDirty => "#fdae6b",
        Shade::Dirty => "#d94801",
    }
}

/// The end of a text, which a long path begins.
fn tail(text: &str) -> String {
    match text.char_indices().nth_back(FIT) {
        Some((at, c)) => format!("…{}", &text[at + c.len_utf8()..]),
        None => text.to_owned(),
    }
}

/// The beginning of a text, which a long name ends.
fn head(text: &str) -> String {
    match text.char_indices().nth(FIT) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// Text as XML takes it: a file's name can hold what no XML document may.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.extend(c.escape_default()),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_breaks_the_document() {
        assert_eq!(escape("a<b>&\"c\""), "a&lt;b&gt;&amp;\"c\"");
        let long = format!("{}ä{}", "a".repeat(89), "ö".repeat(90));
        assert_eq!(head(&long), format!("{}ä…", "a".repeat(89)));
        assert_eq!(tail(&long), format!("…{}", "ö".repeat(90)));
        assert_eq!((head("ä"), tail("ä")), ("ä".to_owned(), "ä".to_owned()));
        assert_eq!(escape("\u{1b}[31m\n\u{ffff}ä"), "\\u{1b}[31m\\n\\u{ffff}ä");
    }
}
