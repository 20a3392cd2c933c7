"""Every command of the tools explains itself, and refuses wrong arguments in one sentence before anything is made."""

import argparse
import importlib
import re
import textwrap
from pathlib import Path

import pytest
import torch
from shell import run

import wdro_train.tools
from wdro_train.tools import command_line

FOLDER = Path(wdro_train.tools.__file__).parent
TOOLS = sorted(path.stem for path in FOLDER.glob("*.py") if '__name__ == "__main__"' in path.read_text("utf-8"))


def test_the_commands_are_found():
    assert {"compare_attacks", "compare_methods", "gradient_masking", "step_cost", "wandb_workspace"} <= set(TOOLS)


@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
def test_help_is_written_in_sentences(tool, tmp_path, monkeypatch):
    done = run("-m", f"wdro_train.tools.{tool}", "--help", cwd=tmp_path, env={"COLUMNS": "500"})
    assert done.returncode == 0, done.stderr
    usage, about, *_ = done.stdout.split("\n\n")
    assert usage.startswith(f"usage: python -m wdro_train.tools.{tool} ")
    module = importlib.import_module(f"wdro_train.tools.{tool}")
    assert about == module.__doc__.splitlines()[0]
    parsers = []

    def caught(parser, *_):
        parsers.append(parser)
        raise SystemExit

    for parse in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, parse, caught)
    with pytest.raises(SystemExit):
        module.main()
    explained = {action.dest: action.help for action in parsers[0]._actions if action.dest != "help"}
    assert explained
    for name, text in explained.items():
        assert re.fullmatch(r"[A-Z].*\.", text), name
        assert text in done.stdout


@pytest.mark.parametrize("tool", TOOLS)
def test_figures_are_computed_in_full_float32(tool, monkeypatch):
    """A GPU rounds convolutions to 10 bits unless told not to; what a training step costs is measured with that.

    `torch.export` does not work where a precision was set, and what it writes does not depend on it.
    """
    module, seen, conv = importlib.import_module(f"wdro_train.tools.{tool}"), [], torch.backends.cudnn.conv
    monkeypatch.setattr(module, "main", lambda: seen.append(conv.fp32_precision))
    ending = (FOLDER / f"{tool}.py").read_text("utf-8").partition('if __name__ == "__main__":')[2]
    before = conv.fp32_precision
    try:
        conv.fp32_precision = "tf32"
        exec(textwrap.dedent(ending), vars(module))
        assert conv.fp32_precision == "tf32"
    finally:
        conv.fp32_precision = before
    assert seen == ["tf32" if tool in ("step_cost", "export") else "ieee"]


WRONG = {
    "gradient_masking": [[], ["no.ckpt"], ["{ckpt}", "--limit", "-1"], ["{ckpt}", "--steps", "2.5"]],
    "compare_efforts": [["--config-dir", "no"], ["--efforts", ""], ["limt=5"], ["--json", "/dev/null/in/x.json"]],
    "compare_attacks": [
        ["{ckpt}", "--out", "/dev/null"],
        ["no.ckpt"],
        ["{ckpt}", "--norm", "3"],
        ["{ckpt}", "--p", "0.5"],
        ["{ckpt}", "--delta", "nan"],
    ],
    "step_cost": [["no.ckpt"], ["{ckpt}", "--batch", "0"], ["{ckpt}", "--repeats", "abc"], []],
    "attack_cost": [
        ["no.ckpt"],
        ["{ckpt}", "--images", "0"],
        ["{ckpt}", "--repeats", "abc"],
        ["{ckpt}", "--norm", "3"],
    ],
    "compare_methods": [
        ["nowhere", "--out", "out"],
        [".", "--out", "out", "--deltas", "a,b"],
        [".", "--out", "out"],
        [".", "--out", "out", "--device", "nothing"],
    ],
    "third_party": [["nowhere"], [".", "--limit", "0"], [".", "--autoattack", "2.5"], [".", "--only", "mine"]],
    "wandb_workspace": [[], ["--json", "/dev/null/x.json"]],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A file that is there and holds no run: reading it before the arguments are checked gives another error."""
    path = tmp_path_factory.mktemp("checkpoint") / "best.ckpt"
    torch.save({}, path)
    return path


@pytest.mark.parametrize("tool", WRONG)
def test_wrong_arguments_are_one_sentence(tool, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"wdro_train.tools.{tool}")
    for arguments in WRONG[tool]:
        typed = [item.format(ckpt=checkpoint) for item in arguments]
        monkeypatch.setattr("sys.argv", [tool, *typed])
        with pytest.raises(SystemExit) as caught:
            command_line.run(module.main)
        said = capsys.readouterr().err
        assert caught.value.code == 1, said
        assert said.startswith("error: "), said
        assert said.count("\n") == 1, said
        for value in typed[1:]:
            assert not re.fullmatch(r"-\d+|nan|0|2\.5|abc", value) or value in said, said
    assert list(tmp_path.iterdir()) == []
