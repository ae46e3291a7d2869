"""Decode mutated JPEGs: `python tests/fuzz/mutate_jpegs.py COUNT [SEED] [--write FOLDER]`.

Exits with 1 after a mutation that breaks a rule, and keeps the file. --write only writes the mutations, for
`decode_files.c`. The rules, for each mutated file and a random crop, in every mode:

- The result is an error or pixels, never a crash.
- Pixels equal those of libjpeg's full decode of the same bytes, unless libjpeg complains.
- With verify=True, pixels come only where libjpeg's full decode has no complaint.
- With a seek index (of the file before its mutation, mutated, or of another file) the result is an error, or
  the pixels of the full decode.
"""

import argparse
import io
import sys
from collections import Counter
from pathlib import Path

import crop_decode
import numpy as np
from crop_decode import DecodeError, Decoding
from PIL import Image

REFERENCE = Decoding(full=True, entropy="libjpeg")
MODES = {
    "exact": Decoding(),
    "libjpeg": Decoding(entropy="libjpeg"),
    "no seek": Decoding(seek=False),
    "verify": Decoding(verify=True),
    "fused": Decoding(resize="fused"),
    "bicubic": Decoding(interpolation="bicubic"),
    "fast": Decoding(dct="fast"),
}


def photo(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth colours, an edge and some noise."""
    y, x = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin(x / rng.uniform(3, 40) + y / rng.uniform(3, 40)) for _ in range(3)]
    pixels = np.stack(waves, -1) + rng.normal(0, 12, (height, width, 3)) + 60 * (x > width / 2)[..., None]
    return np.clip(pixels, 0, 255).astype(np.uint8)


def seeds(rng: np.random.Generator) -> list[bytes]:
    """Small files of every kind, so that headers are hit often."""
    options = [{"subsampling": s} for s in (0, 1, 2)] + [
        {"progressive": True},
        {"optimize": True},
        {"restart_marker_blocks": 3},
        {"quality": 98},
    ]
    files = []
    for option in options:
        for mode in ("RGB", "L"):
            height, width = rng.integers(1, 120, 2)
            buffer = io.BytesIO()
            Image.fromarray(photo(rng, height, width)).convert(mode).save(
                buffer, "JPEG", **{"quality": 85, **option}
            )
            files.append(buffer.getvalue())
    buffer = io.BytesIO()
    Image.fromarray(photo(rng, 40, 40)).convert("CMYK").save(buffer, "JPEG")
    return [*files, buffer.getvalue(), *(crop_decode.add_restarts(file, 2) for file in files[:6])]


def mutate(rng: np.random.Generator, data: bytes) -> bytes:
    """Flip bits, overwrite, cut, delete or insert, up to four times."""
    array = np.frombuffer(data, np.uint8).copy()
    for _ in range(int(rng.integers(1, 5))):
        kind, at = rng.integers(7), int(rng.integers(0, max(len(array), 1)))
        length = int(rng.integers(1, 30))
        if len(array) == 0:
            break
        if kind == 0:
            array[at] ^= 1 << rng.integers(8)
        elif kind == 1:
            array[at : at + length] = rng.integers(0, 256, len(array[at : at + length]))
        elif kind == 2:
            array = array[:at]
        elif kind == 3:
            array[at:] = 0
        elif kind == 4:
            array = np.delete(array, slice(at, at + length))
        elif kind == 5:
            array = np.insert(array, at, rng.integers(0, 256, length).astype(np.uint8))
        else:
            at = int(rng.integers(0, min(len(array), 700)))
            array[at] = rng.choice(
                [0, 1, 2, 3, 4, 0x11, 0x22, 0x7F, 0x80, 0xFF, 0xC0, 0xC2, 0xD9, 0xDA, 0xDD]
            )
    return array.tobytes()


def attempt(
    data: bytes, box: tuple[int, ...], decoding: Decoding, index: bytes | None = None
) -> np.ndarray | None:
    """The crop, or None when it was refused. The resized modes only run, so that a bad access shows."""
    try:
        if decoding.resize == "fused" or decoding.interpolation == "bicubic":
            crop_decode.decode_jpeg(data, box, 33, flip=True, decoding=decoding, index=index)
        return crop_decode.decode_jpeg(data, box, decoding=decoding, index=index)
    except DecodeError:
        return None


def box_of(rng: np.random.Generator, data: bytes) -> tuple[int, ...]:
    try:
        info = crop_decode.jpeg_info(data)
        height, width = min(info.height, 2000), min(info.width, 2000)
    except DecodeError:
        height, width = 40, 40
    h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
    return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w


def check_index(box: tuple[int, ...], data: bytes, index: bytes, what: str, counts: Counter) -> str | None:
    """The rule that decoding `data` with `index` breaks, or None."""
    for decoding in (Decoding(), Decoding(resize="fused")):
        pixels = attempt(data, box, decoding, index)
        counts[f"{what}, {decoding.resize}: {'refused' if pixels is None else 'pixels'}"] += 1
        if pixels is None:
            continue
        reference = attempt(data, box, REFERENCE)
        if reference is None:
            return f"{what}: accepted for a file that libjpeg refuses, box {box}"
        if not np.array_equal(pixels, reference):
            return f"{what}: other pixels than the full decode, box {box}"
    return None


def check_indices(
    rng: np.random.Generator, which: int, files: list[bytes], indices: list[bytes | None], counts: Counter
) -> str | None:
    """The undamaged file number `which` with its own index, a mutated one, and another file's."""
    own, other = indices[which], indices[int(rng.integers(len(files)))]
    if own is None:
        return None
    box = box_of(rng, files[which])
    bad = mutate(rng, own)
    wrong = check_index(box, files[which], bad, "mutated index", counts)
    if other is not None and other != own:
        wrong = wrong or check_index(box, files[which], other, "another file's index", counts)
    before = counts["index, exact: refused"]
    wrong = wrong or check_index(box, files[which], own, "index", counts)
    return wrong or (
        "index: refused beside its undamaged file" if counts["index, exact: refused"] > before else None
    )


def check(rng: np.random.Generator, data: bytes, index: bytes | None, counts: Counter) -> str | None:
    """The rule that decoding `data` breaks, or None."""
    box = box_of(rng, data)
    reference = attempt(data, box, REFERENCE)
    counts["file refused by libjpeg" if reference is None else "file accepted by libjpeg"] += 1
    for name, decoding in MODES.items():
        pixels = attempt(data, box, decoding)
        counts[f"{name}: {'refused' if pixels is None else 'pixels'}"] += 1
        if (
            pixels is not None
            and reference is not None
            and decoding.dct == "accurate"
            and not np.array_equal(pixels, reference)
        ):
            return f"{name}: other pixels than the full decode, box {box}"
        if name == "verify" and pixels is not None and reference is None:
            return f"verify: accepted what libjpeg refuses, box {box}"
    return None if index is None else check_index(box, data, index, "index of a mutated file", counts)


def write(folder: Path, count: int, seed: int) -> None:
    """Write the files and `count` mutations, each with the seek index of its original; every other index is
    mutated.
    """
    rng = np.random.default_rng(seed)
    files = seeds(rng)
    indices = indices_of(files)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(len(files) + count):
        which = i if i < len(files) else int(rng.integers(len(files)))
        (folder / f"{i:06d}.jpg").write_bytes(files[which] if i < len(files) else mutate(rng, files[which]))
        index = indices[which] or b""
        (folder / f"{i:06d}.seek").write_bytes(
            mutate(rng, index) if i >= len(files) and i % 2 and index else index
        )


def main(count: int, seed: int = 0) -> int:
    rng = np.random.default_rng(seed)
    files, counts = seeds(rng), Counter()
    indices = indices_of(files)
    for i in range(count):
        which = int(rng.integers(len(files)))
        data = mutate(rng, files[which])
        wrong = check(rng, data, indices[which], counts) or check_indices(rng, which, files, indices, counts)
        if wrong:
            Path("mistreated.jpg").write_bytes(data)
            print(f"mutation {i} of seed {seed}: {wrong}; the file is mistreated.jpg")
            return 1
    for name in sorted(counts):
        print(f"{counts[name]:>8} {name}")
    return 0


def indices_of(files: list[bytes]) -> list[bytes | None]:
    """Seek indices of the files that can have one."""
    found: list[bytes | None] = []
    for file in files:
        try:
            found.append(crop_decode.build_index(file, 3))
        except DecodeError:
            found.append(None)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("count", type=int)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--write", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    if options.write:
        write(options.write, options.count, options.seed)
    else:
        sys.exit(main(options.count, options.seed))
