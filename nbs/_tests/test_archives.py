"Sets that are files: zips, those that are not to be trusted too, single photos, and tables in parquet files"
import io, shutil, subprocess, sys, tracemalloc, zipfile
from pathlib import Path

import datasets
import pytest
from PIL import Image

from advlook.folders import LARGEST
from advlook.stream import Stream, find_groups
from test_folders import error, found, here, load, photos, streamed, unlabeled, wanted  # here: a fixture


@pytest.mark.parametrize("name, options", [("plain", dict(root_dir="set")), ("set", dict(base_dir="set"))])
def test_zip(here, name, options):
    "Of what is in a folder, and of the folder"
    cat, dog = ["cat/1.png", "cat/2.png"], ["dog/3.png", "dog/test_4.png"]
    photos(here/"set", *cat, *dog, "inner/5.png")
    shutil.make_archive(here/"set/inner", "zip", here/"set/inner")
    shutil.rmtree(here/"set/inner")
    shutil.make_archive(name, "zip", **options)
    got, note = found(f"{name}.zip")
    assert got == wanted(cat=cat, dog=dog)
    assert note == f"all 4 images of {name}.zip (test); 1 more left out, archives (inner.zip)"
    assert find_groups(f"{name}.zip", "train")[1] == ("cat", "dog")
    assert streamed(f"{name}.zip") == [0, 0, 1, 1]
    assert not list(here.glob("*/inner"))


def test_zip_without_classes(here):
    photos(here/"holiday", "1.png", "2.png")
    shutil.make_archive("holiday", "zip", base_dir="holiday")
    got, note = found("holiday.zip")
    assert got == unlabeled("1.png", "2.png")
    assert note == "all 2 images of holiday.zip (test)"


def test_zip_of_splits(here):
    photos(here/"splits", "train/a/1.png", "train/b/2.png", "test/b/3.png")
    shutil.make_archive("splits", "zip", "splits")
    images = load("./splits.zip")
    assert images.y.tolist() == [1]
    assert images.names == ["a", "b"]


def png():
    "The bytes of a small one"
    whole = io.BytesIO()
    Image.new("RGB", (9, 9)).save(whole, "png")
    return whole.getvalue()


