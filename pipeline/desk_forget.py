"""The command that removes people."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import UTC, datetime

from rich.console import Console

from evaluation.measures import counted
from manifests.text import clean
from pipeline.errors import UsageError
from pipeline.forget import Forgotten
from pipeline.forget import forget as forget_


def forget(values: argparse.Namespace, _: Console) -> int:
    """Removes samples from all that lies below an output, or says what it would remove."""
    named = (values.subject, values.consent_ref, values.source_sha256, values.source_uri, values.sample_id)
    if not any(named):
        raise UsageError("say whom: --subject, --consent-ref, --source-sha256, --source-uri or --sample-id")
    done = forget_(
        values.root,
        subjects=values.subject,
        consent_refs=values.consent_ref,
        source_sha256s=values.source_sha256,
        source_uris=values.source_uri,
        sample_ids=values.sample_id,
        reason=values.reason,
        at=datetime.now(UTC).replace(microsecond=0),
        dry_run=values.dry_run,
        elsewhere=values.search,
    )
    _show(done)
    return 0


def _show(done: Forgotten) -> None:
    out = Console(soft_wrap=True)
    for line in _told(done):
        out.print(clean(line), markup=False, highlight=False)


def _told(done: Forgotten) -> Iterator[str]:
    head = "dry run, nothing was changed: would forget" if done.dry_run else f"erasure {done.id}: forgot"
    banned = f"{counted(done.sources, 'source')} and {counted(done.frames, 'frame')}"
    yield f"{head} {counted(done.count, 'sample')}; {banned} may never come back"
    yield from (f"  {item.action} {item.kind} {item.path}: {item.why}" for item in done.items)
    for gone in done.replaced:
        follows = f"{gone.successor} follows" if gone.successor else "no row of it was left"
        yield f"  release {gone.name} ({gone.fingerprint}) is gone; {follows}"
    if done.finished:
        yield f"finished first: {', '.join(done.finished)}"
    if done.same_group:
        yield f"{len(done.same_group)} samples that stay are of the same groups and look alike; decide on them:"
        yield from (f"  {one.sample_id} ({one.source_uri}, distance {one.distance})" for one in done.same_group[:20])
    if done.look_alikes:
        yield f"{done.look_alikes} samples of other groups look alike; a later run leaves them out"
    yield from (f"out of reach: {text}" for text in done.out_of_reach)
