"""Batches from a Vela loader.

    from vela_client import BatchStream

    stream = BatchStream("127.0.0.1:50051", global_batch=8, micro_batch=4, image_tokens=256, max_length=2048)
    for batch in stream:
        print(batch["input_ids"].shape, batch["pixels"].shape)

A stream never ends by itself; `stream.steps_per_epoch` says how long an epoch is. `stream.state_dict()` is the place after
the last whole step that was taken, `stream.load_state_dict(state)` goes there, on any number of ranks.
"""

from .errors import GaveUp, LoaderRefused, WrongCursor
from .stream import BatchStream

__all__ = ["BatchStream", "GaveUp", "LoaderRefused", "WrongCursor"]
