"""The Python client against real loaders: VELA_LOADER is the binary, VELA_SHARDS a shard set with at least 20 samples."""

import gc
import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
import unittest
import zlib
from pathlib import Path
from unittest import mock

import grpc
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))
from vela_client import BatchStream, GaveUp, LoaderRefused, WrongCursor  # noqa: E402
from vela_client.ledger import HEADER_ROOM, Ledger  # noqa: E402
from vela_client.link import Link, resolve  # noqa: E402
from vela_client.wire import Assembler, Calls, CameDamaged, channel_options, message  # noqa: E402

SPEC = {"global_batch": 6, "micro_batch": 2, "image_tokens": 4, "max_length": 4096, "seed": 11}


class Loader:
    """A loader process, on a free port unless told otherwise."""

    def __init__(self, shards=None, listen="127.0.0.1:0"):
        shards = shards or os.environ["VELA_SHARDS"]
        command = [os.environ["VELA_LOADER"], "serve", "--shards", shards, "--listen", listen]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            line = re.sub(r"\x1b\[[0-9;]*m", "", line)
            if found := re.search(r"serving address=(\S+)", line):
                self.address = found.group(1)
                return
        raise RuntimeError("the loader did not start")

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()


def equal(one, other):
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], other[name]) if isinstance(one[name], np.ndarray) else one[name] == other[name] for name in one
    )


def header(shape, num_samples=1):
    """A part that begins a batch: five tensors of `shape`, and no image."""
    header = message("BatchHeader")(num_micro=1)
    for role in range(1, 6):
        header.tensors.add(role=role, dtype=1 if role == 5 else 2, shape=shape)
    header.samples.extend([message("SampleSlot")()] * num_samples)
    if shape == (2, 3):
        header.image_checksums.extend([zlib.crc32(bytes(3))] * 2)
    header.token_checksum = zlib.crc32(bytes(16 * 6))
    header.header_checksum = zlib.crc32(header.SerializeToString(deterministic=True))
    return message("BatchPart")(header=header)


