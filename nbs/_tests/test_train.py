"Training in processes of its own: two that act as one, kill -9 at any moment, the command line; what it tests on"
import io, json, os, random, shutil, signal, socket, subprocess, sys, time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from test_cli import advlook, photos, server  # noqa: F401 (fixtures)
from advlook.cli import evaluate, train
from advlook.scales import made_images
from advlook.standin import computes_bfloat16
from test_house import ROOT


def manifest(run):
    text = Path(run, "manifest.json").read_text()
    return json.loads(text)


SCRIPT = """
import os, sys, time, torch
from functools import partial
from accelerate import PartialState
from torch import nn
from advlook.images import Images
from advlook.objectives import make_objective
from advlook.train import fit
out, norm, epochs, pause = sys.argv[1:]
epochs, pause = int(epochs), float(pause)
torch.manual_seed(0)
g = torch.Generator().manual_seed(0)
y = torch.randint(0, 2, (150,), generator=g)
x = torch.randint(0, 120, (150, 3, 16, 16), generator=g, dtype=torch.uint8)
x[torch.arange(150)[:, None], :, 8 * y[:, None] + torch.arange(8)] += 60
normalize = {"group": nn.GroupNorm(2, 8), "batch": nn.BatchNorm2d(8), "frozen": nn.BatchNorm2d(8)}[norm]
if norm == "frozen": normalize.train = lambda mode=True: nn.Module.train(normalize, False)
dropout = nn.Dropout(0.1 if pause else 0)
layers = nn.Conv2d(3, 8, 3, 2), normalize, nn.ReLU(), dropout, nn.Flatten(), nn.Linear(392, 2)
model = nn.Sequential(*layers)
objective = make_objective("fast", 8/255)
calls = []
def slow(model, x, y, generator):
    time.sleep(pause or float(os.environ['SLOW']))
    calls.append(1)
    return objective(model, x, y, generator=generator)
slow.__name__ = "slow"
def told(rows): print("epoch", rows[-1]["epoch"], rows[-1]["loss"], flush=True)
kept = dict(out=out, log=told)
if pause: kept |= dict(save_every=1, ema=0.9)
numbers = dict(epochs=epochs, batch_size=32, learning_rate=0.05)
history = fit(model, Images(x, y), None, slow, device="cpu", precision="no", **numbers, **kept)
end = dict(weights=model.state_dict(), loss=history.loss.tolist(), calls=len(calls))
if os.environ.get("RANK", "0") == "0": torch.save(end, out + "/end.pt")
PartialState().destroy_process_group()
"""


def started(folder, words, processes, **env):
    "A process, or several under torchrun, since `accelerate launch` starts several on GPUs only"
    launch = torchrun(processes) if processes > 1 else []
    env = os.environ | dict(OMP_NUM_THREADS="1") | env
    heard = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    command = [sys.executable, *launch, *words]
    return subprocess.Popen(command, cwd=folder, env=env, start_new_session=True, **heard)


def torchrun(processes):
    "Words after `python`; at a port of its own"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        _, port = free.getsockname()
    return f"-m torch.distributed.run --nproc_per_node {processes} --master_port {port}".split()


@pytest.fixture
def script(tmp_path):
    (tmp_path/"script.py").write_text(SCRIPT)

    def run(out, norm="group", epochs=2, pause=0, processes=1, start=False, slow=0):
        words = "script.py", out, norm, str(epochs), str(pause)
        process = started(tmp_path, words, processes, SLOW=str(slow))
        if start: return process
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        end = torch.load(tmp_path/out/"end.pt", weights_only=True)
        return end | dict(said=said)
    return run


def kill_all(process):
    "With those that it has started, which torchrun puts into sessions of their own"
    children = psutil.Process(process.pid).children(recursive=True)
    for each in (*children, process): each.kill()
    process.wait()


def apart(a, b):
    "The largest difference of two ends' weights"
    pairs = [(weight.double(), b["weights"][name].double()) for name, weight in a["weights"].items()]
    return max((one - two).abs().max().item() for one, two in pairs)


