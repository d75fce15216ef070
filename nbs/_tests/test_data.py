"""Every data set of the paper from a small file in the layout that its hub has; folders, zips and parquet files as
people have them; the cache with processes that race or are killed"""
import csv, io, json, os, random, shutil, signal, subprocess, sys, time, tracemalloc, zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, features

from advlook import catalog, data, decoding, splits
from advlook.catalog import CATALOG, find_source, local_folder
from advlook.core import refused
from advlook.data import content_hash, load_images
from advlook.folders import LARGEST
from advlook.layouts import numbered, read_folder
from advlook.photos import reads_heic
from advlook.stream import Stream, find_groups

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


def shade(path): return sum(map(ord, str(path))) * 37 % 251


def photos(root, *paths, **options):
    "Photos, each of a shade that follows from its path, so that it can be known again"
    for path in paths:
        (root/path).parent.mkdir(parents=True, exist_ok=True)
        kind = {".jpg": "jpeg", ".jpeg": "jpeg"}.get((root/path).suffix.lower(), "png")
        Image.new("L", (12, 16), shade(path)).save(root/path, kind, **options)
    return root


@pytest.fixture
def here(tmp_path, monkeypatch):
    "An empty working directory, and neither data sets nor a cache from elsewhere"
    monkeypatch.delenv("ADVLOOK_DATA", raising=False); monkeypatch.setenv("ADVLOOK_CACHE", str(tmp_path/"its cache"))
    (tmp_path/"here").mkdir(); monkeypatch.chdir(tmp_path/"here")
    return tmp_path/"here"


def found(name, split="test", **options):
    "{shade: class name, or None} of what is loaded, and the note"
    images = load_images(name, split, size=8, **options)
    labels = images.labels() if images.y is not None else [None] * len(images)
    return dict(zip(images.x[:, 0, 4, 4].tolist(), labels, strict=True)), images.note


def wanted(**classes): return {shade(path): name for name, paths in classes.items() for path in paths}


def near(got, want):
    "JPEG may move a shade by one"
    return len(got) == len(want) and all(any(got.get(shade + d) == name for d in (0, -1, 1)) for shade,
        name in want.items())


@pytest.mark.parametrize("name", ["test", "train", "val", "dev", "eval", "evaluation"])
def test_a_name_like_a_splits_takes_nothing_away(here, name):
    "One file, or one class, called so: all others used to be gone"
    cats, dogs = [f"cat/{i}.png" for i in range(5)] + [f"cat/{name}_12.png"], [f"dog/{i}.png" for i in range(5)]
    photos(here/"file", *cats, *dogs)
    got, note = found("file")
    assert got == wanted(cat=cats, dog=dogs) and note == "all 11 images of file (test)"
    also = [f"{name}/{i}.png" for i in range(4)]
    photos(here/"class", *cats, *dogs, *also)
    got, note = found("class")
    assert got == wanted(cat=cats, dog=dogs) | dict.fromkeys(map(shade, also), name)
    named = ", ".join(sorted(["cat", "dog", name]))
    assert note == f"all 15 images of class (test); its folders {named} were taken as classes"
    assert found("class", "train")[0] == got


def test_splits(here):
    train, test = ["train/cat/1.png", "train/cat/2.png", "train/dog/3.png"], ["test/dog/4.png", "test/emu/5.png"]
    photos(here/"set", *train, *test, "test/6.png", "7.png")
    load = lambda split: load_images("set", split, size=8)
    assert [load(split).names for split in ("train", "test")] == [["cat", "dog", "emu"]] * 2
    assert load("train").y.tolist() == [0, 0, 1] and load("test").y.tolist() == [1, 2]
    assert load("test").note == (
        "all 2 images of set (test); its folders test, train were taken as splits; the 3 classes are those of all "
        "splits together; 1 more left out, beside the folders of splits (7.png); "
        "1 more left out, beside the class folders, without a class (6.png)")
    assert find_groups("set", "test")[1] == ("cat", "dog", "emu")
    assert [y for g in find_groups("set", "train")[0] for _, y in sorted(g.read())] == [0, 0, 1]


