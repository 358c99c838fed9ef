"""A stream of batches that goes on after a lost server and stands where it is told to."""

import queue
import threading
import time

import grpc

from .errors import GaveUp, LoaderRefused, WrongCursor
from .wire import CHANNEL_OPTIONS, RETRYABLE, Assembler, Calls, message

VERSION = 1
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
CONNECT_SECONDS = 5.0


class BatchStream:
    """Endless iterable of one rank's micro-batches, as dicts of numpy arrays.

    `urls`: `host:port`, or replicas over the same data as a list. Axes: B rows, T tokens, N images.

    - `input_ids`, `labels`, `position_ids`, `document_ids`: int32 [B, T]; `labels` are the ids to predict at their own column, or -100;
    - `pixels`: uint8 [N, C, H, W]; `image_spans`: int32 [N, 2], row and first column of each image;
    - `sample_ids`, `sample_indices`, `sample_rows`, `sample_valid`: one per document; not valid is a slot without a sample;
    - `epoch`, `step`, `micro`, `num_micro`, `step_label_tokens` (the divisor of the loss: labels of the whole step, all ranks).

    At most `prefetch_bytes` of batches are held ahead (or one batch, if that is larger).
    """

    def __init__(
        self,
        urls,
        *,
        global_batch,
        micro_batch,
        image_tokens,
        max_length,
        seed=0,
        shuffle=True,
        shuffle_window=0,
        packing=None,
        rank=0,
        world=1,
        dataset="",
        token=None,
        credentials=None,
        prefetch_bytes=256 << 20,
        give_up_after=120.0,
    ):
        """`packing`: None, or `(max_images, window)`. `token`: of a tenant. `credentials`: `grpc.ssl_channel_credentials(...)` for an
        encrypted loader. Raises LoaderRefused if the data cannot be had so, GaveUp if no loader answers."""
        self._urls = [urls] if isinstance(urls, str) else list(urls)
        self._credentials, self._token, self._dataset = credentials, token, dataset
        self._spec = message("BatchSpec")(
            global_batch=global_batch, micro_batch=micro_batch, seed=seed, shuffle=shuffle,
            shuffle_window=shuffle_window, image_tokens=image_tokens, max_length=max_length,
        )
        if packing is not None:
            self._spec.packing.max_images, self._spec.packing.window = packing
        self._partition = message("Partition")(rank=rank, world=world)
        self._prefetch_bytes, self._give_up_after = prefetch_bytes, give_up_after
        self._current, self._receiver = 0, None
        described = self._first_answer()
        self.info = described.info
        self.steps_per_epoch = described.steps_per_epoch
        self._spec_name = bytes(described.spec_fingerprint)
        self._next = (0, 0, 0)
        self.stalled_seconds = 0.0

    def __iter__(self):
        return self

    def __next__(self):
        if self._receiver is None:
            self._receiver = _Receiver(self, self._next)
        started = time.monotonic()
        try:
            batch = self._receiver.take()
        except BaseException:
            self.close()
            raise
        self.stalled_seconds += time.monotonic() - started
        self._next = self._after((batch["epoch"], batch["step"], batch["micro"]), batch["num_micro"])
        return batch

    def state_dict(self):
        """The place of the next step. Inside a step it is the step's start: a step is taken whole or again."""
        epoch, step, _ = self._next
        names = {"fingerprint": bytes(self.info.fingerprint).hex(), "spec": self._spec_name.hex()}
        return {"version": VERSION, **names, "epoch": epoch, "step": step}

    def load_state_dict(self, state):
        """Goes on at `state`. Raises WrongCursor, naming the field, if it belongs elsewhere."""
        here = self.state_dict()
        for field in ("version", "fingerprint", "spec"):
            if state.get(field) != here[field]:
                raise WrongCursor(f"expected {field} {here[field]!r}, found {state.get(field)!r}")
        epoch, step = state["epoch"], state["step"]
        if not 0 <= step <= self.steps_per_epoch:
            raise WrongCursor(f"expected a step of at most {self.steps_per_epoch}, found {step}")
        self.close()
        self._next = (epoch, step, 0) if step < self.steps_per_epoch else (epoch + 1, 0, 0)

    def lookup(self, index):
        """Where the record of a `sample_indices` entry came from: shards, file, row, id, source."""
        with self._channel() as channel:
            request = message("LookupRequest")(dataset=self._dataset, index=index)
            try:
                found = Calls(channel).lookup(request, timeout=CONNECT_SECONDS, metadata=self._metadata())
            except grpc.RpcError as error:
                raise LoaderRefused(self._url(), error.code(), error.details()) from error
        return {field: getattr(found, field) for field in ("shards", "file", "row", "id", "source")}

    def close(self):
        """Ends the stream under way; the next batch opens another at the same place."""
        if self._receiver is not None:
            self._receiver.close()
            self._receiver = None

    def _after(self, position, num_micro):
        epoch, step, micro = position
        if micro + 1 < num_micro:
            return (epoch, step, micro + 1)
        return (epoch, step + 1, 0) if step + 1 < self.steps_per_epoch else (epoch + 1, 0, 0)

    def _first_answer(self):
        request = message("DescribeDatasetRequest")(spec=self._spec, partition=self._partition, dataset=self._dataset)
        failed = None
        for _ in self._urls:
            with self._channel() as channel:
                try:
                    return Calls(channel).describe(request, timeout=CONNECT_SECONDS, metadata=self._metadata())
                except grpc.RpcError as error:
                    if error.code() not in RETRYABLE:
                        raise LoaderRefused(self._url(), error.code(), error.details()) from error
                    failed = error
            self._current = (self._current + 1) % len(self._urls)
        raise GaveUp(f"no loader answers at {', '.join(self._urls)}") from failed

    def _url(self):
        return self._urls[self._current]

    def _channel(self):
        if self._credentials is None:
            return grpc.insecure_channel(self._url(), CHANNEL_OPTIONS)
        return grpc.secure_channel(self._url(), self._credentials, CHANNEL_OPTIONS)

    def _metadata(self):
        return () if self._token is None else (("authorization", f"Bearer {self._token}"),)


