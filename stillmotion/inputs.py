"""What a person may ask to have predicted: files, folders, tables; cameras and streams."""

from collections.abc import Sequence
from pathlib import Path

from stillmotion.data.rows import IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_image_folder, media_files
from stillmotion.data.table import Sample, read_table

TABLE_SUFFIXES = (".csv", ".parquet", ".pq")


def is_live(source: str) -> bool:
    """Whether an input is a camera (a number) or a stream (a URL)."""
    return "://" in source or (source.isdigit() and not Path(source).exists())


def find_samples(inputs: Sequence[str], *, root: str | None = None) -> list[Sample]:
    """Samples of files, folders (searched to the bottom) and tables, in their order.

    A path that does not exist is kept: it gives an error of its own, as an unreadable file does.

    Args:
        inputs: Paths.
        root: Folder that a table's relative paths start from.

    Raises:
        ValueError: A table is wrong, or a folder holds no video and no image.
    """
    samples: list[Sample] = []
    for name in inputs:
        path = Path(name)
        if path.suffix.lower() in TABLE_SUFFIXES:
            samples += read_table(path, root=root, check_files=False)
        elif path.is_dir() and not is_image_folder(path):
            found = list(media_files(path))
            if not found:
                kinds = ", ".join(sorted(VIDEO_SUFFIXES | IMAGE_SUFFIXES)[:6])
                raise ValueError(f"{path}: no video and no image in this folder (looked for {kinds}, ...)")
            samples += [Sample(p, str(p)) for p in found]
        else:
            samples.append(Sample(path, name))
    return samples
