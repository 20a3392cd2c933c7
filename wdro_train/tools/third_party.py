"""Networks that others trained: their published figures beside what `evaluate.py` certifies and attacks of them.

`python -m wdro_train.tools.third_party FOLDER --mnist DATA`. FOLDER holds the files that `published_networks` names;
docs/results/third_party says where they are from. Each network is judged by a process of `evaluate.py`, and its rows
go into the table at once. What is there with the same settings is not judged again; another `--certificate` or
`--limit` adds rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from wdro_train.certificates.named import RelaxationName
from wdro_train.cli.endings import ending
from wdro_train.config.run_folders import REPORT_FILE
from wdro_train.evaluation.autoattack import require
from wdro_train.tools import command_line, compare_efforts, third_party_table
from wdro_train.tools.enclosure_table import read_report
from wdro_train.tools.published_networks import NETWORKS
from wdro_train.tools.third_party_jobs import SETTINGS_FILE, Job, possible
from wdro_train.tools.third_party_table import Judged
from wdro_train.utils import tables
from wdro_train.utils.errors import UserError
from wdro_train.utils.files import write_json

RIVALS_FILE, CLEAN_FILE = "autoattack.json", "clean.json"


def main(arguments: Sequence[str] | None = None) -> list[Judged]:
    """Run the command.

    Args:
        arguments: The command line; None for that of the process.

    Returns:
        What the table shows.

    Raises:
        UserError: Nothing could be judged, an evaluation has failed, or a figure contradicts a published one.
    """
    given = _parser().parse_args(arguments)
    if given.autoattack:
        require("pyautoattack")
    jobs = [job for name in given.only or NETWORKS if (job := possible(NETWORKS[name], given)) is not None]
    done = {job.folder: job.is_done for job in jobs}  # other settings are refused before any work
    ending.advice = "the same command goes on from what is finished"
    failed: list[str] = []
    for number, job in enumerate(jobs, 1):
        print(f"{number} of {len(jobs)}: {job.network.name}, {'judged before' if done[job.folder] else 'judging'}")
        if not done[job.folder] and not _judge(job):
            failed.append(job.network.name)
            continue
        if not (job.folder / CLEAN_FILE).is_file():
            write_json(job.folder / CLEAN_FILE, {"clean_of_all": job.clean_of_all()})
        if given.autoattack and not (job.folder / RIVALS_FILE).is_file():
            found = compare_efforts.main(
                ["--efforts", given.effort, "--autoattack", *_first(job.keys, given.autoattack)]
            )
            third_party_table.write_rivals(job.folder / RIVALS_FILE, found, given.autoattack)
        third_party_table.write(collected(given.out, given.report), given.out)
    judged = collected(given.out, given.report)
    if not judged:
        raise UserError(
            f"there is nothing to show of {given.folder}; give the folder of the networks, and their images"
        )
    _show(judged, third_party_table.write(judged, given.out))
    if failed:
        raise UserError(f"{', '.join(failed)} could not be judged, for the reasons above; the others are in the table")
    if wrong := [str(check) for one in judged for check in one.checks if check.holds is False]:
        raise UserError(f"published figures are contradicted: {'; '.join(wrong)}")
    return judged


def collected(out: Path, more: Sequence[Path] = ()) -> list[Judged]:
    """All evaluations in a folder of results, in the order of the networks.

    Args:
        out: The folder.
        more: Reports of `evaluate.py` that were made elsewhere; networks in them that nobody published are left out.
    """
    reports = [*sorted(out.glob(f"runs/*/{REPORT_FILE}")), *more]
    found = []
    for path in reports:
        report = read_report(path)
        rivals, images = third_party_table.read_rivals(path.with_name(RIVALS_FILE))
        clean = path.with_name(CLEAN_FILE)
        of_all = json.loads(clean.read_text("utf-8"))["clean_of_all"] if clean.is_file() else None
        names = [str(model["name"]) for model in report["models"]]
        found += [Judged(NETWORKS[name], report, rivals, images, of_all) for name in names if name in NETWORKS]
    order = list(NETWORKS)
    return sorted(found, key=lambda one: order.index(one.network.name))


def evaluate(keys: Sequence[str], folder: Path) -> int:
    """Judge by a process of `evaluate.py`, which says itself how far it is and what is wrong.

    Args:
        keys: Its arguments.
        folder: Where its report goes.

    Returns:
        Its exit code.
    """
    command = [sys.executable, "-m", "wdro_train.cli.evaluate", *keys, f"hydra.run.dir={folder}"]
    return subprocess.run(command, check=False).returncode


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("third_party", __doc__)
    parser.add_argument(
        "folder", type=command_line.folder, help="The folder of the files that their authors published."
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/third_party"),
        help="The table and the reports go into this folder, by default runs/third_party.",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=list(NETWORKS),
        metavar="NAME",
        help="Judge this network only, named as its file without the ending; may be repeated.",
    )
    parser.add_argument("--limit", type=command_line.whole(1), help="Only the first so many images are judged.")
    parser.add_argument(
        "--certificate",
        choices=(*get_args(RelaxationName), "exact"),
        help="Certify all networks by this method; by default by crown, and the ResNet by ibp.",
    )
    parser.add_argument(
        "--at-the-radii",
        action="store_true",
        help="Certify at the published radius and its half alone: faster, but certified W_2 and W_1 are lower.",
    )
    parser.add_argument(
        "--budget", type=command_line.whole(1), default=10, help="Seconds an image of exact, by default 10."
    )
    parser.add_argument(
        "--effort",
        choices=("quick", "auto", "publish"),
        default="auto",
        help="The effort of the attack, by default auto.",
    )
    parser.add_argument(
        "--autoattack",
        type=command_line.whole(1),
        metavar="N",
        help="Run AutoAttack on the first N images, too, beside the search at the same effort, and compare their time.",
    )
    parser.add_argument(
        "--report",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="Show this report.json of evaluate.py as well, which was made elsewhere; may be repeated.",
    )
    parser.add_argument("--mnist", metavar="DATA", help="The folder of MNIST's four .gz files, by default data.")
    parser.add_argument(
        "--fashion-mnist", metavar="DATA", help="The folder of Fashion-MNIST's, by default data or Debian's package."
    )
    parser.add_argument(
        "--cifar10",
        metavar="DATA",
        help="The folder of CIFAR-10 as JPEG files, test/CLASS/NAME, by default data/cifar10_jpeg.",
    )
    return parser


def _judge(job: Job) -> bool:
    """Judge a network; whether it went well."""
    write_json(job.folder / SETTINGS_FILE, job.settings, indent=1)  # before there is a report that they are about
    return evaluate(job.keys, job.folder) == 0


def _first(keys: Sequence[str], images: int) -> list[str]:
    """The keys of the same network on the first so many images."""
    return [*(key for key in keys if not key.startswith("limit=")), f"limit={images}"]


def _show(judged: Sequence[Judged], files: Sequence[Path]) -> None:
    shown = third_party_table.OURS
    tables.show(
        "networks that others trained, l_inf norm, accuracies in %",
        third_party_table.HEAD[:shown],
        [row[:shown] for row in third_party_table.rows(judged)],
        "certified .. attacked, at the published radius and at half of it; the distribution's accuracy lies within the "
        "band of these ends at 95 %; passes: forward and backward passes of the attack, in pairs an image",
        texts=2,
    )
    for one in judged:
        for check in one.checks:
            print(check)
    print(f"table  {', '.join(map(str, files))}")


if __name__ == "__main__":
    command_line.run(main)
