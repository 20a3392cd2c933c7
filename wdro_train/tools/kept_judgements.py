"""What a study has: its finished runs, and what was judged of them before, as far as one table may hold both."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

from wdro_train.config.checkpoint_files import BEST_CHECKPOINT
from wdro_train.config.run_folders import METRICS_FILE
from wdro_train.evaluation.digests import file_digest
from wdro_train.evaluation.trained import data_name
from wdro_train.tools.judged_runs import JudgedRun
from wdro_train.tools.study_files import read_judged, read_metrics
from wdro_train.training.checkpoint import read_checkpoint
from wdro_train.training.module import CONFIG_KEY
from wdro_train.utils.errors import UserError


def finished(folder: Path) -> list[Path]:
    """The folders of the runs that have ended.

    Args:
        folder: Holds one run a subfolder.

    Raises:
        UserError: A run whose name does not say its method and its seed, or whose `metrics.json` is damaged.
    """
    runs = sorted(path.parent.parent for path in folder.glob(f"*/{BEST_CHECKPOINT}"))
    runs = [run for run in runs if (run / METRICS_FILE).is_file()]
    for run in runs:
        if not re.fullmatch(r".+_\d+", run.name):
            raise UserError(f"{run} is not named <method>_<seed>; rename it, or set hydra.sweep.subdir next time")
        read_metrics(run)
    return runs


def judged_before(out: Path, norm: float, deltas: Sequence[float], limit: int | None) -> dict[str, JudgedRun]:
    """The runs that were judged before, by name.

    Args:
        out: The folder of the results.
        norm: Ground norm.
        deltas: Radii of the table.
        limit: First so many images; None for all.

    Raises:
        UserError: They were judged with another norm, with other radii or on other images; or a file is damaged.
    """
    found = {file.stem: cast(JudgedRun, read_judged(file)) for file in sorted(out.glob("runs/*.json"))}
    for name, result in found.items():
        radii, first = result["accuracies"]["2"], result.get("limit")
        if (result["norm"], set(radii), first) != (f"{norm:g}", {f"{d:g}" for d in deltas}, limit):
            raise UserError(
                f"{out}/runs/{name}.json was judged with --norm {result['norm']} --deltas {','.join(radii)}"
                f"{' without --limit' if first is None else f' --limit {first}'}; give the same, or another --out"
            )
    return found


def refuse_other_checkpoints(runs: Sequence[Path], known: Mapping[str, JudgedRun], out: Path) -> None:
    """Refuse what was judged of another network than that which a run holds now.

    Results that were written before they named their checkpoint pass, and so do those whose run is gone.

    Args:
        runs: Folders of the finished runs.
        known: What was judged before, by name.
        out: The folder of the results.

    Raises:
        UserError: The checkpoint of a run is not the one that was judged.
    """
    for run in runs:
        kept = known[run.name].get("checkpoint") if run.name in known else None
        if kept is not None and kept != file_digest(run / BEST_CHECKPOINT):
            raise UserError(
                f"{run} was judged from another checkpoint; give another --out, or remove {out}/runs/{run.name}.json"
            )


def refuse_repeated_seeds(names: Iterable[str], folder: Path, out: Path) -> None:
    """Refuse two runs of one method and one seed, which would count as two.

    Args:
        names: Of the runs that go into the table, some perhaps more than once.
        folder: Holds the runs.
        out: The folder of the results.

    Raises:
        UserError: Two names differ only in how the seed is written, such as 0 and 00.
    """
    found: dict[tuple[str, int], str] = {}
    for name in sorted(set(names)):
        method, _, seed = name.rpartition("_")
        if (other := found.setdefault((method, int(seed)), name)) != name:
            raise UserError(
                f"{other} and {name} are both seed {int(seed)} of {method}; remove one of them from {folder} and "
                f"{out}/runs"
            )


def refuse_mixed(results: Mapping[str, JudgedRun], runs: Sequence[Path] = ()) -> None:
    """Refuse to put runs of different data sets, or of different test images, into one table.

    Args:
        results: What was judged, by name.
        runs: Folders of runs that go into the same table and are not judged yet.

    Raises:
        UserError: They differ. Results that were written before they named their data count by their images alone.
    """
    data = {name: result["data"] for name, result in results.items() if "data" in result}
    for run in runs:
        if run.name not in results:
            data[run.name] = data_name(read_checkpoint(run / BEST_CHECKPOINT)[CONFIG_KEY]["data"])
    images = {name: f"{result['images']} test images" for name, result in results.items()}
    for found in (data, images, _content(results)):
        _refuse_differing(found)


def refuse_other_images(name: str, digest: str, results: Mapping[str, JudgedRun]) -> None:
    """Refuse to judge a run on other images than those of the results beside which it would stand.

    Args:
        name: Of the run.
        digest: Of its test images, from `images_digest`.
        results: What was judged, by name.

    Raises:
        UserError: They differ. Results that were written before they had this digest pass.
    """
    _refuse_differing(_content(results) | {name: _in_words(digest)})


def _content(results: Mapping[str, JudgedRun]) -> dict[str, str]:
    return {name: _in_words(result["test_images"]) for name, result in results.items() if "test_images" in result}


def _in_words(digest: str) -> str:
    return f"test images of digest {digest[:12]}"


def _refuse_differing(found: Mapping[str, str]) -> None:
    """Refuse to put runs into one table of which something differs that is the same of all runs of a table."""
    first = next(iter(found), "")
    for name, value in found.items():
        if value != found[first]:
            raise UserError(
                f"{first} is about {found[first]} and {name} about {value}, which no table can hold together; "
                "give a folder of runs of the same data, or another --out"
            )
