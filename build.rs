//! What must happen before the crate is compiled: the soname, the C header and the C stories.
//!
//! - Always: `libqbm.so` gets its soname. Nothing more is needed to build a packaged or read-only source.
//! - Feature `header`, in a development checkout (a folder with `.git`): `include/qbm.h` is made from `src/capi` by
//!   cbindgen, and written only where its text differs, so that what depends on it is not rebuilt for nothing.
//! - Feature `c-tests`: the C programs of `c-tests/` and `examples/c/` are compiled into one archive, their `main`
//!   renamed, together with the list of them that `tests/c_stories.rs` and `tests/c_programs.rs` include.
//!
//! Invariant: outside `OUT_DIR`, `include/qbm.h` is the only file that is ever written.

#![allow(
    clippy::format_push_string,
    reason = "an allocation a line is nothing here, and it reads best"
)]

use std::process::ExitCode;

/// What the features ask for; an error is a sentence for whoever builds.
const STEPS: &[fn() -> Result<(), String>] = &[
    #[cfg(feature = "header")]
    header::refresh,
    #[cfg(feature = "c-tests")]
    stories::compile,
];

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libqbm.so.0");
    for step in STEPS {
        if let Err(why) = step() {
            eprintln!("{why}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// `include/qbm.h`, from `src/capi`.
#[cfg(feature = "header")]
mod header {
    use std::fs;
    use std::path::Path;

    const HEADER: &str = "include/qbm.h";
    const CONFIG: &str = "cbindgen.toml";
    const SOURCE: &str = "src/capi";

    /// Brings the header up to date, where this is a place to do so.
    pub fn refresh() -> Result<(), String> {
        let development = Path::new(".git").exists() && Path::new(SOURCE).exists();
        if !development {
            return Ok(());
        }
        for input in [HEADER, CONFIG, SOURCE] {
            println!("cargo:rerun-if-changed={input}");
        }
        let made = match generate()? {
            Ok(text) => in_sections(&text)?,
            // Most likely the source does not parse: the compiler, which runs next, says so better.
            Err(why) => {
                println!("cargo:warning={HEADER} is left as it was: {why}");
                return Ok(());
            }
        };
        if fs::read_to_string(HEADER).is_ok_and(|committed| committed == made) {
            return Ok(());
        }
        if let Err(why) = fs::create_dir_all("include").and_then(|()| fs::write(HEADER, made)) {
            println!("cargo:warning={HEADER} is out of date and cannot be written: {why}");
        }
        Ok(())
    }

    /// The text as cbindgen makes it; the inner error is cbindgen's about the source.
    fn generate() -> Result<Result<String, cbindgen::Error>, String> {
        let config = cbindgen::Config::from_file(CONFIG)?;
        // The modules that this file declares are read along, in its order; no other module of the crate is.
        let builder = cbindgen::Builder::new()
            .with_config(config)
            .with_src(Path::new(SOURCE).join("mod.rs"));
        Ok(builder.generate().map(|bindings| {
            let mut text = Vec::new();
            bindings.write(&mut text);
            unsigned(&String::from_utf8_lossy(&text))
        }))
    }

    /// Flags are `uint32_t` wherever they are taken: a plain `1` would be an `int`, and `~1` a negative one.
    fn unsigned(text: &str) -> String {
        let number = |line: &str| {
            let value = line.strip_prefix("#define ")?.split_once(' ')?.1;
            (!value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()))
                .then(|| format!("{line}u\n"))
        };
        text.lines()
            .map(|line| number(line).unwrap_or_else(|| format!("{line}\n")))
            .collect()
    }

    /// Makes the comments read as C's: what begins with `section: TITLE` and an introduction, closed by a line `---`,
    /// becomes a banner that stands by itself; what Rust must know (`# Safety`) goes; one line stays on one line.
    fn in_sections(text: &str) -> Result<String, String> {
        let mut out = String::with_capacity(text.len());
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let Some(indent) = line.strip_suffix("/**") else {
                out.push_str(line);
                out.push('\n');
                continue;
            };
            let comment: Vec<&str> = lines
                .by_ref()
                .map(str::trim)
                .take_while(|line| *line != "*/")
                .map(|line| line.strip_prefix('*').unwrap_or(line))
                // One space is the comment's; more of them indent what a list says.
                .map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end())
                .collect();
            let mut doc = &comment[..];
            if let Some(title) = comment.first().and_then(|line| line.strip_prefix("section:")) {
                let end = comment.iter().position(|line| *line == "---").ok_or_else(|| {
                    format!("{SOURCE}: the introduction of section{title} has no line `---` after it")
                })?;
                push_banner(&mut out, title.trim(), trimmed(&comment[1..end]));
                doc = &comment[end + 1..];
            }
            let safety = doc.iter().position(|line| *line == "# Safety");
            match trimmed(&doc[..safety.unwrap_or(doc.len())]) {
                [] => {}
                [line] => out.push_str(&format!("{indent}/** {line} */\n")),
                lines => {
                    out.push_str(&format!("{indent}/**\n"));
                    push_lines(&mut out, indent, lines);
                    out.push_str(&format!("{indent} */\n"));
                }
            }
        }
        Ok(out)
    }

    fn push_banner(out: &mut String, title: &str, introduction: &[&str]) {
        let rule = "=".repeat(96);
        out.push_str(&format!("/* {rule}\n * {title}\n"));
        if !introduction.is_empty() {
            out.push_str(" *\n");
            push_lines(out, "", introduction);
        }
        out.push_str(&format!(" * {rule} */\n\n"));
    }

    /// Without the empty lines at both ends.
    fn trimmed<'a, 'b>(lines: &'a [&'b str]) -> &'a [&'b str] {
        let full = |line: &&str| !line.is_empty();
        match (lines.iter().position(full), lines.iter().rposition(full)) {
            (Some(first), Some(last)) => &lines[first..=last],
            _ => &[],
        }
    }

    fn push_lines(out: &mut String, indent: &str, lines: &[&str]) {
        for line in lines {
            out.push_str(format!("{indent} * {line}").trim_end());
            out.push('\n');
        }
    }
}

