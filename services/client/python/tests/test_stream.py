"""The Python client against real loaders: VELA_LOADER is the binary, VELA_SHARDS a shard set with at least 20 samples."""

import gc
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import unittest
from pathlib import Path

import grpc
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))
from vela_client import BatchStream, GaveUp, LoaderRefused, WrongCursor  # noqa: E402
from vela_client.wire import Assembler, Calls, message  # noqa: E402

SPEC = {"global_batch": 6, "micro_batch": 2, "image_tokens": 4, "max_length": 4096, "seed": 11}


class Loader:
    """A loader process on a free port."""

    def __init__(self, *arguments):
        command = [os.environ["VELA_LOADER"], "serve", "--shards", os.environ["VELA_SHARDS"], "--listen", "127.0.0.1:0"]
        self.process = subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True)
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
            self.assertLessEqual(small._receiving[0]._held, small._receiving[0]._budget)

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
        while next(stream)["step"] == 0:
            pass
        stream.load_state_dict({**stream.state_dict(), "step": 1})
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
