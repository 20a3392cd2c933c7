"""From an image file of any format, size, colour mode and bit depth to pixels."""

import io
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from PIL import Image, ImageCms, ImageOps
from torchvision.transforms import v2

from wdro_train.data import ImageFolderDataModule
from wdro_train.data.decoding import Fit, open_image
from wdro_train.utils.errors import UserError

SETUP = {"shape": [3, 16, 16], "num_classes": 2, "mean": [0.5] * 3, "std": [0.2] * 3, "delta": {"linf": "4/255"}}
FOLDERS = {"train": "train", "val": "val", "test": "test"}


def folder(root, **kwargs):
    return ImageFolderDataModule(root=str(root), folders=FOLDERS, **SETUP | {"val_fraction": 0.25} | kwargs)


LEVELS = 255


def as_palette(levels):
    palette = np.random.default_rng(0).permutation(LEVELS + 1)
    image = Image.fromarray(np.argsort(palette).astype(np.uint8)[levels], "P")
    image.putpalette(np.repeat(palette.astype(np.uint8), 3).tobytes())
    return image


def as_rgb(levels):
    return Image.fromarray(np.repeat(levels[..., None], 3, axis=2))


def as_cmyk(levels):
    return Image.fromarray(np.stack([0 * levels, 0 * levels, 0 * levels, LEVELS - levels], 2).astype(np.uint8), "CMYK")


def write_png(file, width, height, depth, colour, content=b""):
    """A PNG made by hand: Pillow reads 16 bits a colour, but does not write them."""
    file.write(b"\x89PNG\r\n\x1a\n")
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    for chunk in (b"IHDR" + header, b"IDAT" + zlib.compress(content), b"IEND"):
        file.write(struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)))


def as_16_bit_rgb(levels, file):
    rows = np.repeat((levels.astype(">u2") * 257).astype(">u2")[..., None], 3, axis=2)
    write_png(file, levels.shape[1], levels.shape[0], 16, 2, b"".join(b"\0" + row.tobytes() for row in rows))


def huge(path, width, height):
    with path.open("wb") as file:
        write_png(file, width, height, 1, 0)


def white_is_zero(levels, file):
    """A TIFF of 16 bits whose largest number is black."""
    made = io.BytesIO()
    Image.fromarray((LEVELS - levels).astype(np.uint16) * 257).save(made, "TIFF")
    plain, turned = (struct.pack("<HHIHH", 262, 3, 1, value, 0) for value in (1, 0))
    assert made.getvalue().count(plain) == 1
    file.write(made.getvalue().replace(plain, turned))


TO_LAB = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
# Each writes grey levels 0..255 in another mode, depth or format; the levels that are read must be the same.
WAYS = {
    "8 bit": lambda x, file: Image.fromarray(x).save(file, "PNG"),
    "16 bit PNG": lambda x, file: Image.fromarray(x.astype(np.uint16) * 257).save(file, "PNG"),
    "16 bit TIFF": lambda x, file: Image.fromarray(x.astype(np.uint16) * 257).save(file, "TIFF"),
    "16 bit TIFF, big-endian": lambda x, file: Image.fromarray(x.astype(">u2") * 257).save(file, "TIFF"),
    "16 bit TIFF, packed": lambda x, file: Image.fromarray(x.astype(np.uint16) * 257).save(
        file, "TIFF", compression="tiff_lzw"
    ),
    "16 bit TIFF, white is zero": white_is_zero,
    "16 bit PGM": lambda x, file: Image.fromarray(x.astype(np.int32) * 257).save(file, "PPM"),
    "16 bit RGB": as_16_bit_rgb,
    "float TIFF": lambda x, file: Image.fromarray((x / LEVELS).astype(np.float32)).save(file, "TIFF"),
    "RGB": lambda x, file: as_rgb(x).save(file, "PNG"),
    "RGBA": lambda x, file: as_rgb(x).convert("RGBA").save(file, "PNG"),
    "LA": lambda x, file: Image.fromarray(x).convert("LA").save(file, "PNG"),
    "palette": lambda x, file: as_palette(x).save(file, "PNG"),
    "palette, opaque": lambda x, file: as_palette(x).save(file, "PNG", transparency=bytes([LEVELS] * 256)),
    "Lab": lambda x, file: ImageCms.applyTransform(as_rgb(x), TO_LAB).save(file, "TIFF"),
    "CMYK": lambda x, file: as_cmyk(x).save(file, "TIFF"),
    "WebP": lambda x, file: as_rgb(x).save(file, "WEBP", lossless=True),
    "two-page TIFF": lambda x, file: Image.fromarray(x).save(
        file, "TIFF", save_all=True, append_images=[Image.fromarray(LEVELS - x)]
    ),
    "GIF that moves": lambda x, file: as_palette(x).save(
        file, "GIF", save_all=True, append_images=[as_palette(LEVELS - x)]
    ),
}
EXACT = {*WAYS} - {"16 bit RGB", "CMYK", "Lab"}
PIXELS = arrays_of.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def read(path, shape, resize=None):
    x = Fit(shape, resize)(open_image(path), path)
    return x if x.is_floating_point() else x.float() / LEVELS


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=12, deadline=None)
@given(levels=PIXELS, channels=st.sampled_from([1, 3]))
def test_grey_levels_survive_every_mode_and_depth(way, levels, channels):
    with tempfile.TemporaryDirectory() as there:
        path = Path(there) / "image"
        with path.open("w+b") as file:
            WAYS[way](levels, file)
        found = read(path, [channels, *levels.shape])
    wanted = torch.as_tensor(levels).float().expand(channels, -1, -1)
    # Lab has 8 bits a channel, and another grey axis: three grey levels come back two steps away.
    assert (found * LEVELS - wanted).abs().max() <= (1e-4 if way in EXACT else 2 if way == "Lab" else 1)


