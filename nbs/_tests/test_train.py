"Training in processes of its own: two that act as one, kill -9 at any moment, the command line; what it tests on"
import io, json, os, random, shutil, signal, socket, subprocess, sys, time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from test_cli import advlook, photos, server  # noqa: F401 (fixtures)
from advlook.cli import evaluate, train
from advlook.standin import computes_bfloat16
from test_house import ROOT

SCRIPT = """
import os, sys, time, torch
from functools import partial
from accelerate import PartialState
from torch import nn
from advlook.images import Images
from advlook.objectives import make_objective
from advlook.train import fit
out, norm, epochs, pause = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
torch.manual_seed(0)
g = torch.Generator().manual_seed(0)
y = torch.randint(0, 2, (150,), generator=g)
x = torch.randint(0, 120, (150, 3, 16, 16), generator=g, dtype=torch.uint8)
x[torch.arange(150)[:, None], :, 8 * y[:, None] + torch.arange(8)] += 60
normalize = {"group": nn.GroupNorm(2, 8), "batch": nn.BatchNorm2d(8), "frozen": nn.BatchNorm2d(8)}[norm]
if norm == "frozen": normalize.train = lambda mode=True: nn.Module.train(normalize, False)
model = nn.Sequential(nn.Conv2d(3, 8, 3, 2), normalize, nn.ReLU(), nn.Dropout(0.1 if pause else 0), nn.Flatten(), nn.Linear(392, 2))
objective = make_objective("fast", 8/255)
calls = []
def slow(model, x, y, generator):
    time.sleep(pause or float(os.environ['SLOW'])); calls.append(1)
    return objective(model, x, y, generator=generator)
slow.__name__ = "slow"
def told(rows): print("epoch", rows[-1]["epoch"], rows[-1]["loss"], flush=True)
history = fit(model, Images(x, y), None, slow, epochs=epochs, batch_size=32, learning_rate=0.05, out=out, device="cpu", precision="no", log=told, save_every=1 if pause else None, ema=0.9 if pause else None)
if os.environ.get("RANK", "0") == "0": torch.save(dict(weights=model.state_dict(), loss=history.loss.tolist(), calls=len(calls)), out + "/end.pt")
PartialState().destroy_process_group()
"""


