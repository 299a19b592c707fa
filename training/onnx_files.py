"""Untrusted ONNX files: read as data, with all that they hold in view, before a runtime opens them."""

from collections.abc import Iterable, Iterator

import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]


def read_onnx(data: bytes) -> tuple[onnx.ModelProto, list[Message]]:
    """The model of a file's bytes and every message inside it: graphs in graphs, tensors in attributes, and so on.

    Raises:
        ValueError: It is not a readable ONNX file, or a name in it is no text (not UTF-8).
    """
    try:
        model = onnx.load_model_from_string(data)
        return model, list(_parts(model))
    except (DecodeError, RecursionError, ValueError) as error:
        raise ValueError(f"not a readable ONNX file: {_first(error)}") from error


def elsewhere(parts: Iterable[Message]) -> str | None:
    """Names the first tensor whose values lie in another file, and that file; None if there is none."""
    for part in parts:
        if isinstance(part, onnx.TensorProto) and (part.external_data or part.data_location == part.EXTERNAL):
            places = [str(entry.value) for entry in part.external_data if entry.key == "location"]
            return f"{part.name or 'a tensor'} in another file ({', '.join(places) or 'unnamed'})"
    return None


def _parts(model: Message) -> Iterator[Message]:
    waiting = [model]
    while waiting:
        part = waiting.pop()
        yield part
        if isinstance(part, onnx.TensorProto):
            continue  # holds numbers, and would copy them
        for field, value in part.ListFields():
            values = [value] if isinstance(value, str | bytes | int | float | Message) else value
            if field.message_type is not None:
                waiting.extend(values)
            elif field.type == field.TYPE_STRING and any(isinstance(v, bytes) for v in values):
                raise ValueError(f"its {field.name} is no text")


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else repr(error)[:200]
