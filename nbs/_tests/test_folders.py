"Folders of photos as people have them: splits, classes, what lies beside them, links, odd names, tables of labels"
import csv, io, json, os, random, re, shutil, time
from pathlib import Path

import pytest
from PIL import Image, features

from advlook import catalog
from advlook.catalog import find_source, local_folder
from advlook.data import content_hash, load_images
from advlook.layouts import numbered, read_folder
from advlook.photos import reads_heic
from advlook.stream import find_groups


def shade(path): return sum(map(ord, str(path))) * 37 % 251


def photos(root, *paths, **options):
    "Photos, each of a shade that follows from its path, so that it can be known again"
    for path in paths:
        (root/path).parent.mkdir(parents=True, exist_ok=True)
        kind = {".jpg": "jpeg", ".jpeg": "jpeg"}.get((root/path).suffix.lower(), "png")
        Image.new("L", (12, 16), shade(path)).save(root/path, kind, **options)
    return root


def others(root, contents):
    "Files that are no photos: {path: content}"
    for path, content in contents.items():
        (root/path).parent.mkdir(parents=True, exist_ok=True)
        (root/path).write_bytes(content)


@pytest.fixture
def here(tmp_path, monkeypatch):
    "An empty working directory, and neither data sets nor a cache from elsewhere"
    monkeypatch.delenv("ADVLOOK_DATA", raising=False)
    monkeypatch.setenv("ADVLOOK_CACHE", str(tmp_path/"its cache"))
    (tmp_path/"here").mkdir()
    monkeypatch.chdir(tmp_path/"here")
    return tmp_path/"here"


def load(name, split="test", **options): return load_images(name, split, size=8, **options)


def found(name, split="test"):
    "{shade: class name, or None} of what is loaded, and the note"
    images = load(name, split)
    labels = images.labels() if images.y is not None else [None] * len(images)
    shades = images.x[:, 0, 4, 4].tolist()
    return dict(zip(shades, labels, strict=True)), images.note


def error(name, split="test", kind=ValueError):
    "The sentence that loading ends with"
    with pytest.raises(kind) as refusal: load(name, split)
    return str(refusal.value)


def wanted(**classes): return {shade(path): name for name, paths in classes.items() for path in paths}
def unlabeled(*paths): return {shade(path): None for path in paths}


def near(got, want):
    "JPEG may move a shade by one"
    def is_there(shade, name): return any(got.get(shade + d) == name for d in (0, -1, 1))
    return len(got) == len(want) and all(is_there(*item) for item in want.items())


def streamed(name, split="train"):
    "The labels that training reads, sorted"
    groups, names = find_groups(name, split)
    return sorted(y for group in groups for _, y in group.read())


@pytest.mark.parametrize("name", ["test", "train", "val", "dev", "eval", "evaluation"])
def test_a_name_like_a_splits_takes_nothing_away(here, name):
    "One file, or one class, called so: all others used to be gone"
    cats = [f"cat/{i}.png" for i in range(5)] + [f"cat/{name}_12.png"]
    dogs = [f"dog/{i}.png" for i in range(5)]
    photos(here/"file", *cats, *dogs)
    got, note = found("file")
    assert got == wanted(cat=cats, dog=dogs)
    assert note == "all 11 images of file (test)"

    also = [f"{name}/{i}.png" for i in range(4)]
    photos(here/"class", *cats, *dogs, *also)
    got, note = found("class")
    assert got == wanted(cat=cats, dog=dogs, **{name: also})
    named = ", ".join(sorted(["cat", "dog", name]))
    assert note == f"all 15 images of class (test); its folders {named} were taken as classes"
    assert found("class", "train")[0] == got


def test_splits(here):
    photos(here/"set", "train/cat/1.png", "train/cat/2.png", "train/dog/3.png")
    photos(here/"set", "test/dog/4.png", "test/emu/5.png", "test/6.png", "7.png")
    train, test = load("set", "train"), load("set", "test")
    assert train.names == test.names == ["cat", "dog", "emu"]
    assert train.y.tolist() == [0, 0, 1]
    assert test.y.tolist() == [1, 2]
    assert test.note == (
        "all 2 images of set (test); its folders test, train were taken as splits; the 3 classes are those of all "
        "splits together; 1 more left out, beside the folders of splits (7.png); "
        "1 more left out, beside the class folders, without a class (6.png)")
    assert find_groups("set", "test")[1] == ("cat", "dog", "emu")
    groups, _ = find_groups("set", "train")
    assert [y for group in groups for _, y in sorted(group.read())] == [0, 0, 1]


