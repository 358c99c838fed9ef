"""Why a stream fails."""


class LoaderRefused(Exception):
    """The loader said no, and would say it again: a wrong spec, another's data, damage. `code` is gRPC's."""

    def __init__(self, url, code, message):
        super().__init__(f"loader at {url}: {code.name}: {message}")
        self.url, self.code, self.message = url, code, message


class GaveUp(Exception):
    """No loader gave a batch for as long as was to be waited; the last one's answer is the cause."""


class WrongCursor(Exception):
    """The state was saved with other data, another batch definition or another version."""