def test_splits_without_classes(here):
    photos(here/"set", "Train/1.png", "Train/2.png", "Validation/3.png")
    got, note = found("set", "train")
    assert got == {shade("Train/1.png"): None, shade("Train/2.png"): None}
    got, note = found("set", "test")
    assert got == {shade("Validation/3.png"): None}
    assert "these are its validation images, as it has no test images" in note
    photos(here/"contest", "train/cat/1.png", "train/dog/2.png", "test/3.png")   # Kaggle's
    assert found("contest", "train")[0] == wanted(cat=["train/cat/1.png"], dog=["train/dog/2.png"])
    assert found("contest")[0] == {shade("test/3.png"): None}
    with pytest.raises(ValueError, match="'contest' has no labels, and training needs them"):
        find_groups("contest", "test")
    photos(here/"one", "train/cat/1.png", "train/dog/2.png")
    assert "these are its train images, as it has no test images" in found("one")[1]
    with pytest.raises(ValueError, match="there is no split 'extra'; there are test, train"):
        load_images("contest", "extra", size=8)


def test_classes(here):
    real, sketch, train = ["real/1.png", "real/deep/er/2.png"], ["sketch/train/3.png",
        "sketch/test/4.png"], ["train/5.png"]
    photos(here/"set", *real, *sketch, *train, "6.png", "test_7.png")
    got, note = found("set")
    assert got == wanted(real=real, sketch=sketch, train=train)
    assert "its folders real, sketch, train were taken as classes" in note
    assert "2 more left out, beside the class folders, without a class (6.png, test_7.png)" in note
    assert find_groups("set", "train")[1] == ("real", "sketch", "train")
    photos(here/"lone", "cat/1.png", "cat/2.png")
    assert found("lone") == (wanted(cat=["cat/1.png", "cat/2.png"]),
        "all 2 images of lone (test); cat is its only class")
    photos(here/"wrapped", "set/cat/1.png", "set/dog/2.png")
    assert found("wrapped") == (wanted(cat=["set/cat/1.png"], dog=["set/dog/2.png"]),
        "all 2 images of wrapped (test); its only folder set was opened")


def test_flat(here):
    flat = ["1.png", "2.jpg", "3.JPEG", "test_4.PNG", "train.5.png"]
    photos(here/"set", *flat)
    got, note = found("set")
    assert near(got, {shade(path): None for path in flat}) and note == "all 5 images of set (test)"
    photos(here/"beside", "1.png", "2.png", "edited/3.png")   # one folder makes no classes
    assert found("beside")[0] == {shade(path): None for path in ("1.png", "2.png", "edited/3.png")}


def test_what_lies_beside_photos_is_ignored(here):
    photos(here/"yolo", "images/train/1.png", "images/train/2.png", "images/val/3.png")
    photos(here/"voc", "JPEGImages/1.jpg", "JPEGImages/2.jpg")
    for root, other in (here/"yolo", "labels/train/1.txt"), (here/"yolo", "data.yaml"), (here/"voc",
        "Annotations/1.xml"), (here/"voc", "sets/test.txt"):
        (root/other).parent.mkdir(parents=True, exist_ok=True); (root/other).write_text("0 0.5 0.5 1 1")
    got, note = found("yolo", "train")
    assert got == {shade("images/train/1.png"): None, shade("images/train/2.png"): None}
    for said in ("its only folder images was opened", "its folders train, val were taken as splits",
                 "2 other files (.txt, .yaml) were ignored"): assert said in note
    got, note = found("voc")
    assert near(got, {shade(f"JPEGImages/{i}.jpg"): None for i in (1, 2)})
    assert note.endswith("; 2 other files (.txt, .xml) were ignored")
    for name in ".DS_Store", "a/Thumbs.db", "a/._1.png", "__MACOSX/a/._1.png", "a/desktop.ini", ".git/config":
        (here/"mac"/name).parent.mkdir(parents=True, exist_ok=True); (here/"mac"/name).write_bytes(b"no photo")
    photos(here/"mac", "a/1.png", "b/2.png")
    assert found("mac") == (wanted(a=["a/1.png"], b=["b/2.png"]), "all 2 images of mac (test)")


