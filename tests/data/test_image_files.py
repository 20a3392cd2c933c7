"""Images in files, and what is done to those of training."""

import io
import json
import os
import struct
import tempfile
import zlib
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from datafiles import write_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from PIL import Image, ImageCms, ImageOps
from shell import run
from torchvision.transforms import v2

from wdro_train.config.resolvers import count_folders
from wdro_train.data import Digits, HuggingFaceDataModule, ImageFolderDataModule, describe_sample
from wdro_train.data.decoding import Fit, UnreadableImageError, open_image
from wdro_train.data.order import balanced_order
from wdro_train.evaluation.networks import load_arrays
from wdro_train.utils.errors import UserError

SETUP = {"shape": [3, 16, 16], "num_classes": 2, "mean": [0.5] * 3, "std": [0.2] * 3, "delta": {"linf": "4/255"}}
FOLDERS = {"train": "train", "val": "val", "test": "test"}
GRAY = SETUP | {"shape": [1, 8, 8], "num_classes": 10, "mean": [0.3], "std": [0.4], "val_fraction": 0.2}


def folder(root, **kwargs):
    return ImageFolderDataModule(root=str(root), folders=FOLDERS, **SETUP | {"val_fraction": 0.25} | kwargs)


def load_limited(root, limit, split="test", **kwargs):
    target = "wdro_train.data.ImageFolderDataModule"
    return load_arrays(
        {"data": {"_target_": target, "root": str(root), "folders": FOLDERS, **SETUP, **kwargs}}, split, limit
    )


def test_all_three_folders(tmp_path):
    data = folder(write_folder(tmp_path, ("train", "val", "test"), n=5))
    for name in FOLDERS:
        arrays = data.arrays(name)
        assert torch.bincount(arrays.labels).tolist() == [5, 5]
        x = arrays.batch(torch.arange(10))
        assert x.shape == (10, 3, 16, 16)
        assert ((x.flatten(1).mean(1) > 0.5).long() == arrays.labels).all()  # dogs are bright, whatever the format


def test_missing_folders_are_split_off(tmp_path):
    data = folder(write_folder(tmp_path, n=16))
    paths = {name: {data.arrays(name).read.paths[k] for k in data.arrays(name).positions} for name in FOLDERS}
    assert sorted(map(len, paths.values())) == [6, 8, 18]
    assert len(set.union(*paths.values())) == 32
    again = folder(tmp_path, split_seed=0).arrays("val").positions
    assert torch.equal(again, data.arrays("val").positions)
    assert not torch.equal(again, folder(tmp_path, split_seed=1).arrays("val").positions)


def test_pixels_are_those_of_the_file(tmp_path):
    """Shorter side to `resize`, then the centre: Pillow's own arithmetic."""
    write_folder(tmp_path, ("test",), n=1)
    arrays = folder(tmp_path, resize=18).arrays("test")
    row = (arrays.positions == 0).nonzero()[0]
    image = Image.open(tmp_path / "test/cat/000.png").resize((21, 18), Image.Resampling.BILINEAR)
    expected = v2.functional.pil_to_tensor(image.crop((2, 1, 18, 17))).float() / 255
    assert torch.equal(arrays.batch(row)[0], expected)


def test_images_are_decoded_when_needed(tmp_path):
    write_folder(tmp_path, n=8)
    data = folder(tmp_path)
    data.setup()
    (tmp_path / "train" / "dog" / "007.JPEG").write_bytes(b"not an image")
    everything = data.arrays("train")._replace(positions=torch.arange(15, 3, -1))
    with pytest.raises(UserError, match=r"007.JPEG cannot be read as an image"):
        everything.batch(torch.arange(12))


def test_a_list_chooses_test_images_in_its_order(tmp_path):
    write_folder(tmp_path, ("test",), classes=("n01440764", "n01443537"), n=4)
    names = ["n01443537/003.JPEG", "n01440764/000.png", "n01440764/003.JPEG"]
    (tmp_path / "list.txt").write_text("\n".join(names) + "\n")
    arrays = folder(tmp_path, subset=str(tmp_path / "list.txt")).arrays("test")
    assert arrays.labels.tolist() == [1, 0, 0]
    whole = folder(tmp_path).arrays("test")
    rows = [whole.positions.tolist().index(k) for k in (7, 0, 3)]
    assert torch.equal(arrays.batch(torch.arange(3)), whole.batch(torch.tensor(rows)))
    assert load_limited(tmp_path, 2, subset=str(tmp_path / "list.txt")).positions.tolist() == [7, 0]
    (tmp_path / "list.txt").write_text("n01440764/000.png\nn01440764/999.png\n")
    with pytest.raises(UserError, match=r"1 of 2 images of .*, such as n01440764/999.png"):
        folder(tmp_path, subset=str(tmp_path / "list.txt")).arrays("test")


