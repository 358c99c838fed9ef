"""Hugging Face datasets: an Arrow table on disk, shuffled by torch's DataLoader."""

from shared import BATCH, arguments, collate, endless, measure, sample


def main():
    import datasets

    options = arguments()
    folder = str(options.folder / "arrow")
    if options.write:
        features = datasets.Features({name: datasets.Value("binary") for name in ("pixels", "input_ids", "labels")})
        made = datasets.Dataset.from_generator(lambda: map(sample, range(options.samples)), features=features, cache_dir=folder + "-made")
        made.save_to_disk(folder)
        return
    from torch.utils.data import DataLoader

    dataset = datasets.load_from_disk(folder)
    loader = DataLoader(
        dataset, batch_size=BATCH, shuffle=True, num_workers=options.workers, collate_fn=collate, persistent_workers=options.workers > 0
    )
    measure(endless(loader), options.seconds)


if __name__ == "__main__":
    main()