def test_splits_without_classes(here):
    photos(here/"set", "Train/1.png", "Train/2.png", "Validation/3.png")
    assert found("set", "train")[0] == unlabeled("Train/1.png", "Train/2.png")
    got, note = found("set", "test")
    assert got == unlabeled("Validation/3.png")
    assert "these are its validation images, as it has no test images" in note

    photos(here/"contest", "train/cat/1.png", "train/dog/2.png", "test/3.png")   # Kaggle's
    assert found("contest", "train")[0] == wanted(cat=["train/cat/1.png"], dog=["train/dog/2.png"])
    assert found("contest")[0] == unlabeled("test/3.png")
    with pytest.raises(ValueError, match="'contest' has no labels, and training needs them"):
        find_groups("contest", "test")
    assert "there is no split 'extra'; there are test, train" in error("contest", "extra")

    photos(here/"one", "train/cat/1.png", "train/dog/2.png")
    assert "these are its train images, as it has no test images" in found("one")[1]


def test_classes(here):
    real = ["real/1.png", "real/deep/er/2.png"]
    sketch = ["sketch/train/3.png", "sketch/test/4.png"]
    train = ["train/5.png"]
    photos(here/"set", *real, *sketch, *train, "6.png", "test_7.png")
    got, note = found("set")
    assert got == wanted(real=real, sketch=sketch, train=train)
    assert "its folders real, sketch, train were taken as classes" in note
    assert "2 more left out, beside the class folders, without a class (6.png, test_7.png)" in note
    assert find_groups("set", "train")[1] == ("real", "sketch", "train")


def test_one_folder(here):
    "Is the only class, or is opened"
    photos(here/"lone", "cat/1.png", "cat/2.png")
    got, note = found("lone")
    assert got == wanted(cat=["cat/1.png", "cat/2.png"])
    assert note == "all 2 images of lone (test); cat is its only class"

    photos(here/"wrapped", "set/cat/1.png", "set/dog/2.png")
    got, note = found("wrapped")
    assert got == wanted(cat=["set/cat/1.png"], dog=["set/dog/2.png"])
    assert note == "all 2 images of wrapped (test); its only folder set was opened"


def test_flat(here):
    flat = ["1.png", "2.jpg", "3.JPEG", "test_4.PNG", "train.5.png"]
    photos(here/"set", *flat)
    got, note = found("set")
    assert near(got, unlabeled(*flat))
    assert re.fullmatch(r"all 5 images of set \(test\), 2 of them JPEG of about 0\.\d kB", note)
    beside = ["1.png", "2.png", "edited/3.png"]   # one folder makes no classes
    photos(here/"beside", *beside)
    assert found("beside")[0] == unlabeled(*beside)


def test_what_lies_beside_photos_is_ignored(here):
    text = b"0 0.5 0.5 1 1"
    photos(here/"yolo", "images/train/1.png", "images/train/2.png", "images/val/3.png")
    others(here/"yolo", {"labels/train/1.txt": text, "data.yaml": text})
    got, note = found("yolo", "train")
    assert got == unlabeled("images/train/1.png", "images/train/2.png")
    assert "its only folder images was opened" in note
    assert "its folders train, val were taken as splits" in note
    assert "2 other files (.txt, .yaml) were ignored" in note

    photos(here/"voc", "JPEGImages/1.jpg", "JPEGImages/2.jpg")
    others(here/"voc", {"Annotations/1.xml": text, "sets/test.txt": text})
    got, note = found("voc")
    assert near(got, unlabeled("JPEGImages/1.jpg", "JPEGImages/2.jpg"))
    assert note.endswith("; 2 other files (.txt, .xml) were ignored")


def test_what_a_system_leaves_is_not_spoken_of(here):
    left = [".DS_Store", "a/Thumbs.db", "a/._1.png", "__MACOSX/a/._1.png", "a/desktop.ini", ".git/config"]
    others(here/"mac", dict.fromkeys(left, b"no photo"))
    photos(here/"mac", "a/1.png", "b/2.png")
    got, note = found("mac")
    assert got == wanted(a=["a/1.png"], b=["b/2.png"])
    assert note == "all 2 images of mac (test)"


