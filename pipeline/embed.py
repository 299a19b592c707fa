"""Embeddings of frames: a vector, and a small picture for the networks and pages that need no more.

Two embedders behind one protocol: ``descriptor`` (colour layout, colour histograms and gradient histograms; no weights,
so it works offline and everywhere) and any ``timm`` backbone from a local checkpoint.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import cv2
import numpy as np
import pyarrow as pa
import timm
import torch
from numpy.typing import NDArray
from timm.data import resolve_model_data_config  # type: ignore[attr-defined]

from pipeline.errors import InputError, StageError
from pipeline.frames import ScanConfig, content_sha256, fetch
from pipeline.probe import opener
from pipeline.stage import Output, Task, not_identity, read_span
from pipeline.thin import ThinConfig, thin
from teachers.checkpoint import CheckpointError, load_state
from training.files import sha256_file

DESCRIPTOR_DIMENSION = 336


class Embedder(Protocol):
    """Turns pictures into vectors."""

    dimension: int

    def __call__(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """(H, W, 3) uint8 RGB pictures of any sizes -> (N, dimension) float32, L2-normalised rows."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedConfig:
    """Settings of the embedding.

    Attributes:
        model: ``descriptor``, or the name of a timm backbone such as ``resnet50``.
        checkpoint: the backbone's weights (safetensors or ``.pth``); must be given for a timm backbone, since workers
            download nothing.
        side: pixels of the square a timm backbone sees.
        thumbnail_side: long side, in pixels, of the stored thumbnail.
        batch: frames per forward pass; fixed, so that bits do not depend on the bundle.
        thin: which frames of a video are left out because they show what the one before shows.
    """

    model: str = "descriptor"
    checkpoint: str | None = not_identity(default=None)
    side: int = 224
    thumbnail_side: int = 128
    batch: int = 16
    thin: ThinConfig = field(default_factory=ThinConfig)

    def __post_init__(self) -> None:
        for name, least in (("side", 32), ("thumbnail_side", 32), ("batch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"embed.{name} must be >= {least}, got {getattr(self, name)}")
        if self.model != "descriptor" and not timm.is_model(self.model):
            raise ValueError(f"embed.model must be 'descriptor' or a timm model, got '{self.model}'")
        if self.model != "descriptor" and self.checkpoint is None:
            raise ValueError(f"embed.model '{self.model}' needs embed.checkpoint: a local file with its weights")


def embedded_schema(dimension: int) -> pa.Schema:
    """The schema of an embed part: vectors as float16, thumbnails as JPEG.

    ``stands_for`` is the number of frames of its source that a row represents: itself and those thinned out after it.
    """
    vector = pa.list_(pa.field("element", pa.float16(), nullable=False), dimension)
    return pa.schema(
        [
            pa.field("sample_id", pa.string(), nullable=False),
            pa.field("source_uri", pa.string(), nullable=False),
            pa.field("vector", vector, nullable=False),
            pa.field("thumbnail", pa.binary(), nullable=False),
            pa.field("probe_row", pa.int32(), nullable=False),
            pa.field("stands_for", pa.int32(), nullable=False),
        ]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed:
    """The work of the embed stage; a task is one part of the probe."""

    name: ClassVar[str] = "embed"
    version: ClassVar[int] = 2
    libraries: ClassVar[tuple[str, ...]] = (
        "av",
        "numpy",
        "opencv-python-headless",
        "pillow",
        "pyarrow",
        "torch",
        "timm",
    )

    config: EmbedConfig
    scan: ScanConfig
    weights_sha256: str | None

    def open(self) -> Callable[[Task], Output]:
        """Loads the embedder and gives the function that embeds the frames of a task."""
        embedder = load_embedder(self.config, self.weights_sha256)
        return functools.partial(self._run, embedder)

    def _run(self, embedder: Embedder, task: Task) -> Output:
        probed = read_span(task.spans[0])
        faults: list[dict[str, Any]] = []
        rows: list[dict[str, Any]] = []
        frames = frames_of(probed, self.scan, faults, "embed")
        for batch in _batched(frames, self.config.batch):
            rows.extend(self._embed(embedder, probed, batch, faults))
        kept = _thinned(rows, probed, self.config.thin)
        return Output(
            table=_table(kept, embedder.dimension),
            counts={"undecodable": sum(f["items"] for f in faults), "thinned": len(rows) - len(kept)},
            faults=faults,
            row_group_rows=512,
            plain=["thumbnail"],
        )

    def _embed(
        self,
        embedder: Embedder,
        probed: pa.Table,
        batch: Sequence[tuple[int, NDArray[np.uint8]]],
        faults: list[dict[str, Any]],
    ) -> Iterator[dict[str, Any]]:
        vectors = embedder([pixels for _, pixels in batch]).astype(np.float16)
        for (row, pixels), vector in zip(batch, vectors, strict=True):
            uri = probed.column("source_uri")[row].as_py()
            if not np.isfinite(vector).all() or not vector.any():
                index = probed.column("frame_index")[row].as_py()
                message = f"frame {index}: the embedding is zero or not finite"
                faults.append({"source": uri, "stage": "embed", "error": "DeadVector", "message": message, "items": 1})
                continue
            yield {
                "sample_id": probed.column("sample_id")[row].as_py(),
                "source_uri": uri,
                "vector": vector,
                "thumbnail": encode_jpeg(shrink(pixels, self.config.thumbnail_side), 88),
                "probe_row": row,
            }


def load_embedder(config: EmbedConfig, weights_sha256: str | None) -> Embedder:
    """The embedder that a config names.

    Raises:
        InputError: its checkpoint is not the one whose sha256 was recorded, or does not fit the backbone.
    """
    if config.model == "descriptor":
        return Descriptor()
    return TimmEmbedder(config, weights_sha256)


def frames_of(
    rows: pa.Table, scan: ScanConfig, faults: list[dict[str, Any]], stage: str
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Decodes the frames of a table again, source by source, and checks that each is the frame that was probed.

    Args:
        rows: needs source_uri, media_kind, frame_index, content_sha256; rows of one source stand together, ascending.
        scan: the settings they were probed with.
        faults: gets a record for each frame that is gone or has changed.
        stage: named in those records.

    Yields:
        (row, pixels); frames at fault are left out.
    """
    uris = rows.column("source_uri").to_pylist()
    kinds = rows.column("media_kind").to_pylist()
    indices = rows.column("frame_index").to_pylist()
    contents = rows.column("content_sha256").to_pylist()
    for uri, group in itertools.groupby(range(len(uris)), key=uris.__getitem__):
        wanted = {indices[row]: row for row in group}
        kind = kinds[next(iter(wanted.values()))]
        try:
            for index, pixels in fetch(opener(uri), kind, sorted(wanted), scan):
                row = wanted[index]
                if content_sha256(pixels) == contents[row]:
                    del wanted[index]
                    yield row, pixels
        except Exception as error:
            message = f"decoding again failed: {type(error).__name__}: {error}"
            faults.append({"source": uri, "stage": stage, "error": "Undecodable", "message": message, "items": 0})
        for index in wanted:
            message = f"frame {index} is gone or has changed since it was probed"
            faults.append({"source": uri, "stage": stage, "error": "FrameChanged", "message": message, "items": 1})


class Descriptor:
    """Colour layout, colour histograms and gradient histograms of a 64 × 64 picture (PHOG-like), no weights."""

    dimension = DESCRIPTOR_DIMENSION

    def __call__(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """See ``Embedder``."""
        return np.stack([descriptor(picture) for picture in pictures]).astype(np.float32)


def descriptor(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A (336,) float32 L2-normalised description: 48 layout, 32 colour, 256 gradient values.

    Each block is square-rooted and normalised for itself (Hellinger kernel), so that none dominates.
    """
    small = cv2.resize(pixels, (64, 64), interpolation=cv2.INTER_AREA)
    lab = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2LAB) / 255, np.float32)
    layout = (cv2.resize(lab, (4, 4), interpolation=cv2.INTER_AREA) - 0.5).ravel()
    colour = _colour_histogram(lab)
    gradient = _gradient_histogram(lab[:, :, 0])
    blocks = [1.5 * _unit(layout), _unit(np.sqrt(colour)), _unit(np.sqrt(gradient))]
    return _unit(np.concatenate(blocks).astype(np.float32))


class TimmEmbedder:
    """A timm backbone without its classifier; ImageNet normalisation as its own config says."""

    def __init__(self, config: EmbedConfig, weights_sha256: str | None) -> None:
        self._side = config.side
        self._model = timm.create_model(config.model, pretrained=False, num_classes=0)
        _load_weights(self._model, config, weights_sha256)
        self._model.eval()
        data = resolve_model_data_config(self._model)  # type: ignore[no-untyped-call]
        self._mean = torch.tensor(data["mean"]).view(1, 3, 1, 1)
        self._std = torch.tensor(data["std"]).view(1, 3, 1, 1)
        with torch.inference_mode():  # some backbones have a layer behind their ``num_features``
            self.dimension = int(self._model(torch.zeros(1, 3, self._side, self._side)).flatten(1).shape[1])

    def __call__(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """See ``Embedder``."""
        size = (self._side, self._side)
        stack = np.stack([cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in pictures])
        with torch.inference_mode():
            x = torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255
            features = self._model((x - self._mean) / self._std)
            return np.asarray(torch.nn.functional.normalize(features.flatten(1)).numpy(), np.float32)


def weights_digest(config: EmbedConfig) -> str | None:
    """The sha256 of the embedder's checkpoint; None where it has none."""
    if config.checkpoint is None:
        return None
    if not Path(config.checkpoint).is_file():
        raise InputError(f"embed.checkpoint {config.checkpoint} does not exist")
    return sha256_file(Path(config.checkpoint))


def shrink(pixels: NDArray[np.uint8], long_side: int) -> NDArray[np.uint8]:
    """The picture with its long side at most ``long_side`` pixels; never enlarged."""
    height, width = pixels.shape[:2]
    scale = long_side / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def encode_jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """A baseline JPEG of an RGB picture, without metadata."""
    done, data = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise StageError(f"OpenCV could not encode a picture of shape {pixels.shape} as JPEG")
    return bytes(data)


def decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """The RGB picture of a JPEG that this pipeline wrote itself."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise StageError("a stored thumbnail does not decode; the stage folder is damaged, remove it and run again")
    return np.ascontiguousarray(pixels[:, :, ::-1])


def vectors_of(table: pa.Table, column: str = "vector") -> NDArray[np.float32]:
    """A fixed-size list column as an (N, D) float32 array."""
    array = table.column(column).combine_chunks()
    flat = array.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float32).reshape(len(array), array.type.list_size)


def _load_weights(model: Any, config: EmbedConfig, weights_sha256: str | None) -> None:
    path = Path(str(config.checkpoint))
    if weights_sha256 is not None and sha256_file(path) != weights_sha256:
        raise InputError(f"{path} has changed since the run was planned; its sha256 is no longer {weights_sha256}")
    try:
        loaded = load_state(path)
    except CheckpointError as error:
        raise InputError(f"embed.checkpoint {error}") from error
    state = {k: v for k, v in loaded.items() if not k.startswith(("fc.", "classifier.", "head.fc."))}
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(state))
    surplus = sorted(set(state) - set(wanted))
    if missing or surplus:
        raise InputError(f"{path} is no '{config.model}': missing {missing[:5]}, surplus {surplus[:5]}")
    model.load_state_dict(state)


def _thinned(rows: Sequence[dict[str, Any]], probed: pa.Table, config: ThinConfig) -> list[dict[str, Any]]:
    """The rows that stay, source by source, each with the number of frames it stands for."""
    times, scenes = (probed.column(name).to_pylist() for name in ("frame_pts_us", "scene"))
    kept: list[dict[str, Any]] = []
    for _, group in itertools.groupby(rows, key=lambda row: row["source_uri"]):
        frames = list(group)
        at = [row["probe_row"] for row in frames]
        pts = None if times[at[0]] is None else np.array([times[row] for row in at], np.int64)
        vectors = np.stack([row["vector"] for row in frames])
        stays, stands_for = thin(pts, np.array([scenes[row] for row in at], np.int32), vectors, config)
        kept += [frames[i] | {"stands_for": int(stands_for[i])} for i in np.flatnonzero(stays)]
    return kept


def _table(rows: Sequence[dict[str, Any]], dimension: int) -> pa.Table:
    schema = embedded_schema(dimension)
    vectors = np.array([row["vector"] for row in rows], np.float16)
    flat = pa.array(vectors.reshape(-1), pa.float16())
    columns = {"vector": pa.FixedSizeListArray.from_arrays(flat, type=schema.field("vector").type)}
    for name in ("sample_id", "source_uri", "thumbnail", "probe_row", "stands_for"):
        columns[name] = pa.array([row[name] for row in rows], schema.field(name).type)
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def _batched(items: Iterator[Any], size: int) -> Iterator[tuple[Any, ...]]:
    while batch := tuple(itertools.islice(items, size)):
        yield batch


def _unit(vector: NDArray[Any]) -> NDArray[Any]:
    return vector / max(float(np.linalg.norm(vector)), 1e-8)


def _colour_histogram(lab: NDArray[np.float32]) -> NDArray[np.float32]:
    a = np.clip(((lab[:, :, 1] - 0.5) * 12 + 2).astype(np.int32), 0, 3)
    b = np.clip(((lab[:, :, 2] - 0.5) * 12 + 2).astype(np.int32), 0, 3)
    light = (lab[:, :, 0] >= 0.5).astype(np.int32)
    return np.bincount((light * 16 + a * 4 + b).ravel(), minlength=32).astype(np.float32)


def _gradient_histogram(luma: NDArray[np.float32]) -> NDArray[np.float32]:
    dx = cv2.Sobel(luma, cv2.CV_32F, 1, 0, ksize=3)
    dy = cv2.Sobel(luma, cv2.CV_32F, 0, 1, ksize=3)
    magnitude = np.hypot(dx, dy)
    angle = np.floor(np.mod(np.arctan2(dy, dx), np.pi) / np.pi * 16).astype(np.int64) % 16
    cell = (np.arange(64) // 16)[:, None] * 4 + (np.arange(64) // 16)[None, :]
    index = cell * 16 + angle
    return np.bincount(index.ravel(), weights=magnitude.ravel(), minlength=256).astype(np.float32)
