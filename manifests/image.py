"""Still images: untrusted bytes in, upright RGB pixels or a mask out.

Every still image of the house passes through here, so images and masks share one decoder and one orientation.
The format is decided by content, the size is read from the header and held against the limits before anything is
decoded, and every failure is an `ImageError` with a kind that can be counted.

H, W: height and width of the upright image.
"""

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Final, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import GifImagePlugin, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

Format = Literal["JPEG", "PNG", "WebP", "GIF"]
Kind = Literal["EmptyFile", "UnsupportedFormat", "TooLarge", "TooSmall", "ExtremeAspect", "Truncated", "Corrupt"]

# The plugins are called by name and not through Image.open: that would answer a large header with a warning or an
# error of its own, by a global limit, and a JPEG with a second picture inside with another class.
_PLUGINS: Final[dict[Format, Callable[[BinaryIO], ImageFile.ImageFile]]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}
_ORIENTATION_TAG = 0x0112
_MOST_SCANS = 100  # an honest progressive JPEG has about 10; each further one costs a pass over all pixels
_MASK_THRESHOLD = 128

_Pixel = TypeVar("_Pixel", bound=np.generic)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLimits:
    """What an image may be; checked from the header, before decoding.

    Attributes:
        pixels: largest width times height.
        bytes: largest file, in bytes.
        min_side: smallest shorter side, in pixels.
        max_aspect: largest ratio of the longer to the shorter side.
    """

    pixels: int = 50_000_000
    bytes: int = 64 * 1024 * 1024
    min_side: int = 32
    max_aspect: float = 8.0

    def __post_init__(self) -> None:
        for name, least in (("pixels", 1), ("bytes", 1), ("min_side", 1), ("max_aspect", 1.0)):
            value = getattr(self, name)
            if not value >= least:
                raise ValueError(f"limits.{name} must be >= {least}, got {value}")


DEFAULT_LIMITS: Final = ImageLimits()