def started(folder, words, processes, **env):
    "A process, or several under torchrun, since `accelerate launch` starts several on GPUs only"
    with socket.socket() as free: free.bind(("127.0.0.1", 0)); port = free.getsockname()[1]
    launch = [] if processes == 1 else f"-m torch.distributed.run --nproc_per_node {processes} --master_port {port}".split()
    return subprocess.Popen([sys.executable, *launch, *words], cwd=folder, env=os.environ | dict(OMP_NUM_THREADS="1") | env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


@pytest.fixture
def script(tmp_path):
    (tmp_path/"script.py").write_text(SCRIPT)

    def run(out, norm="group", epochs=2, pause=0, processes=1, start=False, slow=0):
        process = started(tmp_path, ["script.py", out, norm, str(epochs), str(pause)], processes, SLOW=str(slow))
        if start: return process
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        return torch.load(tmp_path/out/"end.pt", weights_only=True) | dict(said=said)
    return run


def kill_all(process):
    "With those that it has started, which torchrun puts into sessions of their own"
    for each in [*psutil.Process(process.pid).children(recursive=True), process]: each.kill()
    process.wait()


def apart(a, b): return max((a["weights"][k].double() - b["weights"][k].double()).abs().max().item() for k in a["weights"])


@pytest.mark.parametrize("norm", ["group", "frozen"])
def test_two_processes_are_one(norm, script):
    "The same global batch, attacked, on two processes: the same model up to rounding, one log"
    one, two = script("one", norm), script("two", norm, processes=2)
    print(f"weights differ by {apart(one, two):.1e}, the loss by {abs(one['loss'][-1] - two['loss'][-1]):.1e}")
    assert apart(one, two) < 1e-5 and one["loss"] == pytest.approx(two["loss"], abs=1e-5)
    assert two["said"].count("epoch 1") == two["said"].count("epoch 2") == 1


def test_two_processes_with_batch_normalization(script):
    "Its statistics are those of a process's own images: another model, but one that has learnt, with averages that both share"
    one, two = script("one", "batch"), script("two", "batch", processes=2)
    assert 1e-4 < apart(one, two) and two["loss"][-1] < two["loss"][0]


def test_two_processes_resume(script, tmp_path):
    "Killed after the first epoch, taken up again by two processes, and by one"
    whole = script("whole", epochs=3, processes=2)
    process = script("killed", epochs=3, processes=2, start=True, slow=0.3)
    while "epoch 1" not in (line := process.stdout.readline()): assert line, "ended before its first epoch"
    kill_all(process)
    shutil.copytree(tmp_path/"killed", tmp_path/"by-one")
    again, alone = script("killed", epochs=3, processes=2), script("by-one", epochs=3)
    assert whole["calls"] == 15 and again["calls"] == alone["calls"] == 10 and apart(whole, again) == 0 and apart(whole, alone) < 1e-5


OWN_MINDS = """
import os, sys, torch
from accelerate import PartialState
from torch import nn
from advlook.images import Images
from advlook.train import fit
rank = int(os.environ["RANK"])
torch.manual_seed(rank)
model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
history = fit(model, Images(torch.randint(0, 255, (64, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 2), epochs=4, batch_size=32, out=f"of-{rank}", device="cpu", augment=False,
              watch=lambda model, rows: dict(verdict="stop") if rank == 1 or len(rows) == 2 else {})
torch.save(dict(weights=model.state_dict(), epochs=len(history)), f"end-{rank}.pt")
PartialState().destroy_process_group()
"""


def test_processes_that_disagree(tmp_path):
    "Other initial weights, another verdict, no checkpoint in common: all do as the first process has it"
    (tmp_path/"script.py").write_text(OWN_MINDS)
    for _ in range(2):
        process = started(tmp_path, ["script.py"], 2)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        one, two = (torch.load(tmp_path/f"end-{rank}.pt", weights_only=True) for rank in range(2))
        assert apart(one, two) == 0 and one["epochs"] == two["epochs"] == 2 and not (tmp_path/"of-1"/"checkpoint.pt").exists()
    assert "ended by itself after epoch 2" in said


def test_killed_at_any_moment(script, tmp_path):
    "kill -9 at random moments of a run that saves after each step, with dropout and a running mean: the same weights, bit for bit"
    whole, rng = script("whole", pause=0.02), random.Random(0)
    for _ in range(5):
        process = script("killed", pause=0.02, start=True)
        began = time.time()
        while not (tmp_path/"killed"/"checkpoint.pt").exists() and process.poll() is None and time.time() - began < 60: time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4)); os.killpg(process.pid, signal.SIGKILL); process.wait()
        if process.returncode == 0: break
    again = script("killed", pause=0.02)
    assert apart(whole, again) == 0 and whole["loss"] == again["loss"]
    assert not [p for p in (tmp_path/"killed").iterdir() if "part" in p.name]


