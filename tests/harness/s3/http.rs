//! As much of HTTP/1.1 as an S3 client needs: one request after another on a connection, bodies with a length.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// A request with its whole body.
pub(super) struct Request {
    pub(super) method: String,
    /// Percent signs decoded, without the first slash: bucket and key.
    pub(super) path: String,
    pub(super) query: BTreeMap<String, String>,
    /// By lower-case name.
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// The next request; `None` when the client has closed the connection.
    pub(super) fn read(connection: &mut BufReader<TcpStream>) -> Option<Self> {
        let line = read_line(connection)?;
        let mut words = line.split(' ');
        let (method, target) = (words.next()?.to_owned(), words.next()?);
        let mut headers = BTreeMap::new();
        loop {
            let line = read_line(connection)?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':')?;
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").map_or(Some(0), |length| length.parse().ok())?;
        let mut body = vec![0; length];
        connection.read_exact(&mut body).ok()?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name), decoded(&value.replace('+', " ")))
        });
        Some(Self { method, path: decoded(path.trim_start_matches('/')), query: query.collect(), headers, body })
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

fn read_line(connection: &mut BufReader<TcpStream>) -> Option<String> {
    let mut line = String::new();
    let length = connection.read_line(&mut line).ok()?;
    (length > 0).then(|| line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Percent signs resolved.
fn decoded(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        let digits: Option<[u8; 2]> = if byte == b'%' { bytes.next().zip(bytes.next()).map(Into::into) } else { None };
        let value = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok());
        out.push(value.unwrap_or(byte));
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// An answer, before faults are put into it.
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
    /// The head alone: an answer to `HEAD`.
    pub(super) is_head: bool,
}

impl Response {
    pub(super) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), is_head: false }
    }

    /// An error as S3 words it.
    pub(super) fn error(status: u16, code: &str) -> Self {
        Self::new(status, format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>"))
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Sends it; only the first `limit` bytes of the body, if there is one.
    pub(super) fn write(&self, connection: &mut TcpStream, limit: Option<usize>) -> std::io::Result<()> {
        let length = self.body.len();
        let mut head = format!("HTTP/1.1 {} Answer\r\nContent-Length: {length}\r\n", self.status);
        self.headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        head.push_str("\r\n");
        connection.write_all(head.as_bytes())?;
        let sent = if self.is_head { 0 } else { limit.unwrap_or(length).min(length) };
        connection.write_all(&self.body[..sent])?;
        connection.flush()
    }
}
