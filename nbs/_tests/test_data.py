"""Every data set of the paper from a small file in the layout that its hub has; large sets, and those that ask for a
login; the cache with processes that race or are killed"""
import os, signal, subprocess, sys, time

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from advlook import data, decoding, splits
from advlook.catalog import CATALOG
from advlook.core import refused
from advlook.data import load_images

LABELS = dict(svhn=10, cifar10=10, cifar100=100, stl10=10, food101=101, flowers102=102, imagenet=1000)
LABELS |= {"tiny-imagenet": 200, "stanford-dogs": 120, "cub200": 200}
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


def column(kind, classes):
    "What `datasets` calls a column of this kind"
    if kind == "class": return datasets.ClassLabel(names=[f"class {i}" for i in range(classes)])
    if kind == "other": return datasets.ClassLabel(names=["coarse"])
    return datasets.Sequence(datasets.Value("float32"))


def entries(kind, n):
    "What is in it"
    if kind == "class": return [i % 5 for i in range(n)]
    return [0 if kind == "other" else [0., 1., 2., 3.]] * n


def noise(rng, *shape): return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


def write_set(folder, name, n=12):
    "A set of little pictures, some of them grey, as parquet files under the names that the hub gives them"
    image, columns, its_splits = LAYOUT[name]
    kinds = {c: column(kind, LABELS[name]) for c, kind in columns.items()}
    table = datasets.Features({image: datasets.Image()} | kinds)
    side, rng = min(CATALOG[name]["size"], 64), np.random.default_rng(0)
    width = side + 4 * (side > 32)
    place = folder/name/"data"
    place.mkdir(parents=True, exist_ok=True)
    for split in its_splits:
        pictures = [noise(rng, side, width, 3) if i % 4 else noise(rng, side, width) for i in range(n)]
        rows = {image: pictures} | {c: entries(kind, n) for c, kind in columns.items()}
        written = datasets.Dataset.from_dict(rows, table)
        written.to_parquet(place/f"{split}-00000-of-00001.parquet")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "Data sets in, and a cache in, the test's own folder"
    monkeypatch.setenv("ADVLOOK_DATA", str(tmp_path))
    monkeypatch.setenv("ADVLOOK_CACHE", str(tmp_path/"cache"))
    return tmp_path/"cache"


@pytest.mark.parametrize("name", LAYOUT)
def test_layout_of_the_hub(name, tmp_path, cache):
    write_set(tmp_path, name)
    size = CATALOG[name]["size"]
    for split in "train", "test":
        images = load_images(name, split)
        assert images.x.shape == (12, 3, size, size) and images.x.dtype == torch.uint8
        assert images.y.tolist() == [i % 5 for i in range(12)]
        assert len(images.names) == LABELS[name] == CATALOG[name]["classes"]
        assert images.names[0] == "class 0"
        red, green = images.x[:, 0], images.x[:, 1]
        assert (red[0] == green[0]).all()   # the first is grey
        assert not (red[1] == green[1]).all()
    assert len(load_images(name, "test", n=5)) == 5


def test_all_ten_sets_are_here(): assert set(LAYOUT) == set(CATALOG) - {"imagenette"}


LOAD = """if True:
    from advlook.data import load_images, content_hash
    print(content_hash(load_images('photos', size=48)))"""


@pytest.fixture
def many(tmp_path):
    "300 photos, and a function that starts a process which loads them"
    rng = np.random.default_rng(0)
    for c in "ab":
        folder = tmp_path/"photos"/c
        folder.mkdir(parents=True)
        for i in range(150): noise(rng, 64, 64, 3).save(folder/f"{i}.png")
    places = dict(ADVLOOK_DATA=tmp_path, ADVLOOK_CACHE=tmp_path/"cache", HF_HOME=tmp_path/"hub")
    env = os.environ | {key: str(place) for key, place in places.items()} | {"OMP_NUM_THREADS": "1"}
    options = dict(env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return lambda: subprocess.Popen([sys.executable, "-c", LOAD], **options)


def printed(process): return process.communicate(timeout=120)[0]


def test_two_processes_build_the_cache(many, tmp_path):
    both = [many(), many()]
    told = [p.communicate(timeout=120) for p in both]
    assert all(p.returncode == 0 for p in both), told
    assert told[0][0] == told[1][0] != ""
    assert len(list((tmp_path/"cache").iterdir())) == 1
    assert printed(many()) == told[0][0]


def test_killed_while_building_the_cache(many, tmp_path):
    start = time.time()
    truth = printed(many())
    whole = time.time() - start
    for share in 0.6, 0.75, 0.85, 0.95:
        for file in (tmp_path/"cache").iterdir(): file.unlink()
        process = many()
        time.sleep(whole * share)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert printed(many()) == truth
        assert not [p.name for p in (tmp_path/"cache").iterdir() if p.name.startswith(".")]


def test_gated_set_says_how_to_log_in(tmp_path):
    "A hub that answers 401, as for a set whose terms have not been accepted"
    import http.server, threading
    restricted = {
        "X-Error-Code": "GatedRepo",
        "X-Error-Message": "Access to dataset is restricted",
        "Content-Length": "0",
    }

    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(401)
            for key, value in restricted.items(): self.send_header(key, value)
            self.end_headers()
        do_HEAD = do_GET
        def log_message(self, *args): pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {k: v for k, v in os.environ.items() if k != "ADVLOOK_DATA"}
        env["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
        env |= dict(HF_HOME=str(tmp_path), ADVLOOK_CACHE=str(tmp_path/"cache"))
        command = [sys.executable, "-m", "advlook.cli", "look", "--data", "imagenet", "--n", "4"]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        server.shutdown()
    assert done.returncode == 2 and "hf auth login" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_large_sets_are_not_loaded_whole(tmp_path, cache, monkeypatch):
    "Of a local set over the limit only the chosen images are decoded, and nothing of it is kept"
    write_set(tmp_path, "food101", 40)
    monkeypatch.setattr(data, "CACHE_LIMIT", 10)
    seen, old = [], decoding.open_photo

    def counted(*args):
        seen.append(1)
        return old(*args)

    monkeypatch.setattr(decoding, "open_photo", counted)
    images = load_images("food101", "test", n=10)
    assert len(seen) == 10
    assert images.y.bincount().tolist() == [2] * 5
    assert not cache.exists()


def test_large_sets_of_the_hub_are_streamed(tmp_path, cache, monkeypatch):
    "What would fill the disk is fetched row by row: here from parquet files that stand in for the hub's"
    monkeypatch.delenv("ADVLOOK_DATA")
    write_set(tmp_path/"hub", "imagenet", 40)
    monkeypatch.setattr(splits, "find_source", lambda name: (str(tmp_path/"hub"/name), None, None))
    refused("too large to be loaded whole; say how many", load_images, "imagenet", "test")
    images = load_images("imagenet", "test", n=10, seed=1)
    assert images.x.shape == (10, 3, 224, 224)
    assert images.y.max() < 5 and len(images.names) == 1000
    assert not cache.exists()
    again, other = (load_images("imagenet", "test", n=10, seed=seed) for seed in (1, 2))
    assert torch.equal(images.x, again.x)
    assert not torch.equal(images.y, other.y)