def test_train_and_evaluate(advlook, photos, tmp_path):  # noqa: F811
    "Options reach the manifest and the command that remakes the model; evaluate joins its result"
    words = ["train", "photos", "--epochs", 2, "--batch-size", 16, "--learning-rate", 0.02, "--objective", "trades+awp", "--eps", "2/255", "--steps", 2, "--ema", 0.9, "--probe", 20, "--patience", 5, "--label-smoothing", 0.1, "--tensorboard"]
    code, out, err = advlook(*words, "--out", "run")
    assert code == 0 and "probe robust accuracy" in out, err
    made = {p.name for p in (tmp_path/"run").iterdir()}
    assert made == {"initial.safetensors", "model.safetensors", "manifest.json", "log.csv", "tensorboard", "checkpoint.pt", "before-checkpoint.pt",
                    "data-folder.txt"}
    told = json.loads((tmp_path/"run"/"manifest.json").read_text())
    assert all(f" {w}" in told["command"] for w in ("--objective trades+awp", "--ema 0.9", "--probe 20", "--patience 5", "--label-smoothing 0.1", "--steps 2")), told["command"]
    assert advlook(*told["command"].split()[1:-1], "again")[0] == 0
    assert json.loads((tmp_path/"again"/"manifest.json").read_text())["sha256"] == told["sha256"]
    kept = (tmp_path/"run"/"manifest.json").read_bytes()
    assert advlook("train", "photos", *told["command"].split()[3:-2], "--patience", 9, "--out", "run")[0] == 0 and (tmp_path/"run"/"manifest.json").read_bytes() == kept   # it was finished; nothing else made it
    for words, key in ((["--attack", "pgd", "--steps", 3, "--fast"], "pgd linf 4/255"), (["--attack", "fgsm", "--fast"], "fgsm linf 4/255"), (["--attack", "square", "--norm", "l2", "--eps", 0.1, "--n", 4], "square l2 0.1")):
        code, out, err = advlook("evaluate", "run", "--data", "photos", *words)
        assert code == 0 and "robust accuracy" in out, err
        result = json.loads((tmp_path/"run"/"manifest.json").read_text())["evaluated"][key]
        assert 0 <= result["robust_accuracy"] <= result["accuracy"] <= 1 and result["images"] == (4 if "square" in key else 20)
        assert ("bfloat16" in result["attack"]) == ("--fast" in words and "fgsm" not in words and computes_bfloat16(torch.device("cpu")))   # what was done, not what was wished
    before = json.loads((tmp_path/"run"/"manifest.json").read_text())["evaluated"]
    code, out, err = advlook("evaluate", "run", "--n", 4, "--steps", 3)
    assert code == 0 and "over 20 images" in out and json.loads((tmp_path/"run"/"manifest.json").read_text())["evaluated"] == before, out + err


def png(pixels) -> dict:
    "A picture as `datasets` keeps it"
    Image.fromarray(pixels.astype("uint8")).save(whole := io.BytesIO(), "PNG")
    return {"bytes": whole.getvalue(), "path": None}


def test_labels_that_are_words(advlook, tmp_path):
    "Each split numbers its own words; a test split without one of the classes means the same ones all the same"
    import numpy as np, pyarrow as pa, pyarrow.parquet as parquet
    rng = np.random.default_rng(0)
    for folder, classes in ("words", ["ant", "bee", "cat"]), ("numbers", [0, 1, 2]):
        (tmp_path/folder).mkdir()
        for split, kinds, n in ("train", (0, 1, 2), 60), ("test", (1, 2), 10):
            parquet.write_table(pa.table({"image": [png(rng.integers(0, 60, (16, 16, 3)) + 90 * k) for k in kinds for _ in range(n)], "label": [classes[k] for k in kinds for _ in range(n)]}), tmp_path/folder/f"{split}-00000-of-00001.parquet")
        code, out, err = advlook("train", folder, "--arch", "resnet8", "--epochs", 4, "--batch-size", 32, "--learning-rate", 0.05, "--objective", "std", "--probe", 0, "--out", "run-" + folder)
        assert code == 0 and json.loads((tmp_path/("run-" + folder)/"manifest.json").read_text())["metrics"]["test_accuracy"] > 0.9, out + err
    small = ["--arch", "resnet8", "--epochs", 6, "--batch-size", 32, "--learning-rate", 0.05, "--probe", 0]
    code, out, err = advlook("train", "words", "--stream", "--size", 16, "--least", 0.9, *small, "--out", "r")
    assert code == 0 and json.loads((tmp_path/"r"/"manifest.json").read_text())["metrics"]["test_accuracy"] > 0.9, out + err


def test_until(advlook, photos, tmp_path):  # noqa: F811
    "Ordinary training is probed without an attack, which it could only lose to, and ends when it is good enough"
    code, out, err = advlook("train", "photos", "--epochs", 4, "--batch-size", 16, "--objective", "std", "--probe", 20, "--until", 0.01, "--out", "run")
    told = json.loads((tmp_path/"run"/"manifest.json").read_text())
    reached = next(i for i, row in enumerate(told["history"], 1) if row["probe_accuracy"] >= 0.01)
    assert code == 0 and "ended." in out and len(told["history"]) == reached and "--until 0.01" in told["command"], out + err
    assert not any("probe_robust_accuracy" in row for row in told["history"])


