"""What a run shows: two lines in a terminal, a line for each epoch in a file, and honest accuracies at the end."""

import fcntl
import functools
import io
import json
import logging
import math
import os
import pty
import re
import struct
import subprocess
import termios

import pytest
import torch
from lightning import Callback
from rich.console import Console
from rich.text import Text
from shell import adversary, classifier, command, fitted, loader, run, trainer

from wdro_train.attacks import MinimalDistance
from wdro_train.config import sweep_job
from wdro_train.config.sweep_job import SweepJob
from wdro_train.data import Digits
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.training import cost, run_output
from wdro_train.training.callbacks import ProgressBar, progress
from wdro_train.training.callbacks.adversary import default_test_distances
from wdro_train.training.cost import RunCost, StageCost
from wdro_train.training.module import RobustClassifier
from wdro_train.training.progress_lines import Progress, accuracies, two_lines
from wdro_train.training.time_left import TimeLeft

SHORT = ["trainer.max_epochs=2", "attack.steps=1", "trainer.limit_train_batches=2", "model.width=4"]
SHORT += ["trainer.accelerator=cpu", "logger=csv", "callbacks.images=null"]
LONG = Progress(
    stage="validation",
    done=312,
    total=1024,
    epoch=123,
    epochs=1000,
    left=360_000.0,
    values=dict.fromkeys(("loss", "clean", "adversarial", "worst case", "certified"), 0.5),
    job=SweepJob(12, 345, "attack.p=1.5 attack.delta=0.125 method=worst_case seed=12345", alone=True, each=100.0),
)


