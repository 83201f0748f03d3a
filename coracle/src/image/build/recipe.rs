//! Reading a Dockerfile: lines become instructions, or an error that names the line.
//!
//! Known: FROM, COPY, ADD (of a local tar), RUN, ENV, WORKDIR, USER, EXPOSE, ENTRYPOINT, CMD, LABEL. Comments and lines continued by `\`.
//! Absent: several stages, ARG, VOLUME, HEALTHCHECK, SHELL, ONBUILD, URLs, wildcards.

use anyhow::{Context, Result, bail};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
    /// None: from nothing (`scratch`).
    From(Option<String>),
    Copy {
        sources: Vec<String>,
        target: String,
        owner: (u32, u32),
    },
    /// Unpacks a tar of the build's folder.
    Add {
        archive: String,
        target: String,
    },
    Run(Vec<String>),
    Env(Vec<(String, String)>),
    Workdir(String),
    User(String),
    Expose(Vec<String>),
    Entrypoint(Vec<String>),
    Cmd(Vec<String>),
    Label(Vec<(String, String)>),
}

/// An instruction and the line it began on, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub number: usize,
    pub text: String,
    pub instruction: Instruction,
}

pub fn parse(text: &str) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (number, text) in joined(text) {
        let instruction = instruction(&text).with_context(|| format!("line {number}: {text}"))?;
        let from = matches!(instruction, Instruction::From(_));
        match (from, lines.is_empty()) {
            (true, false) => bail!("line {number}: a second FROM: several stages are not known here"),
            (false, true) => bail!("line {number}: the first instruction must be FROM, as in FROM debian:12 or FROM scratch"),
            _ => lines.push(Line { number, text, instruction }),
        }
    }
    if lines.is_empty() {
        bail!("no instruction in it: the least is FROM and COPY");
    }
    Ok(lines)
}

/// Without comments and empty lines; continued lines are one.
fn joined(text: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (part, continues) = line.strip_suffix('\\').map_or((line, false), |part| (part.trim_end(), true));
        match found.last_mut().filter(|_| open) {
            Some((_, whole)) => {
                whole.push(' ');
                whole.push_str(part);
            }
            None => found.push((index + 1, part.to_owned())),
        }
        open = continues;
    }
    found
}

fn instruction(text: &str) -> Result<Instruction> {
    let (word, rest) = text.split_once(char::is_whitespace).map_or((text, ""), |(word, rest)| (word, rest.trim()));
    if rest.is_empty() {
        bail!("{word} of what?");
    }
    Ok(match word.to_ascii_uppercase().as_str() {
        "FROM" if rest.contains(char::is_whitespace) => bail!("FROM takes one image: several stages and platforms are not known here"),
        "FROM" => Instruction::From((rest != "scratch").then(|| rest.to_owned())),
        "COPY" => copy(rest)?,
        "ADD" => match copy(rest)? {
            Instruction::Copy { mut sources, target, .. } if sources.len() == 1 && is_archive(&sources[0]) => {
                Instruction::Add { archive: sources.remove(0), target }
            }
            _ => bail!("ADD unpacks one .tar or .tar.gz of this folder here; for files use COPY"),
        },
        "RUN" => Instruction::Run(words(rest)?),
        "ENV" => Instruction::Env(pairs(rest)?),
        "LABEL" => Instruction::Label(pairs(rest)?),
        "WORKDIR" => Instruction::Workdir(rest.to_owned()),
        "USER" => Instruction::User(rest.to_owned()),
        "EXPOSE" => Instruction::Expose(rest.split_whitespace().map(port).collect::<Result<_>>()?),
        "ENTRYPOINT" => Instruction::Entrypoint(words(rest)?),
        "CMD" => Instruction::Cmd(words(rest)?),
        _ => bail!("{word} is not known here; known are FROM, COPY, ADD, RUN, ENV, WORKDIR, USER, EXPOSE, ENTRYPOINT, CMD and LABEL"),
    })
}

fn is_archive(name: &str) -> bool {
    [".tar", ".tar.gz", ".tgz"].iter().any(|ending| name.ends_with(ending)) && !name.contains("://")
}

fn copy(rest: &str) -> Result<Instruction> {
    let mut owner = (0, 0);
    let mut paths: Vec<String> = Vec::new();
    let list: Vec<String> =
        if rest.starts_with('[') { serde_json::from_str(rest)? } else { rest.split_whitespace().map(str::to_owned).collect() };
    for word in list {
        match word.strip_prefix("--") {
            Some(flag) => {
                owner = flag
                    .strip_prefix("chown=")
                    .and_then(owner_of)
                    .with_context(|| format!("--{flag}: only --chown=UID[:GID] with numbers is known here"))?
            }
            None => paths.push(word),
        }
    }
    let target = paths.pop().filter(|_| !paths.is_empty()).context("say what and where to, as in COPY page.html /www/")?;
    Ok(Instruction::Copy { sources: paths, target, owner })
}

