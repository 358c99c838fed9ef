"""A stream of batches that goes on after a lost server and stands where it is told to."""

import queue
import threading
import time
import weakref

import grpc

from .errors import GaveUp, LoaderRefused, WrongCursor
from .ledger import Ledger
from .link import Link
from .wire import MAX_BATCH_BYTES, OF_ONE_SERVER, PART_BYTES, RETRYABLE, Assembler, Calls, CameDamaged, check_answer, message

VERSION = 1
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
# A stream that stood for so long was a working one, whether or not a batch came: its consumer may have been busy.
STEADY_SECONDS = 5.0


class BatchStream:
    """Endless iterable of one rank's micro-batches, as dicts of numpy arrays.

    `urls`: `host:port`, or replicas over the same data as a list. Axes: B rows, T tokens, N images.

    - `input_ids`, `labels`, `position_ids`, `document_ids`: int32 [B, T]; `labels` are the ids to predict at their own column, or -100;
    - `pixels`: uint8 [N, C, H, W]; `image_spans`: int32 [N, 2], row and first column of each image;
    - `sample_ids`, `sample_indices`, `sample_rows`, `sample_valid`: one per document; not valid is a slot without a sample;
    - `epoch`, `step`, `micro`, `num_micro`, `step_label_tokens` (the divisor of the loss: labels of the whole step, all ranks).

    At most `prefetch_bytes` of batches are held ahead (or one batch, if that is larger), and 16 MiB more of their headers.
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
        allow_remote_plaintext=False,
        prefetch_bytes=256 << 20,
        max_batch_bytes=MAX_BATCH_BYTES,
        give_up_after=120.0,
        stall_after=300.0,
        verify_images=False,
    ):
        """`packing`: None, or `(max_images, window)`. `token`: of a tenant; it goes to another machine without `credentials` only with `allow_remote_plaintext`. `credentials`: `grpc.ssl_channel_credentials(...)` for an
        encrypted loader. `max_batch_bytes`: larger batches are refused. `give_up_after`: seconds to come back after a working stream was lost, and to describe the data. `stall_after`: seconds
        after which a loader that sends nothing to a waiting consumer is left for another. `verify_images`: compares the checksum of each image on every
        connection, not only on those that are neither encrypted nor inside this machine. Raises LoaderRefused if the data cannot be had so, GaveUp if
        no loader answers."""
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self._arguments = arguments
        self._link = Link([urls] if isinstance(urls, str) else list(urls), credentials, token, dataset, max_batch_bytes)
        if not allow_remote_plaintext:
            self._link.check_secrecy()
        spec = message("BatchSpec")(
            global_batch=global_batch, micro_batch=micro_batch, seed=seed, shuffle=shuffle,
            shuffle_window=shuffle_window, image_tokens=image_tokens, max_length=max_length,
        )
        if packing is not None:
            spec.packing.max_images, spec.packing.window = packing
        self._spec, self._partition = spec, message("Partition")(rank=rank, world=world)
        self._limits = (prefetch_bytes, max_batch_bytes, verify_images)
        self._give_up_after, self._stall_after = give_up_after, stall_after
        self._place = _Place(self._link, spec, self._partition, self._first_answer())
        self.info, self.steps_per_epoch = self._place.info, self._place.steps_per_epoch
        self._next = (0, 0, 0)
        self.stalled_seconds = 0.0
        # The receiver knows nothing of this object, so one that nobody holds any more ends it.
        self._receiving = []
        self._finalizer = weakref.finalize(self, _end, self._receiving)

    def __iter__(self):
        return self

    def __next__(self):
        if not self._receiving:
            self._receiving.append(_Receiver(self._place, self._next, self._limits, self._give_up_after))
        started = time.monotonic()
        try:
            batch = self._receiving[0].take(self._stall_after)
        except BaseException:
            self.close()
            raise
        self.stalled_seconds += time.monotonic() - started
        self._next = self._place.after((batch["epoch"], batch["step"], batch["micro"]), batch["num_micro"])
        return batch

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __getstate__(self):
        """What a copy in another process needs: the arguments and the place. Credentials cannot be copied."""
        return {"arguments": self._arguments, "state": self.state_dict()}

    def __setstate__(self, saved):
        self.__init__(**saved["arguments"])
        self.load_state_dict(saved["state"])

    def state_dict(self):
        """The place of the next step. Inside a step it is the step's start: a step is taken whole or again."""
        epoch, step, _ = self._next
        names = {"fingerprint": bytes(self.info.fingerprint).hex(), "spec": self._place.spec_name.hex()}
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
        request = message("LookupRequest")(dataset=self._link.dataset, index=index)
        found = self._ask_any(lambda calls, **options: calls.lookup(request, **options))
        return {field: getattr(found, field) for field in ("shards", "file", "row", "id", "source")}

    def close(self):
        """Ends the stream under way; the next batch opens another at the same place."""
        _close(self._receiving)

    def _first_answer(self):
        request = message("DescribeDatasetRequest")(spec=self._spec, partition=self._partition, dataset=self._link.dataset)
        return self._ask_any(lambda calls, **options: check_answer(calls.describe(request, **options)))

    def _ask_any(self, ask):
        """The answer of the first replica that gives one."""
        link, failed, failures = self._link, None, 0
        # Names are looked up on the way, so how many there are is seen on the way.
        while failures == 0 or failures < link.num_replicas():
            with link.channel() as channel:
                try:
                    return ask(Calls(channel), timeout=self._give_up_after, metadata=link.metadata())
                except CameDamaged as error:
                    failed, failures = error, failures + 1
                except grpc.RpcError as error:
                    if error.code() not in RETRYABLE | OF_ONE_SERVER:
                        raise LoaderRefused(link.url(), error.code(), error.details()) from error
                    failed, failures = error, failures + 1
            link.turn()
        if isinstance(failed, grpc.RpcError) and failed.code() in OF_ONE_SERVER:
            raise LoaderRefused(link.url(), failed.code(), failed.details()) from failed
        raise GaveUp(f"no loader answers at {', '.join(link.urls)}") from failed


