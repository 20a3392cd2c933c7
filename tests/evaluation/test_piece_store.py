"""What an evaluation keeps: used again only for what it was made from, shared by processes, never in the way."""

import inspect
import json
import os
import shutil
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import reference_images, reference_network
from PIL import Image
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from shell import PATIENCE, ROOT, run, start
from torch import nn

import wdro_train
from wdro_train.attacks import MinimalDistance
from wdro_train.evaluation import robustness_curve
from wdro_train.evaluation.certified_curve import certified_curve, make_certificate
from wdro_train.evaluation.describe import describe
from wdro_train.evaluation.distances import find_distances
from wdro_train.evaluation.engine import Engine
from wdro_train.evaluation.first_order_grid import first_order_grid
from wdro_train.evaluation.identity import code_identity, identity
from wdro_train.evaluation.piece_store import PieceStore
from wdro_train.evaluation.whole_set_pgd import pgd_whole_set
from wdro_train.models import ExpectedLogits, Normalize
from wdro_train.utils.errors import UserError


def batches(n=30, size=12, start=0):
    x, y = reference_images()
    return list(zip(x[start : start + n].split(size), y[start : start + n].split(size), strict=True))


# One identity


def curve(store, *, network="adversarial", data=None, seed=0, **options):
    model = reference_network(network) if isinstance(network, str) else network
    options = {"norm": "inf", "steps": 2} | options
    return robustness_curve(model, batches() if data is None else data, store=store, seed=seed, **options).distances


def shifted():
    """The reference network behind a normalisation, whose numbers no checkpoint keeps."""
    return nn.Sequential(Normalize([0.3], [0.8]), reference_network("adversarial"))


OTHERS = {
    "network": {"network": "standard"},
    "buffers": {"network": nn.Sequential(Normalize([0.2], [0.8]), reference_network("adversarial"))},
    "restarts": {"network": shifted(), "restarts": 2},
    "targets": {"network": shifted(), "targets": 1},
    "steps": {"network": shifted(), "steps": 3},
    "norm": {"network": shifted(), "norm": 2},
    "seed": {"network": shifted(), "restarts": 2, "seed": 1},
    "images": {"network": shifted(), "data": batches(start=100)},
    "labels": {"network": shifted(), "data": [(x, (y + 1) % 10) for x, y in batches()]},
    "order": {"network": shifted(), "data": batches()[::-1]},
    "batches": {"network": shifted(), "restarts": 2, "data": batches(size=9)},
}


@pytest.mark.slow
@pytest.mark.parametrize("change", OTHERS)
def test_the_same_store_with_anything_else_is_a_fresh_result(tmp_path, change):
    first = curve(tmp_path / "kept", network=shifted(), restarts=2 if change in ("seed", "batches") else 1)
    assert not np.array_equal(curve(tmp_path / "kept", **OTHERS[change]), first)
    assert np.array_equal(curve(tmp_path / "kept", **OTHERS[change]), curve(tmp_path / "fresh", **OTHERS[change]))


CHANGES = {"norm": 2, "step_size": 1.5, "batch_size": 7}
ARGUMENTS = inspect.signature(MinimalDistance).parameters


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_every_setting_of_the_attack_makes_pieces_of_its_own(argument):
    default = {"norm": float("inf")} | {k: p.default for k, p in ARGUMENTS.items() if p.default is not p.empty}
    other = CHANGES.get(argument, default[argument] + 1 if isinstance(default[argument], int) else None)
    assert other is not None, f"say in CHANGES what else {argument} may be"
    assert describe(MinimalDistance(**default)) == describe(MinimalDistance(**default))
    assert describe(MinimalDistance(**default)) != describe(MinimalDistance(**default | {argument: other}))


def _poster(engine, **change):
    given = {"norm": 2, "loss": "ce", "p": 2.0, "delta": 0.5, "steps": 2, "box": True} | change
    return pgd_whole_set(engine, **given).flips


def _grid(engine, **change):
    grid = first_order_grid(engine, **{"norm": 2, "loss": "ce", "orders": [2.0], "deltas": [0.5]} | change)
    return list(grid.v_q.values())


def _certificate(engine, **change):
    given = {"norm": 2.0, "images": 4, "sigma": 0.25, "samples": 30, "alpha": 0.01, "batch_size": 64} | change
    return certified_curve(engine, make_certificate("smoothing", **given), "smoothing").curve.distances