class ImageError(ValueError):
    """These bytes give no image; `kind` says why in one word, the message says rule and value."""

    def __init__(self, kind: Kind, message: str) -> None:
        assert kind in get_args(Kind)
        super().__init__(kind, message)
        self.kind: Kind = kind

    def __str__(self) -> str:
        return str(self.args[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedImage:
    """An image as every later step sees it.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, upright, contiguous.
        orientation: the EXIF orientation 1..8 that was applied; 1 where the file states none.
    """

    pixels: NDArray[np.uint8]
    orientation: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedMask:
    """A mask read from a file.

    Attributes:
        mask: (H, W) bool, upright; True is person.
        soft: whether the file held values besides {0, 255} or {0, 1}, so that a threshold was needed.
    """

    mask: NDArray[np.bool_]
    soft: bool


def image_format(head: bytes) -> Format | None:
    """The still-image format that the first bytes of a file (16 are enough) belong to; None if it is no other."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    return None


def decode_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> DecodedImage:
    """Decode a JPEG, PNG, WebP or GIF (first frame) to upright RGB.

    Alpha is dropped and the colour beneath kept; gray becomes three equal channels; of 16-bit samples the high byte
    is kept; CMYK becomes RGB without a colour profile. EXIF orientation is applied once; XMP is not looked at.

    Raises:
        ImageError: with a kind, for everything that is no such image, breaks a limit, or is broken.
    """
    image = _opened(io.BytesIO(data), limits)
    if image.format == "JPEG":
        _check_jpeg(image, data)
    _loaded(image)
    orientation = _orientation_of(image, io.BytesIO(data))
    return DecodedImage(pixels=upright(_rgb(image), orientation), orientation=orientation)


def decode_mask_file(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> DecodedMask:
    """Decode a PNG mask with at most 8 bits per sample: 1-bit, gray, palette, or RGB with three equal channels.

    Values {0, 255} and {0, 1} are binary: 0 is background, the other value person; a mask of ones alone is full. Any
    other set of values is a soft alpha: person where value >= 128, and `soft` is set; one that nowhere reaches 128 is
    refused, for it would be read as empty. A palette with colours is
    read by its indices, which must be {0, 1} or {0, 255}. EXIF orientation is applied, as for the image.

    Raises:
        ImageError: as `decode_image`; UnsupportedFormat also for other formats, 16 bits, colours, and real alpha.
    """
    stream = io.BytesIO(data)
    if data and image_format(data) != "PNG":
        raise ImageError("UnsupportedFormat", f"a mask must be a PNG, got {image_format(data) or _start(data)}")
    image = _opened(stream, limits)
    _loaded(image)
    values = _mask_values(image)
    present = set(np.flatnonzero(np.bincount(values.ravel(), minlength=256)).tolist())
    soft = not (present <= {0, 1} or present <= {0, 255})
    if soft and max(present) < _MASK_THRESHOLD:
        message = (
            f"a mask's values must be {{0, 1}}, {{0, 255}} or reach {_MASK_THRESHOLD}, the largest is {max(present)}"
        )
        raise ImageError("UnsupportedFormat", f"{message} (labels?); write 0 and 255")
    person = values >= (_MASK_THRESHOLD if soft or 255 in present else 1)
    return DecodedMask(mask=upright(person, _orientation_of(image, io.BytesIO(data))), soft=soft)


def upright_size(stream: BinaryIO, limits: ImageLimits = DEFAULT_LIMITS) -> tuple[int, int]:
    """(height, width) of the upright image in a seekable stream, from its header; nothing is decoded.

    Raises:
        ImageError: if the header is none we know, breaks a limit or is broken. A broken body goes unseen.
    """
    image = _opened(stream, limits)
    width, height = image.size
    return (width, height) if _orientation_of(image, stream) >= 5 else (height, width)


def upright(pixels: NDArray[_Pixel], orientation: int) -> NDArray[_Pixel]:
    """Undo an EXIF orientation.

    Args:
        pixels: (height, width, ...) as stored.
        orientation: 1..8 as in EXIF 2.3 tag 0x0112.

    Returns:
        (H, W, ...) upright, contiguous, same dtype; 5..8 swap the sides.
    """
    assert 1 <= orientation <= 8, orientation
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(pixels[rows, columns])


def exif_orientation(exif: bytes) -> int:
    """Orientation 1..8 from an EXIF block (TIFF, with or without the `Exif` prefix); 1 where absent or unreadable."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == _ORIENTATION_TAG:
                return value if kind == 3 and count == 1 and 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


def _opened(stream: BinaryIO, limits: ImageLimits) -> ImageFile.ImageFile:
    """The image with its header read and held against the limits, and nothing decoded."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    head = stream.read(32)
    stream.seek(0)
    kind = image_format(head)
    if size == 0:
        raise ImageError("EmptyFile", "the file has 0 bytes")
    if kind is None:
        raise ImageError("UnsupportedFormat", f"must be JPEG, PNG, WebP or GIF by content, starts with {_start(head)}")
    if size > limits.bytes:
        raise ImageError("TooLarge", f"the file must have at most {limits.bytes} bytes, has {size}")
    if kind == "WebP":
        _check_webp(head, size, limits)
    image = _caught(lambda: _PLUGINS[kind](stream), "header")
    check_size(image.height, image.width, limits)
    return image


def check_size(height: int, width: int, limits: ImageLimits) -> None:
    """Hold a frame's size against the limits.

    Raises:
        ImageError: TooLarge, TooSmall or ExtremeAspect.
    """
    found = f"is {width}x{height}"
    if width * height > limits.pixels:
        raise ImageError("TooLarge", f"an image must have at most {limits.pixels} pixels, {found}")
    short, long = sorted((height, width))
    if short < limits.min_side:
        raise ImageError("TooSmall", f"the shorter side must have at least {limits.min_side} pixels, {found}")
    if long > limits.max_aspect * short:
        raise ImageError("ExtremeAspect", f"the sides must be within 1:{limits.max_aspect:g}, {found}")


def _check_webp(head: bytes, size: int, limits: ImageLimits) -> None:
    """Check a WebP before its library sees it, for that one takes memory for the canvas as it opens."""
    promised = int.from_bytes(head[4:8], "little") + 8
    if promised > size or size < 30:
        raise ImageError("Truncated", f"the WebP header promises {promised} bytes, the file has {size}")
    width, height = _webp_size(head)
    check_size(height, width, limits)


def _webp_size(head: bytes) -> tuple[int, int]:
    """(width, height) from the first 30 bytes of a WebP (RFC 9649, sections 2.5 to 2.7)."""
    match head[12:16]:
        case b"VP8X":
            return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
        case b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", head, 26)
            return width & 0x3FFF, height & 0x3FFF
        case other:
            raise ImageError("Corrupt", f"a WebP must start with a VP8, VP8L or VP8X chunk, got {other!r}")


def _check_jpeg(image: ImageFile.ImageFile, data: bytes) -> None:
    scans = data.count(b"\xff\xda")
    if scans > _MOST_SCANS:
        raise ImageError("TooLarge", f"a JPEG must have at most {_MOST_SCANS} scans, has {scans}")
    if image.mode == "CMYK" and "adobe" not in image.info:
        message = "a CMYK JPEG must have an Adobe marker (else its inks may be inverted); save it as RGB"
        raise ImageError("UnsupportedFormat", message)


_Result = TypeVar("_Result")


def _caught(action: Callable[[], _Result], part: str) -> _Result:
    """Run a decoder; whatever it raises on hostile bytes (struct, zlib, memory, syntax errors …) is an ImageError."""
    try:
        return action()
    except Exception as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, MemoryError):
            raise ImageError("TooLarge", f"the {part} does not fit into memory") from error
        ends = any(isinstance(found, EOFError | struct.error) for found in (error, error.__cause__))
        if ends or "truncat" in reason.lower():
            raise ImageError("Truncated", f"the {part} ends early: {reason}") from error
        raise ImageError("Corrupt", f"the {part} cannot be read: {reason}") from error


def _loaded(image: ImageFile.ImageFile) -> None:
    _caught(image.load, "picture")


def _rgb(image: ImageFile.ImageFile) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):  # 16-bit gray; the colour modes come with the high byte alone
        gray = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    image.info.pop("transparency", None)  # else the conversion may warn about it, or mix it in
    return np.array(image.convert("RGB"))


def _mask_values(image: ImageFile.ImageFile) -> NDArray[np.uint8]:
    """(height, width) uint8: the gray value, or the index into a palette with colours."""
    if image.mode == "P":
        return _palette_values(image)
    if image.mode in ("LA", "RGBA") and image.getchannel("A").getextrema() != (255, 255):
        raise ImageError("UnsupportedFormat", "a mask must not have transparent pixels; save it as 8-bit gray")
    if image.mode not in ("1", "L", "LA", "RGB", "RGBA"):
        raise ImageError("UnsupportedFormat", f"a mask must have at most 8 bits per sample, got mode {image.mode}")
    if image.mode in ("RGB", "RGBA"):
        return _gray(np.asarray(image.convert("RGB")))
    return np.asarray(image.convert("L"))


def _palette_values(image: ImageFile.ImageFile) -> NDArray[np.uint8]:
    indices = np.asarray(image)
    labels = set(np.unique(indices).tolist())
    image.info.pop("transparency", None)
    colours = np.asarray(image.convert("RGB"))
    if (colours == colours[:, :, :1]).all():
        return _gray(colours)
    if labels <= {0, 1} or labels <= {0, 255}:
        return indices
    message = f"a mask with a colour palette must use the labels {{0, 1}}, got {sorted(labels)[:8]}; make it binary"
    raise ImageError("UnsupportedFormat", message)


def _gray(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if not (colours == colours[:, :, :1]).all():
        raise ImageError("UnsupportedFormat", "a mask must be gray, this one has colours; save it as 8-bit gray")
    return np.ascontiguousarray(colours[:, :, 0])


def _orientation_of(image: ImageFile.ImageFile, stream: BinaryIO) -> int:
    exif = _png_exif(stream) if image.format == "PNG" else image.info.get("exif", b"")
    return exif_orientation(exif) if isinstance(exif, bytes) else 1


def _png_exif(stream: BinaryIO) -> bytes:
    """The eXIf chunk, which may stand behind the pixels; b"" where absent."""
    stream.seek(8)
    while len(header := stream.read(8)) == 8:
        length, name = int.from_bytes(header[:4], "big"), header[4:]
        if name == b"eXIf":
            return stream.read(length)
        stream.seek(length + 4, io.SEEK_CUR)
    return b""


def _start(head: bytes) -> str:
    return repr(head[:16])
