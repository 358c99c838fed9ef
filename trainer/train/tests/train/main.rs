//! The trainer from outside: runs equal to PyTorch's, kills and resumes, commands and their messages, answers.

mod chat;
mod commands;
mod curves;
mod defects;
mod features;
mod fixture;
mod folders;
mod golden;
mod loader;
mod mpirun;
mod options;
mod packing;
mod poison;
mod ranks;
mod recipes;
mod recompute;
mod report;
mod resume;