@pytest.mark.parametrize("words, said", [
    (["train", "photos", "--probe", "0", "--until", "0.5", "--out", "r"], "holds out none"), (["train", "photos", "--least", "0.5", "--out", "r"], "--stream"),
    (["train", "photos", "--objective", "trades+swa", "--out", "r"], "awp, gradalign"), (["train", "photos", "--on-collapse", "weep", "--out", "r"], "stop, best"),
    (["train", "photos", "--probe", "4000", "--out", "r"], "can be held out"), (["evaluate", "photos"], "no folder of a finished"), (["evaluate", "bundled:cifar10/adv-0"], "--data"),
    (["evaluate", "bundled:cifar10/adv-0", "--attack", "nap"], "autoattack"), (["evaluate", "bundled:cifar10/adv-0", "--norm", "l3"], "linf, l2, l1"),
    (["evaluate", "bundled:cifar10/adv-0", "--data", "photos"], "'dark'")])
def test_wrong_words(words, said, advlook, photos):  # noqa: F811
    code, out, err = advlook(*words)
    assert code == 2 and err.startswith("advlook: ") and said in err and len(err.strip().splitlines()) == 1, err


def test_stream_from_the_command_line(advlook, tmp_path):
    "A folder of parquet files, read as it goes; a size of its own; two processes"
    import pyarrow as pa, pyarrow.parquet as parquet
    from advlook.scales import made_images
    info = {"info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list("abcdefgh")}}}}
    schema = pa.schema({"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()}, {"huggingface": json.dumps(info)})
    (tmp_path/"made").mkdir()
    for split, n in ("train", 640), ("test", 80):
        images = made_images("shapes-textures", split, n, size=32)
        parquet.write_table(pa.table({"image": [png(x.permute(1, 2, 0).numpy()) for x in images.x], "label": images.y.tolist()}, schema), tmp_path/"made"/f"{split}-00000-of-00001.parquet", row_group_size=40)
    command = ["train", "made", "--stream", "--size", 16, "--arch", "resnet8", "--epochs", 2, "--batch-size", 64, "--learning-rate", 0.05, "--probe", 80, "--threads", 1]
    code, out, err = advlook(*command, "--out", "one")
    assert code == 0, err
    told = json.loads((tmp_path/"one"/"manifest.json").read_text())
    assert told["data"]["train"] == 560 and "Stream(made train, 560 photos, size=16" in told["data"]["stream"] and "--stream" in told["command"] and told["size"] == 16
    with socket.socket() as free: free.bind(("127.0.0.1", 0)); port = free.getsockname()[1]
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port), "-m", "advlook.cli", *map(str, command), "--out", "two"], cwd=tmp_path, check=True, timeout=300,
                   env={k: v for k, v in os.environ.items() if k != "ADVLOOK_DATA"} | dict(OMP_NUM_THREADS="1", ADVLOOK_CACHE=str(tmp_path/"cache")))
    both = json.loads((tmp_path/"two"/"manifest.json").read_text())
    assert both["data"] == told["data"] and abs(both["history"][0]["loss"] - told["history"][0]["loss"]) < 0.1   # the same batches; batch normalization sees half of each
    code, out, err = advlook("train", "made", "--stream", "--probe", 700, "--out", "three")
    assert code == 2 and "hold out fewer" in err and not (tmp_path/"three").exists()


