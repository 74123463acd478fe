"""``ratedist plan``: its output beside the file that it writes, and what it refuses before any work."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ratedist.cli import main
from ratedist.validate.planning.plan_file import read_plan

Command = Callable[..., tuple[int, str, str]]

REACHED = (
    "--workload",
    "templates",
    "--requests",
    2,
    "--tokens",
    64,
    "--continue",
    4,
    "--threshold",
    0.6,
    0.9,
)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command; returns exit code, standard output and standard error, on one line each."""

    def call(*arguments: object, name: str = "plan") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ratedist", name, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, " ".join(printed.err.split())

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of five layers, so that one is left between the first and last two."""
    from tiny_models import save_llama

    return save_llama(tmp_path_factory.mktemp("models") / "five-layers", 5, context=256)


def test_what_is_printed_is_what_is_written(command: Command, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    given = (*REACHED, "--model", model, "--max-kl", 0.02, "--tolerance", 2, "--check", "--out", out)
    code, printed, err = command(*given, "--json")
    assert code == 0, err
    result, plan = json.loads(printed), read_plan(out)
    assert result["goal"] == plan.goal == {"max_kl": 0.02}
    for name in ("compression", "kl", "error"):
        assert result[f"{name}_predicted"] == plan.predicted[name]
        assert result[f"{name}_measured"] >= 0
    assert result["sensitivity"] == plan.predicted["sensitivity"]
    assert plan.predicted["tolerance"] == 2
    assert plan.predicted["kl_high"] <= 2 * 0.02
    assert set(plan.settings) == {2}
    code, printed, err = command(*given, "--force")
    assert code == 0, err
    assert "traffic more alike (thresholds 0.02 looser): saves" in printed
    assert "measured on other requests: " in printed
    assert command(*given)[0] == 2


def test_a_captures_requests_are_planned_and_others_checked(
    command: Command, model: Path, tmp_path: Path
) -> None:
    """The same as from the workload that was captured, with every choice that a layer has."""
    given = ("--model", model, "--max-kl", 0.05, "--continue", 4, "--check", "--json", "--dtype", "float32")
    given += ("--threshold", 0.6, 0.9, "--variant", "leader", "tree", "--scale", "raw", "own-norm")
    given += ("--criterion", "both", "--mode", "bff", "cff", "--chunk-blocks", 1)
    folder = tmp_path / "captured"
    made = ("--workload", "templates", "--requests", 4, "--tokens", 69, "--out", folder, "--model", model)
    assert command(*made, name="capture")[0] == 0
    code, from_capture, err = command("--capture", folder, *given)
    assert code == 0, err
    code, from_workload, err = command(*REACHED[:6], *given)
    assert code == 0, err
    assert json.loads(from_capture) == json.loads(from_workload)
    code, printed, err = command("--capture", folder, *given, "--drift-to", "edited")
    assert code == 0, err
    drift = json.loads(printed)["sensitivity"]["drift"]
    assert (drift["to"], drift["requests"]) == ("edited", 2)
    assert [point["share"] for point in drift["points"]] == [0, 0.5, 1]
    at_home = json.loads(from_capture)
    assert drift["points"][0]["kl"] == at_home["kl_measured"]
    assert drift["points"][0]["compression"] == pytest.approx(at_home["compression_measured"])
    assert drift["promise"] == {"of": "kl", "limit": pytest.approx(1.5 * 0.05)}
    code, printed, err = command(*REACHED, "--model", model, "--max-error", 0.5, "--drift-to", folder)
    assert code == 0, err
    assert "other requests, part of them templates" in printed
    assert "With requests from templates, a relative error of at most 0.75 is kept" in printed
    code, _, err = command(*REACHED, "--model", model, "--max-error", 0.5, "--drift-to", "nonsense")
    assert code == 2
    assert "workload = 'nonsense': must be one of unrelated" in err
    code, _, err = command("--capture", folder, "--workload", "templates", *given)
    assert code == 2
    assert "workload = '--workload, --capture': give exactly one of --workload, --prompts, --capture" in err


def test_more_requests_in_service_than_were_seen(command: Command, model: Path, tmp_path: Path) -> None:
    """Predicted is for those in service, and so many are fused to check it."""
    out = tmp_path / "plan.json"
    given = (*REACHED, "--requests", 4, "--model", model, "--min-saving", 0.05, "--continue", 4)
    code, printed, err = command(*given, "--serve", 6, "--check", "--json", "--out", out)
    assert code == 0, err
    result, plan = json.loads(printed), read_plan(out)
    service = plan.predicted["service"]
    assert (service["requests"], service["calibration_requests"]) == (6, 4)
    assert result["compression_predicted"] == service["compression"]
    assert result["compression_low"] <= service["compression"] <= result["compression_high"]
    code, printed, err = command(*given)
    assert code == 0, err
    assert "in service" not in printed
    for arguments, message in (
        (
            ("--serve", 4),
            "serve = 4: must be more than the 4 calibration requests; for as many, leave it out",
        ),
        (
            ("--serve", 9, "--variant", "centroid"),
            "serve: variant = 'centroid': is not predicted; leader, tree",
        ),
    ):
        code, _, err = command(*given, *arguments)
        assert code == 2
        assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "goal = None: give exactly one of --max-kl, --max-error, --min-saving"),
        (("--max-kl", 0.02, "--min-saving", 0.3), "goal = 'max_kl, min_saving': give exactly one of"),
        (("--max-kl", 0.02, "--requests", 1), "requests = 1: needs at least two calibration requests"),
        (("--max-kl", 0.02, "--bits", 9), "bits = 9: must be 16, or 1 to 8"),
        (("--max-kl", 0.02, "--threshold", 3), "threshold = 3.0: must lie within"),
        (("--max-kl", 0.02, "--threshold", "high"), "threshold = 'high': must be a number"),
        (("--max-kl", 0.02, "--variant", "forest"), "variant = 'forest': must be one of leader, tree"),
        (("--max-kl", 0.02, "--scale", "half"), "scale = 'half': must be one of own-norm, raw, projection"),
        (("--max-kl", 0.02, "--mode", "aff"), "mode = 'aff': must be one of bff, cff"),
    ],
)
def test_refuses_before_any_work(command: Command, arguments: tuple[object, ...], message: str) -> None:
    code, _, err = command(*arguments)
    assert code == 2
    assert message in err


def test_goals_out_of_reach_say_what_the_best_is(command: Command, model: Path) -> None:
    for goal, message in (
        (("--min-saving", 0.9), "min_saving = 0.9: is out of reach: the most that these settings save is"),
        (("--max-kl", -1), "max_kl = -1.0: must be positive"),
        (("--max-kl", 0.02, "--tolerance", 0.5), "tolerance = 0.5: must be at least 1"),
    ):
        code, _, err = command(*REACHED, "--model", model, *goal)
        assert code == 2
        assert message in err