@settings(max_examples=25, deadline=None)
@given(levels=arrays_of.arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_depth_is_kept(levels):
    """12 bits in a file of 16, as from many scanners, would leave 16 grey levels of 8 bits."""
    with tempfile.TemporaryDirectory() as there:
        path = Path(there) / "deep.png"
        Image.fromarray(levels).save(path)
        found = read(path, [1, *levels.shape])[0]
    assert torch.equal(found, torch.as_tensor(levels.astype(np.float64) / 65535).float())


@settings(max_examples=25, deadline=None)
@given(levels=PIXELS)
def test_black_and_white(levels):
    with tempfile.TemporaryDirectory() as there:
        for name in ("bits.png", "bits.tiff"):
            Image.fromarray(levels > 127).save(Path(there) / name)
            assert torch.equal(read(Path(there) / name, [1, *levels.shape])[0], torch.as_tensor(levels > 127).float())


@settings(max_examples=25, deadline=None)
@given(levels=PIXELS, data=st.data())
def test_transparent_pixels_are_laid_over_white(levels, data):
    alpha = data.draw(arrays_of.arrays(np.uint8, levels.shape))
    wanted = (levels * (alpha / LEVELS) + LEVELS - alpha) / LEVELS
    with tempfile.TemporaryDirectory() as there:
        for name, bands in {"rgba.png": [levels, levels, levels, alpha], "la.png": [levels, alpha]}.items():
            Image.fromarray(np.stack(bands, 2)).save(Path(there) / name)
            for channels in (1, 3):
                found = read(Path(there) / name, [channels, *levels.shape])
                assert np.abs(found.numpy() - wanted).max() <= 1.01 / LEVELS
        path, clear = Path(there) / "palette.png", int(levels.flat[0])
        as_palette(levels).save(path, transparency=as_palette(levels).getpixel((0, 0)))
        assert torch.equal(
            read(path, [1, *levels.shape])[0],
            torch.as_tensor(np.where(levels == clear, LEVELS, levels)).float() / LEVELS,
        )


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.webp", "deep.png", "packed.tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_cameras_orientation_is_honoured(name, orientation, tmp_path):
    levels = np.arange(20, dtype=np.uint8).reshape(4, 5) * 12
    note = Image.Exif()
    note[0x0112] = orientation
    image = Image.fromarray(levels.astype(np.uint16) * 257) if name == "deep.png" else Image.fromarray(levels)
    options = {"lossless": True} if "webp" in name else {"compression": "tiff_lzw"} if "packed" in name else {}
    image.save(tmp_path / name, exif=note, **options)
    shown = Image.fromarray(levels)
    shown.getexif()[0x0112] = orientation
    wanted = np.asarray(ImageOps.exif_transpose(shown))
    assert torch.equal((read(tmp_path / name, [1, *wanted.shape])[0] * LEVELS).round(), torch.as_tensor(wanted).float())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@settings(max_examples=30, deadline=None)
@given(note=st.binary(max_size=40), start=st.sampled_from([b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x03"]))
def test_damaged_metadata_does_not_matter(note, start):
    levels = np.arange(20, dtype=np.uint8).reshape(4, 5)
    with tempfile.TemporaryDirectory() as there:
        path = Path(there) / "a.png"
        Image.fromarray(levels).save(path, exif=start + note)
        found = read(path, [1, 4, 5])[0]
    assert sorted(found.flatten().tolist()) == sorted((levels.flatten() / LEVELS).astype(np.float32).tolist())


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda path: Image.fromarray(np.full((4, 4), 200, np.float32)).save(path, "TIFF"), r"\[200, 200\]; divide"),
        (lambda path: Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(path, "TIFF"), r"\[nan, nan\]; divide"),
        (lambda path: Image.fromarray(np.full((4, 4), 7, np.int32)).save(path, "TIFF"), "full scale is unknown"),
        (lambda path: path.write_bytes(b""), "empty or in no format that Pillow knows"),
        (lambda path: path.write_bytes(b"<html>"), "empty or in no format that Pillow knows"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: None, "No such file"),
        (lambda path: path.symlink_to("nowhere.png"), "No such file"),
        (lambda path: cut(path, 0.6), "truncated"),
        (lambda path: huge(path, 20000, 10000), r"limit of 89,478,485 pixels; shrink"),
        (lambda path: huge(path, 10000, 9000), r"10000 x 9000 .* limit of 89,478,485 pixels"),
        (lambda path: Image.new("1", (1, 30000)).save(path, "PNG"), r"scaled to, 64 x 1920000 pixels"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_cannot_be_read_is_named_in_one_sentence(made, message, tmp_path):
    path = tmp_path / "photo.png"
    made(path)
    with pytest.raises(UserError, match=message) as caught:
        read(path, [3, 64, 64])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def cut(path, share):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


SIDES = st.integers(1, 12)


@settings(max_examples=30, deadline=None)
@given(
    height=SIDES,
    width=SIDES,
    high=SIDES,
    wide=SIDES,
    more=st.none() | st.integers(0, 5),
    channels=st.sampled_from([1, 3]),
)
def test_scaled_to_cover_and_no_more(height, width, high, wide, more, channels):
    """One side of the box is met exactly and the other covered; an image of the shape comes through bit for bit."""
    shape, box = (height, width), (height, width)
    resize = None if more is None else min(shape) + more
    if resize is not None:
        box = tuple(round(n * resize / min(shape)) for n in shape)
    pixels = np.random.default_rng(0).integers(0, 256, (high, wide, 3), dtype=np.uint8)
    image = Image.fromarray(pixels) if channels == 3 else Image.fromarray(pixels[..., 0])
    found = Fit([channels, *shape], resize)(image, "photo")
    assert found.shape == (channels, *shape)
    if (high, wide) == box:
        exact = v2.functional.center_crop(v2.functional.pil_to_tensor(image), list(shape))
        assert torch.equal(found, exact)
    scaled = max(box[0] / high, box[1] / wide)
    size = (int(scaled * high + 1e-9), int(scaled * wide + 1e-9))
    assert size[0] == box[0] or size[1] == box[1]
    whole = v2.functional.pil_to_tensor(image.resize(size[::-1], Image.Resampling.BILINEAR))
    assert torch.equal(found, v2.functional.center_crop(whole, list(shape)))


@settings(max_examples=40, deadline=None)
@given(side=st.integers(1, 12), high=SIDES, wide=SIDES, more=st.integers(0, 5))
def test_square_shapes_are_cut_as_torchvision_cuts_them(side, high, wide, more):
    """Published figures of ImageNet are of `Resize(256), CenterCrop(224)`."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (high, wide, 3), dtype=np.uint8))
    wanted = v2.Compose([v2.Resize(side + more), v2.CenterCrop(side), v2.PILToTensor()])(image)
    assert torch.equal(Fit([3, side, side], side + more)(image, "photo"), wanted)


def test_an_image_of_the_shape_is_itself(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 30, 3), dtype=np.uint8)
    (tmp_path / "test" / "cat").mkdir(parents=True)
    (tmp_path / "test" / "dog").mkdir()
    for name in ("cat", "dog"):
        Image.fromarray(pixels).save(tmp_path / "test" / name / "a.png")
    x = folder(tmp_path, shape=[3, 12, 30]).arrays("test").batch(torch.tensor([0]))
    assert torch.equal(x[0], torch.as_tensor(pixels).permute(2, 0, 1).float() / LEVELS)