def drawn(progress, width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    console.print(two_lines(progress))
    return [Text.from_ansi(line) for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("progress", [LONG, Progress(), Progress(stage="test", done=1, total=2)])
def test_two_lines_at_any_width(progress, width):
    lines = drawn(progress, width)
    assert len(lines) == 2
    assert all(line.cell_len <= width for line in lines)


def test_what_stands_in_the_lines():
    first, second = (
        line.plain for line in drawn(Progress("training", 21, 35, 3, 15, 41.0, values={"loss": 0.594}), 80)
    )
    assert first.startswith("epoch 3/15  training ")
    assert first.rstrip().endswith("21/35 41 s left")
    assert second.strip() == "loss 0.5940"


def test_bounds_are_rounded_away_from_the_claim_while_a_run_goes_on():
    """To the nearest, 0.28818.. certified would claim too much, and 0.09444.. as an upper bound too little."""
    values = {"clean": 83 / 288, "worst case": 34 / 360, "certified": 83 / 288 - 1e-5}
    _, second = (line.plain for line in drawn(Progress("training", values=values), 80))
    assert second.strip() == "clean 0.2882  worst case 0.0945  certified 0.2881"
    assert progress._named(values) == ["clean 0.2882", "worst case 0.0945", "certified 0.2881"]


def test_of_a_sweep_the_time_left_is_that_of_all_jobs():
    """Two jobs have taken 60 seconds; the third of five needs another 10, and two follow."""
    job = SweepJob(3, 5, "seed=2", alone=True, each=30.0)
    first, _ = drawn(Progress("training", 1, 2, 1, 1, 10.0, job=job), 80)
    assert first.plain.startswith("job 3/5  seed=2  epoch 1/1  training")
    assert "1:10 min left" in first.plain


def test_time_left_is_unknown_before_anything_is_timed():
    time = TimeLeft()
    assert time.seconds(steps=3, batches=0) is None
    time.trained(2.0)
    time.trained(4.0)
    assert time.seconds(steps=3, batches=5) == 9.0
    time.evaluated(1.0)
    assert time.seconds(steps=3, batches=5) == 14.0
    assert time.seconds(steps=0, batches=0) == 0.0


def test_shown_values_have_one_order():
    logged = {
        "val/certified_acc": torch.tensor(0.1),
        "val/clean_acc": torch.tensor(0.9),
        "val/spent": torch.tensor(5.0),
    }
    assert list(accuracies(logged, "val/")) == ["clean", "certified"]


def fit(console, epochs=2, **kwargs):
    bar = ProgressBar(test=False, console=console)
    door = trainer([adversary(), bar], max_epochs=epochs, enable_progress_bar=True, **kwargs)
    door.fit(classifier(fitted()), loader(48, 16), loader(41, 16, start=300))
    return bar


def test_a_file_gets_a_line_an_epoch(capsys):
    fit(Console(file=io.StringIO()))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    for line in lines:
        assert re.fullmatch(
            r"epoch \d/2  loss \d\.\d{4}  clean 0\.\d{4}  adversarial 0\.\d{4}  \d+ s(, \d+ s left)?", line
        )


def test_a_job_of_a_sweep_leaves_the_output_to_the_sweep(capsys, monkeypatch):
    sweep_job.announce(SweepJob(1, 2, "seed=0", alone=False))
    try:
        bar = fit(Console(file=io.StringIO(), force_terminal=True))
        assert bar._live is None
        assert capsys.readouterr().out == ""
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setenv("SLURM_STEP_ID", "0")
        assert not run_output.is_quiet()  # its log would be empty
    finally:
        sweep_job.forget()
    assert sweep_job.current() is None


def test_brackets_and_colons_are_no_markup(capsys, caplog):
    """A folder may be called so, and a library's warning may say so; neither is cut, and neither ends the run."""
    texts = ["run folder  runs/[a]/b", "see [/docs]", "a :smile: b"]
    log, handler = logging.getLogger(run_output.LOG), logging.NullHandler()
    log.addHandler(handler)
    try:
        with caplog.at_level(logging.INFO, run_output.LOG):
            run_output.say(*texts)
    finally:
        log.removeHandler(handler)
    assert capsys.readouterr().out.splitlines() == texts
    assert [record.getMessage() for record in caplog.records if record.name == run_output.LOG] == texts


@pytest.mark.parametrize("returned", [None, {}])
def test_a_training_step_of_ones_own_need_not_return_its_loss(returned, monkeypatch):
    """It optimizes by itself, or leaves out a batch."""

    class Own(RobustClassifier):
        def __init__(self, model):
            super().__init__(model)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            return returned

    class Redraw(Callback):
        def on_train_batch_end(self, *_):
            bar._live.refresh()

    # The loss is looked at after every step, and the test itself draws: a thread that does may not get its turn.
    monkeypatch.setattr(progress, "_PER_SECOND", math.inf)
    monkeypatch.setattr(progress, "Live", functools.partial(progress.Live, auto_refresh=False))
    console = Console(file=io.StringIO(), force_terminal=True)
    bar = ProgressBar(test=False, console=console)
    door = trainer([adversary(), bar, Redraw()], max_epochs=1, enable_progress_bar=True)
    door.fit(Own(fitted()), loader(48, 16), loader(41, 16, start=300))
    assert "training" in console.file.getvalue()


def test_the_terminal_is_left_as_it_was_after_an_error():
    class Breaks(Callback):
        def on_train_batch_end(self, *_):
            assert bar._live is not None
            raise RuntimeError("broken")

    bar = ProgressBar(console=Console(file=io.StringIO(), force_terminal=True, width=80))
    with pytest.raises(RuntimeError, match="broken"):
        trainer([bar, Breaks()], enable_progress_bar=True).fit(classifier(), loader(48, 16))
    assert bar._live is None


def judged(**kwargs):
    """What a test logs, and the callback."""
    callback = adversary(**kwargs)
    (values,) = trainer([callback]).test(classifier(fitted()), loader(60, 20, start=300), verbose=False)
    return values, callback


def test_a_test_tells_the_worst_case_of_the_whole_set():
    """By distances over the set as one distribution: never more than what W-PGD leaves, batch by batch."""
    values, callback = judged(delta=0.04)
    network = fitted()
    images, labels = next(iter(loader(60, 60, start=300)))
    found = default_test_distances(callback.ball)(network, images, labels)
    alone = RobustnessCurve(found.distances.numpy()).accuracy(0.04, 2.0)
    assert values["test/worst_acc"] <= min(values["test/adv_acc"], alone) + 1e-6
    assert values["test/worst_acc"] < values["test/adv_acc"] - 0.02  # and here it is far below
    assert values["test/worst_ratio"] == pytest.approx(values["test/worst_acc"] / values["test/clean_acc"])
    assert "knapsack over distances of 20 steps and the flips of adv_acc" in callback.worst_case_of_the_test


def test_a_test_without_distances():
    """Where nobody asks for them, and in norms that no minimum-norm attack is for."""
    values, callback = judged(test_distances=None)
    assert "test/worst_acc" not in values
    assert callback.worst_case_of_the_test is None
    assert adversary(norm=3).test_judge.distances is None


@pytest.mark.parametrize(("steps", "expected"), [(10, 20), (50, 50)])
def test_a_test_searches_no_shorter_than_a_validation(steps, expected):
    callback = adversary(distances=MinimalDistance(norm=float("inf"), steps=steps))
    assert callback.judge.distances.effort.steps == steps
    assert callback.test_judge.distances.effort.steps == expected
    assert adversary().judge.distances is None


@pytest.mark.slow
def test_two_lines_in_a_terminal_of_80_columns(tmp_path):
    """A real terminal: every redrawing goes one line up at most, and no line is wider than the terminal."""
    often = tmp_path / "often.py"  # a quick processor is through in a few frames of the usual four a second
    often.write_text(
        "from wdro_train.cli.train import main\n"
        "from wdro_train.training.callbacks import progress\n\n"
        "if __name__ == '__main__':\n    progress._PER_SECOND = 100\n    main()\n"
    )
    settings = command(str(often), *SHORT, "trainer.limit_train_batches=25", "hydra.run.dir=out", cwd=tmp_path)
    settings["env"].pop("COLUMNS")
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        settings["args"], cwd=tmp_path, env=settings["env"] | {"TERM": "xterm"}, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    text = b""
    while True:
        try:
            text += (part := os.read(ours, 65536))
        except OSError:  # the other side is closed
            break
        if not part:
            break
    os.close(ours)
    assert process.wait() == 0
    shown = text.decode()
    frames = shown.split("\x1b[?25h")[0]
    assert frames.count("\x1b[1A") > 5
    assert "\x1b[1A\x1b[2K\x1b[1A" not in frames
    lines = [Text.from_ansi(re.sub(r"\x1b\[[\d?]*[AKlh]", "", line)) for line in re.split(r"[\r\n]+", frames)]
    assert max(line.cell_len for line in lines if "epoch" in line.plain or "loss" in line.plain) <= 80
    plain = "\n".join(line.plain for line in lines)
    assert re.search(r"epoch [12]/2  training", plain)
    assert "epoch 2/2  validation" in plain
    assert "epoch 0" not in plain
    assert " left" in plain
    assert re.search(r"validation +\S+ [1-4]/5", plain)  # it moves during a validation
    log = (tmp_path / "out/train.log").read_text()
    assert re.findall(r"epoch \d/2", log) == ["epoch 1/2", "epoch 2/2"]


@pytest.mark.slow
def test_file(tmp_path):
    """`python train.py > log`: the same lines as in train.log, and a table of what people publish."""
    done = run("train.py", *SHORT, "hydra.run.dir=out", "seed=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert [line[:9] for line in lines if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert any(line.startswith("test  clean ") for line in lines)
    kept = [line[21:] for line in (tmp_path / "out/train.log").read_text().splitlines()]
    assert kept == lines
    rows = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    assert rows == ["clean_acc", "adv_acc", "worst_acc", "worst_ratio"]
    content = json.loads((tmp_path / "out/metrics.json").read_text())
    assert f"best epoch {content['epoch'] + 1} of 2" in done.stdout
    assert content["test"]["worst_acc"] <= content["test"]["adv_acc"]
    assert content["effort"] in done.stdout


@pytest.mark.slow
def test_dry_run_says_the_cost_first(tmp_path):
    """Time and memory of the run in the fourth line; `verbose=true` prints all values of a run."""
    done = run("train.py", "dry_run=true", *SHORT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["data", "model", "threat", "cost"]
    assert re.fullmatch(
        r"cost    about [\d:]+ \w+ on one cpu device: 2 epochs of [\d:]+ \w+ training and [\d:]+ \w+ validation; "
        r"[\d,]+ MB of memory",
        lines[3],
    )
    assert "name: digits_small_cnn" in done.stdout
    done = run("train.py", *SHORT, "verbose=true", "trainer.max_epochs=1", cwd=tmp_path)
    assert "│ ratio_upper " in done.stdout


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_epochs": 3}, 3),
        ({"max_epochs": 3, "max_steps": 11}, 2),
        ({"max_epochs": -1, "max_steps": 11, "accumulate_grad_batches": 2}, 3),
        ({"max_epochs": -1}, None),
    ],
)
def test_epochs_of_the_estimate(settings, expected):
    """Ten batches an epoch."""
    assert cost._epochs(settings, 10) == expected


@pytest.mark.parametrize(
    ("limit", "train", "val"), [(None, 1149, 288), (3, 96, 192), (100, 1149, 288), (1.0, 1149, 288), (0.5, 544, 128)]
)
def test_a_limited_run_has_fewer_images(limit, train, val):
    """Of 1149 and 288 images in batches of 32 and 64; passes and images are those of the epochs that will be."""
    shape = {"shape": (1, 8, 8), "num_classes": 10, "mean": [0.3], "std": [0.4]}
    data = Digits(**shape, delta={"linf": 0.1}, batch_size=32, eval_batch_size=64, val_fraction=0.2)
    data.prepare_data()
    data.setup()
    settings = {"limit_train_batches": limit, "limit_val_batches": limit}
    assert [cost._images(data, name, settings) for name in ("train", "val")] == [train, val]


def test_cost_of_a_run_by_hand():
    """Two epochs of 10 steps of 0.5 s and 4 batches of 0.25 s, and a test of 8 such batches."""
    training, validation = StageCost("training", 320, 10, 0.5, 9, 9), StageCost("validation", 64, 4, 0.25, 31.25, 30)
    found = RunCost(training, validation, 2, 8, 300 * 2**20, torch.device("cpu"))
    assert found.seconds == 2 * (5 + 1) + 2
    assert str(found) == "about 14 s on one cpu device: 2 epochs of 5 s training and 1 s validation; 300 MB of memory"
    assert cost.details(found)[1].endswith("each 31.2 times forward and 30 times backward: 2,000 and 1,920 passes")
