"""Commands about the log of a review: sign it, check it."""

from __future__ import annotations

import argparse

from rich.console import Console

from pipeline.released import one_release
from review.verify import sign_signoff, told, verify_review


def sign(values: argparse.Namespace, _: Console) -> int:
    """Signs the sign-off that holds."""
    folder = one_release(values.release)
    event = sign_signoff(folder, values.key)
    print(f"{folder}: sign-off of {event.reviewer.name} (event {event.seq}) signed")  # noqa: T201
    return 0


def verify_log(values: argparse.Namespace, _: Console) -> int:
    """Checks the review log of a release."""
    found = verify_review(one_release(values.release), allowed_signers=values.allowed_signers, head=values.head)
    for line in told(found):
        print(line)  # noqa: T201
    return 0 if found.good else 1