def test_left_out_with_its_reason(here):
    photos(here/"set", "a/1.png", "b/2.png", ".trash/3.png", "b/.4.png")
    for name, content in {"a/5.jpg": b"Dear all,", "a/6.NEF": b"II*\0", "old.zip": b"PK", "b/7.png": b""}.items():
        (here/"set"/name).write_bytes(content)
    (here/"set"/"b"/"8.jpg").symlink_to("nothing"); os.mkfifo(here/"set"/"a"/"9.png")
    got, note = found("set")
    assert got == wanted(a=["a/1.png"], b=["b/2.png"])
    for said in ("2 more can't be read and were left out (5.jpg, 7.png)", "2 more left out, hidden (3.png, .4.png)",
        "1 more left out, archives (old.zip)",
                 "1 more left out, raw files of a camera (6.NEF)", "1 more left out, links to nothing (8.jpg)",
                 "1 more left out, devices, no files (9.png)"): assert said in note


def test_heic(here):
    "Where pillow-heif is there; else they are counted, and a folder of nothing else says so"
    photos(here/"set", "a/1.png", "b/2.png")
    if not reads_heic():
        for name in "a/3.HEIC", "b/4.heif": (here/"set"/name).write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
        said = "2 more left out, HEIC, which needs pillow-heif (3.HEIC, 4.heif)"
        assert found("set")[1] == f"all 2 images of set (test); {said}"
        (here/"set/a/1.png").unlink(); (here/"set/b/2.png").unlink()
        with pytest.raises(ValueError,
            match="holds no images that can be read.*2 more left out, HEIC, which needs pillow-heif"):
            load_images("set", size=8)
        with pytest.raises(ValueError,
            match="'3.HEIC' is no image that can be read here: it is HEIC; install pillow-heif"):
            load_images("set/a/3.HEIC", size=8)
        pytest.skip("decoding HEIC needs pillow-heif")
    import pillow_heif
    pillow_heif.from_pillow(Image.new("RGB", (64, 64), "red")).save(here/"set/a/3.HEIC", quality=95)
    assert len(found("set")[0]) == 3 and "left out" not in found("set")[1]


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif(here):
    photos(here/"set", "a/1.png"); Image.new("RGB", (16, 16), (200, 0, 0)).save(here/"set/a/2.avif")
    (here/"set/b").mkdir()
    shutil.copy(here/"set/a/2.avif", here/"set/b/3.AVIF"); shutil.copy(here/"set/a/2.avif", here/"set/b/no ending")
    images = load_images("set", size=8)
    assert images.y.tolist() == [0, 0, 1, 1] and (images.x[1:, 0].int() - 200).abs().max() < 4
    assert images.note == "all 4 images of set (test)"


def test_odd_names(here):
    paths = ["a[1]/*.png", "a[1]/[x] ?.png", "ü ö/é.PNG", "ü ö/日本.png", "ü ö/no ending", "ü ö/v1.2", "ü ö/1.jpg_large",
        "ü ö/new\nline.png"]
    photos(here/"set [old] *", *paths)
    got, note = found("set [old] *")
    assert got == {shade(p): p.split("/")[0] for p in paths} and note == "all 8 images of set [old] * (test)"
    (here/"set [old] *"/os.fsdecode(b"not \xff UTF-8.png")).write_bytes(b"no photo")
    found("set [old] *")[1].encode()
    assert sum(len(g.read()) for g in find_groups("set [old] *", "train")[0]) == 8


