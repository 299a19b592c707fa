"""In which split a sample is: a function of its group, so that no source leaks from training into testing."""

import hashlib


def split_of(group: str, seed: int, *, val: float, test: float) -> str:
    """The split, train, val or test, of all samples of a group.

    Args:
        group: what must stay in one split: a source, or sources that share a near-duplicate frame.
        seed: of the run.
        val: share of the groups in the validation split.
        test: share of the groups in the test split.
    """
    draw = int.from_bytes(hashlib.blake2b(f"split|{seed}|{group}".encode(), digest_size=8).digest(), "big") / (1 << 64)
    return "test" if draw < test else "val" if draw < test + val else "train"
