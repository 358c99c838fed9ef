//! The trainer side of the loader service: a batch stream that resumes by itself.
