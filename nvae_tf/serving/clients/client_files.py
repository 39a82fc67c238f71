"""The files of the client command: pictures and latents in, pictures, latents and scores out, never half-written."""

import contextlib
import json
import os
import pathlib
import runpy
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from nvae_tf.files import beside_package
from nvae_tf.serving.clients.served_model import Scores
from nvae_tf.serving.clients.served_pictures import pil_images

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
FOLDER = "/"
_LATENT = "latent"


def check_output(output: str, endings: Sequence[str]) -> None:
    """Checks, before any work, that an output can be written: a file with one of the endings, or a `FOLDER`.

    Raises:
      ValueError: another ending, or a folder that holds something already.
    """
    if not output.endswith(tuple(endings)):
        wanted = " or ".join("DIR/" if ending == FOLDER else f"a name in {ending}" for ending in endings)
        raise ValueError(f"--output={output}: give {wanted}")
    path = pathlib.Path(output)
    if output.endswith(FOLDER):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(f"--output={output}: exists and is not empty; name a new folder")
    elif path.is_dir():
        raise ValueError(f"--output={output}: is a folder; name a file")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise ValueError(f"--output={output}: {parent} is a file, not a folder")


def picture_files(places: Sequence[str]) -> list[pathlib.Path]:
    """All pictures of the files and folders given, those of a folder in the order of their names.

    Raises:
      ValueError, FileNotFoundError: there are none, or a place is missing.
    """
    files = []
    for place in map(pathlib.Path, places):
        if not place.exists():
            raise FileNotFoundError(f"--images={place}: no such file or folder")
        found = [place]
        if place.is_dir():
            found = sorted(file for file in place.iterdir() if file.suffix.lower() in PICTURE_ENDINGS)
        if not found:
            raise ValueError(f"--images={place}: no pictures in it ({', '.join(PICTURE_ENDINGS)})")
        files += found
    return files


def read_pictures(files: Sequence[pathlib.Path]) -> list[Image.Image]:
    """The pictures of files.

    Raises:
      ValueError: a file is no picture.
    """
    pictures = []
    for file in files:
        try:
            with Image.open(file) as picture:
                picture.load()
                pictures.append(picture)
        # Of damaged files Pillow raises errors of many kinds.
        except Exception as error:
            raise ValueError(f"--images={file}: no picture ({error})") from None
    return pictures


def write_pictures(output: str, images: np.ndarray, names: Sequence[str]) -> None:
    """Writes images `[count, height, width, channels]` as one grid, or into a folder, each by its name."""
    if not output.endswith(FOLDER):
        with written_whole(pathlib.Path(output)) as partial:
            floats = images if images.dtype != np.uint8 else images.astype(np.float32) / np.float32(255.0)
            picture_grid = runpy.run_path(str(beside_package("export") / "run_saved_model.py"))["picture_grid"]
            picture_grid(floats).save(partial, format="PNG")
        return
    with written_whole(pathlib.Path(output)) as partial:
        partial.mkdir()
        for name, picture in zip(names, pil_images(images), strict=True):
            picture.save(partial / f"{name}.png")


def numbered_names(files: Sequence[pathlib.Path]) -> list[str]:
    """A name for what is made of each file: its own, with its number where two are called the same."""
    stems = [file.stem for file in files]
    if len(set(stems)) == len(stems):
        return stems
    return [f"{number:05d}_{stem}" for number, stem in enumerate(stems)]


def write_latents(output: str, latents: np.ndarray) -> None:
    """Writes latents `[count, total]` as the array `latent` of an .npz file."""
    with written_whole(pathlib.Path(output)) as partial, partial.open("wb") as file:
        np.savez(file, **{_LATENT: latents})


def read_latents(path: str) -> np.ndarray:
    """The latents of a file that `write_latents` or `train.generate encode` wrote.

    Raises:
      FileNotFoundError, ValueError: there is none, or it is something else.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"--latents={path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            if _LATENT in file:
                return file[_LATENT]
            # A file of `train.generate encode` has the groups each by itself, the top group first.
            groups = [file[name] for name in sorted(file.files) if name.startswith("group_")]
            return np.concatenate([group.reshape(len(group), -1) for group in groups], axis=1)
    # Of damaged files zipfile, zlib and NumPy raise errors of many kinds.
    except Exception as error:
        raise ValueError(f"--latents={path}: no file of latents as `encode` writes it ({error})") from None


def write_scores(output: str, scores: Scores, files: Sequence[pathlib.Path]) -> None:
    """Writes the score of each file as JSON."""
    rows = [
        {"file": str(file), "nats": float(nats), "bits_per_dim": float(bits), "kl_per_group": kl.tolist()}
        for file, nats, bits, kl in zip(files, *scores, strict=True)
    ]
    with written_whole(pathlib.Path(output)) as partial:
        partial.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def scores_table(scores: Scores, files: Sequence[pathlib.Path]) -> str:
    """The scores for people, a line each, and their mean."""
    rows = [(str(file), *pair) for file, *pair in zip(files, scores.nats, scores.bits_per_dim, strict=True)]
    rows.append(("mean", scores.nats.mean(), scores.bits_per_dim.mean()))
    width = max(len(row[0]) for row in rows)
    lines = [f"{'':{width}}  {'nats':>12}  {'bits per dim':>12}"]
    return "\n".join(lines + [f"{name:{width}}  {nats:12.3f}  {bits:12.4f}" for name, nats, bits in rows])


@contextlib.contextmanager
def written_whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a place beside `path` to write a file or a folder; it comes into its place after a block without error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        if partial.is_dir():
            for file in partial.iterdir():
                file.unlink()
            partial.rmdir()
        partial.unlink(missing_ok=True)
