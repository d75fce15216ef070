"Every data set of the paper from a small file in the layout that its hub has; the cache with processes that race or are killed"
import io, os, signal, subprocess, sys, time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from advlook.data import CATALOG, load_images

LABELS = dict(svhn=10, cifar10=10, cifar100=100, stl10=10, food101=101, flowers102=102, imagenet=1000) | {"tiny-imagenet": 200, "stanford-dogs": 120, "cub200": 200}
LAYOUT = {  # columns beside the image, the image's own name, and the splits, as on the hub
    "svhn": ("image", {"label": "class"}, ["train", "test", "extra"]),
    "cifar10": ("img", {"label": "class"}, ["train", "test"]),
    "cifar100": ("img", {"fine_label": "class", "coarse_label": "other"}, ["train", "test"]),
    "tiny-imagenet": ("image", {"label": "class"}, ["train", "valid"]),
    "stl10": ("image", {"label": "class"}, ["train", "test"]),
    "food101": ("image", {"label": "class"}, ["train", "validation"]),
    "flowers102": ("image", {"label": "class"}, ["train", "validation", "test"]),
    "stanford-dogs": ("image", {"label": "class"}, ["train", "test"]),
    "cub200": ("image", {"bbox": "box", "label": "class"}, ["train", "test"]),
    "imagenet": ("image", {"label": "class"}, ["train", "validation", "test"]),
}


def write_set(folder, name, n=12):
    "A set of little pictures, some of them grey, as parquet files under the names that the hub gives them"
    image, columns, splits = LAYOUT[name]
    features = {image: datasets.Image()} | {c: datasets.ClassLabel(names=[f"class {i}" for i in range(LABELS[name])]) if kind == "class" else datasets.ClassLabel(names=["coarse"]) if kind == "other" else datasets.Sequence(datasets.Value("float32")) for c, kind in columns.items()}
    side, rng = min(CATALOG[name]["size"], 64), np.random.default_rng(0)
    for split in splits:
        pictures = [Image.fromarray(rng.integers(0, 256, (side, side + 4 * (side > 32)) + ((3,) if i % 4 else ()), dtype=np.uint8)) for i in range(n)]
        rows = {image: pictures} | {c: [i % 5 if kind == "class" else 0 if kind == "other" else [0., 1., 2., 3.] for i in range(n)] for c, kind in columns.items()}
        (folder/name/"data").mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, datasets.Features(features)).to_parquet(folder/name/"data"/f"{split}-00000-of-00001.parquet")


@pytest.mark.parametrize("name", LAYOUT)
def test_layout_of_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.setenv("ADVLOOK_DATA", str(tmp_path)); monkeypatch.setenv("ADVLOOK_CACHE", str(tmp_path/"cache"))
    write_set(tmp_path, name)
    for split in "train", "test":
        images, size = load_images(name, split), CATALOG[name]["size"]
        assert images.x.shape == (12, 3, size, size) and images.x.dtype == torch.uint8 and images.y.tolist() == [i % 5 for i in range(12)]
        assert len(images.names) == LABELS[name] == CATALOG[name]["classes"] and images.names[0] == "class 0"
        assert (images.x[0, 0] == images.x[0, 1]).all() and not (images.x[1, 0] == images.x[1, 1]).all()   # the first is grey
    assert len(load_images(name, "test", n=5)) == 5


def test_all_ten_sets_are_here(): assert set(LAYOUT) == set(CATALOG) - {"imagenette"}


LOAD = "from advlook.data import load_images, content_hash; print(content_hash(load_images('photos', size=48)))"


