"""WebDataset: tar shards of 64 MiB, shards and a buffer of samples shuffled, through torch's DataLoader."""

from shared import BATCH, arguments, collate, endless, measure, sample


def rows(sample):
    return {name: sample[name] for name in ("pixels", "input_ids", "labels")}


def main():
    import webdataset

    options = arguments()
    pattern = str(options.folder / "wds-%05d.tar")
    if options.write:
        with webdataset.ShardWriter(pattern, maxsize=64 << 20, verbose=0) as writer:
            for index in range(options.samples):
                writer.write({"__key__": f"{index:08}", **sample(index)})
        return
    from torch.utils.data import DataLoader

    shards = sorted(str(path) for path in options.folder.glob("wds-*.tar"))
    split = webdataset.split_by_worker
    dataset = webdataset.WebDataset(shards, shardshuffle=100, workersplitter=split, empty_check=False).shuffle(256).map(rows)
    loader = DataLoader(dataset, batch_size=BATCH, num_workers=options.workers, collate_fn=collate, persistent_workers=options.workers > 0)
    measure(endless(loader), options.seconds)


if __name__ == "__main__":
    main()
