"""Writes the pictures of an LSUN database as files: python examples/unpack_lmdb.py DATABASE FOLDER."""

import pathlib
import sys

import lmdb

if __name__ == "__main__":
    database, folder = sys.argv[1:]
    with lmdb.open(database, readonly=True, lock=False) as environment, environment.begin() as transaction:
        for key, picture in transaction.cursor():
            name = key.decode()
            place = pathlib.Path(folder, name[:3])
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{name}.webp").write_bytes(picture)
