"""Reads an image file as pixels of 8 bits, grey or RGB: what is stored otherwise is converted, or refused in words.

**How bright is the brightest value?** Of 8 bits it is 255. A file of more bits may hold less than its type could: many
cameras and microscopes write 12 bits into 16, and read as 16 bits such a picture is black. What a TIFF states decides
(BitsPerSample; MaxSampleValue, which may be the largest value that occurs, taken as the number of bits that hold it).
Where nothing is stated, 16 bits mean 0 to 65,535, as PNG has it, but for a picture whose values all fit into 12 bits:
it may be nearly black or of 12 bits, nothing in it tells, and so it is refused. 32-bit integers and floating-point
numbers have no usual range: they are refused unless the file states one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ayf_core.errors import AyfError, require

IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""What a file may be, whatever it is called: some of Pillow's other readers start programs (PostScript)."""

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

MOST_PIXELS = 80_000_000
"""Of an image before it is resized: a few bytes may say that they are a picture of many gigabytes."""

GREY = frozenset({"1", "L", "LA", "La"})
COLOUR = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"})
TRANSPARENT = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})

# TIFF's numbers for its tags.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _MAX_SAMPLE_VALUE, _SAMPLE_FORMAT, _S_MAX_SAMPLE_VALUE = 258, 262, 281, 339, 341
_WHITE_IS_ZERO = 0
_SIGNED = 2


def read_image(file: Path, side: int) -> np.ndarray:
    """One image, cropped to the central square and resized: float32 [side, side, 1 or 3] in [0, 255].

    Raises:
        AyfError: naming a file that is no image, or one whose pixels have no known meaning.
    """
    image_module = require("PIL.Image", extra="platform", needed_for="the data set folder")
    image_ops = require("PIL.ImageOps", extra="platform", needed_for="the data set folder")
    try:
        with image_module.open(file, formats=IMAGE_FORMATS) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(f"{opened.width} x {opened.height} pixels, at most {MOST_PIXELS:,} are read")
            about = Stated.of(opened)
            image = image_ops.exif_transpose(opened)  # a phone's photograph may be stored lying on its side
            image.load()
    except Exception as error:  # Pillow's readers raise all kinds of errors on foreign bytes
        raise AyfError(f"cannot read the image {file} ({error}): replace or remove it") from error
    try:
        image = eight_bits(image, about)
    except ValueError as error:
        raise AyfError(f"{file} holds {error}: save it as 8-bit PNG") from None

    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    square = image.crop((left, top, left + edge, top + edge))
    resized = square.resize((side, side), image_module.Resampling.LANCZOS)
    pixels = np.asarray(resized, dtype=np.float32)
    return pixels[..., None] if pixels.ndim == 2 else pixels


class Stated:
    """What a file states of its numbers.

    Attributes:
        bits: of a number, as stored; None where the file does not say.
        largest: the largest value, as stated; None where the file does not say.
        signed: whether numbers may be below 0.
        inverted: whether 0 is white and Pillow leaves that to the reader, which it does beyond 8 bits.
    """

    def __init__(
        self, bits: int | None = None, largest: float | None = None, signed: bool = False, inverted: bool = False
    ) -> None:
        self.bits = bits
        self.largest = largest
        self.signed = signed
        self.inverted = inverted

    @classmethod
    def of(cls, opened: Any) -> Stated:
        """What an image that was just opened states."""
        if opened.format == "PNG":
            return cls(bits=16)  # PNG has no more, and Pillow opens fewer as 8
        tags = getattr(opened, "tag_v2", None)
        if tags is None:
            return cls()
        largest = _first(tags.get(_MAX_SAMPLE_VALUE, tags.get(_S_MAX_SAMPLE_VALUE)))
        return cls(
            bits=_first(tags.get(_BITS_PER_SAMPLE)),
            largest=None if largest is None else float(largest),
            signed=_first(tags.get(_SAMPLE_FORMAT)) == _SIGNED,
            inverted=_first(tags.get(_PHOTOMETRIC)) == _WHITE_IS_ZERO,
        )

    def full_scale(self, values: np.ndarray) -> float:
        """The value that is white.

        Raises:
            ValueError: it is not known, in words.
        """
        if self.largest is not None and self.largest >= 255:
            bits = int(self.largest).bit_length()
            if values.max() < 2**bits:
                return 2.0**bits - 1.0
            raise ValueError(f"a value of {values.max():g}, above the largest that it states, {self.largest:g}")
        if self.bits is None or self.bits > 16 or self.signed or values.max() >= 2**self.bits:
            kind = "signed" if self.signed else f"{self.bits or 32}-bit"
            raise ValueError(f"{kind} integers, whose range it does not state")
        if self.bits == 16 and 0 < values.max() < 4096:
            raise ValueError(
                f"16 bits a pixel of which none is above {values.max():g}: 12 bits, or nearly black, it does not state "
                "which (TIFF's MaxSampleValue would)"
            )
        return 2.0**self.bits - 1.0


def eight_bits(image: Any, about: Stated) -> Any:
    """The image in Pillow's mode L or RGB. Transparent pixels become white, as on paper.

    Args:
        image: a Pillow image of any mode.
        about: what its file states of numbers beyond 8 bits.

    Raises:
        ValueError: what it holds has no known meaning, in words that go on "the file holds ...".
    """
    image_module = require("PIL.Image", extra="platform", needed_for="the data set folder")
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown")
    if image.mode.startswith("I"):
        return image_module.fromarray(_scaled(np.asarray(image).astype(np.float64), about, image.info))
    if image.mode not in GREY | COLOUR:
        raise ValueError(f"pixels of a kind that is not read ({image.mode})")
    wanted = "L" if image.mode in GREY else "RGB"
    if image.mode in TRANSPARENT or "transparency" in image.info:
        return _on_white(image, image_module).convert(wanted)
    return image.convert(wanted)


def _scaled(values: np.ndarray, about: Stated, info: dict[str, Any]) -> np.ndarray:
    if values.min() < 0:
        raise ValueError("values below 0, whose meaning is unknown")
    full = about.full_scale(values)
    if about.inverted:
        values = full - values
    clear = info.get("transparency")
    if isinstance(clear, int):
        values = np.where(values == clear, full, values)
    return (values * 255.0 / full).round().astype(np.uint8)


def _on_white(image: Any, image_module: Any) -> Any:
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)  # colours stored multiplied by their opacity
    image = (image.convert(straight) if straight else image).convert("RGBA")
    return image_module.alpha_composite(image_module.new("RGBA", image.size, "white"), image)


def _first(value: Any) -> Any:
    """TIFF's tags are one value, or one for each sample of a pixel."""
    return value[0] if isinstance(value, tuple) and value else value
