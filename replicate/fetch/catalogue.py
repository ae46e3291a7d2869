"""The public data sets that have a name: where their files are, their checksums, their size and licence.

SHA-256 sums are those of the published files. They belong to the same files as the MD5 sums of torchvision
(Imagenette, CIFAR-10, Fashion-MNIST); Stanford publishes no sum for Tiny-ImageNet, so its is the one that
independent projects state.
"""

from __future__ import annotations

from dataclasses import dataclass

from replicate.config.datasets import PUBLIC

_FASTAI = "https://s3.amazonaws.com/fast-ai-imageclas/"
_ZALANDO = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_IMAGENET_TERMS = "ImageNet's terms: research and education, no commercial use"


@dataclass(frozen=True)
class RemoteFile:
    """A file at an address. `sha256`: the sums that are accepted, the published one first."""

    url: str
    bytes: int
    sha256: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class PublicSet:
    """A data set that can be named in `data.source`.

    unpacked   bytes that the archives may unpack to, with room to spare; more is refused
    layout     function of `replicate.fetch.layouts` that makes class folders
    local      folder where a Debian package puts the same files
    """

    title: str
    licence: str
    images: str
    files: tuple[RemoteFile, ...]
    unpacked: int
    layout: str
    local: str | None = None

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def _imagenette(side: int, size: int, digest: str, unpacked: int) -> PublicSet:
    file = RemoteFile(f"{_FASTAI}imagenette2-{side}.tgz", size, (digest,))
    images = f"9,469 + 3,925 photographs of 10 classes, shorter side {side} pixels"
    return PublicSet(f"Imagenette, {side} px", _IMAGENET_TERMS, images, (file,), unpacked, "imagenette")


def _fashion(name: str, size: int, published: str, debian: str) -> RemoteFile:
    """Debian's package compresses the same content without a name and a time: another sum."""
    return RemoteFile(f"{_ZALANDO}{name}-ubyte.gz", size, (published, debian))


CATALOGUE = {
    "imagenette160": _imagenette(
        160, 99_003_388, "64d0c4859f35a461889e0147755a999a48b49bf38a7e0f9bd27003f10db02fe5", 200_000_000
    ),
    "imagenette320": _imagenette(
        320, 341_663_724, "569b4497c98db6dd29f335d1f109cf315fe127053cedf69010d047f0188e158c", 700_000_000
    ),
    "tiny-imagenet": PublicSet(
        "Tiny-ImageNet",
        _IMAGENET_TERMS,
        "100,000 + 10,000 photographs of 200 classes, 64 pixels a side",
        (
            RemoteFile(
                "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                248_100_043,
                ("6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",),
            ),
        ),
        600_000_000,
        "tiny_imagenet",
    ),
    "cifar10": PublicSet(
        "CIFAR-10",
        "none stated; its authors ask to be cited",
        "50,000 + 10,000 photographs of 10 classes, 32 pixels a side",
        (
            RemoteFile(
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                170_052_171,
                ("c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",),
            ),
        ),
        200_000_000,
        "cifar10",
    ),
    "fashion-mnist": PublicSet(
        "Fashion-MNIST",
        "MIT",
        "60,000 + 10,000 grey pictures of 10 kinds of clothes, 28 pixels a side",
        (
            _fashion(
                "train-images-idx3",
                26_421_880,
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
            ),
            _fashion(
                "train-labels-idx1",
                29_515,
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
            ),
            _fashion(
                "t10k-images-idx3",
                4_422_102,
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
            ),
            _fashion(
                "t10k-labels-idx1",
                5_148,
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
            ),
        ),
        60_000_000,
        "fashion_mnist",
        local="/usr/share/datasets/fashion-mnist",
    ),
    "imagenet-100": PublicSet(
        "ImageNet-100",
        _IMAGENET_TERMS,
        "about 126,000 + 5,000 photographs: the 100 classes of CMC (Tian et al., ECCV 2020)",
        (),
        0,
        "imagenet_100",
    ),
}
assert set(CATALOGUE) == set(PUBLIC)
