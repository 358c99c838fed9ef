"""LitData: chunks of 64 MiB, shuffled, through its own StreamingDataLoader."""

from shared import BATCH, arguments, collate, endless, measure, sample


def main():
    options = arguments()
    folder = str(options.folder / "litdata")
    import litdata

    if options.write:
        litdata.optimize(fn=sample, inputs=list(range(options.samples)), output_dir=folder, chunk_bytes="64MB", num_workers=1)
        return
    dataset = litdata.StreamingDataset(folder, shuffle=True)
    loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=options.workers, collate_fn=collate)
    measure(endless(loader), options.seconds)


if __name__ == "__main__":
    main()