class _Receiver:
    """A thread that keeps a stream open, credit flowing and batches queued. The queue is bounded by the credit."""

    def __init__(self, stream, position):
        self._stream, self._position = stream, position
        self._batches, self._requests, self._finished = queue.Queue(), None, None
        # What may still come: credit is given again as batches are taken.
        self._budget, self._held = stream._prefetch_bytes, 0
        self._lock, self._closed, self._call = threading.Lock(), threading.Event(), None
        self._thread = threading.Thread(target=self._run, name="vela-client", daemon=True)
        self._thread.start()

    def take(self):
        with self._lock:
            if self._finished is not None:
                # Whoever asks for the next batch has used the one before.
                self._ask(ack=message("Ack")(epoch=self._finished[0], step=self._finished[1]))
                self._finished = None
        batch, size = self._batches.get()
        if isinstance(batch, BaseException):
            raise batch
        with self._lock:
            self._held -= size
            self._grant(size)
            if batch["micro"] + 1 == batch["num_micro"]:
                self._finished = (batch["epoch"], batch["step"])
        return batch

    def close(self):
        self._closed.set()
        with self._lock:
            if self._call is not None:
                self._call.cancel()
        self._thread.join()

    def _run(self):
        try:
            self._keep_streaming()
        except BaseException as error:  # told to the consumer, whatever it is
            self._batches.put((error, 0))

    def _keep_streaming(self):
        last_progress, pause, failures = time.monotonic(), FIRST_PAUSE, 0
        stream = self._stream
        while not self._closed.is_set():
            before = self._position
            try:
                with stream._channel() as channel:
                    self._stream_once(channel)
                raise GaveUp("the stream ended")
            except grpc.RpcError as error:
                if self._closed.is_set():
                    return
                if error.code() not in RETRYABLE:
                    raise LoaderRefused(stream._url(), error.code(), error.details()) from error
                lost = error
            except GaveUp as error:
                lost = error
            if self._position != before:
                last_progress, pause, failures = time.monotonic(), FIRST_PAUSE, 0
            if time.monotonic() - last_progress >= stream._give_up_after:
                raise GaveUp(f"no batch at {self._position} for {stream._give_up_after:.0f} s") from lost
            stream._current = (stream._current + 1) % len(stream._urls)
            failures += 1
            if failures % len(stream._urls) == 0:
                self._closed.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _stream_once(self, channel):
        stream, assembler = self._stream, Assembler()
        requests = queue.SimpleQueue()
        with self._lock:
            if self._closed.is_set():
                return
            self._requests = requests
            self._ask(open=self._opening())
            self._call = Calls(channel).stream(iter(requests.get, None), metadata=stream._metadata())
            call = self._call
        try:
            for part in call:
                if part.HasField("header"):
                    done = assembler.push(part)
                    with self._lock:
                        growth = max(0, assembler.announced() - self._budget)
                        self._budget += growth
                        self._grant(growth)
                else:
                    done = assembler.push(part)
                if done is not None:
                    self._queue(*done)
        finally:
            with self._lock:
                self._requests, self._call = None, None
            # Ends the thread that sends requests.
            requests.put(None)
            call.cancel()

    def _queue(self, batch, size):
        position = (batch["epoch"], batch["step"], batch["micro"])
        if position != self._position:
            raise ValueError(f"loader at {self._stream._url()}: expected batch {self._position}, found {position}")
        with self._lock:
            self._held += size
            self._position = self._stream._after(position, batch["num_micro"])
            self._batches.put((batch, size))

    def _opening(self):
        stream, (epoch, step, micro) = self._stream, self._position
        cursor = message("Cursor")(
            version=VERSION, fingerprint=stream.info.fingerprint, spec=stream._spec_name, epoch=epoch, step=step
        )
        return message("OpenStream")(
            spec=stream._spec, partition=stream._partition, cursor=cursor, micro=micro,
            credit_bytes=max(self._budget - self._held, 0), dataset=stream._dataset,
        )

    def _grant(self, size):
        if size > 0:
            self._ask(credit=message("Credit")(bytes=size))

    def _ask(self, **request):
        # Between two streams nobody listens; the next one opens with the whole credit.
        if self._requests is not None:
            self._requests.put(message("StreamBatchesRequest")(**request))
