"What README.md promises of the command line: norms, attacks, attributions and transforms of one's own, models and data"
import json, sys

import pytest

from test_cli import manifest, photos  # noqa: F401 (a fixture)

MINE = """
import torch
from advlook.attacks import pgd
from advlook.balls import L2

def brightness(model, x, y): return x.mean(1, keepdim=True) - 0.5
def mirrored(x): return x.flip(3)
dimmed = {1: lambda x: x, 0.5: lambda x: x / 2}
def strong(model, x, y, ball=L2(1.0), generator=None): return pgd(model, x, y, ball, steps=3, generator=generator)
def half(x): return x
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    "The command in this process, in a folder of its own that holds `mine.py`: (exit code, output, error)"
    from advlook.cli import main
    (tmp_path/"mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADVLOOK_DATA", raising=False)
    monkeypatch.setenv("ADVLOOK_CACHE", str(tmp_path/"cache"))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["advlook", *map(str, words)])
        with pytest.raises(SystemExit) as end: main()
        done = capsys.readouterr()
        return end.value.code or 0, done.out, done.err
    return run


def test_bare_and_version(command):
    "Help that is whole at 80 columns, and the version"
    import advlook
    code, out, err = command()
    assert code == 0 and err == "" and all(word in out for word in ("look", "train", "evaluate"))
    assert command("--version") == (0, f"advlook {advlook.__version__}\n", "")
    code, out, err = command("look", "--help")
    assert code == 0 and "hub:OWNER/REPO/FILE:ARCHITECTURE" in out and "…" not in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_ones_own_functions(command, photos, tmp_path):
    "An attribution, a transform, a curve and an attack of one's own, in l_2; what is printed is narrow, and says all"
    own = ["--attribution", "Brightness=mine:brightness"]
    own += ["--transform", "mirror=mine:mirrored", "--transform", "dim=mine:dimmed"]
    words = ["look", "--models", "A=bundled:scales/std-0", "--data", photos, "--n", 6, "--norm", "l2", "--eps", "0.5"]
    code, out, err = command(*words, *own, "--attack", "mine:strong", "--out", "r")
    assert code == 0, err
    for said in "look scale in pixels, Brightness", "mirror", "dim at 0.5", "r/index.html": assert said in out
    assert "l_2, eps 0.5" in " ".join(out.split())
    assert "Check this: These are only 6 images" in out
    assert all(len(line) <= 80 for line in out.splitlines() if "  " in line)   # the table's
    told = json.loads((tmp_path/"r"/"report.json").read_text())
    tables, made = told["tables"], told["how_made"]
    attributions = {row["attribution"] for row in tables["scales"]}
    assert attributions >= {"Brightness", "Loss Grad", "Guided Backprop"}
    points = {(row["transform"], row["strength"]) for row in tables["curves"]}
    assert points >= {("mirror", 0), ("mirror", 1), ("dim", 0.5), ("blur", 5)}
    assert made["attack"] == "strong(ball=L2(eps=0.5))"
    assert made["attribution Brightness"] == "brightness"
    columns = {"scales": "wavelength_pixels", "curves": "strength_unit", "robustness": "share_of_images"}
    for name, column in columns.items():
        head, *_ = (tmp_path/"r"/f"{name}.csv").read_text().splitlines()
        assert column in head


def test_trained_and_evaluated_in_l2(command, photos, tmp_path, monkeypatch):
    "Training in l_2; then the evaluation finds the photos again, from elsewhere too, with attacks of any kind"
    small = ["--arch", "resnet8", "--epochs", 1, "--batch-size", 16, "--learning-rate", 0.02, "--probe", 0]
    ball = ["--norm", "l2", "--eps", "0.5"]
    code, out, err = command("train", "photos", *small, "--objective", "fgsm", *ball, "--out", "run")
    assert code == 0, err
    told = manifest(tmp_path/"run")
    assert told["attack"] == "PGD-10, l_2, eps 0.5" and "--norm l2" in told["command"]
    assert str(tmp_path) not in json.dumps(told)
    elsewhere = tmp_path/"elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (elsewhere/"mine.py").write_text(MINE)
    for attack in "deepfool", "mine:strong":
        code, out, err = command("evaluate", "../run", *ball, "--attack", attack)
        assert code == 0 and "20 images of photos" in out, err
    kept = manifest(tmp_path/"run")["evaluated"]
    assert set(kept) == {"deepfool l2 0.5", "mine:strong l2 0.5"}
    assert kept["mine:strong l2 0.5"]["attack"] == "strong(ball=L2(eps=0.5))"
    (tmp_path/"photos").rename(tmp_path/"moved")
    code, out, err = command("evaluate", "../run")
    assert code == 2
    assert err == "advlook: 'run' was trained on 'photos', which is not here; say where it is with --data\n"


WRONG = {
    "norm": (["look", "--norm", "l3"], ["linf, l2, l1, l0", "'l3'"]),
    "no radius": (["look", "--norm", "l2"], ["--norm l2 needs its radius", "--eps 0.5"]),
    "attack": (["look", "--attack", "pdg"], ["pgd, fgsm", "did you mean pgd"]),
    "option of another attack": (
        ["evaluate", "bundled:scales/std-0", "--attack", "square", "--steps", "3"], ["--steps is not for square"]),
    "no name": (["look", "--attribution", "mine:brightness"], ["NAME=MODULE:FUNCTION"]),
    "no such function": (["look", "--attribution", "A=mine:brigthness"], ["did you mean brightness"]),
    "no such module": (["look", "--transform", "A=yours:f"], ["no module 'yours'"]),
    "other arguments": (
        ["look", "--attribution", "A=mine:mirrored"], ["--attribution A=mine:mirrored", "(model, x, y)"]),
    "the root": (["look", "--out", "/"], ["'/'"]),
    "here": (["look", "--out", "."], ["in which you are"]),
    "white noise": (
        ["look", "--models", "white noise=bundled:cifar10/std-0", "--n", "4"],
        ["'white noise'", "choose another name"]),
    "train's norm": (["train", "photos", "--norm", "l0", "--eps", "3", "--out", "run"], ["linf, l2 or l1"]),
    "noise has no ball": (
        ["train", "photos", "--objective", "noise", "--norm", "l2", "--eps", "0.1", "--out", "run"],
        ["leave --norm out"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_choices(case, command, photos, tmp_path):
    words, said = WRONG[case]
    before = sorted(tmp_path.iterdir())
    code, out, err = command(*words)
    print(err)
    assert code == 2 and out == "" and err.startswith("advlook: ") and err.count("\n") == 1, err
    assert all(s in err for s in said), err
    after = sorted(p for p in tmp_path.iterdir() if p.name not in ("cache", "__pycache__"))
    assert after == [p for p in before if p.name != "cache"]