def test_left_out_with_its_reason(here):
    photos(here/"set", "a/1.png", "b/2.png", ".trash/3.png", "b/.4.png")
    others(here/"set", {"a/5.jpg": b"Dear all,", "a/6.NEF": b"II*\0", "old.zip": b"PK", "b/7.png": b""})
    (here/"set/b/8.jpg").symlink_to("nothing")
    os.mkfifo(here/"set/a/9.png")
    got, note = found("set")
    assert got == wanted(a=["a/1.png"], b=["b/2.png"])
    assert "2 more can't be read and were left out (5.jpg, 7.png)" in note
    assert "2 more left out, hidden (3.png, .4.png)" in note
    assert "1 more left out, archives (old.zip)" in note
    assert "1 more left out, raw files of a camera (6.NEF)" in note
    assert "1 more left out, links to nothing (8.jpg)" in note
    assert "1 more left out, devices, no files (9.png)" in note


def test_heic(here):
    "Where pillow-heif is there"
    pillow_heif = pytest.importorskip("pillow_heif", reason="decoding HEIC needs pillow-heif")
    photos(here/"set", "a/1.png", "b/2.png")
    red = Image.new("RGB", (64, 64), "red")
    pillow_heif.from_pillow(red).save(here/"set/a/3.HEIC", quality=95)
    got, note = found("set")
    assert len(got) == 3
    assert "left out" not in note


@pytest.mark.skipif(reads_heic(), reason="pillow-heif is there")
def test_heic_that_cannot_be_read(here):
    "It is counted, and a folder of nothing else says so"
    photos(here/"set", "a/1.png", "b/2.png")
    content = b"\0\0\0\x18ftypheic" + bytes(40)
    others(here/"set", {"a/3.HEIC": content, "b/4.heif": content})
    said = "2 more left out, HEIC, which needs pillow-heif"
    assert found("set")[1] == f"all 2 images of set (test); {said} (3.HEIC, 4.heif)"
    for name in "a/1.png", "b/2.png": (here/"set"/name).unlink()
    before, _, after = error("set").partition("holds no images that can be read")
    assert said in after
    one = error("set/a/3.HEIC")
    assert "'3.HEIC' is no image that can be read here: it is HEIC; install pillow-heif" in one


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif(here):
    photos(here/"set", "a/1.png")
    first = here/"set/a/2.avif"
    Image.new("RGB", (16, 16), (200, 0, 0)).save(first)
    (here/"set/b").mkdir()
    for name in "3.AVIF", "no ending": shutil.copy(first, here/"set/b"/name)
    images = load("set")
    assert images.y.tolist() == [0, 0, 1, 1]
    assert (images.x[1:, 0].int() - 200).abs().max() < 4
    assert images.note == "all 4 images of set (test)"


def test_odd_names(here):
    paths = ["a[1]/*.png", "a[1]/[x] ?.png", "ü ö/é.PNG", "ü ö/日本.png"]
    paths += ["ü ö/no ending", "ü ö/v1.2", "ü ö/1.jpg_large", "ü ö/new\nline.png"]
    photos(here/"set [old] *", *paths)
    got, note = found("set [old] *")
    assert got == {shade(path): path.split("/")[0] for path in paths}
    assert note == "all 8 images of set [old] * (test)"
    others(here/"set [old] *", {os.fsdecode(b"not \xff UTF-8.png"): b"no photo"})
    found("set [old] *")[1].encode()
    assert len(streamed("set [old] *")) == 8


def test_links(here):
    photos(here/"store", "cats/1.png", "cats/2.png", "x.png")
    (here/"set/dog").mkdir(parents=True)
    (here/"set/cat").symlink_to(here/"store/cats")
    (here/"set/dog/3.png").symlink_to(here/"store/x.png")
    (here/"set/dog/up").symlink_to(here/"set")
    (here/"set/dog/self").symlink_to("self")
    got, note = found("set")
    assert got == wanted(cat=["cats/1.png", "cats/2.png"], dog=["x.png"])
    assert "1 more left out, links that lead in a circle (up)" in note
    assert "1 more left out, links to nothing (self)" in note
    (here/"linked").symlink_to(here/"set")
    assert found("linked")[0] == got
    before = len(load("set"))
    photos(here/"store", "cats/9.png")   # what a link leads to has changed: so has the set
    assert len(load("set")) == 1 + before


