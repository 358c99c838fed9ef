//! The read side, pure and seekable: order, partition, collate, prefetch, cursor.