def write_bad_zip():
    "With paths that lead out of it, and a file that is large once unpacked"
    with zipfile.ZipFile("bad.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name in "a/1.png", "b/2.png", "../up.png", "/root.png": file.writestr(name, png())
        with file.open("b/huge.png", "w") as huge:
            for _ in range(257): huge.write(bytes(2**20))


def test_zips_that_are_not_to_be_trusted(here):
    write_bad_zip()
    assert (here/"bad.zip").stat().st_size < 2**20 < LARGEST
    tracemalloc.start()
    images = load("bad.zip")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(images) == 2
    assert peak < 50e6
    assert not (here.parent/"up.png").exists()
    assert "1 more left out, files of over 256 MB (huge.png)" in images.note
    assert "2 more left out, files that would lie outside of the zip's folder" in images.note


def test_archives_that_cannot_be_read(here):
    write_bad_zip()
    content = bytearray((here/"bad.zip").read_bytes())
    (here/"cut.zip").write_bytes(content[:len(content) // 2])
    assert error("cut.zip") == "'cut.zip' can't be read: it is a damaged zip"
    content[content.find(b"PK\1\2") + 8] |= 1   # the flag of encryption
    (here/"locked.zip").write_bytes(content)
    assert error("locked.zip") == "'locked.zip' is encrypted; unpack it first"
    (here/"set.tar").write_bytes(b"")
    assert error("set.tar") == "'set.tar' is an archive that can't be read here; unpack it, or make it a zip"


def test_zip_with_a_torn_photo(here):
    with zipfile.ZipFile("torn.zip", "w") as file:
        for i in range(3): file.writestr(f"{i}.png", png())
    content = bytearray((here/"torn.zip").read_bytes())
    content[60:70] = bytes(10)
    (here/"torn.zip").write_bytes(content)
    assert load("torn.zip").note == "all 2 images of torn.zip (test); 1 more can't be read and were left out (0.png)"


def test_one_photo(here):
    photos(here, "cat.jpg", "cat")
    for name in "cat.jpg", "./cat.jpg", here/"cat.jpg", Path("cat.jpg"), "cat":
        images = load(name)
        assert images.x.shape == (1, 3, 8, 8)
        assert images.y is None
        assert images.note.startswith("all 1 image of cat")
    (here/"letter.jpg").write_bytes(b"Dear all,")
    assert error("letter.jpg").startswith("'letter.jpg' is no image that can be read here")


GROWTH = """if True:
    from resource import RUSAGE_SELF, getrusage
    from advlook.data import load_images
    before = getrusage(RUSAGE_SELF).ru_maxrss
    x = load_images('strip.png', size=224).x
    print((getrusage(RUSAGE_SELF).ru_maxrss - before) / 1024, x[0, 0].min().item())"""


@pytest.mark.parametrize("side", [(1, 12_000), (12_000, 1)])
def test_a_thin_strip_takes_no_memory(here, side):
    "A file of 130 bytes took 3.2 GB; in a process of its own, as Pillow's memory is not Python's"
    Image.new("RGB", side, "red").save(here/"strip.png")
    assert (here/"strip.png").stat().st_size < 300
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown, least = map(float, done.stdout.split())
    assert grown < 100   # MB
    assert least == 255


def kind_of(name, values):
    "What `datasets` calls a column: some have named classes"
    if name.startswith("listed") or name.endswith("label"): return datasets.ClassLabel(names=["x", "y", "z"])
    first = next(value for value in values if value is not None)
    return datasets.Value({int: "int64", str: "string"}[type(first)])


def shades(n): return [Image.new("L", (12, 16), 10 * i) for i in range(n)]


def table(path, n=6, image=None, **columns):
    "A parquet file of n photos of their own shades"
    kinds = {name: kind_of(name, values) for name, values in columns.items()}
    rows = {"image": image or shades(n)} | columns
    path.parent.mkdir(parents=True, exist_ok=True)
    written = datasets.Dataset.from_dict(rows, datasets.Features({"image": datasets.Image()} | kinds))
    written.to_parquet(path)


def test_parquet_with_gaps(here):
    some = shades(6)
    some[2] = None
    table(here/"set/train.parquet", image=some, label=[0, 1, 2, None, -1, 1])
    images = load("set", "train")
    assert images.x[:, 0, 0, 0].tolist() == [0, 10, 50]
    assert images.y.tolist() == [0, 1, 1]
    assert images.names == ["x", "y", "z"]
    assert "1 more left out, rows without an image (image 2)" in images.note
    assert "2 more left out, without a label (row 3, row 4)" in images.note

    stream = Stream("set", "train", 8, augment=False, lanes=1)
    (x, y, *_), = stream.batches((0, 0), 6)
    pairs = zip(x[:, 0, 0, 0].tolist(), y.tolist())
    assert set(pairs) == {(0, 0), (10, 1), (50, 1)}   # the next one stands in
    table(here/"bare/test.parquet", label=[-1] * 6)
    assert load("bare").y is None


def test_parquet_that_is_cut_off(here):
    first, second = (here/f"set/train-0000{i}-of-00002.parquet" for i in (0, 1))
    for file in first, second: table(file, label=[0] * 6)
    whole = second.read_bytes()
    half = len(whole) // 2
    emptied = whole[:4] + bytes(half - 4) + whole[half:]
    for content in whole[:half], b"", emptied:
        second.write_bytes(content)
        said = "it is cut off or damaged, or no parquet file"
        assert error("set", "train") == f"'{second.name}' can't be read: {said}"


SEVERAL, WORDS, TEXTS = [0, 1, 2, 0, 1, 2], ["u", "v", "w"] * 2, list("abcdef")
TABLES = {  # its columns, its labels, and what is said of them
    "both": (dict(coarse_label=[0] * 6, fine_label=SEVERAL), SEVERAL,
             "its labels are the column fine_label, not coarse_label"),
    "category": (dict(category=WORDS), SEVERAL, "its labels are the column category"),
    "target": (dict(target=SEVERAL, id=[*range(6)]), SEVERAL, "its labels are the column target"),
    "odd": (dict(breed_name=WORDS, caption=TEXTS), SEVERAL, "its labels are the column breed_name"),
    "listed": (dict(listed_a=SEVERAL, number=[5] * 6), SEVERAL, "its labels are the column listed_a"),
    "two": (dict(listed_a=SEVERAL, listed_b=[0] * 6), SEVERAL, "its labels are the column listed_a, not listed_b"),
    "none": (dict(width=[5, 5, 5, 6, 6, 6], height=[7] * 6), None,
             "it has no labels, unless one of its columns width, height is renamed to label"),
    "captions": (dict(caption=TEXTS), None, ""),
    "labels": (dict(labels=SEVERAL), SEVERAL, ""),
}


@pytest.mark.parametrize("name", TABLES)
def test_parquet_columns(here, name):
    columns, labels, said = TABLES[name]
    table(here/name/"photos.parquet", **columns)
    images = load(name)
    whole = f"all 6 images of {name} (test)"
    assert images.note == (f"{whole}; {said}" if said else whole)
    if labels is None:
        assert images.y is None
        return
    assert images.y.tolist() == labels
    assert streamed(name) == sorted(labels)
    if name == "odd": assert find_groups(name, "train")[1] == ("u", "v", "w") == tuple(images.names)


def test_parquet_files_are_all_read(here):
    for name in "part-0", "my test", "sub/more": table(here/"set"/f"{name}.parquet", n=2, label=[0, 1])
    (here/"set/linked.parquet").symlink_to("part-0.parquet")
    images = load("set")
    assert len(images) == 8
    said = "not all of its files are named by a split, so they were read as one set"
    assert images.note == f"all 8 images of set (test); {said}"
    assert sum(group.rows for group in find_groups("set", "train")[0]) == 8


def test_parquet_files_of_odd_names(here):
    table(here/"capital/A.PARQUET", label=[0] * 6)
    table(here/"in [x]/a.parquet", label=[0] * 6)
    for name in "capital", "in [x]", "capital/A.PARQUET": assert len(load(name)) == 6


def test_parquet_files_and_photos(here):
    table(here/"in [x]/a.parquet", label=[0] * 6)
    photos(here/"in [x]", "sample.png")   # a picture in a set's own folder
    said = "1 more left out, beside the parquet files (sample.png)"
    assert load("in [x]").note == f"all 6 images of in [x] (test); {said}"

    photos(here/"photos", "a/1.png", "b/2.png")   # and a table beside photos
    features = datasets.Dataset.from_dict({"file": ["1"], "vector": [[0.1, 0.2]]})
    features.to_parquet(here/"photos/features.parquet")
    assert load("photos").note == "all 2 images of photos (test); 1 other file (.parquet) was ignored"


def test_saved_to_disk(here):
    table(here/"one.parquet", label=[0, 1, 2] * 2)
    one = datasets.Dataset.from_parquet(str(here/"one.parquet"))
    one.save_to_disk(here/"plain")
    assert len(load("plain")) == 6
    both = datasets.DatasetDict(train=one, test=one.select([0, 1]))
    both.save_to_disk(here/"splits")
    assert len(load("splits", "train")) == 6
    assert len(load("splits", "test")) == 2