def test_links(here):
    photos(here/"store", "cats/1.png", "cats/2.png", "x.png")
    (here/"set/dog").mkdir(parents=True)
    (here/"set/cat").symlink_to(here/"store/cats"); (here/"set/dog/3.png").symlink_to(here/"store/x.png")
    (here/"set/dog/up").symlink_to(here/"set"); (here/"set/dog/self").symlink_to("self")
    got, note = found("set")
    assert got == wanted(cat=["cats/1.png", "cats/2.png"], dog=["x.png"])
    assert "1 more left out, links that lead in a circle (up)" in note
    assert "1 more left out, links to nothing (self)" in note
    (here/"linked").symlink_to(here/"set")
    assert found("linked")[0] == got
    before = load_images("set", size=8).x
    photos(here/"store", "cats/9.png")   # what a link leads to has changed: so has the set
    assert len(load_images("set", size=8)) == 1 + len(before)
    for a in "pqrs":   # a knot: each leads to all
        (here/"knot"/a).mkdir(parents=True); photos(here/"knot"/a, "1.png")
        for b in "pqrs": (here/"knot"/a/f"to {b}").symlink_to(here/"knot"/b)
    assert set(load_images("knot", size=8).names) == set("pqrs")


def test_zip(here):
    cat, dog = ["cat/1.png", "cat/2.png"], ["dog/3.png", "dog/test_4.png"]
    photos(here/"set", *cat, *dog, "inner/5.png")
    shutil.make_archive(here/"set/inner", "zip", here/"set/inner"); shutil.rmtree(here/"set/inner")
    for name, options in ("plain", dict(root_dir="set")), ("set", dict(base_dir="set")):   # as it is, and in a folder
        shutil.make_archive(name, "zip", **options)
        got, note = found(f"{name}.zip")
        assert got == wanted(cat=cat, dog=dog)
        assert note == f"all 4 images of {name}.zip (test); 1 more left out, archives (inner.zip)"
        groups, names = find_groups(f"{name}.zip", "train")
        assert names == ("cat", "dog") and sorted(y for g in groups for _, y in g.read()) == [0, 0, 1, 1]
    photos(here/"holiday", "1.png", "2.png"); shutil.make_archive("holiday", "zip", base_dir="holiday")
    assert found("holiday.zip") == ({shade(f"{i}.png"): None for i in (1, 2)}, "all 2 images of holiday.zip (test)")
    photos(here/"splits", "train/a/1.png", "train/b/2.png", "test/b/3.png")
    shutil.make_archive("splits", "zip", "splits")
    images = load_images("./splits.zip", "test", size=8)
    assert images.y.tolist() == [1] and images.names == ["a", "b"] and not list(here.glob("*/inner"))


