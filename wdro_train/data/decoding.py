"""From an image file of any format, size, colour mode and bit depth to pixels of one shape."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import v2

from wdro_train.utils.contract import PIXEL_ROUNDING
from wdro_train.utils.errors import UserError

# The number of the tag, and what undoes each of its values; 1 is upright (Exif 2.32, section 4.6.4).
_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Tags of the TIFF 6.0 specification: bits of a sample, and whether 0 is black or white.
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


class UnreadableImageError(UserError):
    """An image that cannot be used, named in one sentence.

    A loader process hands an exception over as text: its class is called with the whole traceback in the place of the
    message. This class finds the sentence in it, so that the main process raises what the loader process raised.
    """

    def __init__(self, message: str) -> None:
        if message.startswith("Caught ") and "Traceback (most recent call last)" in message:
            message = message.rpartition(f"{type(self).__name__}: ")[2].strip()
        super().__init__(message)


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """The first frame of an image file, decoded.

    Args:
        path: Of the file.

    Raises:
        UnreadableImageError: No such file, not permitted, not an image, damaged, or larger than Pillow decodes.
    """
    try:
        # Not by its name: Pillow would map an uncompressed TIFF into memory, and then ignores its orientation.
        with open(path, "rb") as file, Image.open(file) as image:
            _check_size(image.size, path)
            image.load()
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImageError(_too_large(path)) from error
    except Exception as error:  # a decoder raises nearly anything on a damaged file: SyntaxError, struct.error, ...
        raise UnreadableImageError(f"{path} cannot be read as an image ({reason(error)}); mend or remove it") from error
    return image


def reason(error: Exception) -> str:
    """Why an image could not be read, in a few words for a message.

    Args:
        error: What Pillow, or the operating system, has raised.
    """
    if isinstance(error, UnidentifiedImageError):
        return "it is empty or in no format that Pillow knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class Fit:
    """Brings an image of any size and colour mode to one shape, as evaluation protocols do: scale, then cut the centre.

    The image keeps its proportions. It is scaled until it just covers the shape, and its centre is cut out. With
    `resize` it is scaled until it covers a larger box, of the shape's proportions, whose shorter side has `resize`
    pixels (256 for crops of 224 is usual for ImageNet). An image that covers its box exactly is not scaled, and one
    that has the shape already keeps every bit.

    Colours: one channel is the ITU-R 601 luma, three are RGB; colour profiles are not applied. Transparent pixels are
    laid over white. Grey levels of 16 bits (12 in some TIFF files) keep their depth: the largest integer is 1; colours
    of 16 bits are read as 8. Floating-point pixels must lie in [0, 1] already. The orientation that a camera noted
    (EXIF) is honoured, as viewers do and as torchvision's `ImageFolder` does not.

    Args:
        shape: (C, H, W); C is 1 or 3.
        resize: Pixels of the shorter side before the centre is cut out; None for those of the shape.
    """

    def __init__(self, shape: Sequence[int], resize: int | None = None) -> None:
        self.channels, height, width = shape
        if self.channels not in (1, 3):
            raise UserError(f"data.shape={list(shape)} has {shape[0]} channels; image files have 1 or 3")
        shorter = min(height, width)
        if resize is not None and resize < shorter:
            raise UserError(f"data.resize={resize} is smaller than the images of data.shape={list(shape)}")
        self.size = [height, width]
        self.box = [height, width] if resize is None else [round(n * resize / shorter) for n in (height, width)]

    def __call__(self, image: Image.Image, name: str | os.PathLike[str]) -> Tensor:
        """The pixels of a decoded image, resized and cropped to one shape, in the channels that are asked for.

        Args:
            image: Decoded, in any mode.
            name: What to call it in a message.

        Returns:
            Shape (C, H, W): uint8 in 0..255, or for deeper images float32 in [0, 1].

        Raises:
            UnreadableImageError: Pixels whose scale is unknown, or a size that cannot be handled.
        """
        turn = _turn(image)
        image = _plain(image, "L" if self.channels == 1 else "RGB", name)
        if turn is not None:
            image = image.transpose(turn)
        height, width = self.box
        if height * image.width >= width * image.height:
            size = [height, height * image.width // image.height]
        else:
            size = [width * image.height // image.width, width]
        _check_size(size[::-1], name)
        cut = v2.functional.center_crop(v2.functional.resize(image, size), self.size)
        pixels: Tensor = v2.functional.pil_to_tensor(cut)
        if pixels.is_floating_point():
            pixels = pixels.clamp(0, 1)  # interpolation rounds
        return pixels.expand(self.channels, -1, -1)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The transposition that undoes the rotation noted in the Exif data; None if there is none."""
    try:
        return _TURNS.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # the parser raises nearly anything on damaged metadata, which says nothing about the pixels
        return None


def _plain(image: Image.Image, mode: str, name: str | os.PathLike[str]) -> Image.Image:
    """The image in mode L or RGB, or in mode F with values in [0, 1]."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep(image, name)
    try:
        if image.has_transparency_data:
            colours = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
        elif image.mode not in ("1", "L", "P", "RGB"):
            image = image.convert("RGB")  # not every mode has a way to L
        return image.convert(mode)
    except ValueError as error:
        raise UnreadableImageError(
            f"{name} has the colour mode {image.mode}, which Pillow cannot turn into RGB; save it as RGB"
        ) from error


def _deep(image: Image.Image, name: str | os.PathLike[str]) -> Image.Image:
    """Grey levels of more than 8 bits as floating point in [0, 1]."""
    tags = getattr(image, "tag_v2", {})
    levels = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        full = 1.0
        if not ((levels >= -PIXEL_ROUNDING) & (levels <= 1 + PIXEL_ROUNDING)).all():
            raise UnreadableImageError(
                f"{name} has floating-point pixels in [{levels.min():g}, {levels.max():g}]; divide them by their "
                "full scale, so that they lie in [0, 1]"
            )
    elif image.mode == "I" and image.format not in ("PNG", "PPM"):  # those two mean 16 bits by it
        raise UnreadableImageError(
            f"{name} has 32-bit or signed integers as pixels, whose full scale is unknown; save it with 8 or 16 bits "
            "or as floating point in [0, 1]"
        )
    else:
        full = 2.0 ** (12 if tuple(tags.get(_TIFF_BITS, ())) == (12,) else 16) - 1
    shares = levels / full
    if full > 1 and tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        shares = 1 - shares
    if "transparency" in image.info:
        shares[levels == image.info["transparency"]] = 1
    return Image.fromarray(shares.clip(0, 1).astype(np.float32))


def _check_size(size: Sequence[int], name: str | os.PathLike[str]) -> None:
    if Image.MAX_IMAGE_PIXELS is not None and size[0] * size[1] > Image.MAX_IMAGE_PIXELS:
        raise UnreadableImageError(_too_large(name, size))


def _too_large(name: str | os.PathLike[str], size: Sequence[int] | None = None) -> str:
    has = "has" if size is None else f"has, or would be scaled to, {size[0]} x {size[1]} pixels, which is"
    return f"{name} {has} more than Pillow's limit of {Image.MAX_IMAGE_PIXELS:,} pixels; shrink it"
