"""The table of enclosures, from a report that is written by hand."""

import json
import math

import pytest

from wdro_train.certificates.base import THE_NETWORK
from wdro_train.tools import command_line, enclosure_table


def report(exact=None, certificate=True, about=THE_NETWORK, encloses=True):
    sure = {"method": "exact", "radii": [0.0, 0.05, 0.2, 0.3], "about": about, "encloses": encloses} | (
        {} if exact is None else {"exact": exact}
    )
    attack = {"steps": 30, "restarts": 1, "targets": 0}
    model = {"name": "net", "images": 4, "trained_with": {}, "certificate": sure if certificate else None}
    return {
        "config": {"attack": {"delta": "1/10"}},
        "threat": {"delta": 0.1},
        "models": [model | {"distances": {"attack": attack, "values": [0.0, 0.15, 0.2, "inf"]}}],
    }


def test_accuracies_are_those_of_the_knapsacks(tmp_path, monkeypatch, capsys):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report({"asked": 3, "decided": 2, "budget": 10.0})))
    monkeypatch.setattr("sys.argv", ["enclosure_table", str(path)])
    enclosure_table.main()
    head, _, row = capsys.readouterr().out.strip().split("\n")
    assert head.split(" | ")[4:7] == ["W_inf", "W_2", "W_1"]
    # W_1: a budget of 4 * 0.1 moves 0.05, 0.2 and half of 0.3; or 0.15, 0.2 and, of infinity, nothing.
    assert "| net | 4 | 1/10 | 75.00 | 50.00 .. 75.00 |" in row
    assert "12.50 .. 25.00 | exact, 10 s: 2 of 3 decided | 30 steps, 1 restarts, 0 targets |" in row
    assert math.isclose(0.05 + 0.2 + 0.3 / 2, 4 * 0.1)


def test_without_certificate_there_is_an_upper_end_only():
    assert "| 75.00 | 75.00 | 39.07 | 25.00 | none |" in enclosure_table.table([report(certificate=False)])


@pytest.mark.parametrize(
    ("about", "says"),
    [(THE_NETWORK, "exact, contradicted"), ("the smoothed one", "exact, encloses nothing: of the smoothed")],
)
def test_what_encloses_nothing_is_in_no_interval(about, says):
    row = enclosure_table.table([report(about=about, encloses=False)]).splitlines()[-1]
    assert "| 75.00 | 75.00 | 39.07 | 25.00 |" in row
    assert says in row


@pytest.mark.parametrize("content", ["no json", "{}"])
def test_other_files_are_refused(content, tmp_path, monkeypatch, capsys):
    path = tmp_path / "report.json"
    path.write_text(content)
    monkeypatch.setattr("sys.argv", ["enclosure_table", str(path)])
    with pytest.raises(SystemExit):
        command_line.run(enclosure_table.main)
    assert "give a report.json" in capsys.readouterr().err