@pytest.mark.parametrize(
    ("work", "change"),
    [
        *((_poster, change) for change in ({"p": 3.0}, {"delta": 1.0}, {"steps": 4}, {"loss": "redlr"}, {"norm": 3})),
        *((_grid, change) for change in ({"orders": [3.0]}, {"deltas": [1.0]}, {"loss": "dlr"}, {"box": False})),
        *((_certificate, change) for change in ({"images": 8}, {"sigma": 0.3}, {"samples": 60}, {"alpha": 0.1})),
    ],
)
def test_stages_do_not_share_pieces_of_other_settings(tmp_path, work, change):
    def found(folder, **given):
        data = batches(4, 2) if work is _certificate else batches()
        return np.asarray(work(Engine(reference_network("adversarial"), data, PieceStore(folder, {})), **given))

    first = found(tmp_path / "kept")
    again = found(tmp_path / "kept", **change)
    assert not np.array_equal(again, first)
    assert np.array_equal(again, found(tmp_path / "fresh", **change))


def test_the_grid_follows_the_whole_set(tmp_path):
    """Upsilon is the set's: a batch that did not change moves differently when another one does."""

    def found(folder, data):
        return _grid(Engine(reference_network("adversarial"), data, PieceStore(folder, {})))

    found(tmp_path / "kept", batches())
    other = [*batches()[:-1], *batches(6, start=200)]
    assert found(tmp_path / "kept", other) == found(tmp_path / "fresh", other)


class _Own(nn.Module):
    def __init__(self, slope):
        super().__init__()
        self.slope, self.inner = slope, nn.Linear(2, 2)

    def forward(self, x):
        return self.inner(self.slope * x)