@pytest.mark.parametrize("norm", ["group", "frozen"])
def test_two_processes_are_one(norm, script):
    "The same global batch, attacked, on two processes: the same model up to rounding, one log"
    one = script("one", norm)
    two = script("two", norm, processes=2)
    assert apart(one, two) < 1e-5
    assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
    assert two["said"].count("epoch 1") == two["said"].count("epoch 2") == 1


def test_two_processes_with_batch_normalization(script):
    "Its statistics are those of a process's own images: another model, but one that has learnt"
    one = script("one", "batch")
    two = script("two", "batch", processes=2)
    assert apart(one, two) > 1e-4
    assert two["loss"][-1] < two["loss"][0]


def test_two_processes_resume(script, tmp_path):
    "Killed after the first epoch, taken up again by two processes, and by one"
    whole = script("whole", epochs=3, processes=2)
    process = script("killed", epochs=3, processes=2, start=True, slow=0.3)
    while "epoch 1" not in (line := process.stdout.readline()):
        assert line, "ended before its first epoch"
    kill_all(process)
    shutil.copytree(tmp_path/"killed", tmp_path/"by-one")
    again = script("killed", epochs=3, processes=2)
    alone = script("by-one", epochs=3)
    assert whole["calls"] == 15
    assert again["calls"] == alone["calls"] == 10
    assert apart(whole, again) == 0
    assert apart(whole, alone) < 1e-5


