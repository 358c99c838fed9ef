"""Where the bytes of batches are: the same account as in the Rust client."""

from collections import deque

# Bytes of headers beyond the budget that are read on nevertheless: those of honest batches take less.
HEADER_ROOM = 16 << 20


class Ledger:
    """Payload costs credit, headers do not: what they take is made up for by less credit, and above `HEADER_ROOM` by reading no more.
    Every method but `receive` that changes something returns the credit to add."""

    def __init__(self, budget):
        self.budget, self.held, self.open, self.outstanding = budget, 0, 0, 0
        self._headers, self._open_header = deque(), 0

    def reopen(self):
        """A new stream begins: what was under way is lost."""
        self.open, self._open_header, self.outstanding = 0, 0, 0
        return self._grant()

    def announce(self, payload_bytes, header_bytes):
        """A batch begins, and must be able to arrive."""
        self._open_header = header_bytes
        self.budget = max(self.budget, payload_bytes + header_bytes)
        return self._grant()

    def receive(self, num_bytes):
        """A chunk has come."""
        if num_bytes > self.outstanding:
            raise ValueError(f"a chunk of {num_bytes} bytes for a credit of {self.outstanding}")
        self.outstanding -= num_bytes
        self.open += num_bytes

    def complete(self):
        """The batch under way is whole."""
        self.held, self.open = self.held + self.open, 0
        self._headers.append(self._open_header)
        self._open_header = 0

    def take(self, payload_bytes):
        """The consumer took the oldest batch."""
        self.held -= payload_bytes
        self._headers.popleft()
        return self._grant()

    def has_room(self):
        """Whether more may be read: always, unless headers take too much."""
        return not self._headers or self._occupied() <= self.budget + HEADER_ROOM

    def is_waiting(self, part_bytes):
        """Whether the loader could send a part of at most `part_bytes` now."""
        return self.has_room() and (self.outstanding >= part_bytes or self.held == 0)

    def _occupied(self):
        return self.held + self.open + sum(self._headers) + self._open_header

    def _grant(self):
        room = max(0, self.budget - self._occupied() - self.outstanding)
        self.outstanding += room
        return room
