"""Public data sets by name: downloads that break, wrong files, full disks, hostile archives, and the
layouts.
"""

import dataclasses
import errno
import gzip
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from web import serving

from replicate.cli import main
from replicate.config.datasets import PUBLIC, Dataset, source_path
from replicate.errors import UserError
from replicate.fetch import catalogue, datasets, download, layouts, unpack
from replicate.fetch.catalogue import CATALOGUE, PublicSet, RemoteFile
from replicate.loaders.sources import open_folder

ROOT = Path(__file__).resolve().parents[1]
CONTENT = bytes(range(256)) * 800
CHUNK = download.CHUNK


@pytest.fixture
def site():
    with serving() as found:
        yield found


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def remote(site, name: str, content: bytes) -> RemoteFile:
    site.files[f"/{name}"] = content
    return RemoteFile(f"{site.url}/{name}", len(content), (hashlib.sha256(content).hexdigest(),))


def jpeg(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


# Downloads


def test_a_file_comes_whole_and_once(site, here):
    file = remote(site, "a.bin", CONTENT)
    path = download.download(file, Path("downloads"))
    assert path.read_bytes() == CONTENT and download.download(file, Path("downloads")) == path
    assert site.asked == [("/a.bin", None)] and os.listdir("downloads") == ["a.bin"]


def test_a_broken_download_continues_where_it_stopped(site, here):
    file = remote(site, "a.bin", CONTENT)
    site.breaks = [CHUNK + 9, CHUNK + 9]
    path = download.download(file, Path("downloads"))
    assert path.read_bytes() == CONTENT
    assert [wanted for _, wanted in site.asked] == [None, f"bytes={CHUNK}-", f"bytes={2 * CHUNK}-"]


def test_a_download_that_gave_up_continues_at_the_next_call(site, here):
    file = remote(site, "a.bin", CONTENT)
    site.breaks = [CHUNK] + [0] * download.TRIES
    with pytest.raises(
        UserError, match="a.bin: cannot be downloaded .the connection broke.; fetch .* by hand, put"
    ):
        download.download(file, Path("downloads"))
    assert Path("downloads/a.bin.part").read_bytes() == CONTENT[:CHUNK]
    site.breaks, site.asked = [], []
    assert download.download(file, Path("downloads")).read_bytes() == CONTENT
    assert site.asked == [("/a.bin", f"bytes={CHUNK}-")]


def test_a_server_without_ranges_sends_the_whole_again(site, here):
    file = remote(site, "a.bin", CONTENT)
    site.ranges, site.breaks = False, [CHUNK]
    assert download.download(file, Path("downloads")).read_bytes() == CONTENT


def test_a_part_longer_than_the_file_begins_anew(site, here):
    file = remote(site, "a.bin", CONTENT)
    Path("downloads").mkdir()
    Path("downloads/a.bin.part").write_bytes(CONTENT + b"more")
    assert download.download(file, Path("downloads")).read_bytes() == CONTENT


def test_another_file_than_announced_is_deleted_and_named(site, here):
    file = dataclasses.replace(remote(site, "a.bin", CONTENT), sha256=("0" * 64,))
    with pytest.raises(UserError, match="another file than the one whose SHA-256 is known; deleted") as error:
        download.download(file, Path("downloads"))
    assert "\n" not in str(error.value) and os.listdir("downloads") == []


def test_a_wrong_file_put_there_by_hand_is_kept_and_named(here):
    Path("downloads").mkdir()
    Path("downloads/a.bin").write_text("mine")
    with pytest.raises(UserError, match="downloads/a.bin: another file than"):
        download.download(RemoteFile("http://localhost/a.bin", 4, ("0" * 64,)), Path("downloads"))
    assert Path("downloads/a.bin").read_text() == "mine"


def test_without_a_network_one_line_says_what_to_fetch_and_where_to_put_it(here):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.tgz"
    with pytest.raises(UserError) as error:
        download.download(RemoteFile(url, 4, ("0" * 64,)), Path("data/downloads"))
    assert str(error.value) == (
        f"{url}: cannot be downloaded (no connection); fetch {url} by hand, put it at data/downloads/a.tgz, "
        "and run the same command again"
    )


def test_a_missing_file_tells_the_servers_answer(site, here):
    with pytest.raises(UserError, match="the server answers 404"):
        download.download(RemoteFile(f"{site.url}/none.bin", 4, ("0" * 64,)), Path("downloads"))


def test_a_full_disk_keeps_what_arrived(site, here, monkeypatch):
    file = remote(site, "a.bin", CONTENT)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    site.breaks = [CHUNK]
    with monkeypatch.context() as patch:
        received = download.Continued._receive

        def receive(self, url, bar):
            if self._arrived():
                full()
            received(self, url, bar)

        patch.setattr(download.Continued, "_receive", receive)
        with pytest.raises(UserError, match="downloads/a.bin: the disk is full; what arrived is kept"):
            download.download(file, Path("downloads"))
    assert Path("downloads/a.bin.part").stat().st_size == CHUNK
    assert download.download(file, Path("downloads")).read_bytes() == CONTENT


# Archives


@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_archives_are_unpacked(tmp_path, pack):
    (tmp_path / "a").write_bytes(pack({"top/x/1.txt": b"one", "top/2.txt": b"two"}))
    unpack.unpack(tmp_path / "a", tmp_path / "out", 6)
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.txt")}
    assert found == {"top/x/1.txt", "top/2.txt"} and (tmp_path / "out/top/x/1.txt").read_bytes() == b"one"


@pytest.mark.parametrize("pack", [tar_of, zip_of])
@pytest.mark.parametrize(
    "name", ["../evil.txt", "/tmp/evil.txt", "a/../../evil.txt", "C:/evil.txt", "a\\..\\b"]
)
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, pack, name):
    (tmp_path / "a").write_bytes(pack({"fine.txt": b"", name: b"evil"}))
    with pytest.raises(UserError, match="would leave the folder; nothing was unpacked"):
        unpack.unpack(tmp_path / "a", tmp_path / "out", 100)
    assert not (tmp_path / "out").exists() and not (tmp_path / "evil.txt").exists()


