//! Container logs in the CRI's format: reading with every option of `kubectl logs`, following, rotation.
//!
//! A line is `2026-11-21T04:40:46.123456789Z stdout F text`; the tag `P` marks a part of a line whose end is still to come.
//! Upstream: `cri-client/pkg/logs/logs.go`, `pkg/kubelet/logs/container_log_manager.go`, v1.33.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;

use crate::sandbox;

#[derive(Clone, Debug, Default)]
pub struct Options {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail: Option<usize>,
    pub limit_bytes: Option<usize>,
    pub since: Option<Timestamp>,
    /// `Stdout` or `Stderr`; both where empty.
    pub stream: Option<String>,
}

pub fn path(pod: &Pod, container: &str, restarts: i32) -> PathBuf {
    sandbox::log_directory(pod).join(container).join(format!("{restarts}.log"))
}

/// Removes the log of a run and what it was rotated into.
pub fn remove(pod: &Pod, container: &str, restarts: i32) {
    let log = path(pod, container, restarts);
    for file in rotated(&log).into_iter().chain([log]) {
        if let Err(error) = std::fs::remove_file(&file) {
            tracing::debug!(%error, ?file, "log not removed");
        }
    }
}

/// The first bytes of a small file.
pub fn head(file: &Path, limit: usize) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(file).ok()?.take(limit as u64).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The text of a log's last lines, at most `limit` bytes of it.
pub fn last_lines(log: &Path, lines: usize, limit: usize) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let start = tail_start(&mut file, lines).ok()?;
    file.seek(SeekFrom::Start(start)).ok()?;
    let mut text = Vec::new();
    for line in BufReader::new(file).split(b'\n').map_while(Result::ok) {
        if let Some(entry) = Entry::parse(&line) {
            text.extend_from_slice(entry.text);
            if !entry.partial {
                text.push(b'\n');
            }
        }
    }
    let from = text.len().saturating_sub(limit);
    Some(String::from_utf8_lossy(&text[from..]).into_owned())
}

#[derive(Debug, PartialEq)]
struct Entry<'a> {
    time: &'a [u8],
    stream: &'a [u8],
    partial: bool,
    text: &'a [u8],
}

impl<'a> Entry<'a> {
    /// `line` without its newline.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut parts = line.splitn(4, |b| *b == b' ');
        let (time, stream, tags) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Entry { time, stream, partial: tags.split(|b| *b == b':').next() == Some(b"P"), text: parts.next().unwrap_or_default() })
    }

    fn before(&self, since: Timestamp) -> bool {
        let time = std::str::from_utf8(self.time).ok().and_then(|t| t.parse::<Timestamp>().ok());
        time.is_some_and(|t| t < since)
    }
}

/// The offset at which the last `lines` lines begin.
fn tail_start(file: &mut File, lines: usize) -> io::Result<u64> {
    let end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(end);
    }
    let mut position = end;
    let mut found = 0;
    let mut block = vec![0; 4096];
    while position > 0 {
        let size = position.min(block.len() as u64);
        position -= size;
        file.seek(SeekFrom::Start(position))?;
        let block = &mut block[..usize::try_from(size).map_err(io::Error::other)?];
        file.read_exact(block)?;
        for (at, _) in block.iter().enumerate().rev().filter(|(_, b)| **b == b'\n') {
            let offset = position + at as u64 + 1;
            if offset == end {
                continue;
            }
            found += 1;
            if found == lines {
                return Ok(offset);
            }
        }
    }
    Ok(0)
}

/// How long a follower sleeps when the log has not grown.
const POLL: Duration = Duration::from_millis(100);

/// Reads a log into `sender` until its end, or, following, until `ended` says that the container has and all is read.
/// Runs on a blocking thread.
pub fn read(log: &Path, options: &Options, sender: &mpsc::Sender<Bytes>, ended: impl Fn() -> bool) -> io::Result<()> {
    let mut file = File::open(log)?;
    let start = match options.tail {
        Some(lines) => tail_start(&mut file, lines)?,
        None => 0,
    };
    file.seek(SeekFrom::Start(start))?;
    let mut reader = BufReader::new(file);
    let mut left = options.limit_bytes.unwrap_or(usize::MAX);
    let mut line = Vec::new();
    let mut fresh = true;
    let mut over = false;
    while left > 0 {
        reader.read_until(b'\n', &mut line)?;
        if line.last() == Some(&b'\n') {
            let text = &line[..line.len() - 1];
            if let Some(out) = Entry::parse(text).and_then(|e| render(&e, options, &mut fresh)) {
                let out = &out[..out.len().min(left)];
                left -= out.len();
                if sender.blocking_send(Bytes::copy_from_slice(out)).is_err() {
                    return Ok(());
                }
            }
            line.clear();
            continue;
        }
        if !options.follow || over || sender.is_closed() {
            return Ok(());
        }
        if let Some(next) = reopened(log, reader.get_ref())? {
            reader = BufReader::new(next);
            line.clear();
            continue;
        }
        // One more look after the end, for what was written in between.
        over = ended();
        if !over {
            std::thread::sleep(POLL);
        }
    }
    Ok(())
}