OWN_MINDS = """
import os, sys, torch
from accelerate import PartialState
from torch import nn
from advlook.images import Images
from advlook.train import fit
rank = int(os.environ["RANK"])
torch.manual_seed(rank)
model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
generator = torch.Generator().manual_seed(0)
x = torch.randint(0, 255, (64, 3, 4, 4), dtype=torch.uint8, generator=generator)
def watch(model, rows): return dict(verdict="stop") if rank == 1 or len(rows) == 2 else {}
history = fit(model, Images(x, torch.arange(64) % 2), epochs=4, batch_size=32, out=f"of-{rank}",
              device="cpu", augment=False, watch=watch)
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
        assert apart(one, two) == 0
        assert one["epochs"] == two["epochs"] == 2
        assert not (tmp_path/"of-1"/"checkpoint.pt").exists()
    assert "ended by itself after epoch 2" in said


def wait_for(file, process):
    "Until it is there, but no longer than the process lives, or a minute"
    began = time.time()
    while not file.exists() and process.poll() is None:
        if time.time() - began > 60: break
        time.sleep(0.01)


def test_killed_at_any_moment(script, tmp_path):
    "kill -9 at random moments, each step saved, with dropout and a running mean: the same weights, bit for bit"
    whole, rng = script("whole", pause=0.02), random.Random(0)
    for _ in range(5):
        process = script("killed", pause=0.02, start=True)
        wait_for(tmp_path/"killed"/"checkpoint.pt", process)
        time.sleep(rng.uniform(0, 0.4))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.returncode == 0: break
    again = script("killed", pause=0.02)
    assert apart(whole, again) == 0
    assert whole["loss"] == again["loss"]
    assert not [p for p in (tmp_path/"killed").iterdir() if "part" in p.name]


TRADES = """--epochs 2 --batch-size 16 --learning-rate 0.02 --objective trades+awp --eps 2/255 --steps 2 --ema 0.9
            --probe 20 --patience 5 --label-smoothing 0.1 --tensorboard""".split()


@pytest.fixture
def trained(advlook, photos, tmp_path):  # noqa: F811
    "Says what was printed, and the manifest"
    code, out, err = advlook("train", "photos", *TRADES, "--out", "run")
    assert code == 0, err
    return out, manifest(tmp_path/"run")


def test_options_are_remembered(trained, advlook, tmp_path):  # noqa: F811
    "They reach the manifest and the command that remakes the model"
    out, told = trained
    assert "probe robust accuracy" in out
    made = {path.name for path in (tmp_path/"run").iterdir()}
    assert made == {"initial.safetensors", "model.safetensors", "manifest.json", "log.csv", "tensorboard",
                    "checkpoint.pt", "before-checkpoint.pt", "data-folder.txt"}
    for words in ("--objective trades+awp", "--ema 0.9", "--probe 20", "--patience 5", "--label-smoothing 0.1",
                  "--steps 2"):
        assert f" {words}" in told["command"], told["command"]
    assert advlook(*told["command"].split()[1:-1], "again")[0] == 0
    assert manifest(tmp_path/"again")["sha256"] == told["sha256"]
    # it was finished; nothing else made it
    kept = (tmp_path/"run"/"manifest.json").read_bytes()
    other = told["command"].split()[3:-2]
    code, *_ = advlook("train", "photos", *other, "--patience", 9, "--out", "run")
    assert code == 0
    assert (tmp_path/"run"/"manifest.json").read_bytes() == kept


def test_evaluate_joins_its_result(trained, advlook, tmp_path):  # noqa: F811
    known = {
        "pgd linf 4/255": ["--attack", "pgd", "--steps", 3, "--fast"],
        "fgsm linf 4/255": ["--attack", "fgsm", "--fast"],
        "square l2 0.1": ["--attack", "square", "--norm", "l2", "--eps", 0.1, "--n", 4]}
    bfloat16 = computes_bfloat16(torch.device("cpu"))
    for key, words in known.items():
        code, out, err = advlook("evaluate", "run", "--data", "photos", *words)
        assert code == 0 and "robust accuracy" in out, err
        result = manifest(tmp_path/"run")["evaluated"][key]
        assert 0 <= result["robust_accuracy"] <= result["accuracy"] <= 1
        assert result["images"] == (4 if "square" in key else 20)
        fast = "pgd" in key and bfloat16   # what was done, not what was wished
        assert ("bfloat16" in result["attack"]) == fast
    before = manifest(tmp_path/"run")["evaluated"]
    code, out, err = advlook("evaluate", "run", "--attack", "pgd", "--n", 4, "--steps", 3)
    assert code == 0 and "over 20 images" in out, out + err
    assert manifest(tmp_path/"run")["evaluated"] == before


def png(pixels) -> dict:
    "A picture as `datasets` keeps it"
    Image.fromarray(pixels.astype("uint8")).save(whole := io.BytesIO(), "PNG")
    return {"bytes": whole.getvalue(), "path": None}


def write_table(file, classes, kinds, n, rng):
    "Dark, gray and bright pictures, which kinds there are, n of each"
    kinds = np.repeat(kinds, n)
    pictures = [png(rng.integers(0, 60, (16, 16, 3)) + 90 * kind) for kind in kinds]
    labels = [classes[kind] for kind in kinds]
    table = pa.table({"image": pictures, "label": labels})
    parquet.write_table(table, file)


MEMORY, STREAM = "--epochs 4 --objective std", "--epochs 6 --stream --size 16 --least 0.9"


@pytest.mark.parametrize("classes, words", [
    (["ant", "bee", "cat"], MEMORY),
    (["ant", "bee", "cat"], STREAM),
    ([0, 1, 2], MEMORY)])
def test_labels_that_are_words(classes, words, advlook, tmp_path):  # noqa: F811
    "Each split numbers its own words; a test split without one of the classes means the same ones all the same"
    rng, folder = np.random.default_rng(0), tmp_path/"labels"
    folder.mkdir()
    write_table(folder/"train-00000-of-00001.parquet", classes, (0, 1, 2), 60, rng)
    write_table(folder/"test-00000-of-00001.parquet", classes, (1, 2), 10, rng)
    small = "--arch resnet8 --batch-size 32 --learning-rate 0.05 --probe 0 --out r"
    code, out, err = advlook("train", "labels", *small.split(), *words.split())
    assert code == 0, out + err
    assert manifest(tmp_path/"r")["metrics"]["test_accuracy"] > 0.9, out + err


def test_until(advlook, photos, tmp_path):  # noqa: F811
    "Ordinary training is probed without an attack, which it could only lose to, and ends when it is good enough"
    words = "--epochs 4 --batch-size 16 --objective std --probe 20 --until 0.01 --out run".split()
    code, out, err = advlook("train", "photos", *words)
    assert code == 0 and "ended." in out, out + err
    told = manifest(tmp_path/"run")
    probes = [row["probe_accuracy"] for row in told["history"]]
    reached = next(i for i, probe in enumerate(probes, 1) if probe >= 0.01)
    assert len(probes) == reached
    assert "--until 0.01" in told["command"]
    assert not any("probe_robust_accuracy" in row for row in told["history"])


WRONG = {
    "train photos --probe 0 --until 0.5 --out r": "holds out none",
    "train photos --least 0.5 --out r": "--stream",
    "train photos --objective trades+swa --out r": "awp, gradalign",
    "train photos --on-collapse weep --out r": "stop, best",
    "train photos --probe 4000 --out r": "can be held out",
    "evaluate photos": "no folder of a finished",
    "evaluate bundled:cifar10/adv-0": "--data",
    "evaluate bundled:cifar10/adv-0 --attack nap": "autoattack",
    "evaluate bundled:cifar10/adv-0 --norm l3": "linf, l2, l1",
    "evaluate bundled:cifar10/adv-0 --data photos": "'dark'",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_words(words, advlook, photos):  # noqa: F811
    code, out, err = advlook(*words.split())
    assert code == 2 and err.startswith("advlook: "), err
    assert WRONG[words] in err
    assert len(err.strip().splitlines()) == 1, err


@pytest.fixture
def made_set(tmp_path):
    "Shapes in parquet files, as the hub keeps them, in the folder `made`"
    label = {"_type": "ClassLabel", "names": list("abcdefgh")}
    features = {"image": {"_type": "Image"}, "label": label}
    info = {"huggingface": json.dumps({"info": {"features": features}})}
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"image": image, "label": pa.int64()}, info)
    (tmp_path/"made").mkdir()
    for split, n in ("train", 640), ("test", 80):
        images = made_images("shapes-textures", split, n, size=32)
        pictures = [png(x.permute(1, 2, 0).numpy()) for x in images.x]
        table = pa.table({"image": pictures, "label": images.y.tolist()}, schema)
        parquet.write_table(table, tmp_path/"made"/f"{split}-00000-of-00001.parquet", row_group_size=40)


def test_stream_from_the_command_line(made_set, advlook, tmp_path):  # noqa: F811
    "A folder of parquet files, read as it goes; a size of its own; two processes"
    command = """train made --stream --size 16 --arch resnet8 --epochs 2 --batch-size 64 --learning-rate 0.05
                 --probe 80 --threads 1""".split()
    code, out, err = advlook(*command, "--out", "one")
    assert code == 0, err
    told = manifest(tmp_path/"one")
    assert told["data"]["train"] == 560 and told["size"] == 16
    assert "Stream(made train, 560 photos, size=16" in told["data"]["stream"]
    assert "--stream" in told["command"]

    env = os.environ | dict(OMP_NUM_THREADS="1", ADVLOOK_CACHE=str(tmp_path/"cache"))
    env.pop("ADVLOOK_DATA", None)
    two = [sys.executable, *torchrun(2), "-m", "advlook.cli", *command, "--out", "two"]
    subprocess.run(two, cwd=tmp_path, check=True, timeout=300, env=env)
    both = manifest(tmp_path/"two")
    assert both["data"] == told["data"]
    first, second = both["history"][0]["loss"], told["history"][0]["loss"]
    assert abs(first - second) < 0.1   # the same batches; batch normalization sees half of each
    code, out, err = advlook("train", "made", "--stream", "--probe", 700, "--out", "three")
    assert code == 2 and "hold out fewer" in err
    assert not (tmp_path/"three").exists()


def test_the_gpu_bench_runs(tmp_path):
    "On a processor, with few images: the command that times a GPU is in order"
    if not os.environ.get("ADVLOOK_DATA"): pytest.skip("no CIFAR-10: ADVLOOK_DATA is not set")
    out = tmp_path/"gpu.json"
    words = "--device cpu --n 8 --blocks 1 --epochs 1 --steps 2 --restarts 1 --out".split()
    command = [sys.executable, str(ROOT/"nbs"/"bench"/"gpu.py"), *words, str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(out.read_text())
    assert told["images"] == [8, 8]
    assert 0 <= told["robust_accuracy"] <= told["accuracy"] <= 1
    assert told["minutes"] > 0


def write_photos(folder, classes, rng=None):
    "Noise that nobody can learn but by heart: so many photos of each class"
    rng = rng or np.random.default_rng(0)
    for name, n in classes.items():
        (folder/name).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 256, (16, 16, 3), "uint8")
            Image.fromarray(pixels).save(folder/name/f"{name}{i}.png")


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    "Calls a command of ours in an empty folder, in this process; what it printed"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADVLOOK_CACHE", str(tmp_path/"cache"))
    monkeypatch.delenv("ADVLOOK_DATA", raising=False)

    def run(command, *args, **options):
        capsys.readouterr()
        command(*args, **options)
        return capsys.readouterr().out
    return run


def short(data, out, **options):
    "A training that takes a second"
    usual = dict(arch="resnet8", epochs=1, batch_size=16, learning_rate=0.02, probe=0, device="cpu")
    train(data, Path(out), **usual | options)



@pytest.mark.parametrize("place, stream", [
    ("", False), ("train", False), ("", True), ("test", True)])
def test_no_test_images(place, stream, here, tmp_path):
    "Class folders alone, or one split: some are split off, the same for every seed; evaluate takes them"
    write_photos(tmp_path/"noise"/place, dict(a=40, b=39, c=20))
    streamed = dict(stream=True, size=16) if stream else {}
    for seed in 0, 1:
        said = here(short, "noise", f"run{seed}", seed=seed, probe=8, **streamed)
        assert "noise: there are no test images but the training images, of which 9 were split off" in said
    told, again = manifest("run0"), manifest("run1")
    about = told["data"]
    assert about["test"] == 9 and about["split_off"]
    assert "9 were split off" in about["said_of_test"]
    assert about["train"] == (80 if stream else 82)   # 99 - 9 - 8; a stream hands out multiples of its 8 lanes
    assert again["data"]["test_sha256"] == about["test_sha256"]
    assert "test_accuracy" in told["metrics"]
    said = here(evaluate, "run0", attack="fgsm", device="cpu")
    assert "9 of 9 images of noise that were split off" in said
    assert f"\naccuracy {told['metrics']['test_accuracy']}\n" in said
    few = here(evaluate, "run0", data="noise", attack="fgsm", n=4, device="cpu")
    assert "4 of 9 images" in few
    next((tmp_path/"noise").rglob("a3.png")).unlink()
    with pytest.raises(ValueError, match="has changed"): evaluate("run0", device="cpu")


def test_test_images_again(here, tmp_path):
    "Some are training images too: it is said how many. All of them, under another name: others are split off"
    rng, streamed = np.random.default_rng(0), dict(stream=True, size=16)
    write_photos(tmp_path/"some"/"train", dict(a=30, b=30), rng)
    write_photos(tmp_path/"some"/"test", dict(a=10, b=10), rng)
    def of(split, name): return tmp_path/"some"/split/name[0]/f"{name}.png"
    for i in range(3):
        shutil.copy(of("train", f"a{i}"), of("test", f"again{i}"))
    assert "some: 3 of the 23 test images are training images, too." in here(short, "some", "r")
    told = manifest("r")["data"]
    assert told["said_of_test"].startswith("3 of") and not told["split_off"]
    assert told["train"] == 60 and told["test"] == 23
    said = here(short, "some", "s", **streamed)
    assert "of 60 training photos 3 are among the 23 test images, too" in said
    shutil.rmtree(tmp_path/"some"/"test")
    shutil.copytree(tmp_path/"some"/"train", tmp_path/"some"/"test")
    shutil.copy(of("test", "a0"), of("test", "again0"))
    assert "6 were split off" in here(short, "some", "t0")
    assert "6 were split off" in here(short, "some", "t1", **streamed)


def test_single_images(here, tmp_path):
    "A class's only image is trained on. Where each class has but one, no test accuracy is made up"
    write_photos(tmp_path/"rare", dict(a=12, b=1, c=2))
    here(short, "rare", "r", probe=3)
    about = manifest("r")["data"]
    assert about["test"] == 2 and about["train"] == 10
    write_photos(tmp_path/"ones", dict(a=1, b=1, c=1))
    assert "there is no test accuracy" in here(short, "ones", "o")
    told = manifest("o")
    assert told["metrics"] == {} and told["data"]["test"] == 0
    assert "test_accuracy" not in told["history"][0]
    with pytest.raises(ValueError, match="trained on all images"): evaluate("o", device="cpu")
