import pytest
import torch

from wdro_train.utils import blocks
from wdro_train.utils.blocks import by_blocks


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Two images of three pixels each fill a block."""
    monkeypatch.setattr(blocks, "_BLOCK", 6)


def sums(images, shift, factor):
    seen.append(len(images))
    moved = images * factor + shift[:, None]
    return moved, moved.sum(1)


seen = []


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("overwrite", [False, True])
def test_the_result_is_that_of_the_whole(count, overwrite):
    images, shift = torch.arange(3.0 * count).view(count, 3), torch.arange(float(count))
    whole = sums(images, shift, 2.0)
    seen.clear()
    found = by_blocks(sums, images, shift, 2.0, into=images if overwrite else None)
    assert seen == [2] * (count // 2) + [1] * (count % 2)
    for part, expected in zip(found, whole, strict=True):
        assert torch.equal(part, expected)
    if overwrite and count > 2:
        assert found[0] is images


def test_a_single_tensor_and_a_scalar_tensor():
    images = torch.rand(5, 3)
    assert torch.equal(by_blocks(torch.mul, images, torch.tensor(2.0)), 2 * images)


def test_gradients_pass():
    images = torch.rand(5, 3, requires_grad=True)
    by_blocks(torch.square, images).sum().backward()
    assert torch.equal(images.grad, 2 * images.detach())


def test_a_function_may_write_in_place():
    images = torch.rand(5, 3)
    double = 2 * images
    found = by_blocks(lambda block: block.mul_(2), images, into=images)
    assert found is images
    assert torch.equal(images, double)
