//! Remote raw data as a local folder.

use std::fs::{self, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::SystemTime;

use futures_util::TryStreamExt;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};

use super::download::read_whole;
use super::{RemoteOptions, RemoteStore, found_or_none, persist};
use crate::ShardError;
use crate::store::{PARTIAL_SUFFIX, local_path};

/// Objects fetched at once.
const NUM_FETCHES: usize = 8;
/// Every object ever fetched, by what the listing says of it.
const OBJECTS_FOLDER: &str = "objects";
/// One folder per listing, of links to objects under their own names.
const TREES_FOLDER: &str = "trees";

/// Makes the object `url`, or all objects below the prefix `url`, a local file or folder, and gives its path. A local path
/// or `file://` url is that path.
///
/// An object is fetched once per content (url, entity tag, size) into `cache_folder`, which may be shared by processes and
/// inputs; a call that was killed goes on with the objects it has not got. The path is that of a folder made for this very
/// listing: it appears when it is whole, never changes, and is found again as long as the remote objects are the same.
/// Files have the objects' modification times, so two machines that stage the same objects plan the same build. It takes as
/// much disk as the objects have bytes; nothing is ever removed from `cache_folder`, which is safe to delete when no command
/// reads it.
pub fn stage_input(url: &str, cache_folder: &Path) -> Result<PathBuf, ShardError> {
    match local_path(url)? {
        Some(path) => Ok(path.to_owned()),
        None => RemoteStore::open(url, &RemoteOptions::from_env()?)?.stage(cache_folder),
    }
}

/// An object and where it goes.
struct Staged {
    object: ObjectMeta,
    /// Below the tree, `/` between components.
    name: String,
    copy: PathBuf,
}

impl RemoteStore {
    /// [`stage_input`] of what this store stands for.
    pub fn stage(&self, cache_folder: &Path) -> Result<PathBuf, ShardError> {
        let objects = cache_folder.join(OBJECTS_FOLDER);
        fs::create_dir_all(&objects).map_err(at(&objects, "create the folder"))?;
        let (listed, is_one) = self.input_objects()?;
        let mut listing = blake3::Hasher::new();
        let staged = listed.into_iter().map(|(name, object)| {
            let key = self.content_key(&object);
            listing.update(name.as_bytes()).update(b"\0").update(key.as_bytes()).update(b"\n");
            Staged { object, name, copy: objects.join(key) }
        });
        let staged: Vec<Staged> = staged.collect();
        let tree = cache_folder.join(TREES_FOLDER).join(listing.finalize().to_hex().as_str());
        if !tree.exists() {
            self.fetch_all(&staged)?;
            link_tree(&tree, &staged)?;
        }
        Ok(if is_one { tree.join(&staged[0].name) } else { tree })
    }

    /// The objects by name, in order, and whether the url names one of them instead of a prefix.
    fn input_objects(&self) -> Result<(Vec<(String, ObjectMeta)>, bool), ShardError> {
        let (client, prefix) = (Arc::clone(&self.client), self.prefix.clone());
        let is_bucket = prefix.as_ref().is_empty();
        let listed = self.run(persist(move || {
            let (client, prefix) = (Arc::clone(&client), prefix.clone());
            async move {
                let one = if is_bucket { None } else { found_or_none(client.head(&prefix).await)? };
                Ok((one, client.list(Some(&prefix)).try_collect::<Vec<_>>().await?))
            }
        }));
        let (one, mut all) = listed.map_err(self.fault("", "list"))?;
        // What marks a folder in some consoles is an empty object with the prefix's name.
        all.retain(|object| object.location != self.prefix);
        match one {
            Some(object) if all.is_empty() => {
                let name = object.location.filename().unwrap_or_default().to_owned();
                Ok((vec![(name, object)], true))
            }
            _ if all.is_empty() => Err(ShardError::NoObjects { url: self.url.clone() }),
            _ => {
                let below = |object: &ObjectMeta| {
                    let parts = object
                        .location
                        .prefix_match(&self.prefix)
                        .map(|parts| parts.map(|part| part.as_ref().to_owned()));
                    parts.map(|parts| parts.collect::<Vec<_>>().join("/")).unwrap_or_default()
                };
                let mut named: Vec<_> = all.into_iter().map(|object| (below(&object), object)).collect();
                named.sort_by(|left, right| left.0.cmp(&right.0));
                Ok((named, false))
            }
        }
    }