@pytest.fixture
def many(tmp_path):
    "300 photos, and a function that starts a process which loads them"
    rng = np.random.default_rng(0)
    for c in "ab":
        (tmp_path/"photos"/c).mkdir(parents=True)
        for i in range(150): Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path/"photos"/c/f"{i}.png")
    env = dict(os.environ, ADVLOOK_DATA=str(tmp_path), ADVLOOK_CACHE=str(tmp_path/"cache"), HF_HOME=str(tmp_path/"hub"), OMP_NUM_THREADS="1")
    return lambda: subprocess.Popen([sys.executable, "-c", LOAD], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_processes_build_the_cache(many, tmp_path):
    both = [many(), many()]
    told = [p.communicate(timeout=120) for p in both]
    assert all(p.returncode == 0 for p in both), told
    assert told[0][0] == told[1][0] != "" and len(list((tmp_path/"cache").iterdir())) == 1
    assert many().communicate(timeout=120)[0] == told[0][0]


def test_killed_while_building_the_cache(many, tmp_path):
    start = time.time(); truth = many().communicate(timeout=120)[0]; whole = time.time() - start
    for share in 0.6, 0.75, 0.85, 0.95:
        for file in (tmp_path/"cache").iterdir(): file.unlink()
        process = many(); time.sleep(whole * share); process.send_signal(signal.SIGKILL); process.communicate()
        assert many().communicate(timeout=120)[0] == truth
        assert [p.name for p in (tmp_path/"cache").iterdir() if p.name.startswith(".")] == []


def test_gated_set_says_how_to_log_in(tmp_path):
    "A hub that answers 401, as for a set whose terms have not been accepted"
    import http.server, threading
    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(401); self.send_header("X-Error-Code", "GatedRepo"); self.send_header("X-Error-Message", "Access to dataset is restricted"); self.send_header("Content-Length", "0"); self.end_headers()
        do_HEAD = do_GET
        def log_message(self, *args): pass
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {k: v for k, v in os.environ.items() if k != "ADVLOOK_DATA"} | dict(HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", HF_HOME=str(tmp_path), ADVLOOK_CACHE=str(tmp_path/"cache"))
        done = subprocess.run([sys.executable, "-m", "advlook.cli", "look", "--data", "imagenet", "--n", "4"], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        server.shutdown()
    assert done.returncode == 2 and "hf auth login" in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_large_sets_are_not_loaded_whole(tmp_path, monkeypatch):
    "Of a local set over the limit only the chosen images are decoded, and nothing of it is kept"
    import advlook.data as data
    monkeypatch.setenv("ADVLOOK_DATA", str(tmp_path)); monkeypatch.setenv("ADVLOOK_CACHE", str(tmp_path/"cache"))
    write_set(tmp_path, "food101", 40)
    monkeypatch.setattr(data, "CACHE_LIMIT", 10)
    seen = []
    monkeypatch.setattr(data, "open_photo", lambda *args, old=data.open_photo: seen.append(1) or old(*args))
    images = load_images("food101", "test", n=10)
    assert len(seen) == 10 and images.y.bincount().tolist() == [2] * 5 and not (tmp_path/"cache").exists()


def test_large_sets_of_the_hub_are_streamed(tmp_path, monkeypatch):
    "What would fill the disk is fetched row by row: here from parquet files that stand in for the hub's"
    import advlook.data as data
    monkeypatch.delenv("ADVLOOK_DATA", raising=False); monkeypatch.setenv("ADVLOOK_CACHE", str(tmp_path/"cache"))
    write_set(tmp_path/"hub", "imagenet", 40)
    monkeypatch.setattr(data, "find_source", lambda name: (str(tmp_path/"hub"/name), None, None))
    with pytest.raises(ValueError, match="too large to be loaded whole; say how many"): load_images("imagenet", "test")
    images = load_images("imagenet", "test", n=10, seed=1)
    assert images.x.shape == (10, 3, 224, 224) and images.y.max() < 5 and len(images.names) == 1000 and not (tmp_path/"cache").exists()
    assert torch.equal(images.x, load_images("imagenet", "test", n=10, seed=1).x) and not torch.equal(images.y, load_images("imagenet", "test", n=10, seed=2).y)
