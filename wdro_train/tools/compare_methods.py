"""`python -m wdro_train.tools.compare_methods FOLDER`: judge every run of a study alike, with table and figures.

FOLDER holds one run a subfolder, named `<method>_<seed>`, as `python train.py +study=fashion_linf` leaves them. What
was judged before is not judged again.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from rich.progress import track
from torch import Tensor

from wdro_train.attacks.base import Stateful
from wdro_train.attacks.gradient import forward
from wdro_train.attacks.mode import attack_mode
from wdro_train.config.resolvers import register_resolvers
from wdro_train.config.run_folders import METRICS_FILE
from wdro_train.data import ImageSet
from wdro_train.evaluation.autoattack import autoattack
from wdro_train.evaluation.engine import robustness_curve
from wdro_train.evaluation.networks import Subject, load_arrays, load_subject
from wdro_train.evaluation.run import ArrayBatches
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.losses import correct
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.tools import command_line
from wdro_train.tools.compare_attacks import measure
from wdro_train.tools.step_cost import count
from wdro_train.training.callbacks import AdversarialWeightPerturbation
from wdro_train.training.checkpoint import read_checkpoint
from wdro_train.utils import tables
from wdro_train.utils.devices import add_device, resolve_device
from wdro_train.utils.errors import UserError
from wdro_train.utils.files import replacing, write_csv, write_json, write_text
from wdro_train.utils.trusted import add_allow_option

matplotlib.use("Agg", force=False)
Result = dict[str, Any]
_ORDERS = {"1": 1.0, "2": 2.0, "inf": math.inf}
_GRID = 41
_COUNTED = 512


def judge(subject: Subject, norm: float, deltas: list[float], limit: int | None) -> Result:
    """One run's numbers on its test set: curves, accuracies, and what a training step costs.

    Args:
        subject: Its network, from `checkpoints/best.ckpt` in the run's folder.
        norm: Ground norm.
        deltas: Radii of the table.
        limit: First so many images only; None for all.
    """
    arrays = load_arrays(subject.config, "test", limit)
    curve = robustness_curve(subject.model, ArrayBatches(arrays, 512), norm=norm)
    grid = np.linspace(0, 2 * max(deltas), _GRID)
    run = subject.path.parent.parent
    method, _, seed = run.name.rpartition("_")
    trained = json.loads((run / METRICS_FILE).read_text())
    return {
        "method": method,
        "seed": int(seed),
        "command": trained["command"],
        "trained_for": trained["threat"],
        "epochs": trained["epochs"],
        "images": len(curve),
        "limit": limit,
        "norm": f"{norm:g}",
        "clean": curve.clean_accuracy,
        "deltas": grid.tolist(),
        "curves": {name: curve.accuracies(grid, p).round(6).tolist() for name, p in _ORDERS.items()},
        "accuracies": {name: {f"{d:g}": curve.accuracy(d, p) for d in deltas} for name, p in _ORDERS.items()},
        "passes": passes(subject, load_arrays(subject.config, "train", _COUNTED)),
    }


def passes(subject: Subject, arrays: ImageSet) -> float:
    """Forward and backward passes of one training step, in pairs an image, counted at the network.

    Perturbing the weights takes the objective's passes once more.

    Args:
        subject: The trained network and its configuration.
        arrays: Images to count on.
    """
    x, y = _on_its_device(arrays, subject)
    attack, objective = subject.construct("attack"), subject.construct("objective")
    for key, state in read_checkpoint(subject.path).get("callbacks", {}).items():
        if key.startswith("DistributionalAdversary") and isinstance(attack, Stateful) and "attack" in state:
            attack.load_state_dict(state["attack"])
    pairs = count(subject.model, x, y, attack if objective.needs_adversary else None, objective)
    perturbed = any(
        str(node.get("_target_", "")).endswith(AdversarialWeightPerturbation.__name__)
        for node in subject.config["callbacks"].values()
        if isinstance(node, dict)
    )
    return pairs + (count(subject.model, x, y, None, objective) if perturbed else 0.0)


def check(subject: Subject, norm: float, delta: float, limit: int) -> Result:
    """AutoAttack, Square included, against the distances on the same images, at p = inf.

    Args:
        subject: Its network, from `checkpoints/best.ckpt` in the run's folder.
        norm: Ground norm.
        delta: Radius.
        limit: First so many images.
    """
    arrays = load_arrays(subject.config, "test", limit)
    ball = WassersteinBall(math.inf, norm, delta)
    x, y = _on_its_device(arrays, subject)
    found = measure("AutoAttack", lambda m, a, b: autoattack(m, a, b, ball), subject.model, x, y, ball)
    with attack_mode(subject.model), torch.no_grad():
        clean = correct(forward(subject.model, x), y).double().mean().item()
    ours = robustness_curve(subject.model, ArrayBatches(arrays, 512), norm=norm)
    return {
        "images": len(y),
        "delta": delta,
        "clean": clean,
        "autoattack": RobustnessCurve(found.distances).accuracy(delta, math.inf),
        "minimal_distance": ours.accuracy(delta, math.inf),
    }


def effort(subject: Subject, norm: float, deltas: list[float], limit: int) -> Result:
    """The accuracies again with ten times the effort: 50 steps, 2 restarts and 3 target classes.

    Args:
        subject: Its network, from `checkpoints/best.ckpt` in the run's folder.
        norm: Ground norm.
        deltas: Radii of the table.
        limit: First so many images.
    """
    batches = ArrayBatches(load_arrays(subject.config, "test", limit), 512)
    weak = robustness_curve(subject.model, batches, norm=norm)
    strong = robustness_curve(subject.model, batches, norm=norm, steps=50, restarts=2, targets=3)
    best = RobustnessCurve.pool([weak.distances, strong.distances])
    found = {
        kind: {name: {f"{d:g}": curve.accuracy(d, p) for d in deltas} for name, p in _ORDERS.items()}
        for kind, curve in (("usual", weak), ("more", best))
    }
    return {"images": len(best), "clean": best.clean_accuracy, **found}


def _on_its_device(arrays: ImageSet, subject: Subject) -> tuple[Tensor, Tensor]:
    """All images and labels of a set, where the network is."""
    device = next(subject.model.parameters()).device
    return arrays.batch(torch.arange(len(arrays.labels))).to(device), arrays.labels.to(device)


def summary(results: list[Result], deltas: list[float]) -> list[dict[str, str]]:
    """One row a method: mean and standard deviation over seeds, in percent."""
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[result["method"]].append(result)
    wide, narrow = f"{max(deltas):g}", f"{min(deltas):g}"
    rows = []
    for method, group in groups.items():
        row = {"training": method, "seeds": str(len(group)), "clean": _spread([r["clean"] for r in group])}
        for p, delta in (("inf", wide), ("2", wide), ("2", narrow), ("1", wide), ("1", narrow)):
            row[f"W_{p} {delta}"] = _spread([r["accuracies"][p][delta] for r in group])
        row[f"R, W_2 {wide}"] = _spread([r["accuracies"]["2"][wide] / r["clean"] for r in group if r["clean"] > 0])
        checked = [r["check"] for r in group if "check" in r]
        row[f"AutoAttack {wide}"] = _spread([c["autoattack"] for c in checked]) if checked else ""
        pushed = [r["effort"] for r in group if "effort" in r]
        row[f"W_2 {wide}, more effort"] = _spread([e["more"]["2"][wide] for e in pushed]) if pushed else ""
        row["passes"] = f"{statistics.mean(r['passes'] for r in group):.1f}"
        rows.append(row)
    return sorted(rows, key=lambda row: -float(row[f"W_2 {wide}"].split()[0]))


def _spread(values: list[float]) -> str:
    percent = [100 * value for value in values]
    return f"{statistics.mean(percent):.1f}" + (f" ± {statistics.stdev(percent):.1f}" if len(percent) > 1 else "")


def figures(results: list[Result], deltas: list[float], folder: Path, shown: Sequence[str] = ()) -> list[Path]:
    """Robustness curves with their confidence band, and clean against W_2 accuracy.

    Args:
        results: One a run.
        deltas: Radii of the table.
        folder: Where the pictures go.
        shown: Methods whose curves are drawn; the leading six if empty.
    """
    wide = f"{max(deltas):g}"
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[result["method"]].append(result)
    ranked = sorted(groups, key=lambda m: -float(np.mean([r["accuracies"]["2"][wide] for r in groups[m]])))
    curves = Figure(figsize=(10, 4), layout="constrained")
    for ax, p in zip(curves.subplots(1, 2, sharey=True), ("2", "inf"), strict=True):
        for method in [m for m in ranked if m in shown] or ranked[:6]:
            group = groups[method]
            values = np.mean([r["curves"][p] for r in group], axis=0)
            rank = ranked.index(method)
            style = ("-", "--", ":", "-.")[rank // 10 % 4]
            (line,) = ax.plot(group[0]["deltas"], values, linestyle=style, color=f"C{rank}", label=method)
            width = RobustnessCurve(np.zeros(group[0]["images"])).band(0.05).width
            # An attack's accuracy has no valid lower end for the distribution the images come from: see `Band`.
            ax.fill_between(
                group[0]["deltas"], values, np.clip(values + width, 0, 1), alpha=0.15, color=line.get_color()
            )
        ax.set_title(f"W_{p}, l_{results[0]['norm']}")
        ax.set_xlabel("radius")
    curves.axes[0].set_ylabel("worst-case accuracy (attack: an upper bound)")
    curves.legend(*curves.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    scatter = Figure(figsize=(8.5, 4.5), layout="constrained")
    ax = scatter.subplots()
    for rank, method in enumerate(ranked):
        pairs = [(r["clean"], r["accuracies"]["2"][wide]) for r in groups[method]]
        (x, y), (wx, wy) = np.mean(pairs, axis=0), np.std(pairs, axis=0, ddof=1) if len(pairs) > 1 else (0.0, 0.0)
        ax.errorbar(x, y, yerr=wy, xerr=wx, fmt="os^v"[rank // 10 % 4], color=f"C{rank}", markersize=5, label=method)
    ax.set_xlabel("clean accuracy")
    ax.set_ylabel(f"worst-case accuracy, W_2 radius {wide}")
    scatter.legend(loc="outside right upper", fontsize=8, title="mean ± deviation over seeds")
    made = [folder / "curves.png", folder / "clean_against_w2.png"]
    for figure, path in zip((curves, scatter), made, strict=True):
        with replacing(path) as file:
            figure.savefig(file, format="png", dpi=120)
    return made


def _finished(folder: Path) -> list[Path]:
    runs = sorted(path.parent.parent for path in folder.glob("*/checkpoints/best.ckpt"))
    runs = [run for run in runs if (run / METRICS_FILE).is_file()]
    for run in runs:
        if not re.fullmatch(r".+_\d+", run.name):
            raise UserError(f"{run} is not named <method>_<seed>; rename it, or set hydra.sweep.subdir next time")
    return runs


def _judged(out: Path, norm: float, deltas: list[float], limit: int | None) -> dict[str, Result]:
    found: dict[str, Result] = {file.stem: json.loads(file.read_text()) for file in sorted(out.glob("runs/*.json"))}
    for name, result in found.items():
        radii, first = result["accuracies"]["2"], result.get("limit")
        if (result["norm"], set(radii), first) != (f"{norm:g}", {f"{d:g}" for d in deltas}, limit):
            raise UserError(
                f"{out}/runs/{name}.json was judged with --norm {result['norm']} --deltas {','.join(radii)}"
                f"{' without --limit' if first is None else f' --limit {first}'}; give the same, or another --out"
            )
    return found


def _names(listed: str, methods: set[str], option: str) -> list[str]:
    names = [name for name in listed.split(",") if name]
    if unknown := sorted(set(names) - methods):
        raise UserError(f"--{option}: no run of {', '.join(unknown)}; choose from {', '.join(sorted(methods))}")
    return names


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = command_line.Parser(prog="python -m wdro_train.tools.compare_methods", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=command_line.folder, help="one run a subfolder, named <method>_<seed>")
    parser.add_argument("--out", type=Path, required=True, help="where the results go")
    parser.add_argument(
        "--norm",
        type=command_line.ball("norm"),
        choices=(1.0, 2.0, math.inf),
        default=math.inf,
        help="ground norm (default inf)",
    )
    parser.add_argument("--deltas", type=command_line.radii, default="0.05,0.1", help="two radii (default 0.05,0.1)")
    parser.add_argument("--limit", type=command_line.whole(1), default=None, help="first so many test images only")
    parser.add_argument("--autoattack", default="", help="methods to check with AutoAttack, such as pgd_at,worst_case")
    parser.add_argument(
        "--autoattack-images", type=command_line.whole(1), default=1000, help="on so many images (default 1000)"
    )
    parser.add_argument("--effort", default="", help="methods to judge once more with ten times the effort")
    parser.add_argument(
        "--effort-images", type=command_line.whole(1), default=2000, help="on so many images (default 2000)"
    )
    parser.add_argument("--curves", default="", help="methods whose curves are drawn (default: the leading six)")
    add_allow_option(parser)
    add_device(parser)
    given = parser.parse_args(arguments)
    device = resolve_device(given.device)

    register_resolvers()
    norm, deltas = given.norm, given.deltas
    runs = _finished(given.folder)
    known = _judged(given.out, norm, deltas, given.limit)
    if not runs and not known:
        raise UserError(f"no finished run in {given.folder}; give the folder of a sweep")
    methods = {name.rpartition("_")[0] for name in [*(run.name for run in runs), *known]}
    chosen = {option: _names(getattr(given, option), methods, option) for option in ("autoattack", "effort", "curves")}
    for option, part, images in (
        ("autoattack", "check", given.autoattack_images),
        ("effort", "effort", given.effort_images),
    ):
        for name, result in known.items():
            done = result.get(part, {}).get("images", images)
            if result["method"] in chosen[option] and done not in (images, result["images"]):
                raise UserError(
                    f"{name} has its {part} on {done} images; give --{option}-images {done}, or another --out"
                )
    for run in track(runs, description="judging"):
        file = given.out / "runs" / f"{run.name}.json"
        load = partial(load_subject, run / "checkpoints/best.ckpt", device=device, allowed=given.allow)
        result = known[run.name] if run.name in known else judge(load(), norm, deltas, given.limit)
        if result["method"] in chosen["autoattack"] and "check" not in result:
            result["check"] = check(load(), norm, max(deltas), given.autoattack_images)
        if result["method"] in chosen["effort"] and "effort" not in result:
            result["effort"] = effort(load(), norm, deltas, given.effort_images)
        write_json(file, result)
    results = [json.loads(file.read_text()) for file in sorted((given.out / "runs").glob("*.json"))]
    rows = summary(results, deltas)
    write_csv(given.out / "table.csv", rows)
    write_text(given.out / "table.md", tables.markdown(list(rows[0]), [list(row.values()) for row in rows]))
    figures(results, deltas, given.out, chosen["curves"])
    width = 100 * RobustnessCurve(np.zeros(results[0]["images"])).band(0.05).width
    tables.show(
        f"{given.out.name}: {results[0]['images']} test images as one distribution, l_{norm:g}",
        list(rows[0]),
        [list(row.values()) for row in rows],
        "mean and standard deviation over seeds, %; for each, the distribution's accuracy is at most "
        f"{width:.2f} points higher at 95 %; W_p by the knapsack over MinimalDistance (upper bounds); passes: forward "
        "and backward passes of a training step, in pairs an image",
    )


if __name__ == "__main__":
    command_line.run(main)
