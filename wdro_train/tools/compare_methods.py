"""Which training method keeps most accuracy? Judge every run of a study alike, with a table and figures.

`python -m wdro_train.tools.compare_methods FOLDER --out RESULTS`. FOLDER holds one run a subfolder, named
`<method>_<seed>`, as `python train.py study=fashion_linf` leaves them. What was judged before is not judged again.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Sequence
from pathlib import Path

from rich.progress import track

from wdro_train.certificates.named import named_certificate
from wdro_train.cli.endings import ending
from wdro_train.config.checkpoint_files import BEST_CHECKPOINT
from wdro_train.config.writable import refuse_unwritable
from wdro_train.theory.band import band_width
from wdro_train.tools import command_line
from wdro_train.tools.certified_runs import certify, chosen_certificates, refuse_uncovered
from wdro_train.tools.judged_runs import JudgedRun, attacked_curve, check, effort, images_digest, judge_run
from wdro_train.tools.kept_judgements import (
    finished,
    judged_before,
    refuse_mixed,
    refuse_other_checkpoints,
    refuse_other_images,
    refuse_repeated_seeds,
)
from wdro_train.tools.loading import add_loading_options, chosen_network
from wdro_train.tools.method_tables import certified_note, figures, images_note, summary
from wdro_train.utils import tables
from wdro_train.utils.devices import resolve_device
from wdro_train.utils.errors import UserError
from wdro_train.utils.files import write_csv, write_json, write_text
from wdro_train.utils.written import TypedRadius

_ABOVE_THE_TABLE = """# Full table

Accuracy in %, mean ± standard deviation over seeds. W_p and AutoAttack figures are attacks' upper bounds, rounded
to nearest; W_p by the knapsack over `MinimalDistance`. {images}.{certified}

