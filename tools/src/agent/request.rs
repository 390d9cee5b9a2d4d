//! What a stream to the agent is for: its first frame.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use machinen_abi::body::Size;
use machinen_abi::frame::MOST_OPEN_BYTES;
use machinen_abi::open::{Operation, Tag, add, begin};

use crate::error::{Error, Result};

/// An operation and its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    operation: Operation,
    fields: Vec<(Tag, Vec<u8>)>,
}

impl Request {
    /// An operation without fields.
    pub fn new(operation: Operation) -> Request {
        Request { operation, fields: Vec::new() }
    }

    /// Adds a field.
    pub fn with(mut self, tag: Tag, value: impl AsRef<[u8]>) -> Request {
        self.fields.push((tag, value.as_ref().to_vec()));
        self
    }

    /// The payload of the frame.
    ///
    /// # Errors
    /// `EXEC_TOO_LONG` when it is larger than a frame may be.
    pub fn to_payload(&self) -> Result<Vec<u8>> {
        let mut payload = Vec::new();
        begin(machinen_abi::VERSION, self.operation, &mut payload);
        let added = self.fields.iter().try_for_each(|(tag, value)| add(&mut payload, *tag, value));
        match added {
            Some(()) if payload.len() <= MOST_OPEN_BYTES => Ok(payload),
            _ => Err(Error::new("EXEC_TOO_LONG", "the command's arguments and environment: more than 8 MiB")
                .hint("give large data by standard input or a file")),
        }
    }
}

/// A command in a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// Its words, the program first; none for the image's own.
    pub words: Vec<OsString>,
    /// `NAME=value` over the image's variables; `NAME` takes one away.
    pub env: Vec<OsString>,
    /// Working directory, absolute; without it the image's.
    pub cwd: Option<OsString>,
    /// It gets a terminal of this size.
    pub terminal: Option<Size>,
    /// It outlives the stream: its output goes to the console, and it has no input.
    pub detached: bool,
}

impl Command {
    /// A command of these words, with pipes.
    pub fn new(words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        Command { words: words.into_iter().map(|word| word.as_ref().to_owned()).collect(), ..Command::default() }
    }

    /// The request for it.
    pub fn request(&self) -> Request {
        let operation = if self.terminal.is_some() { Operation::Pty } else { Operation::Exec };
        let mut request = Request::new(operation);
        for word in &self.words {
            request = request.with(Tag::Argument, word.as_bytes());
        }
        for item in &self.env {
            request = request.with(Tag::Environment, item.as_bytes());
        }
        if let Some(cwd) = &self.cwd {
            request = request.with(Tag::Directory, cwd.as_bytes());
        }
        if let Some(size) = self.terminal {
            request = request.with(Tag::Size, size.to_bytes());
        }
        if self.detached {
            request = request.with(Tag::Detached, []);
        }
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinen_abi::open::Open;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn words_are_bytes() {
        let mut command = Command::new(["echo"]);
        command.words.push(OsString::from_vec(vec![0xff, b'x']));
        command.env.push("A=b".into());
        command.terminal = Some(Size { rows: 1, columns: 2 });
        let payload = command.request().to_payload().unwrap();
        let open = Open::parse(&payload).unwrap();
        assert_eq!(Operation::of(open.operation), Some(Operation::Pty));
        let fields: Vec<_> = open.fields().map(|field| field.unwrap()).collect();
        let expected: [(Tag, &[u8]); 4] = [
            (Tag::Argument, b"echo"),
            (Tag::Argument, b"\xffx"),
            (Tag::Environment, b"A=b"),
            (Tag::Size, &[1, 0, 2, 0]),
        ];
        assert_eq!(fields, expected);
    }

    #[test]
    fn what_no_frame_holds_is_refused() {
        let command = Command::new(["x".repeat(MOST_OPEN_BYTES)]);
        assert_eq!(command.request().to_payload().unwrap_err().code(), "EXEC_TOO_LONG");
    }
}
