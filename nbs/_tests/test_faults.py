"""Bad luck, for real: full and read-only disks, kill -9 at any moment, Ctrl-C, broken weights, a cache that can't be
written"""
import os, random, signal, subprocess, time
from pathlib import Path

import pytest

from test_cli import QUICK, advlook, leftovers, names, photos, server, train_words  # noqa: F401 (fixtures)


@pytest.fixture
def disk(tmp_path):
    "A folder that is a disk of its own: disk(size) makes it, or changes its size"
    place = tmp_path/"disk"
    place.mkdir()
    def mount(*options):
        words = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", place]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode: pytest.skip(f"a disk of its own can't be mounted here: {done.stderr.strip()}")
    mount("size=64k")
    yield lambda *options: mount("remount", *options)
    subprocess.run(["umount", place])


def one_sentence(err):
    return len(err.strip().splitlines()) == 1 and err.startswith("advlook: ") and "Traceback" not in err


def test_full_disk_while_reporting(advlook, disk, tmp_path):
    code, out, err = advlook("look", "--n", 8, *QUICK, "--out", "disk/report")
    assert code == 2 and one_sentence(err) and "space" in err, err
    assert list((tmp_path/"disk").iterdir()) == []


def test_full_disk_while_training(advlook, disk, photos, tmp_path):
    "The checkpoint does not fit: one sentence, nothing half-written; with more room the same command goes through"
    words = train_words(photos, "--arch", "resnet8", "--epochs", 1, "--out", "disk/run")
    run = tmp_path/"disk"/"run"
    disk("size=400k")
    code, out, err = advlook(*words)
    assert code == 2 and one_sentence(err) and "space" in err, err
    assert names(run) == {"initial.safetensors"}
    disk("size=8m")
    code, out, err = advlook(*words)
    assert code == 0 and {"model.safetensors", "manifest.json"} <= names(run)


def test_read_only_disk(advlook, disk, photos):
    disk("ro")
    reporting = ["look", "--n", 8, "--out", "disk/report"]
    training = ["train", photos, "--epochs", 1, "--out", "disk/run"]
    for words in reporting, training:
        code, out, err = advlook(*words)
        assert code == 2 and one_sentence(err), err
        assert "disk" not in err.partition("'")[0] and "ead-only" in err, err


def test_cache_that_cannot_be_written(advlook, disk, photos, tmp_path):
    "Full, or a file where the folder should be: it works without"
    (tmp_path/"file").write_text("")
    disk("size=4k")
    for cache in "disk/cache", "file":
        code, out, err = advlook("look", "--data", photos, "--n", 4, *QUICK, ADVLOOK_CACHE=str(tmp_path/cache))
        assert code == 0, err


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights(value, advlook, tmp_path):
    import torch
    from advlook.models import create_model
    state = create_model("resnet8", 10, 0).model.state_dict()
    state["stage2.0.change.0.0.weight"][0, 0, 0, 0] = value
    torch.save(state, tmp_path/"broken.pt")
    code, out, err = advlook("look", "--models", "A=broken.pt:resnet8", "--n", 4)
    assert code == 2 and one_sentence(err) and "stage2.0.change.0.0.weight" in err, err
    assert leftovers(tmp_path) == ["broken.pt"]


def test_killed_at_any_moment(advlook, photos, tmp_path):
    "kill -9, four times, at moments that differ; then the same command finds nothing to trip over, and clears up"
    words = ["look", "--data", photos, "--n", 4, *QUICK, "--out", "r"]
    scales = tmp_path/"r"/"scales.csv"
    start = time.time()
    code, *_ = advlook(*words, whole=True)   # as long as those that are killed
    assert code == 0
    whole, numbers = time.time() - start, scales.read_bytes()
    for share in random.Random(0).sample(range(30, 100), 4):
        process = advlook(*words, start=True)
        time.sleep(whole * share / 100)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert scales.read_bytes() == numbers   # the earlier report is still whole
    code, *_ = advlook(*words)
    assert code == 0 and leftovers(tmp_path) == ["r"] and scales.read_bytes() == numbers
    assert not [p for p in (tmp_path/"cache").iterdir() if p.name.startswith(".")]


def test_ctrl_c_while_training(advlook, photos, tmp_path):
    words = train_words(photos, "--arch", "resnet8", "--epochs", 40, "--out", "run")
    process = advlook(*words, start=True)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and one_sentence(err) and "interrupted" in err
    before = {"before-checkpoint.pt"}   # is there from the second epoch on
    assert names(tmp_path/"run") - before == {"checkpoint.pt", "initial.safetensors", "log.csv"}


def test_folder_swap_is_undone():
    "Killed between putting the old report aside and the new one in its place: the next run puts the old one back"
    import tempfile
    from advlook.files import beside, sweep
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)/"report"
        dead = subprocess.Popen(["true"])
        dead.wait()
        for ending in "old", "part":
            folder = beside(out, ending, dead.pid)
            folder.mkdir()
            (folder/"report.json").write_text(ending)
        living = beside(out, "part", os.getpid())
        living.mkdir()
        sweep(out)
        assert (out/"report.json").read_text() == "old"
        assert names(Path(place)) == {"report", living.name}