def test_zips_that_are_not_to_be_trusted(here):
    whole = io.BytesIO(); Image.new("RGB", (9, 9)).save(whole, "png")
    with zipfile.ZipFile("bad.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name in "a/1.png", "b/2.png", "../up.png", "/root.png": file.writestr(name, whole.getvalue())
        with file.open("b/huge.png", "w") as huge:
            for _ in range(257): huge.write(bytes(2**20))
    assert (here/"bad.zip").stat().st_size < 2**20 < LARGEST
    tracemalloc.start(); images = load_images("bad.zip", size=8); peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(images) == 2 and peak < 50e6 and not (here.parent/"up.png").exists()
    assert "1 more left out, files of over 256 MB (huge.png)" in images.note
    assert "2 more left out, files that would lie outside of the zip's folder" in images.note
    data = bytearray((here/"bad.zip").read_bytes())
    (here/"cut.zip").write_bytes(data[:len(data) // 2])
    with pytest.raises(ValueError, match="^'cut.zip' can't be read: it is a damaged zip$"):
        load_images("cut.zip", size=8)
    at = data.find(b"PK\1\2"); data[at + 8] |= 1   # the flag of encryption
    (here/"locked.zip").write_bytes(data)
    with pytest.raises(ValueError, match="^'locked.zip' is encrypted; unpack it first$"):
        load_images("locked.zip", size=8)
    (here/"set.tar").write_bytes(b"")
    with pytest.raises(ValueError,
        match="^'set.tar' is an archive that can't be read here; unpack it, or make it a zip$"):
        load_images("set.tar", size=8)
    with zipfile.ZipFile("torn.zip", "w") as file:
        for i in range(3): file.writestr(f"{i}.png", whole.getvalue())
    data = bytearray((here/"torn.zip").read_bytes()); data[60:70] = bytes(10); (here/"torn.zip").write_bytes(data)
    assert load_images("torn.zip",
        size=8).note == "all 2 images of torn.zip (test); 1 more can't be read and were left out (0.png)"


def test_one_photo(here):
    photos(here, "cat.jpg", "cat")
    for name in "cat.jpg", "./cat.jpg", here/"cat.jpg", Path("cat.jpg"), "cat":
        images = load_images(name, size=8)
        assert images.x.shape == (1, 3, 8, 8) and images.y is None and images.note.startswith("all 1 image of cat")
    (here/"letter.jpg").write_bytes(b"Dear all,")
    with pytest.raises(ValueError, match="^'letter.jpg' is no image that can be read here"):
        load_images("letter.jpg", size=8)


@pytest.mark.parametrize("kind", ["csv", "excel", "jsonl", "numbers", "words"])
def test_metadata(here, kind):
    paths = ["1.png", "sub/2.png", "sub/é.png", "train.png"]
    labels = {"numbers": [3, 10, 3, 10], "words": ["no", "a b", "no", "a b"]}.get(kind, ["cat", "dog", "dog", "cat"])
    photos(here/"set", *paths)
    rows = [dict(file_name=path, label=label) for path, label in zip(paths, labels)]
    if kind == "jsonl": (here/"set/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        with open(here/"set/metadata.csv", "w", newline="",
            encoding="utf-8-sig" if kind == "excel" else "utf-8") as file:
            writer = csv.writer(file, delimiter=";" if kind == "excel" else ",")
            writer.writerow(["file_name", "kind" if kind == "words" else "label"])
            writer.writerows(row.values() for row in rows)
    got, note = found("set")
    assert got == {shade(path): str(label) for path, label in zip(paths, labels)}
    assert note == "all 4 images of set (test); its classes are those of its metadata file"
    assert load_images("set", size=8).names == {"numbers": ["3", "10"], "words": ["a b", "no"]}.get(kind, ["cat",
        "dog"])


def test_metadata_that_is_ignored(here):
    photos(here/"set", "a/1.png", "a/2.png", "b/3.png")
    for text, said in [("file_name,label\na/1.png,x\nb/3.png,y\n",
        "metadata was ignored: it does not list every photo"),
                       ("file_name,label\na/1.png,x\na/2.png,\nb/3.png,y\n",
                           "metadata was ignored: it does not list every photo"),
                       ("name,label\na/1.png,x\n", "metadata.csv was ignored: it has no column file_name"),
                       ("file_name,x,y\na/1.png,1,2\n",
                           "metadata.csv was ignored: none of its columns is called label"),
                       ("", "metadata.csv was ignored: it has no column file_name")]:
        (here/"set/metadata.csv").write_text(text)
        assert found("set") == (wanted(a=["a/1.png", "a/2.png"], b=["b/3.png"]), f"all 3 images of set (test); {said}")
    (here/"set/metadata.csv").write_bytes(b"file_name,label\n\xff\xfe\n")
    assert "metadata.csv was ignored: it is damaged" in found("set")[1]
    photos(here/"captions", *[f"{i}.png" for i in range(12)])
    (here/"captions/metadata.csv").write_text("file_name,text\n" + "".join(f"{i}.png,photo {i}\n" for i in range(12)))
    assert "metadata.csv was ignored: its column text differs from photo to photo" in found("captions")[1]
    photos(here/"splits", "train/1.png", "train/2.png", "test/3.png")   # the layout of `datasets`: a table for each
    (here/"splits/train/metadata.csv").write_text("file_name,label\n1.png,x\n2.png,y\n")
    assert found("splits", "train")[0] == {shade("train/1.png"): "x", shade("train/2.png"): "y"}
    assert found("splits", "test")[0] == {shade("test/3.png"): None}


def test_a_path_is_a_path_and_a_name_the_catalogues(here, monkeypatch):
    monkeypatch.setattr(catalog, "hub_answers", lambda: False)
    photos(here/"cifar10", "a/1.png", "b/2.png"); photos(here/"mine", "a/1.png")
    photos(here/"shapes-textures", "a/1.png")
    for name in "./cifar10", "cifar10/", str(here/"cifar10"), Path("cifar10"), Path(
        "./cifar10"), here/"cifar10", "../here/cifar10":
        assert load_images(name, size=8).names == ["a", "b"]
    with pytest.raises(ConnectionError, match="the folder of that name here is called './cifar10'"):
        load_images("cifar10", size=8)
    assert len(load_images("shapes-textures", n=4).names) == 8
    assert load_images("./shapes-textures", size=8).names == ["a"]
    assert len(load_images("mine", size=8)) == 1
    with pytest.raises(ValueError, match="there is no data set or folder './imagenette'"): load_images("./imagenette")
    with pytest.raises(ValueError, match="there is no data set or folder 'none/of/it'"): load_images(Path("none/of/it"))
    with pytest.raises(ConnectionError): load_images(Path("imagenette"))
    with pytest.raises(ValueError, match="there is no data set or folder ''"): load_images("")
    monkeypatch.setenv("ADVLOOK_DATA", str(here/"data"))
    photos(here/"data", "cifar10/c/1.png", "mine/d/1.png", "sub/set/e/1.png")
    assert load_images("cifar10", size=8).names == ["c"] and load_images("./cifar10", size=8).names == ["a", "b"]
    assert load_images("mine", size=8).names == ["d"] and load_images(Path("mine"), size=8).names == ["a"]
    assert load_images("sub/set", size=8).names == ["e"] and local_folder("./sub/set") is None
    assert find_source("cifar10")[0] == str(here/"data/cifar10")


def table(path, n=6, image=None, **columns):
    "A parquet file of n photos of their own shades"
    kinds = {int: datasets.Value("int64"), str: datasets.Value("string")}
    image = image or [Image.new("L", (12, 16), 10 * i) for i in range(n)]
    listed = {name: datasets.ClassLabel(names=["x", "y",
        "z"]) if name.startswith("listed") or name.endswith("label") else kinds[type(next(
            v for v in values if v is not None))]
              for name, values in columns.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict({"image": image} | columns,
        datasets.Features({"image": datasets.Image()} | listed)).to_parquet(path)


def test_parquet_with_gaps(here):
    some = [Image.new("L", (12, 16), 10 * i) if i != 2 else None for i in range(6)]
    table(here/"set/train.parquet", image=some, label=[0, 1, 2, None, -1, 1])
    images = load_images("set", "train", size=8)
    assert images.x[:, 0, 0, 0].tolist() == [0, 10, 50] and images.y.tolist() == [0, 1, 1]
    assert images.names == ["x", "y", "z"]
    assert "1 more left out, rows without an image (image 2)" in images.note
    assert "2 more left out, without a label (row 3, row 4)" in images.note
    (x, y, *_), = Stream("set", "train", 8, augment=False, lanes=1).batches((0, 0), 6)
    assert set(zip(x[:, 0, 0, 0].tolist(), y.tolist())) == {(0, 0), (10, 1), (50, 1)}   # the next one stands in
    table(here/"bare/test.parquet", label=[-1] * 6)
    assert load_images("bare", size=8).y is None


def test_parquet_that_is_cut_off(here):
    table(here/"set/train-00000-of-00002.parquet", label=[0] * 6)
    table(here/"set/train-00001-of-00002.parquet", label=[0] * 6)
    whole = (here/"set/train-00001-of-00002.parquet").read_bytes()
    broken = bytearray(whole); broken[4:len(whole) // 2] = bytes(len(whole) // 2 - 4)
    for content in whole[:len(whole) // 2], b"", bytes(broken):
        (here/"set/train-00001-of-00002.parquet").write_bytes(content)
        with pytest.raises(ValueError,
            match="^'train-00001-of-00002.parquet' can't be read: it is cut off or damaged, or no parquet file$"):
            load_images("set", "train")


def test_parquet_columns(here):
    several = [0, 1, 2, 0, 1, 2]
    for name, columns, label, said in [
        ("both", dict(coarse_label=[0] * 6, fine_label=several), several,
            "its labels are the column fine_label, not coarse_label"),
        ("category", dict(category=["u", "v", "w"] * 2), several, "its labels are the column category"),
        ("target", dict(target=several, id=[*range(6)]), several, "its labels are the column target"),
        ("odd", dict(breed_name=["u", "v", "w"] * 2, caption=list("abcdef")), several,
            "its labels are the column breed_name"),
        ("listed", dict(listed_a=several, number=[5] * 6), several, "its labels are the column listed_a"),
        ("two", dict(listed_a=several, listed_b=[0] * 6), several, "its labels are the column listed_a, not listed_b"),
        ("none", dict(width=[5, 5, 5, 6, 6, 6], height=[7] * 6), None,
            "it has no labels, unless one of its columns width, height is renamed to label"),
        ("captions", dict(caption=list("abcdef")), None, ""), ("labels", dict(labels=several), several, "")]:
        table(here/name/"photos.parquet", **columns)
        images = load_images(name, size=8)
        assert (images.y if label is None else images.y.tolist()) == label, name
        assert images.note == "; ".join(filter(None, [f"all 6 images of {name} (test)", said]))
        if label is not None:
            assert sorted(y for g in find_groups(name, "train")[0] for _, y in g.read()) == sorted(label)
    assert find_groups("odd", "train")[1] == ("u", "v", "w") == tuple(load_images("odd", size=8).names)


def test_parquet_files_are_all_read(here):
    for name in "part-0", "my test", "sub/more": table(here/"set"/f"{name}.parquet", n=2, label=[0, 1])
    (here/"set"/"linked.parquet").symlink_to("part-0.parquet"); table(here/"capital/A.PARQUET", label=[0] * 6)
    table(here/"in [x]/a.parquet", label=[0] * 6)
    images = load_images("set", size=8)
    assert len(images) == 8
    said = "not all of its files are named by a split, so they were read as one set"
    assert images.note == f"all 8 images of set (test); {said}"
    assert len(load_images("capital", size=8)) == len(load_images("in [x]",
        size=8)) == len(load_images("capital/A.PARQUET", size=8)) == 6
    assert sum(g.rows for g in find_groups("set", "train")[0]) == 8
    photos(here/"in [x]", "sample.png")   # a picture in a set's own folder
    assert load_images("in [x]",
        size=8).note == "all 6 images of in [x] (test); 1 more left out, beside the parquet files (sample.png)"
    photos(here/"photos", "a/1.png", "b/2.png")   # and a table beside photos
    datasets.Dataset.from_dict({"file": ["1"], "vector": [[0.1, 0.2]]}).to_parquet(here/"photos/features.parquet")
    assert load_images("photos", size=8).note == "all 2 images of photos (test); 1 other file (.parquet) was ignored"


def test_saved_to_disk(here):
    table(here/"one.parquet", label=[0, 1, 2] * 2)
    one = datasets.Dataset.from_parquet(str(here/"one.parquet"))
    one.save_to_disk(here/"plain"); datasets.DatasetDict(train=one, test=one.select([0, 1])).save_to_disk(here/"splits")
    assert len(load_images("plain", size=8)) == 6
    assert [len(load_images("splits", split, size=8)) for split in ("train", "test")] == [6, 2]


def test_every_photo_is_in_the_set_or_counted(here):
    "Folders made at random of what is found in the wild"
    names = ["train", "test", "val", "Test", "cat", "dog", "images", "evaluation", "a.b", ".hidden", "x [1]"]
    ends = [".png", ".PNG", ".txt", "", ".NEF", ".heic", ".zip", ".xml", ".gif", ".jpg_large"]
    rng, readings = random.Random(0), set()
    for number in range(300):
        root, some = here/f"tree {number}", rng.sample(names, rng.randint(1, 4))
        root.mkdir()
        for i in range(rng.randint(1, 14)):
            folder = root.joinpath(*(rng.choice(some) for _ in range(rng.choice([0, 1, 1, 2, 2, 3]))))
            folder.mkdir(parents=True, exist_ok=True)
            end = rng.choice(ends if rng.random() < 0.5 else [".png"])
            (folder/f"{rng.choice(['', 'test_', '.', 'train '])}{i}{end}").write_bytes(b"GIF8" if end in ("", ".gif",
                ".jpg_large") else b"x")
        files = [path for path in root.rglob("*") if path.is_file()]
        counted = sorted(str(path.relative_to(root)) for path in files if path.suffix not in (".txt",
            ".xml") and not (path.suffix == ".zip" and "/." in str(path)))
        reading = read_folder(root)
        placed = [path for rows in reading.splits.values() for path, _ in rows]
        assert sorted(placed + [path for left in reading.left_out.values() for path in left]) == counted
        for rows in reading.splits.values():
            labels = numbered(rows, reading.names)
            assert labels is None or all(reading.names[y] in path.split("/") for y, (path, _) in zip(labels, rows,
                strict=True))
        readings.add((tuple(reading.splits), reading.names is None))
    assert len(readings) > 10


def test_a_thousand_photos(here):
    "With one that is called test_12.jpg, and a class called evaluation; in a second or so, and read again in a blink"
    whole = io.BytesIO(); Image.effect_noise((40, 30), 50).save(whole, "jpeg")
    for i in range(1_000):
        folder = here/"set"/["cat", "dog", "emu", "evaluation"][i % 4]
        folder.mkdir(parents=True, exist_ok=True)
        (folder/f"{'test_' if i == 12 else ''}{i}.jpg").write_bytes(whole.getvalue())
    begun = time.process_time(); images = load_images("set", size=16); took = time.process_time() - begun
    assert images.y.bincount().tolist() == [250] * 4 and images.names == ["cat", "dog", "emu", "evaluation"]
    begun = time.process_time(); again = load_images("set", size=16); took_again = time.process_time() - begun
    assert content_hash(again) == content_hash(images) and took < 5 and took_again < took / 4, (took, took_again)


@pytest.mark.parametrize("side", [(1, 12_000), (12_000, 1)])
def test_a_thin_strip_takes_no_memory(here, side):
    "A file of 130 bytes took 3.2 GB; in a process of its own, as Pillow's memory is not Python's"
    Image.new("RGB", side, "red").save(here/"strip.png")
    assert (here/"strip.png").stat().st_size < 300
    code = """if True:
        from resource import RUSAGE_SELF, getrusage
        from advlook.data import load_images
        before = getrusage(RUSAGE_SELF).ru_maxrss
        x = load_images('strip.png', size=224).x
        print((getrusage(RUSAGE_SELF).ru_maxrss - before) / 1024, x[0, 0].min().item())"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown, least = map(float, done.stdout.split())
    assert grown < 100 and least == 255   # MB
