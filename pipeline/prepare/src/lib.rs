//! Raw datasets to shards: sources, cleaning, dialogues, bounded parallel stages, rejects. The pipeline binary.