def test_the_network_is_what_it_computes():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    hooked = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    hooked.load_state_dict(base.state_dict())
    assert describe(hooked) == describe(base)
    assert describe(hooked.train()) == describe(base.eval())  # both are judged in evaluation mode
    hooked[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    others = [hooked, nn.Sequential(*base, nn.Tanh()), nn.Sequential(base[0], nn.Dropout(0.2)), base[0]]
    others += [ExpectedLogits(base, 2), ExpectedLogits(base, 3), _Own(1.0), _Own(2.0)]
    assert len({json.dumps(describe(one)) for one in (base, *others)}) == len(others) + 1
    frozen = identity(base, seed=0, device=torch.device("cpu"))
    assert frozen == identity(base, seed=0, device=torch.device("cpu"))
    assert frozen != identity(base, seed=1, device=torch.device("cpu"))
    assert frozen != identity(base, seed=0, device=torch.device("meta"))


def test_what_cannot_be_read_is_never_the_same(tmp_path):
    with (tmp_path / "file").open("w") as handle:
        assert describe([iter(handle.buffer)]) != describe([iter(handle.buffer)])


def test_an_edited_package_is_another_code(tmp_path):
    shutil.copytree(Path(wdro_train.__file__).parent, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__"))
    assert code_identity(tmp_path / "copy") == code_identity()
    with (tmp_path / "copy/box.py").open("a") as file:
        file.write("\n")
    assert code_identity(tmp_path / "copy") != code_identity()


# Damage


def _rewritten(change):
    """A piece with other content in the right format."""

    def damage(path):
        arrays = load_tensors(path.read_bytes())
        path.write_bytes(save_tensors(change(arrays), metadata=_metadata(path)))

    return damage


def _metadata(path):
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]


def _flipped_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _of_another_batch(path):
    others = sorted(path.parent.glob("*.safetensors"))
    path.write_bytes(others[others.index(path) - 1].read_bytes())


DAMAGE = {
    "lost": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(np.random.default_rng(0).bytes(500)),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped bit": _flipped_bit,
    "misshapen": _rewritten(lambda arrays: {name: array[..., :-1] for name, array in arrays.items()}),
    "other values": _rewritten(lambda arrays: {name: array + array for name, array in arrays.items()}),
    "without seal": lambda path: path.write_bytes(save_tensors(load_tensors(path.read_bytes()))),
    "of another batch": _of_another_batch,
    "foreign": lambda path: np.savez(path.open("wb"), distances=np.zeros(3)),
}


def _stages(engine):
    return find_distances(engine, MinimalDistance(norm=2, steps=2)).distances, _grid(engine), _poster(engine)


@pytest.mark.slow
@pytest.mark.parametrize("at_join", [False, True], ids=["rerun", "join"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_piece_is_an_absent_one(tmp_path, damage, at_join):
    """Every second piece of every stage is damaged, before the rerun or when all are joined."""

    def spoil(*_):
        for path in sorted(tmp_path.glob("*/*/*.safetensors"))[::2]:
            DAMAGE[damage](path)

    def found(**options):
        return _stages(Engine(reference_network("adversarial"), batches(9, 3), PieceStore(tmp_path, {}), **options))

    whole = found()
    last = 3
    if not at_join:
        spoil()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        again = found(
            progress=(lambda stage, done, total=None: done == last and spoil()) if at_join else lambda *_: None
        )
    for mine, theirs in zip(again, whole, strict=True):
        assert np.array_equal(mine, theirs)
    told = [str(one.message) for one in said if "computed again" in str(one.message)]
    assert len(told) == (damage != "lost")


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 3000), st.booleans())
def test_any_bytes_are_a_piece_or_absent(tmp_path_factory, content, place, cut):
    store = PieceStore(tmp_path_factory.mktemp("store"), {})
    arrays = {"a": np.arange(20.0), "b": np.ones((2, 3), dtype=bool)}
    store.save("stage", 0, "batch", arrays)
    (path,) = store.folder.glob("stage/*")
    whole = path.read_bytes()
    place %= len(whole)
    path.write_bytes(whole[:place] + content + (b"" if cut else whole[place + len(content) :]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = store.load("stage", 0, "batch")
    assert found is None or all(np.array_equal(found[name], arrays[name]) for name in arrays)


def test_a_set_that_changes_between_passes_is_refused(tmp_path):
    class Shuffled:
        def __iter__(self):
            return iter([batches()[k] for k in torch.randperm(3)])

    ours = Engine(reference_network("adversarial"), Shuffled(), PieceStore(tmp_path, {}))
    with pytest.raises(UserError, match="fixed order"):
        [_grid(ours) for _ in range(20)]
    with pytest.raises(UserError, match="no batches"):
        _grid(Engine(reference_network("adversarial"), [], PieceStore(tmp_path, {})))


# Locks


def test_the_last_one_removes_the_folder(tmp_path):
    one, two = PieceStore(tmp_path, {"a": 1}), PieceStore(tmp_path, {"a": 1})
    other = PieceStore(tmp_path, {"a": 2})
    one.save("stage", 0, "batch", {"a": np.ones(3)})
    assert not one.discard()
    assert two.load("stage", 0, "batch") is not None
    assert two.discard()
    assert not one.folder.exists()
    assert other.folder.exists()
    other.close()
    assert other.folder.exists()  # an unfinished one keeps its pieces
    assert PieceStore(tmp_path, {"a": 2}).discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_locks_survive_a_race(tmp_path):
    """Processes that open, use and finish one store as fast as they can never lose what they are using."""
    program = tmp_path / "race.py"
    program.write_text(
        "import numpy as np\nfrom wdro_train.evaluation.piece_store import PieceStore\n"
        "for k in range(15):\n"
        "    store = PieceStore('store', {})\n"
        "    store.save('stage', k % 3, 'batch', {'a': np.ones(3)})\n"
        "    assert store.load('stage', k % 3, 'batch') is not None\n"
        "    store.discard()\n"
    )
    racers = [start(program, cwd=tmp_path) for _ in range(3)]
    for racer in racers:
        with racer:
            assert racer.wait(PATIENCE) == 0, racer.stderr
    assert list((tmp_path / "store").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .* store=") as caught:
        curve(tmp_path / "file" / "store")
    assert "\n" not in str(caught.value)
    store = PieceStore(tmp_path, {})
    (store.folder / "stage").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .* store="):
        store.save("stage", 0, "batch", {"a": np.ones(2)})
    with pytest.raises(UserError, match=r"cannot be written .* store="):
        _full_disk(tmp_path)


def _full_disk(folder):
    """Files of this process may hold no more than 4 kB, as on a disk that is full."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        _poster(Engine(reference_network("adversarial"), batches(), PieceStore(folder, {"full": 1})))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


# The command line


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of a small network on the digits, and one on a folder of images."""
    folder = tmp_path_factory.mktemp("trained")
    images(folder / "images", seed=0)
    quiet = ["trainer=cpu", "logger=csv", "callbacks.images=null", "callbacks.progress=null", "model.width=4"]
    quiet += ["test=false", "attack.steps=1", "trainer.max_epochs=3"]
    for name, data in (("digits", []), ("folders", FOLDERS)):
        done = run("train.py", *quiet, *data, f"hydra.run.dir={name}", cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


FOLDERS = ["data=image_folder", "data.root=images", "data.shape=[3,8,8]", "data.batch_size=8", "data.num_workers=0"]


def images(root, seed):
    """Three classes of noisy grey, 12 images each for training and 12 for the test."""
    rng = np.random.default_rng(seed)
    for split in ("train", "test"):
        for level, name in ((40, "dark"), (120, "grey"), (200, "light")):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for k in range(12):
                pixels = (level + rng.normal(0, 30, (8, 8))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{k:02d}.png")


COMMON = ["accelerator=cpu", "poster.losses=[ce]", "poster.pgd_steps=4", "poster.deltas=[0.1]", "distances.steps=6"]
DIGITS = ["ckpt_path=digits/checkpoints/best.ckpt", "limit=48", "batch_size=6", *COMMON]
IMAGES = ["ckpt_path=folders/checkpoints/best.ckpt", "batch_size=4", *COMMON]


def evaluated(folder):
    """The report, without what names the run."""
    found = json.loads((folder / "report.json").read_text())
    for key in ("command", "created", "config"):
        del found[key]
    return found


def pieces(store):
    return len(list(store.glob("*/*/*.safetensors")))


def kill_after(process, store, count, delay=0.0):
    """Kill -9 so many seconds after so many pieces are there; whether it came in time."""
    deadline = time.monotonic() + PATIENCE
    with process:
        while pieces(store) < count:
            if process.poll() is not None:
                assert process.returncode == 0, process.stderr
                return False
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        return process.wait() == -signal.SIGKILL


def elsewhere(folder):
    """A folder on another file system, if there is one."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == folder.stat().st_dev:
        pytest.skip("there is no second file system to write to")
    return memory


@pytest.fixture(scope="module")
def whole(trained):
    """The report of an evaluation that nothing happens to."""
    done = run("evaluate.py", *DIGITS, "store=store_whole", "hydra.run.dir=whole", cwd=trained)
    assert done.returncode == 0, done.stderr
    return evaluated(trained / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_killed_at_random_moments_is_the_same_report(trained, whole, tmp_path, where):
    """One evaluation, killed five times at random moments and resumed each time, is bitwise the uninterrupted one."""
    place = tmp_path if where == "here" else elsewhere(tmp_path) / f"pieces_{os.getpid()}"
    store, killed = place / "store", place / "killed"
    try:
        rng = np.random.default_rng([0, where == "here"])
        line = ["evaluate.py", *DIGITS]
        counts = np.sort(rng.choice(np.arange(1, 26), size=5, replace=False))  # of 3 times 8 batches, and W-PGD
        line += [f"store={store}", f"hydra.run.dir={killed}"]
        for count in counts:
            assert kill_after(start(*line, cwd=trained), store, count, delay=float(rng.uniform(0, 0.02)))
        assert pieces(store) >= counts[-1]
        done = run(*line, cwd=trained)
        assert done.returncode == 0, done.stderr
        assert evaluated(killed) == whole
        assert list(store.iterdir()) == []
    finally:
        if where == "elsewhere":
            shutil.rmtree(place, ignore_errors=True)


@pytest.mark.slow
def test_killed_in_any_round_of_auto_effort_is_the_same_report(trained, tmp_path):
    """Further rounds build on the flips of those before: killed five times among them, the report is the same."""
    line = [
        "evaluate.py",
        *(key for key in DIGITS if not key.startswith("distances")),
        "poster=null",
        "attack.delta=0.02",
    ]
    done = run(*line, f"store={tmp_path / 'whole'}", f"hydra.run.dir={tmp_path / 'report'}", cwd=trained)
    assert done.returncode == 0, done.stderr
    whole = evaluated(tmp_path / "report")
    rounds = len(whole["models"][0]["distances"]["convergence"]["rounds"])
    assert rounds > 5
    store, killed = tmp_path / "store", tmp_path / "killed"
    line += [f"store={store}", f"hydra.run.dir={killed}"]
    rng = np.random.default_rng(2)
    counts = np.sort(rng.choice(np.arange(1, 8 * rounds), size=5, replace=False))  # 8 batches a round
    for count in counts:
        assert kill_after(start(*line, cwd=trained), store, count, delay=float(rng.uniform(0, 0.02)))
    assert pieces(store) >= counts[-1]
    done = run(*line, cwd=trained)
    assert done.returncode == 0, done.stderr
    assert evaluated(killed) == whole


def _swap_classes(folder):
    for split in ("train", "test"):
        (folder / "images" / split / "dark").rename(folder / "swap")
        (folder / "images" / split / "light").rename(folder / "images" / split / "dark")
        (folder / "swap").rename(folder / "images" / split / "light")


def _replace_images(folder):
    images(folder / "images", seed=7)


def _edit_code(folder):
    """A copy of the package whose attack gives up early; returns the door that runs it."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "wdro_train", folder / "edited/wdro_train", ignore=ignored)
    shutil.copytree(ROOT / "conf", folder / "edited/conf")
    file = folder / "edited/wdro_train/attacks/nearest_flip_search.py"
    file.write_text(file.read_text().replace("math.inf: 2.0}", "math.inf: 40.0}"))
    door = folder / "door.py"
    door.write_text(
        "import sys\n"
        "for name in [name for name in sys.modules if name.split('.')[0] == 'wdro_train']:\n"
        "    del sys.modules[name]\n"
        f"sys.path.insert(0, {str(folder / 'edited')!r})\n"
        "from wdro_train.cli.evaluate import main\n"
        "main()\n"
    )
    return door


@pytest.fixture(scope="module")
def unchanged(trained):
    """Distances of the images before anything changes."""
    done = run("evaluate.py", *IMAGES, "poster=null", "hydra.run.dir=before", "store=store_before", cwd=trained)
    assert done.returncode == 0, done.stderr
    return evaluated(trained / "before")["models"][0]["distances"]["values"]


@pytest.mark.slow
@pytest.mark.parametrize("change", [_swap_classes, _replace_images, _edit_code])
def test_what_changes_between_kill_and_rerun_counts(trained, unchanged, tmp_path, change):
    for name in ("folders", "images"):
        shutil.copytree(trained / name, tmp_path / name)
    options = [*IMAGES, "poster=null"]
    assert kill_after(start("evaluate.py", *options, "store=kept", cwd=tmp_path), tmp_path / "kept", 2)
    door = change(tmp_path) or "evaluate.py"
    for name in ("kept", "fresh"):
        done = run(door, *options, f"store={name}", f"hydra.run.dir=after_{name}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert evaluated(tmp_path / "after_kept")["models"][0]["distances"]["values"] != unchanged
    assert evaluated(tmp_path / "after_kept") == evaluated(tmp_path / "after_fresh")


SIDE_BY_SIDE = {
    "first": [],
    "identical": [],
    "attack.delta": ["attack.delta=0.2"],
    "attack.p": ["attack.p=3"],
    "poster": ["poster=null"],
    "fresh": ["resume=false"],
}


@pytest.mark.slow
def test_evaluations_of_one_checkpoint_run_side_by_side(trained, whole, tmp_path):
    """Each reports what it reports alone; the last one to finish removes what they share."""

    def all_of(names, kind, store):
        line = ["evaluate.py", *DIGITS]
        ways = {name: [*SIDE_BY_SIDE[name], f"store={store / name if kind == 'alone' else store}"] for name in names}
        running = [
            start(*line, *way, f"hydra.run.dir={tmp_path / kind / name}", cwd=trained) for name, way in ways.items()
        ]
        for process in running:
            with process:
                assert process.wait(PATIENCE) == 0, process.stderr
        return {name: evaluated(tmp_path / kind / name) for name in names}

    together = all_of(SIDE_BY_SIDE, "together", tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == []
    alone = all_of([name for name in SIDE_BY_SIDE if "." in name or name == "poster"], "alone", tmp_path / "apart")
    for name, report in together.items():
        assert report == alone.get(name, whole)


@pytest.mark.slow
def test_more_ranks_than_batches(trained, tmp_path):
    """The default batch size takes all digits at once: the second rank takes part without a batch."""
    line = ["evaluate.py", "ckpt_path=digits/checkpoints/best.ckpt", "limit=60", *COMMON]
    for devices in (1, 2):
        options = [f"devices={devices}", f"store={tmp_path / 'store'}", f"hydra.run.dir={tmp_path / str(devices)}"]
        done = run(*line, *options, cwd=trained)
        assert done.returncode == 0, done.stderr
    one, two = (evaluated(tmp_path / name)["models"][0] for name in ("1", "2"))
    assert one["distances"]["values"] == two["distances"]["values"]
    assert one["poster"][0]["pgd_acc"] == two["poster"][0]["pgd_acc"]
    assert list((tmp_path / "store").iterdir()) == []