fn owner_of(text: &str) -> Option<(u32, u32)> {
    let (user, group) = text.split_once(':').unwrap_or((text, text));
    Some((user.parse().ok()?, group.parse().ok()?))
}

/// `["a", "b"]`, or a line for the shell.
fn words(rest: &str) -> Result<Vec<String>> {
    if rest.starts_with('[') {
        return serde_json::from_str(rest).context("a list of words in double quotes is wanted, as in [\"sleep\", \"1\"]");
    }
    Ok(["/bin/sh", "-c", rest].map(str::to_owned).to_vec())
}

/// `A=b C="d e"`, or the old `A b c`.
fn pairs(rest: &str) -> Result<Vec<(String, String)>> {
    let first = rest.split_whitespace().next().unwrap_or_default();
    if !first.contains('=') {
        let (name, value) = rest.split_once(char::is_whitespace).context("a value is wanted, as in NAME=value")?;
        return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    let mut found = Vec::new();
    let mut left = rest;
    while !left.is_empty() {
        let (name, value) = left.split_once('=').context("a value is wanted, as in NAME=value")?;
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').context("a quote is not closed")?,
            None => value.split_at(value.find(char::is_whitespace).unwrap_or(value.len())),
        };
        found.push((name.to_owned(), value.to_owned()));
        left = after.trim_start();
    }
    Ok(found)
}

fn port(text: &str) -> Result<String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let fits = number.parse::<u16>().is_ok_and(|number| number > 0) && ["tcp", "udp", "sctp"].contains(&protocol);
    if fits { Ok(format!("{number}/{protocol}")) } else { bail!("{text:?} is no port, write for example 80 or 53/udp") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction() {
        let text = "# web\nFROM debian:12\nRUN apt-get update && \\\n    # not this\n    apt-get install -y nginx-light\nCOPY --chown=33 a b /www/\nADD root.tar.gz /\n\
                    ENV A=1 B=\"two words\"\nENV C the rest\nWORKDIR /srv\nUSER www-data\nEXPOSE 80 53/udp\nENTRYPOINT [\"nginx\"]\ncmd sleep 1\n";
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let lines = parse(text).unwrap();
        assert_eq!(lines.iter().map(|line| line.number).collect::<Vec<_>>(), [2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
        let instructions: Vec<Instruction> = lines.into_iter().map(|line| line.instruction).collect();
        assert_eq!(
            instructions,
            [
                Instruction::From(Some("debian:12".into())),
                Instruction::Run(owned(&["/bin/sh", "-c", "apt-get update && apt-get install -y nginx-light"])),
                Instruction::Copy { sources: owned(&["a", "b"]), target: "/www/".into(), owner: (33, 33) },
                Instruction::Add { archive: "root.tar.gz".into(), target: "/".into() },
                Instruction::Env(vec![pair("A", "1"), pair("B", "two words")]),
                Instruction::Env(vec![pair("C", "the rest")]),
                Instruction::Workdir("/srv".into()),
                Instruction::User("www-data".into()),
                Instruction::Expose(owned(&["80/tcp", "53/udp"])),
                Instruction::Entrypoint(owned(&["nginx"])),
                Instruction::Cmd(owned(&["/bin/sh", "-c", "sleep 1"])),
            ]
        );
    }

    #[test]
    fn errors_name_the_line() {
        for (text, part) in [
            ("", "no instruction"),
            ("COPY a /", "line 1: the first instruction must be FROM"),
            ("FROM a\nFROM b", "line 2: a second FROM"),
            ("FROM a AS b", "several stages"),
            ("FROM a\nVOLUME /x", "line 2: VOLUME /x: VOLUME is not known here"),
            ("FROM a\nCOPY x", "say what and where to"),
            ("FROM a\nCOPY --from=b x y", "only --chown"),
            ("FROM a\nADD http://x/y.tar /", "ADD unpacks"),
            ("FROM a\nCMD [\"x\"", "a list of words"),
            ("FROM a\nEXPOSE http", "is no port"),
            ("FROM a\nRUN", "RUN of what?"),
        ] {
            let said = format!("{:#}", parse(text).unwrap_err());
            assert!(said.contains(part), "{text:?}: {said}");
        }
    }
}