def test_the_gpu_bench_runs(tmp_path):
    "On a processor, with few images: the command that times a GPU is in order"
    if not os.environ.get("ADVLOOK_DATA"): pytest.skip("no CIFAR-10: ADVLOOK_DATA is not set")
    out = tmp_path/"gpu.json"
    done = subprocess.run([sys.executable, str(ROOT/"nbs"/"bench"/"gpu.py"), *"--device cpu --n 8 --blocks 1 --epochs 1 --steps 2 --restarts 1 --out".split(), str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(out.read_text())
    assert told["images"] == [8, 8] and 0 <= told["robust_accuracy"] <= told["accuracy"] <= 1 and told["minutes"] > 0


def write_photos(folder, classes, rng):
    "Noise that nobody can learn but by heart: so many photos of each class"
    for name, n in classes.items():
        (folder/name).mkdir(parents=True)
        for i in range(n): Image.fromarray(rng.integers(0, 256, (16, 16, 3), "uint8")).save(folder/name/f"{name}{i}.png")


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    "Calls a command of ours in an empty folder, in this process; what it printed"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADVLOOK_CACHE", str(tmp_path/"cache")); monkeypatch.delenv("ADVLOOK_DATA", raising=False)

    def run(command, *args, **options):
        capsys.readouterr(); command(*args, **options)
        return capsys.readouterr().out
    return run


def short(data, out, **options):
    "A training that takes a second"
    usual = dict(arch="resnet8", epochs=1, batch_size=16, learning_rate=0.02, probe=0, device="cpu")
    train(data, Path(out), **usual | options)


def manifest(run): return json.loads(Path(run, "manifest.json").read_text())


@pytest.mark.parametrize("place, stream", [("", False), ("train", False), ("", True), ("test", True)])
def test_no_test_images(place, stream, here, tmp_path):
    "Class folders alone, or one split: some are split off, the same for every seed, and said to be; evaluate takes them"
    write_photos(tmp_path/"noise"/place, dict(a=40, b=39, c=20), np.random.default_rng(0))
    for seed in 0, 1:
        said = here(short, "noise", f"run{seed}", seed=seed, probe=8, **dict(stream=True, size=16) if stream else {})
        assert "noise: there are no test images but the training images, of which 9 were split off" in said
    told, again = manifest("run0"), manifest("run1")
    about = told["data"]
    assert about["test"] == 9 and about["split_off"] and "9 were split off" in about["said_of_test"]
    assert about["train"] == (80 if stream else 82)   # 99 - 9 - 8; a stream hands out multiples of its 8 lanes
    assert again["data"]["test_sha256"] == about["test_sha256"] and "test_accuracy" in told["metrics"]
    said = here(evaluate, "run0", attack="fgsm", device="cpu")
    assert "9 of 9 images of noise that were split off" in said
    assert f"\naccuracy {told['metrics']['test_accuracy']}\n" in said
    assert "4 of 9 images" in here(evaluate, "run0", data="noise", attack="fgsm", n=4, device="cpu")
    next((tmp_path/"noise").rglob("a3.png")).unlink()
    with pytest.raises(ValueError, match="has changed"): evaluate("run0", device="cpu")


def test_test_images_again(here, tmp_path):
    "Some are training images too: it is said how many. All of them, under another name: others are split off"
    rng, both = np.random.default_rng(0), dict(stream=True, size=16)
    write_photos(tmp_path/"some"/"train", dict(a=30, b=30), rng); write_photos(tmp_path/"some"/"test", dict(a=10, b=10), rng)
    of = lambda split, name: tmp_path/"some"/split/name[0]/f"{name}.png"
    for i in range(3): shutil.copy(of("train", f"a{i}"), of("test", f"again{i}"))
    assert "some: 3 of the 23 test images are training images, too." in here(short, "some", "r")
    told = manifest("r")["data"]
    assert told["said_of_test"].startswith("3 of") and told["train"] == 60 and told["test"] == 23 and not told["split_off"]
    assert "of 60 training photos 3 are among the 23 test images, too" in here(short, "some", "s", **both)
    shutil.rmtree(tmp_path/"some"/"test"); shutil.copytree(tmp_path/"some"/"train", tmp_path/"some"/"test")
    shutil.copy(of("test", "a0"), of("test", "again0"))
    for i, options in enumerate([{}, both]): assert "6 were split off" in here(short, "some", f"t{i}", **options)


def test_single_images(here, tmp_path):
    "A class's only image is trained on. Where each class has but one, there is no test accuracy, and evaluate does not make one up"
    write_photos(tmp_path/"rare", dict(a=12, b=1, c=2), np.random.default_rng(0))
    here(short, "rare", "r", probe=3)
    assert manifest("r")["data"]["test"] == 2 and manifest("r")["data"]["train"] == 10
    write_photos(tmp_path/"ones", dict(a=1, b=1, c=1), np.random.default_rng(0))
    assert "there is no test accuracy" in here(short, "ones", "o")
    told = manifest("o")
    assert told["metrics"] == {} and told["data"]["test"] == 0 and "test_accuracy" not in told["history"][0]
    with pytest.raises(ValueError, match="trained on all images"): evaluate("o", device="cpu")
