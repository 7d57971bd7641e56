"""Random choices that depend on a purpose, a seed and one name alone, so never on order or workers."""

from __future__ import annotations

import hashlib


def drawn_number(purpose: str, seed: int, name: str) -> int:
    """A number from 0 to 2⁶⁴ - 1, for instance to seed a generator with."""
    return int.from_bytes(
        hashlib.sha256(f"{purpose} {seed} {name}".encode(errors="surrogateescape")).digest()[:8], "big"
    )


def drawn_share(purpose: str, seed: int, name: str) -> float:
    """A share from 0 to 1, evenly spread."""
    return drawn_number(purpose, seed, name) / 2**64
