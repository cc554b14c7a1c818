//! The commands and files that the documents show, taken from the documents, so that a
//! test runs what a reader would type.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::place::Place;

/// A fenced block of a Markdown document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    /// Commands: a block marked `sh`.
    Commands(String),
    /// A file: any other block after a line that is nothing but its absolute path in backquotes.
    File {
        /// Where it belongs.
        path: String,
        /// What it holds.
        content: String,
    },
}

/// The blocks below a heading of a document of the project, in order; blocks that are
/// neither commands nor a file (captured output) are left out. It is an error if there are none.
pub fn blocks(document: &str, heading: &str) -> Result<Vec<Block>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(document);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let found = blocks_of(&text, heading);
    ensure!(!found.is_empty(), "{document} has no commands below {heading:?}");
    Ok(found)
}

impl Block {
    /// Does on a place what the reader would do: runs the commands, writes the file.
    pub fn follow(&self, place: &Place) -> Result<()> {
        match self {
            Block::Commands(script) => place.sh(script).map(drop),
            Block::File { path, content } => place.write_file(path, content),
        }
    }
}

fn blocks_of(text: &str, heading: &str) -> Vec<Block> {
    let level = |line: &str| line.chars().take_while(|c| *c == '#').count();
    let mut lines = text.lines().skip_while(|line| *line != heading).skip(1);
    let (mut blocks, mut path) = (Vec::new(), None);
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let inside = lines.by_ref().take_while(|line| *line != "```");
            let content: String = inside.flat_map(|line| [line, "\n"]).collect();
            match path.take() {
                _ if language == "sh" => blocks.push(Block::Commands(content)),
                Some(path) => blocks.push(Block::File { path, content }),
                None => {}
            }
        } else if (1..=level(heading)).contains(&level(line)) {
            break;
        } else if !line.is_empty() {
            let quoted = line.strip_prefix('`').and_then(|rest| rest.strip_suffix('`'));
            path = quoted.filter(|path| path.starts_with('/')).map(str::to_string);
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_files_of_one_section() {
        let text = "# A\n```sh\nno\n```\n## B\n`/etc/x`\n\n```json\n{}\n```\n\nText `y`.\n\n```sh\none\n# two\n```\n```\nout\n```\n### C\n```sh\nthree\n```\n## D\n```sh\nno\n```\n";
        let file = Block::File { path: "/etc/x".to_string(), content: "{}\n".to_string() };
        let commands = |text: &str| Block::Commands(text.to_string());
        assert_eq!(blocks_of(text, "## B"), [file, commands("one\n# two\n"), commands("three\n")]);
        assert_eq!(blocks_of(text, "## E"), []);
    }
}