@pytest.mark.parametrize(
    ("kind", "word"), [(tarfile.SYMTYPE, "link"), (tarfile.LNKTYPE, "link"), (b"3", "device")]
)
def test_links_and_devices_are_refused(tmp_path, kind, word):
    with tarfile.open(tmp_path / "a", "w") as archive:
        info = tarfile.TarInfo("odd")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(UserError, match=f"odd is a {word}"):
        unpack.unpack(tmp_path / "a", tmp_path / "out", 100)


def test_a_link_in_a_zip_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        info = zipfile.ZipInfo("odd")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="odd is a link"):
        unpack.unpack(tmp_path / "a", tmp_path / "out", 100)


@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_more_bytes_than_announced_are_refused_before_any_is_written(tmp_path, pack):
    (tmp_path / "a").write_bytes(pack({"zeros": bytes(1_000_000)}))
    with pytest.raises(UserError, match="unpacks to more than 999,999 bytes"):
        unpack.unpack(tmp_path / "a", tmp_path / "out", 999_999)
    assert not (tmp_path / "out").exists()


def test_a_damaged_archive_is_named(tmp_path):
    (tmp_path / "a.tgz").write_bytes(tar_of({"x": os.urandom(100_000)})[:50_000])
    with pytest.raises(UserError, match="a.tgz: a damaged archive"):
        unpack.unpack(tmp_path / "a.tgz", tmp_path / "out", 1_000_000)


# Sets


def idx(array: np.ndarray, magic: int) -> bytes:
    header = np.array([magic, *array.shape], ">i4").tobytes()
    return gzip.compress(header + array.astype(np.uint8).tobytes())


def cifar(labels: list[int]) -> bytes:
    return b"".join(bytes([label]) + bytes([label] * 1024 + [7] * 1024 + [9] * 1024) for label in labels)


def stand_in(name: str, files: list[RemoteFile], monkeypatch) -> PublicSet:
    """The set of that name, with small files on this machine's server."""
    small = dataclasses.replace(CATALOGUE[name], files=tuple(files), unpacked=1_000_000, local=None)
    monkeypatch.setitem(CATALOGUE, name, small)
    return small


def make_imagenette(site):
    files = {f"imagenette2-160/{s}/n0{c}/{s}.JPEG": jpeg(c) for s in ("train", "val") for c in (1, 2)}
    return [remote(site, "i.tgz", tar_of(files | {"imagenette2-160/noisy.csv": b"path"}))]


def make_tiny(site):
    files = {f"tiny-imagenet-200/train/n0{c}/images/n0{c}_0.JPEG": jpeg(c) for c in (1, 2)}
    files |= {f"tiny-imagenet-200/val/images/val_{c}.JPEG": jpeg(c) for c in (1, 2)}
    table = b"val_1.JPEG\tn01\t0\t0\t9\t9\nval_2.JPEG\tn02\t0\t0\t9\t9\n"
    return [remote(site, "t.zip", zip_of(files | {"tiny-imagenet-200/val/val_annotations.txt": table}))]


