//! A tree of files as a stream: for each entry a length (u32, little-endian), its JSON, and a file's bytes.
//!
//! ```text
//!   len | {"path": "a", "kind": "directory", "mode": 493} | len | {"path": "a/b", "kind": "file", "size": 3, ...} | abc | ...
//! ```
//!
//! A directory comes before what is in it; the stream's end is the tree's. A path is relative, and none of its parts is
//! empty, `.` or `..`: what is decoded cannot name anything outside. (That no symbolic link leads outside either is for
//! who writes the files to see to.)

use serde::{Deserialize, Serialize};

use crate::json::{JsonError, parse_strict};

/// The longest JSON of an entry.
const MAX_ENTRY: usize = 16 * 1024;
/// The longest path (Linux's PATH_MAX, its NUL not counted) and part of one.
const MAX_PATH: usize = 4095;
const MAX_NAME: usize = 255;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    File,
    Directory,
    Symlink,
}

/// One file, directory or symbolic link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub path: String,
    pub kind: EntryKind,
    /// Permission bits.
    pub mode: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Of a file.
    #[serde(default)]
    pub size: u64,
    /// Seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified: Option<i64>,
    /// Of a symbolic link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// Why a stream is no tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    #[error("an entry of {0} bytes; permitted: 1 to {MAX_ENTRY}")]
    Length(u32),
    #[error("an entry that is no JSON")]
    Json(#[source] JsonError),
    #[error("an entry's fields: {0}")]
    Fields(String),
    #[error("the path {0:?} is not relative, or has a part that is empty, `.`, `..` or too long")]
    Path(String),
    #[error("mode {0:o} has more than permission bits")]
    Mode(u32),
    #[error("{0:?}: only a file has a size, and only a link a target")]
    Shape(String),
    #[error("the tree ends within an entry")]
    Truncated,
}

impl Entry {
    /// Checks what the types do not say.
    pub fn check(&self) -> Result<(), EntryError> {
        let shown = || self.path.chars().take(128).collect();
        let part = |part: &str| !matches!(part, "" | "." | "..") && part.len() <= MAX_NAME;
        if self.path.len() > MAX_PATH || self.path.contains('\0') || !self.path.split('/').all(part) {
            return Err(EntryError::Path(shown()));
        }
        if self.mode & !0o7777 != 0 {
            return Err(EntryError::Mode(self.mode));
        }
        let target = self
            .target
            .as_deref()
            .is_some_and(|target| !target.is_empty() && target.len() <= MAX_PATH && !target.contains('\0'));
        let fits = match self.kind {
            EntryKind::File => self.target.is_none(),
            EntryKind::Directory => self.target.is_none() && self.size == 0,
            EntryKind::Symlink => target && self.size == 0,
        };
        if fits { Ok(()) } else { Err(EntryError::Shape(shown())) }
    }
}

/// Appends an entry; a file's bytes follow.
pub fn encode_entry(entry: &Entry, out: &mut Vec<u8>) -> Result<(), EntryError> {
    entry.check()?;
    let json = serde_json::to_vec(entry).map_err(|error| EntryError::Fields(error.to_string()))?;
    let len = u32::try_from(json.len()).unwrap_or(u32::MAX);
    if json.len() > MAX_ENTRY {
        return Err(EntryError::Length(len));
    }
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&json);
    Ok(())
}

/// What a stream holds, piece by piece.
#[derive(Debug, PartialEq, Eq)]
pub enum TreeEvent<'a> {
    Entry(Entry),
    /// Bytes of the file that was named last.
    Data(&'a [u8]),
    /// That file is whole. Comes for an empty one too.
    FileEnd,
}

/// Takes a tree apart. Holds at most one entry.
#[derive(Debug, Default)]
pub struct TreeDecoder {
    buffer: Vec<u8>,
    /// Bytes of a file that are still to come; `Some(0)`: its end is to be told.
    file: Option<u64>,
}