    /// Names a content: another content of the same object has another key.
    fn content_key(&self, object: &ObjectMeta) -> String {
        let tag = object.e_tag.clone().unwrap_or_else(|| format!("{:?}", object.last_modified));
        let text = format!("{}\n{}\n{tag}\n{}", self.bucket_url, object.location, object.size);
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }

    fn fetch_all(&self, staged: &[Staged]) -> Result<(), ShardError> {
        let next = AtomicUsize::new(0);
        let fetch = || {
            while let Some(one) = staged.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(fault) = self.fetch(one) {
                    // The others stop after the object they are at.
                    next.store(staged.len(), Ordering::Relaxed);
                    return Err(fault);
                }
            }
            Ok(())
        };
        thread::scope(|scope| {
            let fetching: Vec<_> = (0..NUM_FETCHES.min(staged.len())).map(|_| scope.spawn(fetch)).collect();
            fetching.into_iter().try_for_each(|fetch| fetch.join().expect("fetching does not panic"))
        })
    }

    /// Fetches an object unless it is there; of several processes that want it, one does.
    fn fetch(&self, staged: &Staged) -> Result<(), ShardError> {
        let Staged { object, copy, .. } = staged;
        if copy.exists() {
            return Ok(());
        }
        let partial = copy.with_extension(&PARTIAL_SUFFIX[1..]);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&partial);
        let mut file = file.map_err(at(&partial, "create"))?;
        file.lock().map_err(at(&partial, "lock"))?;
        if copy.exists() {
            // Whoever held the lock has made it, perhaps by renaming the very file that is open here.
            return Ok(());
        }
        file.set_len(0).map_err(at(&partial, "write"))?;
        self.fetch_into(object, &mut |bytes| file.write_all(bytes).map_err(at(&partial, "write")))?;
        file.sync_all().map_err(at(&partial, "write"))?;
        file.set_modified(SystemTime::from(object.last_modified)).map_err(at(&partial, "set the time of"))?;
        fs::rename(&partial, copy).map_err(at(&partial, "rename"))
    }

    /// Hands an object's bytes to `sink`: a small one by a single request, a large one in ranges of one version.
    fn fetch_into(
        &self,
        listed: &ObjectMeta,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), ShardError>,
    ) -> Result<(), ShardError> {
        let (client, location) = (Arc::clone(&self.client), listed.location.clone());
        let path = format!("{}{location}", self.bucket_url);
        let fault = |path: String| super::remote_fault(self.scheme, path, "read");
        let changed = |found: u64| ShardError::DamagedFile {
            path: path.clone(),
            what: "size in bytes since it was listed",
            expected: listed.size.to_string(),
            found: found.to_string(),
        };
        if listed.size <= self.part_bytes as u64 {
            let content = self.run(async move { read_whole(client, location).await });
            let content = content.map_err(fault(path.clone()))?;
            let content = content.ok_or_else(|| ShardError::NoObjects { url: path.clone() })?;
            return if content.len() as u64 == listed.size {
                sink(&content)
            } else {
                Err(changed(content.len() as u64))
            };
        }
        let object = self.run(async move { client.head(&location).await }).map_err(fault(path.clone()))?;
        match object.size == listed.size {
            true => self.download_object(path, &object).run(sink),
            false => Err(changed(object.size)),
        }
    }
}

/// Makes `tree` of links to the copies, in one step.
fn link_tree(tree: &Path, staged: &[Staged]) -> Result<(), ShardError> {
    let partial =
        tree.with_extension(format!("{:016x}{PARTIAL_SUFFIX}", RandomState::new().hash_one(std::process::id())));
    for Staged { name, copy, .. } in staged {
        let link = partial.join(name);
        let folder = link.parent().unwrap_or(&partial);
        fs::create_dir_all(folder).map_err(at(folder, "create the folder"))?;
        fs::hard_link(copy, &link).map_err(at(&link, "link"))?;
    }
    match fs::rename(&partial, tree) {
        Err(fault) if matches!(fault.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {
            // Another process was first, with the same links.
            fs::remove_dir_all(&partial).map_err(at(&partial, "remove"))
        }
        renamed => renamed.map_err(at(tree, "create")),
    }
}

fn at(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> ShardError {
    ShardError::io(path.display().to_string(), action)
}
