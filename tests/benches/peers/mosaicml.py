"""MosaicML streaming: MDS shards of 64 MiB, shuffled, through torch's DataLoader."""

from shared import BATCH, arguments, collate, endless, measure, sample


def main():
    options = arguments()
    folder = str(options.folder / "mds")
    if options.write:
        from streaming import MDSWriter

        columns = {"pixels": "bytes", "input_ids": "bytes", "labels": "bytes"}
        with MDSWriter(out=folder, columns=columns, size_limit="64mb") as writer:
            for index in range(options.samples):
                writer.write(sample(index))
        return
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    dataset = StreamingDataset(local=folder, shuffle=True, batch_size=BATCH)
    loader = DataLoader(dataset, batch_size=BATCH, num_workers=options.workers, collate_fn=collate, persistent_workers=options.workers > 0)
    measure(endless(loader), options.seconds)


if __name__ == "__main__":
    main()
