"""Images that are decoded once into a folder are bit for bit those that would be decoded anew each time."""

import numpy as np
import pytest
import torch
from PIL import Image

from wdro_train.data import ImageFolderDataModule, UnreadableImageError, folders
from wdro_train.data.decoded_once import IMAGES_IN_A_PART, decode, decoded, parts_of
from wdro_train.data.image_sets import ImageArrays, ImageFiles
from wdro_train.data.order import Order
from wdro_train.utils.errors import UserError

SETUP = {"num_classes": 2, "mean": [0.5], "std": [0.2], "delta": {"linf": "4/255"}}
FOLDERS = {"train": "train", "val": "val", "test": "test"}
N = 2 * IMAGES_IN_A_PART + 5


class Own:
    """A kind of set that this package does not know."""

    def __init__(self, images):
        self.images, self.labels = images, torch.zeros(len(images), dtype=torch.int64)

    def batch(self, rows):
        return self.images[rows]


def files(images, positions=None):
    positions = torch.arange(len(images)) if positions is None else positions
    return ImageFiles(lambda k: images[k], torch.arange(len(positions)), positions, Order.DRAWN)


def kinds():
    torch.manual_seed(0)
    bytes_, floats = torch.randint(0, 256, (N, 3, 5, 4), dtype=torch.uint8), torch.rand(N, 3, 5, 4)
    mixed = [floats[k] if k % 50 == 7 else bytes_[k] for k in range(N)]
    deep_at_the_end = [floats[k] if k > N - 3 else bytes_[k] for k in range(N)]
    return {
        "8 bits": files(bytes_),
        "another order": files(bytes_, torch.randperm(N)),
        "floating point": files(floats),
        "some deeper in every part": files(mixed),
        "deeper in the last part": files(deep_at_the_end),
        "integers of 64 bits": files(bytes_.long()),
        "own": Own(floats),
        "own, float64": Own(floats.double()),
        "own, bfloat16": Own(floats.bfloat16()),
    }


@pytest.mark.parametrize("kind", kinds())
def test_decoded_images_are_the_images(kind, tmp_path):
    arrays = kinds()[kind]
    for rank in range(3):  # as three processes do it
        decode(arrays, tmp_path / "in", parts_of(arrays)[rank::3])
    found = decoded(arrays, tmp_path / "in")
    assert torch.equal(found.labels, arrays.labels)
    assert getattr(arrays, "order", Order.GIVEN) is found.order
    for rows in (torch.arange(N), torch.randperm(N)[:70], torch.tensor([N - 1]), torch.tensor([70, 3, 3, 130])):
        ours, theirs = found.batch(rows), arrays.batch(rows)
        assert ours.dtype == (torch.float32 if theirs.dtype == torch.bfloat16 else theirs.dtype)
        assert torch.equal(ours, theirs.to(ours.dtype))
    some = torch.tensor([64, 2, 128])
    assert torch.equal(found.take(some).batch(torch.arange(3)), found.batch(some))


def test_loader_processes_decode_the_same(tmp_path):
    arrays = kinds()["some deeper in every part"]
    seen = []
    decode(arrays, tmp_path, parts_of(arrays), workers=2, progress=seen.append)
    assert seen == [1, 2, 3]
    assert torch.equal(decoded(arrays, tmp_path).batch(torch.arange(N)), arrays.batch(torch.arange(N)))


def test_pixels_take_a_byte_each_where_the_files_do(tmp_path):
    arrays = kinds()["8 bits"]
    decode(arrays, tmp_path, parts_of(arrays))
    assert sum(np.load(file).nbytes for file in tmp_path.iterdir()) == N * 3 * 5 * 4


def test_each_file_is_opened_once_whatever_is_asked(tmp_path, monkeypatch):
    rng, opened = np.random.default_rng(0), []
    for name in ("cat", "dog"):
        (tmp_path / "test" / name).mkdir(parents=True)
        for k in range(40):
            pixels = rng.integers(0, 256, (6, 6), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "test" / name / f"{k}.png")
    plain = folders.open_image
    monkeypatch.setattr(folders, "open_image", lambda path: opened.append(path) or plain(path))
    data = ImageFolderDataModule(root=str(tmp_path), folders=FOLDERS, shape=[1, 6, 6], **SETUP)
    arrays = data.arrays("test")
    decode(arrays, tmp_path / "in", parts_of(arrays))
    found = decoded(arrays, tmp_path / "in")
    for _ in range(3):
        assert found.batch(torch.arange(80)).shape == (80, 1, 6, 6)
    assert len(opened) == len(set(opened)) == 80
    assert torch.equal(found.batch(torch.arange(80)), arrays.batch(torch.arange(80)))


def test_what_cannot_be_read_or_written_is_said(tmp_path):
    def broken(position):
        raise UnreadableImageError("b.png cannot be read; mend it")

    with pytest.raises(UnreadableImageError, match=r"b\.png"):
        decode(ImageFiles(broken, torch.zeros(3), torch.arange(3)), tmp_path / "in", [0])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="store="):
        decode(kinds()["8 bits"], tmp_path / "file" / "in", [0])


def test_images_in_memory_need_no_decoding():
    arrays = ImageArrays(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    assert list(parts_of(arrays)) == [0]
