//! The commands as a user types them, from a raw file to an answer.

mod coco;
mod processor_folder;
mod spine;