/// The C programs, as functions of one archive.
#[cfg(feature = "c-tests")]
mod stories {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::{Path, PathBuf};

    /// Where they are: tests, and the examples of the manual, which must not be the only programs that nobody runs.
    const FOLDERS: [&str; 2] = ["c-tests", "examples/c"];

    /// The archive `libqbm_c_stories.a`, and `c_stories.rs`: one `story!(name, symbol, "file.c");` a line.
    pub fn compile() -> Result<(), String> {
        let out = std::env::var("OUT_DIR").map_err(|why| format!("OUT_DIR, which cargo sets: {why}"))?;
        let stories = list()?;
        let mut archive = cc::Build::new();
        archive.cargo_metadata(false);
        let mut names = String::new();
        for (name, file) in &stories {
            let mut build = cc::Build::new();
            build
                .cargo_metadata(false)
                .file(file)
                .include("include")
                .std("c99")
                .flag("-Wpedantic")
                .extra_warnings(true)
                .warnings(true)
                .warnings_into_errors(true)
                .define("main", format!("story_{name}").as_str());
            if file.starts_with("c-tests") {
                // The examples show what plain C99 can do; the tests also fork and make folders.
                build.define("_GNU_SOURCE", None);
            }
            let objects = build
                .try_compile_intermediates()
                .map_err(|why| format!("cannot compile {}: {why}", file.display()))?;
            archive.objects(objects);
            names.push_str(&format!(
                "story!({name}, story_{name}, \"{}\");\n",
                file.display()
            ));
        }
        if !stories.is_empty() {
            archive
                .try_compile("qbm_c_stories")
                .map_err(|why| format!("cannot put the C stories into an archive: {why}"))?;
        }
        println!("cargo:rustc-link-search=native={out}");
        println!("cargo:rerun-if-changed=include/qbm.h");
        let listed = Path::new(&out).join("c_stories.rs");
        fs::write(&listed, names).map_err(|why| format!("cannot write {}: {why}", listed.display()))
    }

    /// Every `.c` file by the name of its test.
    fn list() -> Result<BTreeMap<String, PathBuf>, String> {
        let mut found = BTreeMap::new();
        for folder in FOLDERS {
            println!("cargo:rerun-if-changed={folder}");
            let entries = fs::read_dir(folder).map_err(|why| format!("cannot list {folder}: {why}"))?;
            for entry in entries {
                let file = entry
                    .map_err(|why| format!("cannot list {folder}: {why}"))?
                    .path();
                if file.extension().is_none_or(|extension| extension != "c") {
                    continue;
                }
                let stem = file.file_stem().unwrap_or_default().to_string_lossy();
                let name = stem.replace('-', "_");
                if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                    return Err(format!(
                        "{}: its name makes no name of a C function",
                        file.display()
                    ));
                }
                if let Some(other) = found.insert(name, file.clone()) {
                    let (one, two) = (other.display(), file.display());
                    return Err(format!("{one} and {two} would be one test: rename one of them"));
                }
            }
        }
        Ok(found)
    }
}
