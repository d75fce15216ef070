"The command line as a stranger meets it: a subprocess, real files, wrong input, no network, kill -9"
import json, os, select, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


SERVER = """
import atexit, json, os, sys
import matplotlib.pyplot, pandas, torch, torchvision
import advlook.cli
for line in sys.stdin:
    words, folder, env, files = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(env)
        for number, file in enumerate(files, 1): os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv, sys.path[0], code = ["advlook", *words], folder, 0
        try: advlook.cli.main()
        except SystemExit as end: code = end.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 1
        atexit._run_exitfuncs()
        for stream in sys.stdout, sys.stderr: stream.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def environment(tmp_path, **env):
    "An empty cache, and a hub out of reach"
    places = dict(ADVLOOK_CACHE=str(tmp_path/"cache"), HF_HOME=str(tmp_path/"hub"))
    return without_data() | places | dict(HF_ENDPOINT="http://127.0.0.1:9") | env


def without_data():
    "This process's environment, one thread, no folder of data sets"
    kept = {key: value for key, value in os.environ.items() if key != "ADVLOOK_DATA"}
    return kept | dict(OMP_NUM_THREADS="1")


@pytest.fixture(scope="session")
def server():
    "A process that has imported torch, and forks one for each command: importing takes longer than most commands"
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-c", SERVER], env=without_data(), text=True, **pipes)
    yield process
    process.stdin.close()
    process.wait()


@pytest.fixture
def advlook(tmp_path, server, tmp_path_factory):
    """Runs the command in a process of its own, in an empty folder: (exit code, output, error).

    whole=True: in one that begins with Python itself; start=True: the same, and the process is returned at once.
    """
    files = [str(tmp_path_factory.mktemp("said")/name) for name in ("out", "err")]

    def forked(words, env):
        server.stdin.write(json.dumps([words, str(tmp_path), env, files]) + "\n")
        server.stdin.flush()
        if not select.select([server.stdout], [], [], 300)[0]:
            server.kill()
            pytest.fail(f"no end after five minutes: {words}")
        return int(server.stdout.readline()), *(Path(file).read_text() for file in files)

    def started(words, env):
        return subprocess.Popen(
            [sys.executable, "-m", "advlook.cli", *words], cwd=tmp_path, env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))   # a shell's background jobs ignore Ctrl-C

    def run(*words, start=False, whole=False, **env):
        words, env = list(map(str, words)), environment(tmp_path, **env)
        if not (start or whole): return forked(words, env)
        process = started(words, env)
        if start: return process
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err
    return run


@pytest.fixture
def photos(tmp_path):
    "Two classes of little pictures, for train and test"
    rng = np.random.default_rng(0)
    for split, n in ("train", 40), ("test", 10):
        for c, name in enumerate(["dark", "light"]):
            folder = tmp_path/"photos"/split/name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 120, (32, 32, 3)) + 120 * c
                Image.fromarray(pixels.astype("uint8")).save(folder/f"{i}.png")
    return tmp_path/"photos"


def names(folder): return {file.name for file in folder.iterdir()}


def leftovers(folder): return sorted(names(folder) - {"cache", "hub", "photos"})


def manifest(folder): return json.loads((folder/"manifest.json").read_text())


# of tests that are about something else than attacks and maps
QUICK = "--attack", "pgd", "--attribution", "margin-grad", "--attribution", "grad-cam"


def train_words(photos, *words):
    "A training of seconds"
    return ["train", photos, "--batch-size", 16, "--learning-rate", 0.02, *words]


def test_look_without_data(advlook, tmp_path):
    "Nothing at hand: it looks at images made by code, says so, and writes everything"
    code, out, err = advlook("look", "--n", 8, whole=True)
    assert code == 0, err
    for said in "Shapes x Textures", "ADVLOOK_DATA", "look scale", "accuracy", "ADV looks at things": assert said in out
    report = tmp_path/"advlook-report"
    assert {"index.html", "report.json", "curves.csv", "robustness.csv", "maps-loss-grad.png"} <= names(report)
    made = json.loads((report/"report.json").read_text())["how_made"]
    assert made["command"] == "advlook look --n 8"
    assert "torch" in made["versions"]
    texts = [file for file in report.iterdir() if file.suffix in (".html", ".json", ".csv")]
    assert all(str(tmp_path) not in file.read_text() for file in texts)


def test_same_seed_same_numbers(advlook, tmp_path):
    for out in "a", "b":
        code, *_ = advlook("look", "--n", 8, "--out", out, whole=out == "b")
        assert code == 0
    for name in "robustness.csv", "scales.csv", "curves.csv":
        assert (tmp_path/"a"/name).read_bytes() == (tmp_path/"b"/name).read_bytes()


def test_own_models_and_photos(advlook, photos, tmp_path):
    "Two checkpoints, made by the command itself, of two architectures, on a folder of pictures"
    for arch in "resnet20", "alexnet_bn_small":
        words = ["--arch", arch, "--epochs", 2, "--objective", "fgsm", "--out", arch]
        code, out, err = advlook(*train_words(photos, *words))
        assert code == 0, err
        told = manifest(tmp_path/arch)
        assert told["command"].startswith(f"advlook train photos --arch {arch} --objective fgsm")
        assert told["metrics"].keys() == {"test_accuracy", "test_robust_accuracy"}
        assert str(tmp_path) not in (tmp_path/arch/"manifest.json").read_text()
    first = ["look", "--models", "A=resnet20/model.safetensors"]
    both = [*first, "--models", "B=alexnet_bn_small/model.safetensors", "--data", photos, *QUICK]
    code, out, err = advlook(*both, "--out", "r")
    assert code == 0, err
    assert "20 images of photos (test)" in out and "than A does (" in out
    code, out, err = advlook(*first, "--data", photos/"test"/"light", "--n", 4, *QUICK, "--out", "r")
    assert code == 0 and "no labels" in out, err
    code, out, err = advlook(*both, "--no-images", "--out", "shared")
    assert code == 0, err
    assert not [name for name in names(tmp_path/"shared") if name.startswith(("maps", "rulers", "blurred"))]
    for file in (tmp_path/"shared").glob("*.json"):
        told = file.read_text()
        assert "photos" not in told or "no photos" in told


def test_models_that_differ(advlook, photos, tmp_path):
    "Of two sizes, one of them for grey images, with a thousand classes that a file relates to the folders"
    (tmp_path/"nets.py").write_text("from advlook.models import create_model\n"
        "def grey(): return create_model('resnet8', 1000, seed=0, channels=1)\n"
        "def large(): return create_model('resnet8', 1000, seed=0, size=48)\n"
        "def broken(): return {}['weights']\n")
    (tmp_path/"classes.txt").write_text("dark = n01440764\nlight = goldfish\n")
    words = ["look", "--models", "grey=nets:grey", "--models", "large=nets:large", "--data", photos, "--n", 8, *QUICK]
    code, out, err = advlook(*words, "--classes", "classes.txt")
    assert code == 0, err
    related = "dark -> 0 tench", "light -> 1 goldfish"
    for said in *related, "32 x 32 pixels, grey", "8 of them had to be enlarged", "accuracy": assert said in out, out
    code, out, err = advlook(*words)
    assert code == 0, out + err
    for said in "labels of these images were not used", "'dark'", "agreement": assert said in out, out + err
    code, out, err = advlook("look", "--models", "b=nets:broken", "--data", photos)
    assert code == 2 and err == "advlook: nets:broken failed: KeyError: 'weights'\n", err


WRONG = {
    "no such data set": (["look", "--data", "cifar11"], ["cifar11", "cifar10"]),
    "only on the hub": (["look", "--data", "cifar100"], ["cifar100", "ADVLOOK_DATA"]),
    "no such checkpoint": (["look", "--models", "A=photos/test/light/01.png"], ["01.png", "did you mean", "1.png"]),
    "no such architecture": (["look", "--models", "A=weights.pt:resnet_20"], ["resnet_20", "resnet20"]),
    "keys that do not fit": (["look", "--models", "A=weights.pt:resnet20"], ["weights.pt", "resnet20", "head.weight"]),
    "not a checkpoint": (["look", "--models", "A=photos/test/light/1.png:resnet20"], ["1.png", "checkpoint"]),
    "no name": (["look", "--models", "weights.pt"], ["NAME=MODEL", "weights.pt"]),
    "an empty folder": (["look", "--data", "empty"], ["empty", "no images"]),
    "a folder of something else": (["look", "--out", "photos", "--n", "4"], ["photos", "not an advlook report"]),
    "out can't be written": (["look", "--out", "weights.pt/report"], ["report", "can't be written"]),
    "no such device": (["look", "--device", "quantum"], ["quantum", "--device cpu"]),
    "n is zero": (["look", "--n", "0"], ["--n", "at least 1", "it is 0"]),
    "no such option": (["look", "--modles", "A=b"], ["--modles", "--models"]),
    "no such objective": (["train", "photos", "--objective", "fgms", "--out", "run"], ["fgms", "std, noise, blur"]),
    "eps is no number": (["train", "photos", "--eps", "4/0", "--out", "run"], ["4/0", "4/255"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input(case, advlook, photos, tmp_path):
    "One sentence, exit code 2, nothing half-written"
    import torch
    (tmp_path/"empty").mkdir()
    torch.save({"a": torch.zeros(3, 2), "b": torch.zeros(4, 3)}, tmp_path/"weights.pt")
    before, (words, said) = leftovers(tmp_path), WRONG[case]
    code, out, err = advlook(*words, whole=case in ("no such option", "not a checkpoint"))
    print(err)
    assert code == 2 and out == "" and "Traceback" not in err
    assert len(err.strip().splitlines()) == 1 and err.startswith("advlook: "), err
    assert all(s in err for s in said), err
    assert leftovers(tmp_path) == before


def test_hub_that_hangs(advlook):
    "A hub that takes the connection and never answers: given up on within seconds"
    import socket
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address, port = silent.getsockname()
        code, out, err = advlook("look", "--data", "svhn", HF_ENDPOINT=f"http://{address}:{port}")
    assert code == 2 and "ADVLOOK_DATA" in err


def test_killed_training_goes_on(advlook, photos, tmp_path):
    "kill -9 after the first epoch, then the same command: the weights of a run that was left alone"
    words = train_words(photos, "--epochs", 3, "--objective", "fgsm", "--threads", 1)
    assert advlook(*words, "--out", "whole", whole=True)[0] == 0
    process = advlook(*words, "--out", "killed", start=True)
    first = process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "checkpoint.pt" in names(tmp_path/"killed") and "model.safetensors" not in names(tmp_path/"killed")
    code, out, err = advlook(*words, "--out", "killed")
    assert code == 0, out + err
    told_again = out.startswith(first)   # to the very second: not trained again
    assert told_again or not out.startswith("epoch 1,"), out + err
    killed, whole = manifest(tmp_path/"killed"), manifest(tmp_path/"whole")
    assert killed["sha256"] == whole["sha256"]   # bit for bit
    assert killed["metrics"] == whole["metrics"]


def test_interrupted_look_leaves_nothing(advlook, tmp_path):
    process = advlook("look", "--n", 64, start=True)
    for _ in range(600):
        if list(tmp_path.glob(".advlook-report.*.part")): break
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert leftovers(tmp_path) == []
