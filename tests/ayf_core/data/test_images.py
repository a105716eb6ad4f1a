"""Every way in which Pillow holds pixels, against values that are known without it; what cannot be known is refused."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ayf_core.data.images import Stated, eight_bits, read_image
from ayf_core.errors import AyfError

Image = pytest.importorskip("PIL.Image")
TiffImagePlugin = pytest.importorskip("PIL.TiffImagePlugin")


def solid(mode: str, value: Any) -> Any:
    return Image.new(mode, (4, 4), value)


def palette(*colours: tuple[int, int, int]) -> Any:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([number for colour in colours for number in colour])
    return image


def of(mode: str, *bytes_of_a_pixel: int) -> Any:
    return Image.frombytes(mode, (4, 4), bytes(bytes_of_a_pixel) * 16)


def colour_of(image: Any, about: Stated | None = None) -> list[int]:
    converted = eight_bits(image, about or Stated())
    assert converted.mode in ("L", "RGB")
    return np.asarray(converted).reshape(16, -1)[5].tolist()


# Colours by their definitions: CMY is what a colour lacks, YCbCr after JFIF, L*a*b* of the sRGB primary red at D50 is
# (54.3, 80.8, 69.9), premultiplied colours are colour times opacity, white paper shows through what is transparent.
KNOWN = {
    "1": (solid("1", 1), [255]),
    "L": (solid("L", 77), [77]),
    "LA opaque": (of("LA", 77, 255), [77]),
    "LA half": (of("LA", 100, 51), [224]),  # 100 * 0.2 + 255 * 0.8
    "La half": (of("LA", 100, 51).convert("La"), [224]),
    "P": (palette((1, 2, 3), (10, 200, 30)), [10, 200, 30]),
    "PA clear": (of("PA", 1, 0), [255, 255, 255]),
    "RGB": (solid("RGB", (1, 2, 3)), [1, 2, 3]),
    "RGBA half": (solid("RGBA", (255, 0, 100, 51)), [255, 204, 224]),
    "RGBa half": (solid("RGBA", (255, 0, 100, 51)).convert("RGBa"), [255, 204, 224]),
    "RGBX": (solid("RGBX", (1, 2, 3, 9)), [1, 2, 3]),
    "CMYK cyan": (solid("CMYK", (255, 0, 0, 0)), [0, 255, 255]),
    "CMYK black": (solid("CMYK", (0, 0, 0, 255)), [0, 0, 0]),
    "YCbCr red": (solid("YCbCr", (76, 85, 255)), [254, 0, 0]),
    "YCbCr grey": (solid("YCbCr", (90, 128, 128)), [90, 90, 90]),
    "LAB red": (solid("LAB", (138, 128 + 81, 128 + 70)), [255, 0, 0]),
    "LAB white": (solid("LAB", (255, 128, 128)), [255, 255, 255]),
    "HSV green": (solid("HSV", (85, 255, 255)), [0, 255, 0]),
}


@pytest.mark.parametrize("name", KNOWN)
def test_every_mode_of_eight_bits_gives_the_colour_it_means(name: str) -> None:
    image, expected = KNOWN[name]
    tolerance = 6 if name.startswith("LAB") else 1  # L*a*b* of 8 bits is coarse
    found = colour_of(image)
    assert len(found) == len(expected)
    assert np.abs(np.subtract(found, expected)).max() <= tolerance


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B", "I;16L"])
def test_sixteen_bits_are_scaled_to_eight(mode: str) -> None:
    assert colour_of(solid(mode, 32896), Stated(bits=16)) == [128]
    assert colour_of(solid(mode, 65535), Stated(bits=16)) == [255]
    assert colour_of(solid(mode, 0), Stated(bits=16)) == [0]


def test_values_beyond_what_is_stated_are_refused_and_do_not_wrap() -> None:
    for about in (Stated(bits=16), Stated(bits=32, largest=65535)):
        with pytest.raises(ValueError, match=r"integers|above the largest"):
            eight_bits(solid("I", 70_000), about)


def test_a_kind_of_pixels_that_is_not_known_is_refused() -> None:
    class Strange:
        mode = "XYZ"

    with pytest.raises(ValueError, match=r"not read \(XYZ\)"):
        eight_bits(Strange(), Stated())


# ------------------------------------------------------------------------------------------------------- files


def tiff(folder: Path, pixels: np.ndarray, **tags: float) -> Path:
    """A grey TIFF with tags by their names in the standard."""
    numbers = {"PhotometricInterpretation": 262, "MaxSampleValue": 281, "SampleFormat": 339}
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        directory[numbers[name]] = value
    Image.fromarray(pixels).save(folder / "image.tif", tiffinfo=directory)
    return folder / "image.tif"


def grey(file: Path) -> float:
    pixels = read_image(file, 4)
    assert pixels.shape == (4, 4, 1)
    return float(pixels[0, 0, 0])


def flat(value: float, kind: type = np.uint16) -> np.ndarray:
    return np.full((4, 4), value, kind)


def test_a_lab_tiff_keeps_its_colour(tmp_path: Path) -> None:
    solid("LAB", (138, 128 + 81, 128 + 70)).save(tmp_path / "red.tif")
    assert bytes([138, 81, 70] * 16) in (tmp_path / "red.tif").read_bytes()  # TIFF has a* and b* as signed bytes
    red = read_image(tmp_path / "red.tif", 4)
    assert red.shape == (4, 4, 3)
    assert np.abs(red[0, 0] - (255, 0, 0)).max() <= 6


def test_sixteen_bit_png_and_tiff_have_the_same_range(tmp_path: Path) -> None:
    Image.fromarray(flat(32896)).save(tmp_path / "image.png")
    assert grey(tmp_path / "image.png") == grey(tiff(tmp_path, flat(32896))) == 128


@pytest.mark.parametrize("value", [1, 200, 3000, 4095])
def test_twelve_bits_in_sixteen_are_refused_where_nothing_states_them(tmp_path: Path, value: int) -> None:
    with pytest.raises(AyfError, match=r"image\.tif holds 16 bits .* 12 bits, or nearly black"):
        grey(tiff(tmp_path, flat(value)))


def test_black_of_sixteen_bits_is_black_either_way(tmp_path: Path) -> None:
    assert grey(tiff(tmp_path, flat(0))) == 0


@pytest.mark.parametrize("stated", [4095, 3900])
def test_twelve_bits_that_the_file_states_are_read_as_such(tmp_path: Path, stated: int) -> None:
    assert grey(tiff(tmp_path, flat(2048), MaxSampleValue=stated)) == pytest.approx(2048 * 255 / 4095, abs=0.5)


def test_a_stated_maximum_is_a_number_of_bits_not_a_brightness(tmp_path: Path) -> None:
    assert grey(tiff(tmp_path, flat(32896), MaxSampleValue=40_000)) == 128


def test_a_packed_tiff_of_twelve_bits_is_read_by_its_own_bits(tmp_path: Path) -> None:
    """Pillow writes none: two pixels of 12 bits in three bytes, by hand."""
    entries = {256: 4, 257: 4, 258: 12, 259: 1, 262: 1, 273: 0, 277: 1, 278: 4, 279: 24}
    entries[273] = 8 + 2 + 12 * len(entries) + 4  # the pixels follow the header and this list
    listed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    pixels = bytes([0x80, 0x08, 0x00]) * 8  # 0x800 twice
    header = b"II*\0" + struct.pack("<IH", 8, len(entries))
    (tmp_path / "packed.tif").write_bytes(header + listed + struct.pack("<I", 0) + pixels)
    assert grey(tmp_path / "packed.tif") == pytest.approx(2048 * 255 / 4095, abs=0.5)


def test_sixteen_bits_where_zero_is_white_are_turned_over(tmp_path: Path) -> None:
    assert grey(tiff(tmp_path, flat(65535), PhotometricInterpretation=0)) == 0
    assert grey(tiff(tmp_path, flat(13107), PhotometricInterpretation=0)) == 204


def test_thirty_two_bit_integers_are_read_only_where_their_range_is_stated(tmp_path: Path) -> None:
    with pytest.raises(AyfError, match="integers, whose range it does not state: save it as 8-bit PNG"):
        grey(tiff(tmp_path, flat(300, np.int32)))
    assert grey(tiff(tmp_path, flat(32896, np.int32), MaxSampleValue=65535)) == 128


def test_values_below_zero_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AyfError, match="below 0"):
        grey(tiff(tmp_path, flat(-3, np.int32)))


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_floating_point_images_are_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(AyfError, match="floating-point"):
        grey(tiff(tmp_path, flat(value, np.float32)))


def test_a_transparent_grey_value_becomes_white(tmp_path: Path) -> None:
    Image.fromarray(flat(7, np.uint8)).save(tmp_path / "eight.png", transparency=7)
    assert grey(tmp_path / "eight.png") == 255
    Image.fromarray(flat(32896)).save(tmp_path / "sixteen.png", transparency=32896)
    assert grey(tmp_path / "sixteen.png") == 255


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 4), np.uint8)).save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png", 4) == 255).all()
