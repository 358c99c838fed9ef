"""The stream as a PyTorch data set: `DataLoader(TorchStream(stream), batch_size=None)`."""

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info


class TorchStream(IterableDataset):
    """Batches of a `BatchStream` with torch tensors for arrays.

    The loader makes batches in its own process, so workers add nothing: it is used with `num_workers=0`. It has
    `state_dict` and `load_state_dict`, which a stateful data loader saves and restores.
    """

    def __init__(self, stream):
        self.stream = stream

    def __iter__(self):
        if get_worker_info() is not None:
            raise RuntimeError("a Vela stream is read by the training process itself: set num_workers=0")
        for batch in self.stream:
            yield {name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in batch.items()}

    def state_dict(self):
        """The stream's."""
        return self.stream.state_dict()

    def load_state_dict(self, state):
        """The stream's."""
        self.stream.load_state_dict(state)
