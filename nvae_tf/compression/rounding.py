"""Whole numbers out of a network's outputs that every machine gets alike, and tables of frequencies for them.

Machines compute the same network with other last digits. Each output that decides a code is therefore rounded, and the
encoder lists the values so near a tie that another machine might round them to the other side (Tian et al. 2023, arXiv
2309.11276). What follows from the whole numbers is computed by operations that IEEE 754 defines to the last bit.
"""

import math

import numpy as np

from nvae_tf.errors import require

_FARTHEST = 0.25  # in steps, from the tie beside which the encoder saw a value


class Rounder:
    """Rounds the outputs of a chunk's passes: the encoder's lists values near a tie, the decoder's is given the list.

    Each value has a place: its number among all values of the chunk.
    """

    def __init__(self, sides: bytes | None = None):
        self._places, self._odd = (None, None) if sides is None else _unpacked(sides)
        self._listed: list[tuple[np.ndarray, np.ndarray]] = []

    def rounded(self, first: int, position: np.ndarray, lowest: np.ndarray, highest: np.ndarray) -> np.ndarray:
        """The whole number, int32, nearest to each `position`; the place of the first is `first`.

        On other machines it may be between `lowest` and `highest`. ValueError where this machine's is farther off.
        """
        if not np.isfinite(position).all():
            raise ValueError("the model computes numbers that are not finite")
        numbers = np.rint(position).astype(np.int32)
        flat = numbers.reshape(-1)  # a view
        if self._places is None:
            near = np.flatnonzero(np.rint(lowest) != np.rint(highest))
            self._listed.append((first + near, flat[near] & 1))
            return numbers
        part = slice(*np.searchsorted(self._places, (first, first + flat.size)))
        places, odd = self._places[part] - first, self._odd[part]
        other = places[flat[places] & 1 != odd]
        offset = position.reshape(-1)[other] - flat[other]
        if (np.abs(offset) < 0.5 - _FARTHEST).any():
            raise ValueError("this machine's numbers differ from those of the encoder by more than the tolerance")
        flat[other] += np.where(offset > 0, 1, -1)
        return numbers

    def sides(self) -> bytes:
        """The list, for a decoder: gaps between the places in a Rice code, each with a bit for the side."""
        places, odd = (np.concatenate(arrays) for arrays in zip(*self._listed, strict=True))
        order = np.argsort(places)
        gaps = np.diff(places[order], prepend=-1) - 1
        # The number of low bits that is best for random places.
        low = max(0, round(math.log2(0.69 * (gaps.mean() + 1.0)))) if len(gaps) else 0
        pairs = zip(gaps.tolist(), odd[order].tolist(), strict=True)
        # Low bits and side are one number, after a 1 that fixes their length and is cut off.
        words = (f"{'1' * (gap >> low)}0{bin(1 << low | gap % (1 << low))[3:]}{side}" for gap, side in pairs)
        bits = np.frombuffer("".join(words).encode(), np.uint8) & 1
        return bytes([low]) + np.packbits(np.pad(bits, (0, -len(bits) % 8), constant_values=1)).tobytes()


def _unpacked(sides: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The places and the sides of `Rounder.sides`."""
    low, bits = sides[0], "".join(f"{byte:08b}" for byte in sides[1:])
    places, odd, place, at = [], [], -1, 0
    while (end := bits.find("0", at)) >= 0:
        place += 1 + (end - at << low) + int("0" + bits[end + 1 : end + 1 + low], 2)
        at = end + 2 + low
        places.append(place)
        odd.append(int(bits[at - 1]))
    return np.array(places, np.int64), np.array(odd, np.int32)


def categorical(frequencies: np.ndarray | None = None):
    """The coder's model of a symbol with these frequencies; without, the family that takes a row for each symbol."""
    family = require("constriction", "compress").stream.model.Categorical
    return family(perfect=False) if frequencies is None else family(frequencies, perfect=False)


def frequencies(log_masses: np.ndarray, scale: float) -> np.ndarray:
    """Masses relative to the likeliest symbol's, from their logs, as whole numbers, with sums that are exact.

    The coder makes them probabilities of at least 2^-24: a larger least one would draw latents far from all posteriors.
    Libraries' exp differ in the last bit between processors; here only `+`, `*` and `/` of float64 are used.
    """
    small = np.maximum(log_masses, -45.0) / 1024.0
    masses = np.ones_like(small)
    for order in range(9, 0, -1):
        masses = 1.0 + masses * small / order
    for _ in range(10):
        masses = masses * masses
    return np.rint(masses * scale)