def make_cifar(site):
    batches = {f"cifar-10-batches-bin/data_batch_{n}.bin": cifar([2 * n - 2, 2 * n - 1]) for n in range(1, 6)}
    return [
        remote(
            site, "c.tgz", tar_of(batches | {"cifar-10-batches-bin/test_batch.bin": cifar(list(range(10)))})
        )
    ]


def make_fashion(site):
    found = []
    for split in ("train", "t10k"):
        pixels = np.arange(10)[:, None, None] * np.ones((10, 28, 28))
        found.append(remote(site, f"{split}-images.gz", idx(pixels, 2051)))
        found.append(remote(site, f"{split}-labels.gz", idx(np.arange(10), 2049)))
    return found


@pytest.mark.parametrize(
    ("name", "make", "classes"),
    [
        ("imagenette160", make_imagenette, ["n01", "n02"]),
        ("tiny-imagenet", make_tiny, ["n01", "n02"]),
        ("cifar10", make_cifar, sorted(layouts.CIFAR10_CLASSES)),
        ("fashion-mnist", make_fashion, sorted(layouts.FASHION_CLASSES)),
    ],
)
def test_a_set_becomes_class_folders(site, here, monkeypatch, name, make, classes):
    stand_in(name, make(site), monkeypatch)
    assert datasets.fetch(name) == source_path(name)
    train, val = open_folder(source_path(name))
    assert train.class_names == classes and len(train) == len(val) == len(classes)
    assert {path.name for path in Path("data").iterdir()} == {name, "downloads"}
    asked = len(site.asked)
    assert datasets.fetch(name) == source_path(name) and len(site.asked) == asked


def test_cifars_planes_and_fashions_greys_are_the_pixels(site, here, monkeypatch):
    stand_in("cifar10", make_cifar(site), monkeypatch)
    stand_in("fashion-mnist", make_fashion(site), monkeypatch)
    ship = Image.open(next((datasets.fetch("cifar10") / "train" / "ship").iterdir()))
    assert ship.size == (32, 32) and ship.getpixel((5, 9)) == (8, 7, 9)
    bag = Image.open(next((datasets.fetch("fashion-mnist") / "val" / "bag").iterdir()))
    assert bag.size == (28, 28) and bag.getpixel((0, 0)) == 8


def test_a_set_that_is_half_laid_out_does_not_appear(site, here, monkeypatch):
    stand_in("fashion-mnist", make_fashion(site)[:3] + [remote(site, "bad.gz", b"no gzip")], monkeypatch)
    with pytest.raises(UserError, match="bad.gz: not the expected IDX file"):
        datasets.fetch("fashion-mnist")
    assert os.listdir("data") == ["downloads"]


def test_a_disk_too_small_is_told_before_the_download(site, here, monkeypatch):
    stand_in("cifar10", make_cifar(site), monkeypatch)
    usage = datasets.shutil._ntuple_diskusage(10, 10, 0)
    monkeypatch.setattr(datasets.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="data/cifar10: the disk is full: 1 MB are free"):
        datasets.fetch("cifar10")
    assert site.asked == []


def test_files_given_by_hand_need_no_network(site, here, monkeypatch):
    files = make_cifar(site)
    stand_in("cifar10", files, monkeypatch)
    (here / "mine").mkdir()
    with pytest.raises(UserError, match="mine/c.tgz: no such file; it is http"):
        datasets.fetch("cifar10", Path("mine"))
    (here / "mine" / "c.tgz").write_bytes(site.files["/c.tgz"])
    assert datasets.fetch("cifar10", Path("mine")).is_dir() and site.asked == []


def test_imagenet_100_links_the_classes_of_a_local_imagenet(here):
    names = (ROOT / "replicate/fetch/imagenet_100.txt").read_text().split()
    assert len(set(names)) == 100
    for split in ("train", "val"):
        for name in [*names, "n99999999"]:
            (here / "imagenet" / split / name).mkdir(parents=True)
            (here / "imagenet" / split / name / "1.jpg").write_bytes(jpeg())
    with pytest.raises(UserError, match="data fetch imagenet-100 --from FOLDER"):
        datasets.fetch("imagenet-100")
    train, val = open_folder(datasets.fetch("imagenet-100", Path("imagenet")))
    assert train.class_names == sorted(names) and len(train) == len(val) == 100


def test_a_class_that_the_local_imagenet_lacks_is_named(here):
    (here / "imagenet" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match="n01558993: no such folder"):
        datasets.fetch("imagenet-100", Path("imagenet"))
    assert not Path("data/imagenet-100").exists()