@pytest.mark.parametrize(
    ("parts", "message"),
    [((), "has no folder train, val, test; put one folder a class"), (("test",), "no train set, only test")],
)
def test_what_is_missing_is_said(parts, message, tmp_path):
    with pytest.raises(UserError, match=message):
        folder(write_folder(tmp_path, parts)).arrays("train")


def test_other_classes_are_refused(tmp_path):
    write_folder(tmp_path, ("train",))
    write_folder(tmp_path, ("test",), classes=("cat", "cow"))
    with pytest.raises(UserError, match="test has other classes: cow, dog"):
        folder(tmp_path).setup()


def test_huggingface(tmp_path):
    datasets = pytest.importorskip("datasets")
    write_folder(tmp_path / "files", ("train", "test"), n=8)
    made = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "files"), cache_dir=str(tmp_path / "cache"))
    made.save_to_disk(str(tmp_path / "saved"))
    arguments = {"splits": {"train": "train", "val": None, "test": "test"}, **SETUP, "val_fraction": 0.25}
    reference = folder(tmp_path / "files")
    for name in (tmp_path / "saved", tmp_path / "files"):
        data = HuggingFaceDataModule(name=str(name), **arguments)
        assert [len(data.arrays(part).labels) for part in FOLDERS] == [12, 4, 16]
        rows = torch.arange(16)
        x = data.arrays("test").batch(rows).flatten(1)
        assert sorted(map(tuple, x.tolist())) == sorted(
            map(tuple, reference.arrays("test").batch(rows).flatten(1).tolist())
        )
    with pytest.raises(UserError, match="has no column picture, only image, label"):
        HuggingFaceDataModule(name=str(tmp_path / "saved"), image="picture", **arguments).setup()


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


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may read everything")
def test_permissions(tmp_path):
    path = tmp_path / "photo.png"
    cut(path, 1)
    path.chmod(0)
    with pytest.raises(UserError, match=r"photo.png cannot be read as an image \(Permission denied\)"):
        open_image(path)
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(UserError, match="closed cannot be read"):
        count_folders(str(tmp_path), "closed")


def test_loader_processes_hand_on_the_sentence(tmp_path):
    data = folder(write_folder(tmp_path, ("train", "val", "test"), n=8), num_workers=1, eval_batch_size=4)
    data.setup()
    (tmp_path / "val" / "dog" / "003.JPEG").write_bytes(b"")
    with pytest.raises(UnreadableImageError) as caught:
        list(data.val_dataloader())
    assert str(caught.value) == (
        f"{tmp_path}/val/dog/003.JPEG cannot be read as an image (it is empty or in no format that Pillow knows); "
        "mend or remove it"
    )


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


JUNK = [".ipynb_checkpoints", "__MACOSX", ".git", ".hidden", "@eaDir"]


def test_what_systems_leave_is_no_class_and_no_image(tmp_path):
    write_folder(tmp_path, ("train", "val", "test"), n=5)
    clean = folder(tmp_path).arrays("test")
    for part in FOLDERS:
        for name in JUNK:
            write_folder(tmp_path, (part,), classes=(name,), n=3)
            write_folder(tmp_path / part, ("cat",), classes=(name,), n=3)
        for name in ("._000.png", ".DS_Store", "Thumbs.db", "notes.txt"):
            (tmp_path / part / "dog" / name).write_bytes(b"no image")
            (tmp_path / part / name).write_bytes(b"no image")
    assert count_folders(str(tmp_path), "train", "test") == 2
    data = folder(tmp_path)
    for part in FOLDERS:
        assert torch.bincount(data.arrays(part).labels).tolist() == [5, 5]
    assert torch.equal(data.arrays("test").batch(torch.arange(10)), clean.batch(torch.arange(10)))
    hidden = write_folder(tmp_path / ".cache", n=4)  # only what is inside the folder counts
    assert len(folder(hidden, val_fraction=0.5).arrays("test").labels) == 4


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "train" / "empty").mkdir(), "other classes: empty"),
        (lambda root: [(root / part / "empty").mkdir() for part in FOLDERS], "has 3 class folders, but"),
        (
            lambda root: [file.unlink() for file in (root / "val" / "dog").iterdir()],
            "val has no images in its class dog",
        ),
        (lambda root: (root / "val" / "dog").rename(root / "dog"), "val has other classes: dog"),
        (lambda root: [(root / part / "dog").rename(root / part / ".dog") for part in FOLDERS], "has 1 class folders"),
        (lambda root: [(root / "test" / name).rename(root / name) for name in ("cat", "dog")], "test holds no folders"),
    ],
)
def test_classes_never_shift(spoil, message, tmp_path):
    write_folder(tmp_path, ("train", "val", "test"), n=3)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        folder(tmp_path).setup()


