"""tf.data service: a dispatcher and a worker in a process of their own gather shuffled batches of a TFRecord file; the client takes them over
loopback, uncompressed."""

import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
from shared import BATCH, PIXEL_BYTES, TOKENS, arguments, measure, sample, served


def serve():
    import tensorflow as tf

    dispatcher = tf.data.experimental.service.DispatchServer()
    address = dispatcher.target.split("://")[1]
    worker = tf.data.experimental.service.WorkerServer(tf.data.experimental.service.WorkerConfig(dispatcher_address=address))
    print(address, flush=True)
    dispatcher.join()
    worker.join()


def main():
    if sys.argv[1:] == ["serve"]:
        return serve()
    options = arguments()
    record = str(options.folder / "rows.tfrecord")
    import tensorflow as tf

    if options.write:
        with tf.io.TFRecordWriter(record) as writer:
            for row in map(sample, range(options.samples)):
                writer.write(row["pixels"] + row["input_ids"] + row["labels"])
        return None

    def decode(row):
        pixels = tf.io.decode_raw(tf.strings.substr(row, 0, PIXEL_BYTES), tf.uint8)
        ids = tf.io.decode_raw(tf.strings.substr(row, PIXEL_BYTES, 8 * TOKENS), tf.int32)
        return pixels, ids[:TOKENS], ids[TOKENS:]

    with served(__file__) as address:
        dataset = tf.data.TFRecordDataset(record).shuffle(256).repeat().map(decode).batch(BATCH, drop_remainder=True)
        dataset = dataset.apply(
            tf.data.experimental.service.distribute(
                processing_mode="parallel_epochs", service=f"grpc://{address}", compression=None
            )
        )
        measure(iter(dataset.as_numpy_iterator()), options.seconds)
    return None


if __name__ == "__main__":
    main()
