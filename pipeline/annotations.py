"""Annotation files of people: what belongs to samples that go is taken out, and the work on all others stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from manifests.release import canonical_json
from manifests.traces import Traces


def edited(path: Path, traces: Traces) -> bytes | None:
    """A COCO file, or a list of tasks as Label Studio has it, without the images that name what goes.

    Args:
        path: of a JSON file.
        traces: what it may not name.

    Returns:
        The bytes of the rest; None where it is no such file, or names something besides its images, or has no other.
    """
    try:
        value: Any = json.loads(path.read_bytes())
        left = _coco(value, traces) if isinstance(value, dict) else _tasks(value, traces)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return None if left is None or _names(left, traces) else canonical_json(left)


def _coco(value: dict[str, Any], traces: Traces) -> dict[str, Any] | None:
    gone = {image["id"] for image in value["images"] if _names(image, traces)}
    images = [image for image in value["images"] if image["id"] not in gone]
    annotations = [one for one in value["annotations"] if one["image_id"] not in gone and not _names(one, traces)]
    return {**value, "images": images, "annotations": annotations} if images else None


def _tasks(value: list[dict[str, Any]], traces: Traces) -> list[dict[str, Any]] | None:
    if not all(isinstance(task.get("data"), dict) for task in value):
        return None
    return [task for task in value if not _names(task, traces)] or None


def _names(value: Any, traces: Traces) -> bool:
    """Whether a text in a JSON value, as deep as it may lie, names something."""
    if isinstance(value, dict):
        return any(traces.named_by(key) or _names(item, traces) for key, item in value.items())
    if isinstance(value, list):
        return any(_names(item, traces) for item in value)
    return isinstance(value, str) and traces.named_by(value)