impl TreeDecoder {
    /// The next piece in `input`, which is advanced past it; `None` when it is used up.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<TreeEvent<'a>>, EntryError> {
        match self.file {
            Some(0) => {
                self.file = None;
                return Ok(Some(TreeEvent::FileEnd));
            }
            Some(left) if !input.is_empty() => {
                let len = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                let (data, rest) = input.split_at(len);
                *input = rest;
                self.file = Some(left - len as u64);
                return Ok(Some(TreeEvent::Data(data)));
            }
            Some(_) => return Ok(None),
            None => {}
        }
        if !self.gather(input, 4) {
            return Ok(None);
        }
        let len = u32::from_le_bytes([self.buffer[0], self.buffer[1], self.buffer[2], self.buffer[3]]);
        if len == 0 || len as usize > MAX_ENTRY {
            return Err(EntryError::Length(len));
        }
        if !self.gather(input, 4 + len as usize) {
            return Ok(None);
        }
        let value = parse_strict(&self.buffer[4..]).map_err(EntryError::Json)?;
        self.buffer.clear();
        let fields = |error: serde_json::Error| EntryError::Fields(error.to_string().chars().take(256).collect());
        let entry: Entry = serde_json::from_value(value).map_err(fields)?;
        entry.check()?;
        if entry.kind == EntryKind::File {
            self.file = Some(entry.size);
        }
        Ok(Some(TreeEvent::Entry(entry)))
    }

    /// Moves bytes over until the buffer has `wanted`.
    fn gather(&mut self, input: &mut &[u8], wanted: usize) -> bool {
        let len = wanted.saturating_sub(self.buffer.len()).min(input.len());
        self.buffer.extend_from_slice(&input[..len]);
        *input = &input[len..];
        self.buffer.len() >= wanted
    }

    /// The stream has ended: was that at the end of the tree?
    pub fn finish(&self) -> Result<(), EntryError> {
        if self.buffer.is_empty() && self.file.is_none() { Ok(()) } else { Err(EntryError::Truncated) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(path: &str, kind: EntryKind, size: u64) -> Entry {
        Entry { path: path.into(), kind, mode: 0o644, uid: None, gid: None, size, modified: None, target: None }
    }

    #[test]
    fn what_leads_outside_is_refused() {
        for path in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", ".", "a/./b", "a\0b", &"x".repeat(256)] {
            assert!(entry(path, EntryKind::File, 0).check().is_err(), "{path:?}");
        }
        for path in ["a", "a/b", "..a", "a/...", "ä/ö"] {
            entry(path, EntryKind::File, 0).check().unwrap();
        }
        assert!(entry("a", EntryKind::Symlink, 0).check().is_err(), "a link without a target");
        assert!(entry("a", EntryKind::Directory, 1).check().is_err(), "a directory with bytes");
    }

    proptest! {
        #[test]
        fn round_trip_in_any_pieces(
            files in proptest::collection::vec(("[a-z]{1,8}", proptest::collection::vec(any::<u8>(), 0..300)), 0..8),
            piece in 1usize..64,
        ) {
            let mut stream = Vec::new();
            for (path, content) in &files {
                encode_entry(&entry(path, EntryKind::File, content.len() as u64), &mut stream).unwrap();
                stream.extend_from_slice(content);
            }
            let mut decoder = TreeDecoder::default();
            let mut found: Vec<(String, Vec<u8>)> = Vec::new();
            let mut ended = 0;
            for mut input in stream.chunks(piece) {
                while let Some(event) = decoder.next(&mut input).unwrap() {
                    match event {
                        TreeEvent::Entry(entry) => found.push((entry.path, Vec::new())),
                        TreeEvent::Data(data) => found.last_mut().unwrap().1.extend_from_slice(data),
                        TreeEvent::FileEnd => ended += 1,
                    }
                }
            }
            prop_assert!(decoder.finish().is_ok());
            prop_assert_eq!(ended, files.len());
            prop_assert_eq!(found, files);
        }

        #[test]
        fn hostile_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut decoder = TreeDecoder::default();
            let mut input = bytes.as_slice();
            while let Ok(Some(_)) = decoder.next(&mut input) {}
        }
    }
}