class Limits(unittest.TestCase):
    def test_a_batch_beyond_the_limit_or_without_a_byte_is_refused(self):
        for limit, shape, found in [(1000, (10, 10), 1700), (1000, (0, 4), 0), (1 << 40, (1 << 40, 1 << 40), 17 << 80)]:
            with self.assertRaisesRegex(ValueError, f"1 to {limit} bytes, found {found}"):
                Assembler(limit).push(header(shape))
        with self.assertRaisesRegex(ValueError, "samples"):
            Assembler().push(header((1, 1), num_samples=(1 << 20) + 1))
        self.assertEqual(dict(channel_options(5 << 20))["grpc.max_receive_message_length"], 5 << 20)
        self.assertEqual(dict(channel_options(1))["grpc.max_receive_message_length"], 1 << 20)

    def test_a_token_leaves_the_machine_in_plain_text_only_where_that_is_allowed(self):
        never = mock.Mock(side_effect=AssertionError("a connection"))
        for url in ["loader:1", "10.0.0.1:1", "dns:///loader:1", "[2001:db8::1]:1", ["localhost:1", "loader:1"]]:
            with mock.patch.object(BatchStream, "_first_answer", never), self.assertRaisesRegex(ValueError, "without encryption"):
                BatchStream(url, token="a token", **SPEC)
        asked = mock.Mock(side_effect=InterruptedError)
        encrypted = {"credentials": grpc.ssl_channel_credentials()}
        for url, options in [
            ("localhost:1", {}), ("127.0.0.2:1", {}), ("[::1]:1", {}), ("unix:/tmp/loader", {}),
            ("loader:1", {"allow_remote_plaintext": True}), ("loader:1", encrypted), ("loader:1", {"token": None}),
        ]:
            with mock.patch.object(BatchStream, "_first_answer", asked), self.assertRaises(InterruptedError):
                BatchStream(url, **{"token": "a token", **options}, **SPEC)

    def test_a_chunk_is_read_once(self):
        reads = []

        class Chunk:
            offset = 0

            @property
            def data(self):
                reads.append(1)
                return bytes(17 * 6)

        assembler = Assembler()
        self.assertIsNone(assembler.push(header((2, 3))))
        part = types.SimpleNamespace(chunk=Chunk(), HasField=lambda name: name == "chunk")
        batch, size = assembler.push(part)
        self.assertEqual((size, assembler.received, batch["labels"].shape, len(reads)), (102, 102, (2, 3), 1))
        assembler.push(header((2, 3)))
        with self.assertRaisesRegex(ValueError, "out of order"):
            assembler.push(message("BatchPart")(chunk={"offset": 0}))

    def test_what_came_damaged_is_told(self):
        def chunk(at=None):
            data = bytearray(17 * 6)
            if at is not None:
                data[at] ^= 1
            return message("BatchPart")(chunk={"offset": 0, "data": bytes(data)})

        for at, what in [(0, "the tokens"), (95, "the tokens"), (96, "image 0"), (101, "image 1")]:
            assembler = Assembler()
            assembler.push(header((2, 3)))
            with self.assertRaisesRegex(CameDamaged, what):
                assembler.push(chunk(at))
        trusting = Assembler(verifies_images=False)
        trusting.push(header((2, 3)))
        self.assertIsNotNone(trusting.push(chunk(101)), "images are not looked at")
        wrong = header((2, 3))
        wrong.header.num_micro = 7
        with self.assertRaisesRegex(CameDamaged, "the header"):
            Assembler().push(wrong)
        urls = ["127.0.0.1:7", "[::1]:7", "localhost:7", "10.1.2.3:7", "loader.test:7"]
        guarded = [Link([url], None, None, "", 1 << 30).is_guarded() for url in urls]
        self.assertEqual(guarded, [True, True, True, False, False])

    def test_headers_without_much_payload_are_read_until_they_take_their_room(self):
        ledger = Ledger(1 << 20)
        self.assertEqual(ledger.reopen(), 1 << 20)
        count = 0
        while ledger.has_room():
            ledger.announce(16, 1 << 20)
            ledger.receive(16)
            ledger.complete()
            count += 1
            self.assertLess(count, 100, "nothing bounds them")
        self.assertGreaterEqual(count, HEADER_ROOM >> 20)
        self.assertFalse(ledger.is_waiting(1))
        given = [ledger.take(16) for _ in range(count)]
        self.assertTrue(ledger.has_room())
        # All is given back in the end, and no more.
        self.assertEqual((ledger.held, ledger.outstanding), (0, ledger.budget))
        self.assertLessEqual(sum(given), ledger.budget)
        with self.assertRaisesRegex(ValueError, "credit"):
            ledger.receive(ledger.outstanding + 1)


def answers(*hosts):
    """What a resolver says of a name with these addresses."""
    return lambda _, port, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in hosts]