def test_a_knot_of_links(here):
    "Each leads to all"
    for a in "pqrs":
        photos(here/"knot"/a, "1.png")
        for b in "pqrs": (here/"knot"/a/f"to {b}").symlink_to(here/"knot"/b)
    assert set(load("knot").names) == set("pqrs")


LABELS = {"numbers": [3, 10, 3, 10], "words": ["no", "a b", "no", "a b"]}
NAMES = {"numbers": ["3", "10"], "words": ["a b", "no"]}


def write_csv(path, rows, head, excel):
    "A table as programs write it; Excel's begins with a mark, and has semicolons"
    with open(path, "w", newline="", encoding="utf-8-sig" if excel else "utf-8") as file:
        writer = csv.writer(file, delimiter=";" if excel else ",")
        writer.writerow(head)
        writer.writerows(rows)


@pytest.mark.parametrize("kind", ["csv", "excel", "jsonl", "numbers", "words"])
def test_metadata(here, kind):
    paths = ["1.png", "sub/2.png", "sub/é.png", "train.png"]
    labels = LABELS.get(kind, ["cat", "dog", "dog", "cat"])
    photos(here/"set", *paths)
    if kind == "jsonl":
        rows = [dict(file_name=path, label=label) for path, label in zip(paths, labels)]
        (here/"set/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        head = ["file_name", "kind" if kind == "words" else "label"]
        write_csv(here/"set/metadata.csv", zip(paths, labels), head, excel=kind == "excel")
    got, note = found("set")
    assert got == {shade(path): str(label) for path, label in zip(paths, labels)}
    assert note == "all 4 images of set (test); its classes are those of its metadata file"
    assert load("set").names == NAMES.get(kind, ["cat", "dog"])


IGNORED = [
    ("file_name,label\na/1.png,x\nb/3.png,y\n", "metadata was ignored: it does not list every photo"),
    ("file_name,label\na/1.png,x\na/2.png,\nb/3.png,y\n", "metadata was ignored: it does not list every photo"),
    ("name,label\na/1.png,x\n", "metadata.csv was ignored: it has no column file_name"),
    ("file_name,x,y\na/1.png,1,2\n", "metadata.csv was ignored: none of its columns is called label"),
    ("", "metadata.csv was ignored: it has no column file_name"),
]


def test_metadata_that_is_ignored(here):
    photos(here/"set", "a/1.png", "a/2.png", "b/3.png")
    for text, said in IGNORED:
        (here/"set/metadata.csv").write_text(text)
        got, note = found("set")
        assert got == wanted(a=["a/1.png", "a/2.png"], b=["b/3.png"])
        assert note == f"all 3 images of set (test); {said}"
    (here/"set/metadata.csv").write_bytes(b"file_name,label\n\xff\xfe\n")
    assert "metadata.csv was ignored: it is damaged" in found("set")[1]

    photos(here/"captions", *[f"{i}.png" for i in range(12)])
    rows = [f"{i}.png,photo {i}\n" for i in range(12)]
    (here/"captions/metadata.csv").write_text("file_name,text\n" + "".join(rows))
    assert "metadata.csv was ignored: its column text differs from photo to photo" in found("captions")[1]


def test_metadata_of_a_split(here):
    "The layout of `datasets`: a table for each"
    photos(here/"splits", "train/1.png", "train/2.png", "test/3.png")
    (here/"splits/train/metadata.csv").write_text("file_name,label\n1.png,x\n2.png,y\n")
    assert found("splits", "train")[0] == wanted(x=["train/1.png"], y=["train/2.png"])
    assert found("splits", "test")[0] == unlabeled("test/3.png")


def test_a_path_is_a_path_and_a_name_the_catalogues(here, monkeypatch):
    monkeypatch.setattr(catalog, "hub_answers", lambda: False)
    photos(here, "cifar10/a/1.png", "cifar10/b/2.png", "mine/a/1.png", "shapes-textures/a/1.png")
    paths = ["./cifar10", "cifar10/", str(here/"cifar10"), "../here/cifar10"]
    paths += [Path("cifar10"), Path("./cifar10"), here/"cifar10"]
    for path in paths: assert load(path).names == ["a", "b"]
    assert "the folder of that name here is called './cifar10'" in error("cifar10", kind=ConnectionError)
    assert len(load_images("shapes-textures", n=4).names) == 8
    assert load("./shapes-textures").names == ["a"]
    assert len(load("mine")) == 1
    error(Path("imagenette"), kind=ConnectionError)
    for none in "./imagenette", Path("none/of/it"), "":
        assert f"there is no data set or folder '{none}'" in error(none)


def test_a_name_is_looked_up_among_ones_data_sets_first(here, monkeypatch):
    photos(here, "cifar10/a/1.png", "cifar10/b/2.png", "mine/a/1.png")
    monkeypatch.setenv("ADVLOOK_DATA", str(here/"data"))
    photos(here/"data", "cifar10/c/1.png", "mine/d/1.png", "sub/set/e/1.png")
    assert load("cifar10").names == ["c"]
    assert load("./cifar10").names == ["a", "b"]
    assert load("mine").names == ["d"]
    assert load(Path("mine")).names == ["a"]
    assert load("sub/set").names == ["e"]
    assert local_folder("./sub/set") is None
    assert find_source("cifar10")[0] == str(here/"data/cifar10")


PARTS = ["train", "test", "val", "Test", "cat", "dog", "images", "evaluation", "a.b", ".hidden", "x [1]"]
ENDS = [".png", ".PNG", ".txt", "", ".NEF", ".heic", ".zip", ".xml", ".gif", ".jpg_large"]


def tree(root, rng):
    "A folder made at random of what is found in the wild"
    some = rng.sample(PARTS, rng.randint(1, 4))
    root.mkdir()
    for i in range(rng.randint(1, 14)):
        depth = rng.choice([0, 1, 1, 2, 2, 3])
        folder = root.joinpath(*(rng.choice(some) for _ in range(depth)))
        folder.mkdir(parents=True, exist_ok=True)
        end = rng.choice(ENDS if rng.random() < 0.5 else [".png"])
        start = rng.choice(["", "test_", ".", "train "])
        content = b"GIF8" if end in ("", ".gif", ".jpg_large") else b"x"
        (folder/f"{start}{i}{end}").write_bytes(content)


def counts(path):
    "Whether a file has to be in the set, or counted among those left out"
    if path.suffix in (".txt", ".xml"): return False
    return not (path.suffix == ".zip" and "/." in str(path))


def test_every_photo_is_in_the_set_or_counted(here):
    rng, readings = random.Random(0), set()
    for number in range(300):
        root = here/f"tree {number}"
        tree(root, rng)
        files = [path for path in root.rglob("*") if path.is_file()]
        reading = read_folder(root)
        placed = [path for rows in reading.splits.values() for path, _ in rows]
        left = [path for paths in reading.left_out.values() for path in paths]
        assert sorted(placed + left) == sorted(str(path.relative_to(root)) for path in files if counts(path))
        for rows in reading.splits.values():
            labels = numbered(rows, reading.names)
            if labels is None: continue
            for y, (path, _) in zip(labels, rows, strict=True): assert reading.names[y] in path.split("/")
        readings.add((tuple(reading.splits), reading.names is None))
    assert len(readings) > 10


def timed(name):
    begun = time.process_time()
    return load_images(name, size=16), time.process_time() - begun


def test_a_thousand_photos(here):
    "With one that is called test_12.jpg, and a class called evaluation; in a second or so, and read again in a blink"
    whole, names = io.BytesIO(), ["cat", "dog", "emu", "evaluation"]
    Image.effect_noise((40, 30), 50).save(whole, "jpeg")
    starts = {12: "test_"}
    paths = [f"{names[i % 4]}/{starts.get(i, '')}{i}.jpg" for i in range(1_000)]
    others(here/"set", dict.fromkeys(paths, whole.getvalue()))
    images, took = timed("set")
    assert images.y.bincount().tolist() == [250] * 4
    assert images.names == names
    again, took_again = timed("set")
    assert content_hash(again) == content_hash(images)
    assert took < 5 and took_again < took / 4, (took, took_again)