def test_judging_without_some_of_the_classes_is_refused(tmp_path):
    """Trained on cat, cow and dog, judged where there is no cow: dogs would be taken for cows."""
    write_folder(tmp_path, ("test",), classes=("cat", "dog"))
    with pytest.raises(UserError, match=r"2 class folders, but data.num_classes=3; labels follow the sorted folders"):
        folder(tmp_path, num_classes=3).setup()


@settings(max_examples=50, deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), seed=st.integers(0, 5))
def test_every_beginning_is_balanced(labels, seed):
    labels = torch.as_tensor(sorted(labels))
    order = balanced_order(labels, seed)
    assert sorted(order.tolist()) == list(range(len(labels)))
    assert torch.equal(order, balanced_order(labels, seed))
    sizes = torch.bincount(labels, minlength=5)
    for kept in range(1, len(labels) + 1):
        counts = torch.bincount(labels[order[:kept]], minlength=5)
        assert ((counts - sizes * kept / len(labels)).abs() <= 3).all()
        if len(set(sizes[sizes > 0].tolist())) == 1:
            assert counts[sizes > 0].max() - counts[sizes > 0].min() <= 1


def test_the_first_few_images_are_a_fair_sample(tmp_path):
    """A folder is sorted by class; its first eight images would be of one class."""
    write_folder(tmp_path, ("train", "val", "test"), n=20)
    for split in FOLDERS:
        some = load_limited(tmp_path, 8, split)
        assert torch.bincount(some.labels).tolist() == [4, 4]
        assert torch.equal(some.positions, load_limited(tmp_path, 8, split).positions)
        assert torch.equal(load_limited(tmp_path, 12, split).positions[:8], some.positions)
        assert describe_sample(some, 8) == "drawn with seed 0, balanced by class"
        assert describe_sample(load_limited(tmp_path, None, split), None) == "all"
        assert describe_sample(load_limited(tmp_path, 99, split), 99) == "all"
    _, y = next(iter(folder(tmp_path, eval_batch_size=10).val_dataloader()))  # limit_val_batches=1 takes no more
    assert torch.bincount(y).tolist() == [5, 5]


def test_sets_in_memory_keep_their_published_order():
    config = {"data": {"_target_": "wdro_train.data.Digits", **GRAY}}
    some, whole = (load_arrays(config, "test", limit) for limit in (50, None))
    assert torch.equal(some.images, whole.images[:50])
    assert describe_sample(some, 50) == "the first"


