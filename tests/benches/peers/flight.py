"""Arrow Flight (C++ server and client): a server process sends record batches of 32 samples over loopback, the client makes arrays of them."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
from shared import BATCH, SIDE, TOKENS, PIXEL_BYTES, TOKEN_BYTES, arguments, measure, sample, served

SCHEMA = pa.schema([("pixels", pa.binary(PIXEL_BYTES)), ("input_ids", pa.binary(TOKEN_BYTES)), ("labels", pa.binary(TOKEN_BYTES))])


class Server(flight.FlightServerBase):
    """Gathers batches of shuffled rows of a memory-mapped table, for ever."""

    def __init__(self, folder):
        super().__init__("grpc://127.0.0.1:0")
        with pa.memory_map(str(folder / "flight.arrow")) as source:
            self.table = pa.ipc.open_file(source).read_all().combine_chunks()

    def do_get(self, context, ticket):
        return flight.GeneratorStream(SCHEMA, self.batches())

    def batches(self):
        random = np.random.default_rng(1)
        while True:
            order = random.permutation(len(self.table))
            for first in range(0, len(order) - BATCH + 1, BATCH):
                yield self.table.take(order[first : first + BATCH]).combine_chunks().to_batches()[0]


def arrays(batch):
    def view(name, kind, shape):
        column = batch.column(name)
        values = np.frombuffer(column.buffers()[1], kind, len(column) * int(np.prod(shape)), 0)
        return values.reshape(len(column), *shape)

    return view("pixels", np.uint8, (3, SIDE, SIDE)), view("input_ids", "<i4", (TOKENS,)), view("labels", "<i4", (TOKENS,))


def main():
    if sys.argv[1:2] == ["serve"]:
        del sys.argv[1]
        server = Server(arguments().folder)
        print(server.port, flush=True)
        return server.serve()
    options = arguments()
    if options.write:
        rows = [sample(index) for index in range(options.samples)]
        table = pa.table({name: pa.array([row[name] for row in rows], SCHEMA.field(name).type) for name in SCHEMA.names})
        with pa.OSFile(str(options.folder / "flight.arrow"), "wb") as out, pa.ipc.new_file(out, SCHEMA) as writer:
            writer.write_table(table, max_chunksize=BATCH)
        return None
    with served(__file__, "--folder", str(options.folder)) as port:
        client = flight.connect(f"grpc://127.0.0.1:{int(port)}")
        reader = client.do_get(flight.Ticket(b"all"))
        measure((arrays(chunk.data) for chunk in reader), options.seconds)
    return None


if __name__ == "__main__":
    main()