def _close(receiving):
    while receiving:
        receiving.pop().close()


def _end(receiving):
    """Without a lock and without waiting: the collector may call this on any thread, the receiver's own too."""
    while receiving:
        receiving.pop().end()


class _Place:
    """What is streamed, and what the loader said of it."""

    def __init__(self, link, spec, partition, described):
        self.link, self.spec, self.partition = link, spec, partition
        self.info, self.steps_per_epoch = described.info, described.steps_per_epoch
        self.spec_name = bytes(described.spec_fingerprint)

    def after(self, position, num_micro):
        epoch, step, micro = position
        if micro + 1 < num_micro:
            return (epoch, step, micro + 1)
        return (epoch, step + 1, 0) if step + 1 < self.steps_per_epoch else (epoch + 1, 0, 0)

    def opening(self, position, credit_bytes):
        epoch, step, micro = position
        cursor = message("Cursor")(version=VERSION, fingerprint=self.info.fingerprint, spec=self.spec_name, epoch=epoch, step=step)
        return message("OpenStream")(
            spec=self.spec, partition=self.partition, cursor=cursor, micro=micro, credit_bytes=credit_bytes, dataset=self.link.dataset
        )


class _Receiver:
    """A thread that keeps a stream open, credit flowing and batches queued. The queue is bounded by the credit."""

    def __init__(self, place, position, limits, give_up_after):
        self._place, self._position, self._give_up_after = place, position, give_up_after
        self._batches, self._requests, self._finished = queue.Queue(), None, None
        prefetch_bytes, self._max_batch_bytes, self._verify_images = limits
        # What may still come: credit is given again as batches are taken.
        self._ledger = Ledger(prefetch_bytes)
        self._opened, self._stalled, self._heard = None, False, 0
        self._lock, self._closed, self._call = threading.Lock(), threading.Event(), None
        self._room = threading.Condition(self._lock)
        self._thread = threading.Thread(target=self._run, name="vela-client", daemon=True)
        self._thread.start()

    def take(self, stall_after):
        with self._lock:
            if self._finished is not None:
                # Whoever asks for the next batch has used the one before.
                self._ask(ack=message("Ack")(epoch=self._finished[0], step=self._finished[1]))
                self._finished = None
        batch, size = self._wait(stall_after)
        if isinstance(batch, BaseException):
            raise batch
        with self._lock:
            self._grant(self._ledger.take(size))
            self._room.notify()
            if batch["micro"] + 1 == batch["num_micro"]:
                self._finished = (batch["epoch"], batch["step"])
        return batch

    def _wait(self, stall_after):
        while True:
            heard = self._heard
            try:
                return self._batches.get(timeout=stall_after)
            except queue.Empty:
                with self._lock:
                    # The consumer waits, so there is room, and nothing at all came.
                    if self._call is not None and self._heard == heard:
                        self._stalled = True
                        self._call.cancel()

    def end(self):
        self._closed.set()
        call = self._call
        if call is not None:
            call.cancel()

    def close(self):
        with self._lock:
            self.end()
        self._thread.join()

    def _run(self):
        try:
            self._keep_streaming()
        except BaseException as error:  # told to the consumer, whatever it is
            self._batches.put((error, 0))

    def _keep_streaming(self):
        link, lost_at, pause, failures, refusals = self._place.link, time.monotonic(), FIRST_PAUSE, 0, 0
        while not self._closed.is_set():
            before, self._opened, self._stalled = self._position, None, False
            try:
                with link.channel() as channel:
                    self._stream_once(channel)
                raise GaveUp("the stream ended")
            except grpc.RpcError as error:
                if self._closed.is_set():
                    return
                lost = error
            except (GaveUp, CameDamaged) as error:
                lost = error
            stood = self._opened is not None and time.monotonic() - self._opened >= STEADY_SECONDS
            if self._position != before:
                lost_at, pause, failures, refusals = time.monotonic(), FIRST_PAUSE, 0, 0
            elif stood and not self._ledger.is_waiting(PART_BYTES):
                # The consumer was busy, not the server.
                lost_at, pause, failures = time.monotonic(), FIRST_PAUSE, 0
            failures += 1
            code = lost.code() if isinstance(lost, grpc.RpcError) and not self._stalled else grpc.StatusCode.UNAVAILABLE
            if code not in RETRYABLE:
                refusals += 1
                if code not in OF_ONE_SERVER or refusals >= link.num_replicas():
                    raise LoaderRefused(link.url(), code, lost.details()) from lost
            elif failures > link.num_replicas() and time.monotonic() - lost_at >= self._give_up_after:
                raise GaveUp(f"no batch at {self._position} for {self._give_up_after:.0f} s") from lost
            link.turn()
            if failures % link.num_replicas() == 0:
                self._closed.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _stream_once(self, channel):
        verifies_images = self._verify_images or not self._place.link.is_guarded()
        assembler, requests = Assembler(self._max_batch_bytes, verifies_images), queue.SimpleQueue()
        with self._lock:
            if self._closed.is_set():
                return
            self._requests = requests
            self._ask(open=self._place.opening(self._position, self._ledger.reopen()))
            self._call = Calls(channel).stream(iter(requests.get, None), metadata=self._place.link.metadata())
            call = self._call
        if self._closed.is_set():
            call.cancel()
        try:
            for part in call:
                self._opened, self._heard = self._opened or time.monotonic(), self._heard + 1
                done = assembler.push(part)
                with self._lock:
                    if part.HasField("header"):
                        self._grant(self._ledger.announce(assembler.announced(), assembler.header_bytes))
                    else:
                        self._ledger.receive(assembler.received)
                if done is not None:
                    self._queue(*done)
                self._wait_for_room()
        finally:
            with self._lock:
                self._requests, self._call = None, None
            # Ends the thread that sends requests.
            requests.put(None)
            call.cancel()

    def _queue(self, batch, size):
        position = (batch["epoch"], batch["step"], batch["micro"])
        if position != self._position:
            raise ValueError(f"loader at {self._place.link.url()}: expected batch {self._position}, found {position}")
        with self._lock:
            self._ledger.complete()
            self._position = self._place.after(position, batch["num_micro"])
            self._batches.put((batch, size))

    def _wait_for_room(self):
        """Reads no more while headers take too much; `end` wakes nobody, so it is looked for."""
        with self._lock:
            while not self._ledger.has_room() and not self._closed.is_set():
                self._room.wait(0.1)

    def _grant(self, size):
        if size > 0:
            self._ask(credit=message("Credit")(bytes=size))

    def _ask(self, **request):
        # Between two streams nobody listens; the next one opens with the whole credit.
        if self._requests is not None:
            self._requests.put(message("StreamBatchesRequest")(**request))