def test_the_split_is_that_of_earlier_versions(tmp_path):
    """Serving in a drawn order must not move an image from the training set of an old checkpoint to its test."""
    data = folder(write_folder(tmp_path, n=16))
    held_out = {k: sorted(data.arrays(k).positions.tolist()) for k in ("val", "test")}
    assert held_out == {"val": [10, 11, 13, 18, 19, 24], "test": [0, 3, 5, 12, 17, 22, 23, 29]}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", "dog"] * 2, "labels are <U3, not class numbers"),
        ([0.0, 1.0] * 2, "labels are float64, not class numbers"),
        ([0, None] * 2, "labels are object, not class numbers"),
        ([1, 2] * 2, r"range over \[1, 2\] and are never 0"),
        ([0, 2] * 2, r"range over \[0, 2\] and are never 1"),
        ([0, 1] * 2, None),
        ([False, True] * 2, None),
    ],
)
def test_huggingface_labels(labels, message, tmp_path):
    pytest.importorskip("datasets")
    for part in ("train", "test"):
        write_folder(tmp_path / "set", (part,), classes=("all",), n=len(labels))
        files = sorted((tmp_path / "set" / part / "all").iterdir())
        rows = [{"file_name": f"all/{file.name}", "label": y} for file, y in zip(files, labels, strict=True)]
        (tmp_path / "set" / part / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = SETUP | {"splits": {"train": "train", "val": None, "test": "test"}, "val_fraction": 0.5}
    data = HuggingFaceDataModule(name=str(tmp_path / "set"), **arguments)
    if message is not None:
        with pytest.raises(UserError, match=message):
            data.setup()
        return
    assert sorted(data.arrays("test").labels.tolist()) == [0, 0, 1, 1]
    assert data.arrays("train").labels.dtype == torch.int64
    with pytest.raises(UserError, match=r"image 0 of .*set train is of type int, not an image|of type bool"):
        HuggingFaceDataModule(name=str(tmp_path / "set"), image="label", **arguments).setup()


def test_huggingface_with_other_classes(tmp_path):
    pytest.importorskip("datasets")
    write_folder(tmp_path, ("train", "test"), classes=("cat", "cow", "dog"), n=2)
    splits = {"train": "train", "val": None, "test": "test"}
    with pytest.raises(UserError, match=r"has 3 classes, not data.num_classes=2; set data.num_classes=3"):
        HuggingFaceDataModule(name=str(tmp_path), splits=splits, **SETUP).setup()


AUGMENT = {"crop": v2.RandomCrop([8, 8], padding=2), "policy": v2.AutoAugment(), "erase": v2.RandomErasing(p=1.0)}


def epoch(data, number):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return torch.cat([torch.cat([x.flatten(1), y[:, None].float()], 1) for x, y in loader])


def test_augmentation_is_of_seed_epoch_and_image_alone():
    def digits(**kwargs):
        return Digits(**GRAY | {"augment": AUGMENT, "batch_size": 383} | kwargs)

    torch.manual_seed(1)
    first = epoch(digits(), 3)
    assert torch.equal(epoch(digits(num_workers=2), 3), first)
    torch.manual_seed(2)
    assert torch.equal(epoch(digits(), 3), first)
    before = torch.get_rng_state()
    digits().train_dataloader().dataset[3, 5]
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(epoch(digits(), 4), first)
    assert not torch.equal(epoch(digits(augment=None), 3), first)
    assert first.min() == 0
    assert first[:, :-1].max() <= 1


def test_epochs_differ_for_workers_that_live_on():
    data = Digits(**GRAY, augment={"erase": v2.RandomErasing(p=1.0)}, num_workers=1, batch_size=1149)
    loader = data.train_dataloader()
    seen = []
    for number in (0, 1, 0):
        loader.sampler.set_epoch(number)
        x, _ = next(iter(loader))
        seen.append(x.flatten(1).sum(1).sort().values)
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])


def test_only_training_images_are_augmented_and_stay_in_the_box():
    data = Digits(**GRAY, augment={"brighter": lambda x: x + 0.75, "none": None})
    x, _ = next(iter(data.train_dataloader()))
    assert (x.min(), x.max()) == (0.75, 1)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert next(iter(loader))[0].min() == 0


def test_lightning_keeps_the_sampler():
    class Watch(L.LightningModule):
        def training_step(self, batch):
            seen.append(batch[0])

        def configure_optimizers(self):
            return None

    seen = []
    data = Digits(**GRAY, augment={"erase": v2.RandomErasing(p=1.0)}, batch_size=1149)
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(Watch(), datamodule=data)
    alone = Digits(**GRAY, augment={"erase": v2.RandomErasing(p=1.0)}, batch_size=1149)
    for number, x in enumerate(seen):
        assert torch.equal(x.flatten(1), epoch(alone, number)[:, :-1])


def test_newcomers_path(tmp_path):
    """Own folder: train, judge the checkpoint, nothing but the folder named."""
    write_folder(tmp_path / "photos", ("train", "test"), classes=("cat", "cow", "dog"), n=8)
    quick = ["data=image_folder", "data.root=photos", "data.shape=[3,16,16]", "data.val_fraction=0.25", "logger=none"]
    quick += ["augment=autoaugment", "trainer.max_epochs=1", "callbacks.images=null", "trainer.accelerator=cpu"]
    trained = run("train.py", *quick, "hydra.run.dir=run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "18 train, 6 val, 24 test images" in trained.stdout
    judge = ["ckpt_path=run/checkpoints/best.ckpt", "poster=null", "distances.steps=2", "hydra.run.dir=out"]
    judged = run("evaluate.py", *judge, cwd=tmp_path)
    assert judged.returncode == 0, judged.stderr
    assert json.loads((tmp_path / "out/report.json").read_text())["models"][0]["images"] == 24
    lost = run("train.py", *quick, "data.root=nowhere", cwd=tmp_path)
    assert lost.returncode == 1
    assert "data.root=nowhere has no folder train, test; put one folder a class in train/" in lost.stderr
