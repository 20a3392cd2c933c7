"""Small files in the real formats: idx (plain and gzip) and CIFAR's pickles."""

import gzip
import hashlib
import json
import pickle
import struct

import numpy as np
from PIL import Image

PARTS = {"train": "train", "test": "t10k"}


def image_set(n, shape, num_classes=10, seed=0):
    """uint8 images of any shape and labels in which every class appears."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, *shape), dtype=np.uint8), (np.arange(n) % num_classes).astype(np.uint8)


def idx(array):
    """The idx format: type 8 is unsigned bytes, sizes are big-endian."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, sets, packed=False):
    """The four files of MNIST, plain (torchvision's layout) or packed."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, (images, labels) in sets.items():
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            name = f"{PARTS[part]}-{kind}-ubyte"
            content = idx(array)
            (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)


def write_cifar(root, dataset, sets, label_key, monkeypatch):
    """CIFAR's pickled batches; only the checksums that torchvision expects are those of the small files."""
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        names = [name for name, _ in getattr(dataset, f"{part}_list")]
        images, labels = sets[part]
        listed = []
        for name, rows, some in zip(
            names, np.array_split(images, len(names)), np.array_split(labels, len(names)), strict=True
        ):
            planes = rows.transpose(0, 3, 1, 2).reshape(len(rows), -1)
            listed.append([name, _pickle(folder / name, {"data": planes, label_key: some.tolist()})])
        monkeypatch.setattr(dataset, f"{part}_list", listed)
    names = [f"class {k}" for k in range(int(labels.max()) + 1)]
    digest = _pickle(folder / dataset.meta["filename"], {dataset.meta["key"]: names})
    monkeypatch.setattr(dataset, "meta", dataset.meta | {"md5": digest})


def write_folder(root, parts=("train",), classes=("cat", "dog"), n=8, size=(20, 24), seed=0):
    """Colour PNGs and grey JPEGs, one folder a set and in it one a class; the classes differ in brightness."""
    rng = np.random.default_rng(seed)
    for part in parts:
        for k, name in enumerate(classes):
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(n):
                colours = () if i % 4 == 3 else (3,)
                low, high = 255 * k // len(classes), 255 * (k + 1) // len(classes)
                pixels = rng.integers(low, high, (*size, *colours), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i:03d}.{'png' if colours else 'JPEG'}")
    return root


def write_vit(folder, channels=1, size=8, mean=None, std=None):
    """The `config.json` of a tiny vision transformer, and with a mean its `preprocessor_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = {"model_type": "vit", "image_size": size, "patch_size": 4, "num_channels": channels, **sizes}
    (folder / "config.json").write_text(json.dumps(config))
    if mean is not None:
        preset = {"image_processor_type": "ViTImageProcessor", "do_normalize": True, "image_mean": mean}
        (folder / "preprocessor_config.json").write_text(json.dumps(preset | {"image_std": std}))
    return folder


def _pickle(path, content):
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_onnx(path):
    """A linear network of digits, as another program would write it."""
    import onnx
    from onnx import helper, numpy_helper

    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32), "weight")
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("Gemm", ["flat", "weight"], ["logits"])]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", ["batch", 1, 8, 8]), ("logits", ["batch", 10]))
    ]
    graph = helper.make_graph(nodes, "linear", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path
