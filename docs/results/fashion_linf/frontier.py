"""Clean accuracy and accuracy under W_inf against accuracy under W_2: the figure of `frontier.md`.

    python docs/results/fashion_linf/frontier.py

reads `frontier.jsonl` and `runs/*.json` beside this file and writes `frontier.png`. A point is a network, the recorded
methods are means over their seeds. All are upper bounds by attacks: W_2 of radius 0.1 by `MinimalDistance` with 30
steps; W_inf of radius 0.1 by AutoAttack (recorded methods) or by its gradient attacks (the others) on the first 500
test images.
"""

import json
import statistics
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

HERE = Path(__file__).parent
NAMES = {
    "pgd_at": "PGD-AT",
    "worst_case": "worst case",
    "worst_case-limit0.2": "worst case, D <= 0.2",
    "worst_case-from-pgd_at": "PGD-AT, then worst case",
    "worst_case-limit0.15-from-pgd_at": "the same, D <= 0.15",
    "w_pgd_at": "W-PGD",
    "udr_at": "udr_at",
    "pgd_at-radius0.15-lr0.002-warmup": "PGD-AT, radius 0.15",
    "pgd_at-radius0.2-lr0.002-warmup": "PGD-AT, radius 0.2",
}
TRIED = {
    "baseline": ("PGD-AT", "^", "#0072B2"),
    "plain": ("worst case, D <= 0.2", "v", "#CC79A7"),
    "inside": ("the same with steps inside delta", "o", "#D55E00"),
    "longer": ("TRADES-like, D <= 0.18, eight epochs", "*", "#E69F00"),
    "wide": ("width 32", "D", "#56B4E9"),
    "other": ("other attempts", "x", "#009E73"),
}


def recorded() -> dict[str, list[tuple[float, float, float]]]:
    """W_2, clean and W_inf accuracy of the runs of each recorded method, in per cent."""
    groups = defaultdict(list)
    for path in sorted((HERE / "runs").glob("*.json")):
        run = json.loads(path.read_text())
        if run["method"] in NAMES:
            row = (run["accuracies"]["2"]["0.1"], run["clean"], run["check"]["autoattack"])
            groups[run["method"]].append(tuple(100 * value for value in row))
    return groups


def main() -> None:
    """Draw the figure."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for method, rows in recorded().items():
        w_2, *others = (statistics.mean(values) for values in zip(*rows, strict=True))
        for panel, value in zip(panels, others, strict=True):
            panel.plot(w_2, value, "s", color="#555555", markersize=5)
            panel.annotate(
                NAMES[method], (w_2, value), fontsize=7, color="#555555", xytext=(4, 4), textcoords="offset points"
            )
    tried = [json.loads(line) for line in (HERE / "frontier.jsonl").read_text().splitlines()]
    for kind, (label, mark, colour) in TRIED.items():
        rows = [run for run in tried if run["kind"] == kind]
        w_2 = [run["usual"]["W_2"] for run in rows]
        for panel, key in zip(panels, ("clean", "apgd"), strict=True):
            panel.plot(w_2, [run[key] for run in rows], mark, color=colour, label=label)
    for panel, name in zip(panels, ("clean", "W_inf 0.1, first 500 images"), strict=True):
        panel.set_xlabel("accuracy under W_2 of radius 0.1, %")
        panel.set_ylabel(f"{name}, %")
        panel.grid(alpha=0.3)
        panel.set_xlim(13, 63)
    panels[0].legend(fontsize=8, loc="lower left", title="here, one network each", title_fontsize=8)
    figure.savefig(HERE / "frontier.png", dpi=110)


if __name__ == "__main__":
    main()