/// The new file, if the log was rotated away under the reader.
fn reopened(log: &Path, current: &File) -> io::Result<Option<File>> {
    use std::os::unix::fs::MetadataExt;
    match std::fs::metadata(log) {
        Ok(found) if found.ino() != current.metadata()?.ino() => Ok(Some(File::open(log)?)),
        _ => Ok(None),
    }
}

/// `fresh`: whether the next text begins a line.
fn render(entry: &Entry, options: &Options, fresh: &mut bool) -> Option<Vec<u8>> {
    if options.since.is_some_and(|since| entry.before(since)) {
        return None;
    }
    let wanted = |s: &String| s.eq_ignore_ascii_case("all") || s.as_bytes().eq_ignore_ascii_case(entry.stream);
    if !options.stream.as_ref().is_none_or(wanted) {
        return None;
    }
    let mut out = Vec::with_capacity(entry.text.len() + 40);
    if options.timestamps && *fresh {
        out.extend_from_slice(entry.time);
        out.push(b' ');
    }
    out.extend_from_slice(entry.text);
    if !entry.partial {
        out.push(b'\n');
    }
    *fresh = !entry.partial;
    Some(out)
}

/// Upstream's `containerLogMaxSize` and `containerLogMaxFiles`.
const MAX_SIZE: u64 = 10 << 20;
const MAX_FILES: usize = 5;

/// The rotated files of a log, oldest first: `0.log.20261121-044046`.
fn rotated(log: &Path) -> Vec<PathBuf> {
    let (Some(directory), Some(name)) = (log.parent(), log.file_name().and_then(|n| n.to_str())) else { return Vec::new() };
    let prefix = format!("{name}.");
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> =
        entries.filter(|e| e.file_name().to_str().is_some_and(|n| n.starts_with(&prefix))).map(|e| e.path()).collect();
    files.sort();
    files
}

/// Moves a log that is too large aside; says whether the runtime must reopen it.
pub fn rotate(log: &Path) -> io::Result<bool> {
    if std::fs::metadata(log)?.len() < MAX_SIZE {
        return Ok(false);
    }
    let old = rotated(log);
    // The current file counts, and so does the one about to be made.
    let surplus = (old.len() + 2).saturating_sub(MAX_FILES);
    for file in old.iter().take(surplus) {
        std::fs::remove_file(file)?;
    }
    let stamp = Timestamp::now().strftime("%Y%m%d-%H%M%S");
    std::fs::rename(log, format!("{}.{stamp}", log.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-01T00:00:00.000000001Z stdout F one\n\
        2026-01-01T00:00:01Z stderr F two\n\
        2026-01-01T00:00:02Z stdout P thr\n\
        2026-01-01T00:00:03Z stdout F ee\n\
        2026-01-01T00:00:04Z stdout F \n";

    fn text(options: &Options) -> String {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        std::fs::write(&log, LOG).unwrap();
        let (sender, mut receiver) = mpsc::channel(100);
        read(&log, options, &sender, || true).unwrap();
        drop(sender);
        let mut out = Vec::new();
        while let Some(bytes) = receiver.blocking_recv() {
            out.extend_from_slice(&bytes);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_option() {
        let all = Options::default();
        assert_eq!(text(&all), "one\ntwo\nthree\n\n");
        assert_eq!(text(&Options { follow: true, ..all.clone() }), "one\ntwo\nthree\n\n");
        assert_eq!(text(&Options { tail: Some(1), ..all.clone() }), "\n");
        assert_eq!(text(&Options { tail: Some(0), ..all.clone() }), "");
        assert_eq!(text(&Options { tail: Some(99), ..all.clone() }), "one\ntwo\nthree\n\n");
        assert_eq!(text(&Options { limit_bytes: Some(5), ..all.clone() }), "one\nt");
        assert_eq!(text(&Options { stream: Some("Stderr".into()), ..all.clone() }), "two\n");
        assert_eq!(text(&Options { since: Some("2026-01-01T00:00:02Z".parse().unwrap()), ..all.clone() }), "three\n\n");
        assert_eq!(text(&Options { timestamps: true, tail: Some(3), ..all }), "2026-01-01T00:00:02Z three\n2026-01-01T00:00:04Z \n");
    }
}
