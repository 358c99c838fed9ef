//! From an unfinished file to a kept image: looked at, noted, renamed. All of it blocks; it runs off the async threads.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use vela_processor::codec::decode_rgb;

use super::Failure;
use super::attempt::{Body, Trouble};
use super::ledger::Ledger;
use crate::PrepareError;
use crate::sources::Fault;

/// Where one URL's image goes.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Below the output folder.
    pub(super) path: String,
    /// The image.
    pub(super) file: PathBuf,
    /// Its bytes until they are known to be one.
    pub(super) partial: PathBuf,
}

/// The bytes of the file at `path`, whatever it is called, once every pixel of it has been decoded.
fn sound_image(path: &Path, name: &str) -> Result<Vec<u8>, Trouble> {
    let bytes = fs::read(path).map_err(|fault| Trouble::Ours(PrepareError::io("read", path)(fault)))?;
    let decode = || decode_rgb(&bytes, name).map(drop).map_err(|fault| Fault::of_processor(&fault));
    Fault::catch(None, decode).map_err(|fault| match fault.cause {
        "unknown_image_format" => Failure::lasting("not_an_image", fault.detail),
        // The bytes may have been lost on the way: a connection's end is also how some servers end a body.
        cause @ ("truncated_image" | "empty_image") => Failure::passing(cause, fault.detail),
        cause => Failure::lasting(cause, fault.detail),
    })?;
    Ok(bytes)
}

/// Takes the file of `place` that somebody else put there into the ledger, if it is an image.
pub(super) fn adopt(place: &Place, url: &str, ledger: &Ledger) -> Result<bool, Trouble> {
    match sound_image(&place.file, &place.path) {
        Ok(bytes) => {
            let noted = ledger.finished(&place.path, url, bytes.len() as u64, blake3::hash(&bytes));
            noted.map(|()| true).map_err(Trouble::Ours)
        }
        Err(Trouble::Url(..)) => Ok(false),
        Err(ours) => Err(ours),
    }
}

/// Looks at the bytes of `place`, writes them and their line to the device, and gives them their name. The line comes before
/// the name: an image that is there is in the ledger.
pub(super) fn keep(place: &Place, url: &str, body: &Body, ledger: &Ledger) -> Result<(), Trouble> {
    sound_image(&place.partial, &place.path)?;
    let ours = |action, path: &Path, fault| Trouble::Ours(PrepareError::io(action, path)(fault));
    let synced = File::open(&place.partial).and_then(|file| file.sync_all());
    synced.map_err(|fault| ours("write", &place.partial, fault))?;
    let folder = place.file.parent().unwrap_or(Path::new("."));
    if let Err(fault) = fs::create_dir_all(folder) {
        return Err(taken(&place.path, &fault).map_or_else(|| ours("create", folder, fault), Trouble::from));
    }
    if place.file.is_dir() {
        return Err(taken(&place.path, &io::ErrorKind::IsADirectory.into()).expect("a folder is in the way").into());
    }
    ledger.finished(&place.path, url, body.bytes, body.hash).map_err(Trouble::Ours)?;
    fs::rename(&place.partial, &place.file).map_err(|fault| ours("rename", &place.file, fault))
}

/// `http://h/a` is a file and `http://h/a/b.jpg` wants a folder of that name, or the reverse.
fn taken(path: &str, fault: &io::Error) -> Option<Failure> {
    use io::ErrorKind::{AlreadyExists, IsADirectory, NotADirectory};
    let is_in_the_way = matches!(fault.kind(), AlreadyExists | IsADirectory | NotADirectory);
    let detail =
        || format!("`{path}`: expected room for a file, found a folder in its place or a file in its folder's");
    is_in_the_way.then(|| Failure::lasting("name_taken", detail()))
}