class Names(unittest.TestCase):
    def test_each_address_of_a_name_has_its_turn_in_whatever_order_they_are_told(self):
        link = Link(["replicas.test:7"], None, None, "", 1 << 30)
        seen = []
        for hosts in [("10.0.0.1", "10.0.0.2", "10.0.0.3"), ("10.0.0.2", "10.0.0.3", "10.0.0.1"), ("10.0.0.3", "10.0.0.1", "10.0.0.2")]:
            with mock.patch("socket.getaddrinfo", answers(*hosts)):
                seen.append(link._address())
            self.assertEqual((link.url(), link.num_replicas()), ("replicas.test:7", 3))
            link.turn()
        self.assertEqual(seen, ["10.0.0.1:7", "10.0.0.2:7", "10.0.0.3:7"])

    def test_what_is_no_name_is_left_to_grpc(self):
        with mock.patch("socket.getaddrinfo", side_effect=AssertionError("looked up")):
            for url in ["127.0.0.1:5", "[::1]:5", "dns:///loader:5", "unix:/run/loader", "loader"]:
                self.assertEqual(resolve(url), [])
        with mock.patch("socket.getaddrinfo", side_effect=socket.gaierror("no such name")):
            self.assertEqual(resolve("loader:5"), [])

    def test_damage_at_one_address_of_a_name_is_asked_of_the_other(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        damaged = shutil.copytree(os.environ["VELA_SHARDS"], Path(folder.name) / "damaged")
        for shard in damaged.glob("*.parquet"):
            content = bytearray(shard.read_bytes())
            for place in range(1000, len(content) // 2, 50):
                content[place] ^= 0x55
            shard.write_bytes(content)
        bad = Loader(str(damaged))
        self.addCleanup(bad.kill)
        port = bad.address.rpartition(":")[2]
        good = Loader(listen=f"127.0.0.2:{port}")
        self.addCleanup(good.kill)

        def names(count, stream):
            self.addCleanup(stream.close)
            return [next(stream)["sample_ids"] for _ in range(count)]

        expected = names(14, BatchStream(good.address, **SPEC))
        with mock.patch("socket.getaddrinfo", answers("127.0.0.1", "127.0.0.2")):
            self.assertEqual(names(14, BatchStream(f"replicas.test:{port}", **SPEC)), expected)
        good.kill()
        also_bad = Loader(str(damaged), listen=f"127.0.0.2:{port}")
        self.addCleanup(also_bad.kill)
        with mock.patch("socket.getaddrinfo", answers("127.0.0.1", "127.0.0.2")):
            with self.assertRaisesRegex(LoaderRefused, "DATA_LOSS"):
                names(14, BatchStream(f"replicas.test:{port}", **SPEC))


class Streams(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.loader = Loader()

    @classmethod
    def tearDownClass(cls):
        cls.loader.kill()

    def open(self, **options):
        stream = BatchStream(self.loader.address, **{**SPEC, **options})
        self.addCleanup(stream.close)
        return stream

    def epoch(self, stream):
        batches = []
        while not batches or batches[-1]["epoch"] == 0:
            batches.append(next(stream))
        return batches[:-1]

    def test_an_epoch_holds_every_sample_once_at_any_world_size(self):
        for world in (1, 2, 4, 5):
            seen = []
            for rank in range(world):
                batches = self.epoch(self.open(rank=rank, world=world))
                for batch in batches:
                    rows, columns = batch["input_ids"].shape
                    self.assertEqual(batch["labels"].shape, (rows, columns))
                    self.assertEqual(batch["pixels"].dtype, np.uint8)
                    self.assertEqual(len(batch["image_spans"]), len(batch["pixels"]))
                    seen += batch["sample_indices"][batch["sample_valid"]].tolist()
            self.assertEqual(sorted(seen), list(range(self.open().info.num_samples)), world)

    def test_the_divisor_of_the_loss_counts_the_labels_of_the_step(self):
        batches = self.epoch(self.open())
        for step in {batch["step"] for batch in batches}:
            of_step = [batch for batch in batches if batch["step"] == step]
            counted = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in of_step)
            self.assertEqual({batch["step_label_tokens"] for batch in of_step}, {counted})

    def test_a_batch_by_position_is_the_stream_s(self):
        stream = self.open()
        batch = next(stream)
        with grpc.insecure_channel(self.loader.address) as channel:
            request = message("GetBatchRequest")(spec=stream._spec, partition=stream._partition, position={})
            assembler = Assembler()
            alone = [done for part in Calls(channel).get_batch(request) if (done := assembler.push(part))]
        self.assertTrue(equal(alone[0][0], batch))

    def test_every_state_gives_the_tail(self):
        stream = self.open(packing=(4, 8))
        num_micro, states, batches = None, [], []
        for _ in range(3 * stream.steps_per_epoch):
            states.append(json.loads(json.dumps(stream.state_dict())))
            batch = next(stream)
            num_micro = batch["num_micro"]
            batches += [batch] + [next(stream) for _ in range(num_micro - 1)]
        for step, state in enumerate(states):
            resumed = self.open(packing=(4, 8))
            resumed.load_state_dict(state)
            self.assertEqual(resumed.state_dict(), state)
            tail = batches[step * num_micro : step * num_micro + 4]
            self.assertTrue(all(equal(next(resumed), batch) for batch in tail), f"from step {step}")

    def test_a_state_of_elsewhere_is_refused_by_its_field(self):
        state = self.open().state_dict()
        for field, value in [("version", 2), ("fingerprint", "00"), ("spec", "00")]:
            with self.assertRaisesRegex(WrongCursor, field):
                self.open().load_state_dict({**state, field: value})
        with self.assertRaisesRegex(WrongCursor, "spec"):
            self.open(seed=12).load_state_dict(state)

    def test_what_cannot_be_had_is_told_at_once(self):
        with self.assertRaisesRegex(LoaderRefused, "raise `max_length`"):
            self.open(max_length=1)
        with self.assertRaisesRegex(LoaderRefused, "NOT_FOUND.*expected one of `default`"):
            self.open(dataset="absent")
        with self.assertRaises(GaveUp):
            BatchStream("127.0.0.1:1", **SPEC)

    def test_a_sample_is_found_in_its_shard(self):
        stream = self.open()
        batch = next(stream)
        found = stream.lookup(int(batch["sample_indices"][0]))
        self.assertEqual(found["id"], batch["sample_ids"][0])
        self.assertTrue(found["file"].endswith(".parquet"))

    def test_a_little_room_is_enough_and_never_exceeded(self):
        whole = self.epoch(self.open())
        small = self.open(prefetch_bytes=1)
        for batch in whole:
            self.assertTrue(equal(next(small), batch))
            ledger = small._receiving[0]._ledger
            self.assertLessEqual(ledger.held + ledger.open, ledger.budget)

    def test_a_batch_beyond_what_the_consumer_takes_is_an_error(self):
        with self.assertRaisesRegex(ValueError, "1 to 100 bytes"):
            next(self.open(max_batch_bytes=100))

    def test_a_killed_loader_is_followed_by_the_next_and_nothing_is_lost(self):
        expected = self.epoch(self.open())
        mortal = Loader()
        stream = BatchStream([mortal.address, self.loader.address], **SPEC, prefetch_bytes=1, give_up_after=20.0)
        self.addCleanup(stream.close)
        for number, batch in enumerate(expected):
            if number == 3:
                mortal.kill()
            self.assertTrue(equal(next(stream), batch), number)

    def test_a_loader_that_is_stuck_is_left_for_the_next(self):
        expected = self.epoch(self.open())
        stuck = Loader()
        stream = BatchStream([stuck.address, self.loader.address], **SPEC, prefetch_bytes=1, stall_after=0.5)
        self.addCleanup(stuck.kill)
        self.addCleanup(stream.close)
        for number, batch in enumerate(expected):
            if number == 2:
                stuck.process.send_signal(signal.SIGSTOP)
            self.assertTrue(equal(next(stream), batch), number)

    def test_a_stream_that_nobody_holds_is_ended(self):
        before = threading.active_count()
        stream = BatchStream(self.loader.address, **SPEC)
        next(stream)
        receiver = stream._receiving[0]._thread
        self.assertTrue(receiver.is_alive())
        del stream
        gc.collect()
        receiver.join(10)
        self.assertFalse(receiver.is_alive())
        self.assertLessEqual(threading.active_count(), before + 1)
        with BatchStream(self.loader.address, **SPEC) as stream:
            next(stream)
            receiver = stream._receiving[0]._thread
        self.assertFalse(receiver.is_alive())

    def test_a_pickled_stream_goes_on_where_it_stood(self):
        stream = self.open(packing=(4, 8))
        first = stream.state_dict()
        # To the next step, which is that of another epoch where one is all that there is.
        while stream.state_dict() == first:
            next(stream)
        other = pickle.loads(pickle.dumps(stream))
        self.addCleanup(other.close)
        self.assertEqual(other.state_dict(), stream.state_dict())
        self.assertTrue(equal(next(other), next(stream)))

    def test_a_record_is_looked_up_at_whichever_replica_answers(self):
        mortal = Loader()
        stream = BatchStream([mortal.address, self.loader.address], **SPEC)
        self.addCleanup(stream.close)
        mortal.kill()
        self.assertEqual(stream.lookup(3)["row"], self.open().lookup(3)["row"])

    def test_a_pytorch_data_loader_reads_it(self):
        try:
            import torch
            from vela_client.torch import TorchStream
        except ImportError:
            self.skipTest("torch is not installed")
        data = TorchStream(self.open())
        loader = torch.utils.data.DataLoader(data, batch_size=None)
        batch, expected = next(iter(loader)), next(self.open())
        self.assertIsInstance(batch["pixels"], torch.Tensor)
        self.assertTrue(np.array_equal(batch["input_ids"].numpy(), expected["input_ids"]))
        self.assertEqual(data.state_dict(), data.stream.state_dict())


if __name__ == "__main__":
    unittest.main()
