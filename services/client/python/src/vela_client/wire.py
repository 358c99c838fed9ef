"""The messages of `proto/vela/loader/v1`, made from their descriptors, and batches put together from their parts."""

import importlib.resources
import math
import zlib

import grpc
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "vela.loader.v1.Loader"
PACKAGE = "vela.loader.v1."

_files = descriptor_pb2.FileDescriptorSet.FromString(
    importlib.resources.files(__package__).joinpath("descriptors.bin").read_bytes()
)
_pool = descriptor_pool.DescriptorPool()
for _file in _files.file:
    _pool.Add(_file)


def message(name):
    """The class of the message `name` of the package."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(PACKAGE + name))


def enum_names(name):
    """Number to name of the enum `name`."""
    return {value.number: value.name for value in _pool.FindEnumTypeByName(PACKAGE + name).values}


DTYPES = {"DTYPE_U8": np.dtype("u1"), "DTYPE_I32": np.dtype("<i4"), "DTYPE_F32": np.dtype("<f4")}
ROLE_PREFIX = "TENSOR_ROLE_"
_dtype_names, _role_names = enum_names("DType"), enum_names("TensorRole")

# What is accepted of a loader unless told otherwise: bytes of a batch, of a message, entries of a list.
MAX_BATCH_BYTES, MAX_MESSAGE_BYTES, MAX_SAMPLES = 4 << 30, 16 << 20, 1 << 20
# A part of a batch has no more.
PART_BYTES = 1 << 20
# What an entry of a header takes beside its bytes: a message, numbers, a string.
ENTRY_BYTES = 192
# And a batch without any.
BATCH_BYTES = 4 << 10


def channel_options(max_batch_bytes):
    """A header of very many samples outgrows grpcio's 4 MiB; where batches are limited to less, so are messages, down to a part."""
    return [
        ("grpc.max_receive_message_length", min(MAX_MESSAGE_BYTES, max(PART_BYTES, max_batch_bytes))),
        ("grpc.http2.max_frame_size", 1 << 20),
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]


class Calls:
    """The calls of a loader over one channel."""

    def __init__(self, channel):
        def name(call):
            return f"/{SERVICE}/{call}"

        def serialize(request):
            inner = request.open if request.DESCRIPTOR.name == "StreamBatchesRequest" and request.HasField("open") else request
            if "checksum" in inner.DESCRIPTOR.fields_by_name:
                inner.checksum = checksum(inner, "checksum")
            return request.SerializeToString()

        self.describe = channel.unary_unary(
            name("DescribeDataset"), serialize, message("DescribeDatasetResponse").FromString
        )
        self.lookup = channel.unary_unary(name("Lookup"), serialize, message("LookupResponse").FromString)
        self.get_batch = channel.unary_stream(name("GetBatch"), serialize, message("BatchPart").FromString)
        self.stream = channel.stream_stream(name("StreamBatches"), serialize, message("BatchPart").FromString)


class CameDamaged(Exception):
    """Bytes that are not those that were sent: they may be had another time."""