def test_an_unpacked_tiny_imagenet_is_laid_out(here):
    source = here / "tiny-imagenet-200"
    (source / "train" / "n01" / "images").mkdir(parents=True)
    (source / "train" / "n01" / "images" / "n01_0.JPEG").write_bytes(jpeg())
    with pytest.raises(UserError, match="no val/images and no val/val_annotations.txt"):
        datasets.fetch("tiny-imagenet", source)
    (source / "val" / "images").mkdir(parents=True)
    (source / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01\t0\t32\t44\t62\n")
    with pytest.raises(UserError, match="val_0.JPEG is listed but missing"):
        datasets.fetch("tiny-imagenet", source)
    (source / "val" / "images" / "val_0.JPEG").write_bytes(jpeg())
    train, val = open_folder(datasets.fetch("tiny-imagenet", source))
    assert train.names == ["train/n01/n01_0.JPEG"] and val.names == ["val/n01/val_0.JPEG"]


DEBIAN = Path(CATALOGUE["fashion-mnist"].local)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_debians_fashion_mnist_has_the_published_content():
    """The accepted sums are of the same content, and MD5 of the published file is torchvision's."""
    for file in CATALOGUE["fashion-mnist"].files:
        path = DEBIAN / file.name
        assert download.sum_of(path) == file.sha256[1]
    labels = layouts.read_idx(DEBIAN / "train-labels-idx1-ubyte.gz", 2049, 10**6)
    assert np.bincount(labels).tolist() == [6000] * 10
    pixels = layouts.read_idx(DEBIAN / "t10k-images-idx3-ubyte.gz", 2051, 10**8)
    assert pixels.shape == (10_000, 28, 28) and round(float(pixels.mean()), 2) == 73.15


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_debians_fashion_mnist_becomes_class_folders(here):
    train, val = open_folder(datasets.fetch("fashion-mnist"))
    assert (
        np.bincount(train.labels).tolist() == [6000] * 10 and np.bincount(val.labels).tolist() == [1000] * 10
    )


# The command line and the pipeline


def test_the_list_names_every_set_with_size_and_licence(here, capsys):
    assert main(["data", "fetch"]) == 0
    printed = capsys.readouterr().out
    for name in PUBLIC:
        assert name in printed
    assert "99 MB" in printed and "MIT" in printed and "hf://datasets/" in printed


def test_an_unknown_set_is_told_with_those_that_are(here, capsys):
    assert main(["data", "fetch", "cifar-10"]) == 2
    assert "cifar-10: no public data set; known are imagenette160" in capsys.readouterr().err


def write_settings(folder: Path, source: str) -> None:
    from project import write_params

    write_params(folder, data={"source": source, "classes": 2, "train_images": None, "val_images": None})


def test_writing_a_named_set_says_its_size_first_and_fetches_it(site, here, monkeypatch, capsys):
    stand_in("imagenette160", make_imagenette(site), monkeypatch)
    write_settings(here, "imagenette160")
    assert main(["data", "write"]) == 0
    said = capsys.readouterr().err
    assert said.index("Imagenette, 160 px: 1 MB to download") == 0
    manifest = json.loads((here / "data/smoke/full/manifest.json").read_text())
    assert manifest["splits"]["train"]["images"] == 2 and manifest["source"]["source"] == "imagenette160"


def test_planning_and_importing_download_nothing(site, here, monkeypatch):
    stand_in("imagenette160", make_imagenette(site), monkeypatch)
    write_settings(here, "imagenette160")
    assert main(["inputs", "executed/inputs"]) in (0, 2)
    assert site.asked == [] and not source_path("imagenette160").exists()


def test_the_default_source_needs_no_download():
    assert Dataset().source == "photos" and source_path("data/imagenet") == Path("data/imagenet")
    assert source_path("hf://datasets/owner/name") == Path("data/hf/owner--name")


def test_every_budget_that_is_not_asked_for_data_has_photos_or_a_folder():
    import yaml

    sources = {
        b.get("data", {}).get("source") for b in yaml.safe_load((ROOT / "budgets.yaml").read_text()).values()
    }
    assert not sources & set(PUBLIC)


def test_looking_at_the_catalogue_imports_no_network_library():
    code = "import sys, replicate.fetch.datasets as fetch; fetch.listing()"
    code += "; print({'requests', 'pooch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_catalogue_ends_with_the_next_step():
    assert "data fetch NAME" in datasets.listing().splitlines()[-1]


def test_each_sum_is_a_sha256_and_each_address_has_its_file():
    for public in CATALOGUE.values():
        for file in public.files:
            assert all(len(bytes.fromhex(digest)) == 32 for digest in file.sha256)
            assert file.url.startswith("http") and file.name and file.bytes > 0
    assert catalogue.CATALOGUE["fashion-mnist"].bytes == 30_878_645
