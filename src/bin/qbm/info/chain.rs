//! `qbm info --backing-chain`: the disk, and what is below it.

use std::io::{self, Write};

use qbm::{Disk, Layer};
use serde_json::{Value, json};

use super::Facts;
use crate::failure::Outcome;
use crate::open::{self, Share};
use crate::output::{Output, long_size, shown};

/// One image of the chain.
enum Link {
    /// The disk itself, or a backing image that has a descriptor.
    Disk(Box<(Disk, Facts)>),
    /// A backing image that has none.
    Plain(Layer),
}

pub fn print(disk: &Disk, share: &Share, output: Output, out: &mut impl Write) -> Outcome {
    let mut links: Vec<(Link, Option<u32>)> = Vec::new();
    for index in 0..disk.info()?.layers {
        let layer = disk.layer(index)?;
        let part_of = layer.part_of;
        let link = match &layer.descriptor {
            Some(descriptor) => {
                let disk = open::shared(descriptor, share)?;
                let facts = Facts::of(&disk)?;
                Link::Disk(Box::new((disk, facts)))
            }
            None => Link::Plain(layer),
        };
        links.push((link, part_of));
    }
    match output {
        Output::Human => {
            for (index, (link, part_of)) in links.iter().enumerate() {
                if index > 0 {
                    writeln!(out)?;
                }
                if let Some(of) = part_of {
                    writeln!(out, "part of: the image of block {}", of + 1)?;
                }
                link.print_human(out)?;
            }
        }
        Output::Json => {
            let values: Vec<Value> = links.iter().map(to_json).collect();
            writeln!(out, "{:#}", Value::Array(values))?;
        }
    }
    Ok(())
}

impl Link {
    fn print_human(&self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Disk(it) => it.1.print_human(&it.0, out),
            Self::Plain(layer) => {
                writeln!(out, "image: {} ({})", shown(&layer.path), layer.format)?;
                writeln!(out, "virtual size: {}", long_size(layer.length))
            }
        }
    }

    fn to_json(&self) -> Value {
        match self {
            Self::Disk(it) => it.1.to_json(&it.0),
            Self::Plain(layer) => json!({
                "filename": layer.path.to_string_lossy(),
                "format": layer.format.word(),
                "virtual-size": layer.length,
            }),
        }
    }
}

/// A link; of what an image is made of that is a QBM disk itself, with the place of that image in the list.
fn to_json((link, part_of): &(Link, Option<u32>)) -> Value {
    let mut value = link.to_json();
    if let Some(of) = part_of {
        value["part-of"] = json!(of);
    }
    value
}