class Assembler:
    """Puts a batch together from its header and chunks, in one buffer that the arrays are views of. A batch of more than `max_batch_bytes`, or of
    none, is refused; so is one whose header or tokens, and if it `verifies_images` whose images, have other checksums than they should."""

    def __init__(self, max_batch_bytes=MAX_BATCH_BYTES, verifies_images=True):
        self._max_batch_bytes, self._verifies_images = max_batch_bytes, verifies_images
        self._header, self._buffer, self._filled = None, None, 0
        # Payload of the last part, and what the batch under way, or the one before, takes beside its payload.
        self.received, self.header_bytes = 0, 0

    def push(self, part):
        """Takes the next part; gives `(batch, payload bytes)` when it was a batch's last, else None."""
        if part.HasField("header"):
            if self._header is not None:
                raise ValueError("a header came inside a batch")
            self._check(part.header)
            num_entries = len(part.header.samples) + len(part.header.image_spans)
            self.header_bytes = BATCH_BYTES + part.ByteSize() + ENTRY_BYTES * num_entries
            self._header, self._filled, self.received = part.header, 0, 0
            self._buffer = np.empty(self.announced(), np.uint8)
        else:
            # Each reading of the field makes new bytes of it.
            offset, data = part.chunk.offset, part.chunk.data
            end = self._filled + len(data)
            if self._header is None or offset != self._filled or not self._filled < end <= len(self._buffer):
                raise ValueError("a chunk came out of order")
            self._buffer[self._filled : end] = np.frombuffer(data, np.uint8)
            self._filled, self.received = end, len(data)
        if self._filled < len(self._buffer):
            return None
        self._check_payload()
        batch, size = as_dict(self._header, self._buffer), len(self._buffer)
        self._header = None
        return batch, size

    def _check(self, header):
        check_header(header)
        num_entries = max(len(header.samples), len(header.image_spans))
        if num_entries > MAX_SAMPLES:
            raise ValueError(f"header: expected at most {MAX_SAMPLES} samples and images, found {num_entries}")
        announced = sum(num_bytes(tensor) for tensor in header.tensors)
        if not 0 < announced <= self._max_batch_bytes:
            raise ValueError(f"header: expected a payload of 1 to {self._max_batch_bytes} bytes, found {announced}")

    def _check_payload(self):
        header, pixels = self._header, num_bytes(self._header.tensors[-1])
        sums = [("the tokens", self._buffer[: len(self._buffer) - pixels], header.token_checksum)]
        num_images = header.tensors[-1].shape[0]
        if len(header.image_checksums) != num_images:
            raise ValueError(f"header: expected {num_images} checksums of images, found {len(header.image_checksums)}")
        if self._verifies_images and num_images:
            images = self._buffer[len(self._buffer) - pixels :].reshape(num_images, -1)
            sums += [(f"image {at}", image, header.image_checksums[at]) for at, image in enumerate(images)]
        for what, data, expected in sums:
            check_sum(f"{what} of a batch", expected, zlib.crc32(data))

    def announced(self):
        """Payload bytes of the batch under way."""
        return 0 if self._header is None else sum(num_bytes(tensor) for tensor in self._header.tensors)


def check_header(header):
    """The last field is the checksum of what stands before it."""
    if not header.HasField("header_checksum"):
        raise ValueError("header: expected a checksum, found none")
    expected = header.header_checksum
    check_sum("the header", expected, checksum(header, "header_checksum"))


def checksum(message, field):
    """Of the bytes before `field`, the last, which is cleared."""
    message.ClearField(field)
    return zlib.crc32(message.SerializeToString(deterministic=True))


def check_answer(answer):
    """A description, if it came as it was sent."""
    check_sum("the description", answer.checksum, checksum(answer, "checksum"))
    return answer


def check_sum(what, expected, found):
    if expected != found:
        raise CameDamaged(f"{what} came damaged: expected checksum {expected:08x}, found {found:08x}")


def num_bytes(tensor):
    """Bytes of a tensor by its header, however large it says it is."""
    return math.prod(tensor.shape) * DTYPES[_dtype_names[tensor.dtype]].itemsize


def as_dict(header, payload):
    """A batch as a dict: the tensors under their roles in small letters, and what goes with them."""
    batch, offset = {}, 0
    for tensor in header.tensors:
        role = _role_names[tensor.role][len(ROLE_PREFIX) :].lower()
        dtype, end = DTYPES[_dtype_names[tensor.dtype]], offset + num_bytes(tensor)
        batch[role] = payload[offset:end].view(dtype).reshape(tuple(tensor.shape))
        offset = end
    spans = [(span.row, span.start) for span in header.image_spans]
    batch["image_spans"] = np.array(spans, np.int32).reshape(-1, 2)
    batch["sample_rows"] = np.array([slot.row for slot in header.samples], np.int32)
    batch["sample_indices"] = np.array([slot.index for slot in header.samples], np.int64)
    batch["sample_valid"] = np.array([slot.valid for slot in header.samples], bool)
    batch["sample_ids"] = [slot.id for slot in header.samples]
    position = header.position
    batch |= {"epoch": position.epoch, "step": position.step, "micro": position.micro}
    return batch | {"num_micro": header.num_micro, "step_label_tokens": header.step_label_tokens}


# What another try, here or at another replica, may cure.
RETRYABLE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}

# What is wrong with one server, not with its replicas: its disk, its defects.
OF_ONE_SERVER = {grpc.StatusCode.DATA_LOSS, grpc.StatusCode.INTERNAL}