"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: The command line; None for that of the process.
    """
    given = _parser().parse_args(arguments)
    refuse_unwritable("--out", str(given.out))
    _refuse_radii(given.deltas)
    resolve_device(given.device)  # refused now, and not after the first run
    runs = finished(given.folder)
    known = judged_before(given.out, given.norm, given.deltas, given.limit)
    if not runs and not known:
        raise UserError(f"no finished run in {given.folder}; give the folder of a sweep")
    refuse_repeated_seeds([*(run.name for run in runs), *known], given.folder, given.out)
    methods = {name.rpartition("_")[0] for name in [*(run.name for run in runs), *known]}
    chosen = {option: _names(getattr(given, option), methods, option) for option in ("autoattack", "effort", "curves")}
    sure = chosen_certificates(given.certificate, sorted(methods))
    refuse_other_checkpoints(runs, known, given.out)
    refuse_mixed(known, runs)
    _refuse_other_samples(known, chosen, given)
    _refuse_other_certificates(runs, known, sure, given)
    _make_folder(given.out)
    ending.advice = "what is finished is kept, and the same command goes on from it"
    for run in track(runs, description="judging"):
        _complete(run, known, chosen, sure, given)
    _publish([known[name] for name in sorted(known)], given, chosen["curves"])


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("compare_methods", __doc__)
    parser.add_argument(
        "folder", type=command_line.folder, help="The folder holds one run a subfolder, named <method>_<seed>."
    )
    parser.add_argument("--out", type=Path, required=True, help="The results go into this folder.")
    parser.add_argument(
        "--norm",
        type=command_line.ball("norm"),
        choices=(1.0, 2.0, math.inf),
        default=math.inf,
        help="The ground norm is 1, 2 or inf, by default inf.",
    )
    parser.add_argument(
        "--deltas",
        type=command_line.radii,
        default="0.05,0.1",
        help="The table shows these radii, one or two, by default 0.05,0.1.",
    )
    parser.add_argument("--limit", type=command_line.whole(1), help="Only the first so many test images are judged.")
    parser.add_argument(
        "--autoattack", default="", help="These methods are checked with AutoAttack, such as pgd_at,worst_case."
    )
    parser.add_argument(
        "--autoattack-images",
        type=command_line.whole(1),
        default=1000,
        help="AutoAttack runs on so many of the judged images, by default 1000.",
    )
    parser.add_argument("--effort", default="", help="These methods are judged once more with ten times the effort.")
    parser.add_argument(
        "--effort-images",
        type=command_line.whole(1),
        default=2000,
        help="They are judged once more on so many of the judged images, by default 2000.",
    )
    parser.add_argument(
        "--certificate",
        default="",
        help="A certificate of all methods, such as ibp, or of one, such as pgd_at=crown, or several of these.",
    )
    parser.add_argument(
        "--certificate-images",
        type=command_line.whole(1),
        help="The certificate judges so many images, by default all that are judged.",
    )
    parser.add_argument(
        "--curves", default="", help="The curves of these methods are drawn, by default the leading six."
    )
    add_loading_options(parser)
    return parser


def _make_folder(out: Path) -> None:
    """Make the folder of the results now, since some file systems say only then that they take none.

    Raises:
        UserError: It cannot be made.
    """
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out} cannot hold a folder runs ({error.strerror}); choose another") from error


def _refuse_radii(deltas: Sequence[TypedRadius]) -> None:
    """Refuse radii that the columns of the table could not hold, or not tell apart.

    Raises:
        UserError: There are more than two; or two that are the same as far as results write them, in six digits.
    """
    typed = ",".join(delta.text for delta in deltas)
    if len(deltas) > 2:
        raise UserError(f"--deltas {typed} has {len(deltas)} radii; give one or two, and another --out for the others")
    if len(set(deltas)) > len({f"{delta:g}" for delta in deltas}):
        raise UserError(f"--deltas {typed} has two radii that agree in six digits; give one of them, or others")


def _names(listed: str, methods: Collection[str], option: str) -> list[str]:
    """The methods that an option lists.

    Raises:
        UserError: There is no run of one of them.
    """
    names = [name for name in listed.split(",") if name]
    if unknown := sorted(set(names) - set(methods)):
        raise UserError(f"--{option}: no run of {', '.join(unknown)}; choose from {', '.join(sorted(methods))}")
    return names


def _refuse_other_samples(known: dict[str, JudgedRun], chosen: dict[str, list[str]], given: argparse.Namespace) -> None:
    """Refuse to put figures from different numbers of images into one column.

    Raises:
        UserError: A run was checked, or judged with more effort, on another number of images.
    """
    for name, result in known.items():
        for option, part, done, images in (
            ("autoattack", "check", result.get("check"), given.autoattack_images),
            ("effort", "effort", result.get("effort"), given.effort_images),
        ):
            asked = result["method"] in chosen[option]
            if asked and done is not None and done["images"] != min(images, total := result["images"]):
                fix = f"give --{option}-images {done['images']}"
                if done["images"] > total:  # as earlier versions did with --limit
                    fix = f"the others are on {total}; remove {given.out}/runs/{name}.json"
                raise UserError(f"{name} has its {part} on {done['images']} images; {fix}, or give another --out")


def _refuse_other_certificates(
    runs: Sequence[Path], known: dict[str, JudgedRun], sure: dict[str, str], given: argparse.Namespace
) -> None:
    """Refuse to put certified figures that are not alike into one column, and certificates that do not cover a network.

    Results count whether the folder of their run is still there or not.

    Raises:
        UserError: A run was certified otherwise than is asked for, or cannot be; or the runs of a method would not all
            have the same certificate on the same number of images.
    """
    for name in sorted(set(sure.values())):
        named_certificate(name, given.norm)
    folders = {run.name: run for run in runs}
    total = max((result["images"] for result in known.values()), default=None)
    images = total if given.certificate_images is None else min(given.certificate_images, total or math.inf)
    planned: dict[str, dict[str, str]] = {}
    for name in sorted({*folders, *known}):
        method, done = name.rpartition("_")[0], known[name].get("certified") if name in known else None
        will = f"{sure[method]} on {images or 'all'} images" if method in sure and name in folders else "no certificate"
        if done is not None:
            will = f"{done['method']} on {done['images']} images"
            if method in sure and (done["method"], done["images"]) != (sure[method], images):
                raise UserError(
                    f"{name} was certified by {will}; give --certificate {method}={done['method']} "
                    f"--certificate-images {done['images']}, or another --out"
                )
        planned.setdefault(method, {}).setdefault(will, name)
    for method, names in planned.items():
        if len(names) > 1:
            parts = ", ".join(f"{name} has {will}" for will, name in names.items())
            raise UserError(
                f"the runs of {method} would not be certified alike: {parts}; give the folder of all of them "
                "and one certificate, or another --out"
            )
    for name, run in folders.items():
        method = name.rpartition("_")[0]
        if method in sure and (name not in known or "certified" not in known[name]):
            refuse_uncovered(chosen_network(given, run / BEST_CHECKPOINT), sure[method], given.norm)


def _complete(
    run: Path,
    known: dict[str, JudgedRun],
    chosen: dict[str, list[str]],
    sure: dict[str, str],
    given: argparse.Namespace,
) -> None:
    """Judge a run and do whatever else is asked for, as far as it was not done before; each part is kept at once.

    Raises:
        UserError: It has other images than the runs that are known.
    """
    checkpoint, file, curve = run / BEST_CHECKPOINT, given.out / "runs" / f"{run.name}.json", None
    if run.name not in known:
        network = chosen_network(given, checkpoint)
        test_images = images_digest(network, given.limit)
        refuse_other_images(run.name, test_images, known)
        curve = attacked_curve(network, given.norm, given.limit)
        known[run.name] = judge_run(network, curve, given.norm, given.deltas, given.limit, test_images)
        refuse_mixed(known)  # how many images a data set has is known only now
        write_json(file, known[run.name], setting="--out")
    done = known[run.name]
    method, total = done["method"], done["images"]
    if method in sure and "certified" not in done:
        images = min(given.certificate_images or total, total)
        network = chosen_network(given, checkpoint)
        done["certified"] = certify(network, sure[method], given.norm, given.deltas, images, curve)
        write_json(file, done, setting="--out")
    if method in chosen["autoattack"] and "check" not in done:
        network = chosen_network(given, checkpoint)
        done["check"] = check(network, given.norm, max(given.deltas), min(given.autoattack_images, total))
        write_json(file, done, setting="--out")
    if method in chosen["effort"] and "effort" not in done:
        network = chosen_network(given, checkpoint)
        done["effort"] = effort(network, given.norm, given.deltas, min(given.effort_images, total))
        write_json(file, done, setting="--out")


def _publish(results: Sequence[JudgedRun], given: argparse.Namespace, shown: Sequence[str]) -> None:
    """Write the table and the figures, and print the table."""
    rows = summary(results, given.deltas)
    head, body = list(rows[0]), [list(row.values()) for row in rows]
    write_csv(given.out / "table.csv", rows, setting="--out")
    about, images = certified_note(results), images_note(results)
    text = _ABOVE_THE_TABLE.format(
        images=images[0].upper() + images[1:], certified=f" {about[0].upper()}{about[1:]}." if about else ""
    )
    write_text(
        given.out / "table.md",
        text + tables.markdown(head, [[cell.replace("|", "\\|") for cell in row] for row in body]),
        setting="--out",
    )
    figures(results, given.deltas, given.out, shown)
    width = tables.rounded_up(100 * band_width(results[0]["images"]), 2)
    tables.show(
        f"{given.out.name}: {results[0]['images']} test images as one distribution, l_{given.norm:g}",
        head,
        body,
        "mean and standard deviation over seeds, %; for each, the distribution's accuracy is at most "
        f"{width} points higher at 95 %; W_p by the knapsack over MinimalDistance "
        f"(upper bounds, rounded to nearest); {images}; {about + '; ' if about else ''}passes: forward and backward "
        "passes of a training step, in pairs an image",
    )


if __name__ == "__main__":
    command_line.run(main)
