"""Writes an event file with TensorBoard's own messages and record writer, and what TensorBoard reads of it.

    pip install tensorboard
    python events.py

Beside this script it writes events.out.tfevents.1790000000.1.vela, whose bytes Vela's writer must make of the same numbers,
and events.json: step and value of every scalar, by tag, as TensorBoard's event accumulator gives them.
    python events.py FOLDER prints that of another folder.
"""

import json
import pathlib
import sys

import tensorboard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto import event_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

HERE = pathlib.Path(__file__).resolve().parent
FILE = HERE / "events.out.tfevents.1790000000.1.vela"


def scalars(step):
    """The numbers of the test in trainer/train/src/tensorboard.rs."""
    found = [("loss/train", 5.0 / step), ("gradient/norm", 0.75), ("speed/samples_per_second", 12.5),
             ("speed/tokens_per_second", 1e4), ("speed/label_tokens_per_second", 3e3), ("speed/data_wait", 0.01),
             ("progress/epoch", step / 400)]
    found += [("loss/validation", 0.5)] if step == 300 else []
    found += [("speed/mfu", 0.375), ("memory/gib", 1.5), ("lr/language_model", 2e-5), ("lr/projector", 1e-3)]
    return found


def write():
    events = [event_pb2.Event(wall_time=1790000000.25, file_version="brain.Event:2")]
    start = event_pb2.Event(wall_time=1790000000.5, step=1)
    start.session_log.status = event_pb2.SessionLog.START
    events.append(start)
    for time, step in [(1790000001.0, 1), (1790000002.0, 300)]:
        event = event_pb2.Event(wall_time=time, step=step)
        for tag, value in scalars(step):
            event.summary.value.add(tag=tag, simple_value=value)
        events.append(event)
    with open(FILE, "wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString(deterministic=True))


def read(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [[event.step, event.value] for event in accumulator.Scalars(tag)] for tag in tags}


def main():
    if len(sys.argv) > 1:
        print(json.dumps(read(sys.argv[1])))
        return
    write()
    found = {"tensorboard": tensorboard.__version__, "scalars": read(FILE)}
    (HERE / "events.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
