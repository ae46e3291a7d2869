"""What DailyMAE's notebook shows beyond every paper's tables: crops recomputed, what schedules cost, both online probes, compression."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from replicate.config import published
from replicate.cost.macs import mae_macs
from replicate.report.quantities import NotRun, Reader
from replicate.schedules import perceptual

if TYPE_CHECKING:
    from replicate.config import Params, PretrainRun
    from replicate.report.book import Book

PAPER = "dailymae"
SCHEMES = ("s1", "s2", "s3", "s4", "s5", "s6")
FIXED = ("224", "192", "160")
RECIPE = {
    "batch_size": "batch size",
    "peak_lr": "learning rate",
    "layer_decay": "layer-wise lr decay",
    "weight_decay": "weight decay",
    "warmup_epochs": "warm-up epochs",
    "epochs": "epochs",
    "auto_augment": "augmentation",
    "mask_ratio": "mask ratio",
}
PRINTED = {"peak_lr": "lr", "auto_augment": "augmentation"}


# ---- recipes and crops


def recipes(params: Params) -> pd.DataFrame:
    """Table 1: what the paper prints beside what the runs state, in the paper's own numbers."""
    columns = {}
    for recipe, run in (("finetune", "daily_ft_224"), ("pretrain", "daily_224")):
        stated, printed = params.run(run), published.recipes()[PAPER][recipe]
        columns[f"{recipe}, printed"] = {text: _text(printed.get(PRINTED.get(key, key))) for key, text in RECIPE.items()}
        columns[f"{recipe}, {run}"] = {text: _text(getattr(stated, key, None)) for key, text in RECIPE.items()}
    return pd.DataFrame(columns)


def crops() -> pd.DataFrame:
    """Table 8 recomputed: both columns as printed, by the paper's formulas, two thirds of them, and the true E[h / sigma]."""
    lines = {}
    for row in published.select({"paper": PAPER, "table": "table_8"})["row"].unique():
        setting = published.setting(row)
        low, high, size = float(setting["sigma_minus"]), float(setting["sigma_plus"]), int(setting["res"])
        ratio, apparent = perceptual.perceptual_ratio(low, high), perceptual.apparent_size(size, low, high)
        where = {"paper": PAPER, "table": "table_8", "row": row}
        lines[f"{size} px, sigma {low:g} to {high:g}"] = {
            "E[sigma] printed": published.one(where | {"column": "e_sigma"})["printed"],
            "Eq. 2": f"{ratio:.4f}",
            "2/3 of it": f"{2 / 3 * ratio:.3f}",
            "E[h/sigma] printed": published.one(where | {"column": "e_h_over_sigma"})["printed"],
            "Eq. 1": f"{apparent:.1f}",
            "2/3 of it ": f"{2 / 3 * apparent:.1f}",
            "true E[h/sigma]": f"{perceptual.expected_apparent_size(size, low, high):.1f}",
        }
    return pd.DataFrame.from_dict(lines, orient="index")


# ---- what a schedule costs


def relative_cost(run: PretrainRun, fixed: PretrainRun) -> dict[str, float]:
    """Patch tokens, and multiply-adds of a step of the autoencoder alone, without the online probe, over the whole run, as shares of the
    fixed run's.
    """
    cost, base = _cost(run), _cost(fixed)
    return {key: cost[key] / base[key] for key in base}


def stage_shares(run: PretrainRun) -> dict[tuple[int, float], float]:
    """(image size, mask ratio) -> share of the epochs that a run spends there."""
    found: dict[tuple[int, float], float] = {}
    begin = 0.0
    for stage in run.stages or (_whole(run),):
        view = stage.image_size or run.image_size, run.mask_ratio if stage.mask_ratio is None else stage.mask_ratio
        found[view] = found.get(view, 0.0) + stage.until - begin
        begin = stage.until
    return found


def _cost(run: PretrainRun) -> dict[str, float]:
    from replicate.config.backbones import vit_backbone

    found = {"tokens": 0.0, "multiply-adds": 0.0}
    sizes = vit_backbone(run.backbone, **run.backbone_kwargs).kwargs
    for (size, ratio), share in stage_shares(run).items():
        shapes = dict(image_size=size, mask_ratio=ratio, decoder_depth=run.decoder_depth, decoder_embed_dim=run.decoder_width)
        found["tokens"] += share * (size // sizes["patch_size"]) ** 2
        found["multiply-adds"] += share * mae_macs(**sizes, **shapes).total
    return {key: value * run.epochs for key, value in found.items()}


def _whole(run: PretrainRun) -> Any:
    from replicate.config import Stage

    return Stage(until=1.0, image_size=run.image_size)


def schedule_costs(params: Params, reader: Reader, steps: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Table 11's run times as shares of fixed 224's: by tokens and by multiply-adds (the authors' stage ends, and thirds), printed, by
    ViT-B's own steps with their quartiles (`steps`, what `benchmarks/schedules.py` wrote, by run), and by this budget's runs, of either
    stage ends, with the interval over seeds.
    """
    fixed, lines = params.run("daily_224"), {}
    base = printed_hours("224")
    for scheme in (*FIXED[1:], *SCHEMES):
        own = relative_cost(params.run(f"daily_{scheme}"), fixed)
        name = f"daily_{scheme}_thirds"
        thirds = relative_cost(params.run(name), fixed)["multiply-adds"] if scheme in SCHEMES else math.nan
        lines[scheme] = {
            "tokens": _percent(own["tokens"]),
            "multiply-adds": _percent(own["multiply-adds"]),
            "multiply-adds, equal stages": _percent(thirds),
            "printed time": _percent(printed_hours(scheme) / base),
            "steps of ViT-B": _step_share(steps.get(f"daily_{scheme}")),
            "steps of ViT-B, equal stages": _step_share(steps.get(name)),
            "runs here": _measured(reader, {"over": [f"daily_{scheme}/train_hours", "daily_224/train_hours"]}, 100),
            "runs here, equal stages": _measured(reader, {"over": [f"{name}/train_hours", "daily_224/train_hours"]}, 100),
        }
    return pd.DataFrame.from_dict(lines, orient="index")


def inferred_stages() -> pd.DataFrame:
    """Stage lengths that the printed times of Table 11 imply, if an epoch at each size takes what its fixed-size run took.

    s2 and s3 hold the same stages in opposite order, so their difference is (last - first share) * (T224 - T160); s5's is its middle share.
    T192 and T160 are shorter than the paper's own loader allows (`loader_hours` of computed.yaml), so that nothing here is a finding about
    stages: it shows that no stage lengths reconcile the printed times.
    """
    long, middle, short = (printed_hours(scheme) for scheme in FIXED)
    lean = (printed_hours("s2") - printed_hours("s3")) / (long - short)
    first = (1 - lean) / 3
    s5 = (long - printed_hours("s5")) / (long - middle)
    equal, authors = (short + middle + long) / 3, 0.25 * short + 0.25 * middle + 0.5 * long
    ours = first * short + first * middle + (first + lean) * long
    return pd.DataFrame(
        {
            "from the times": [f"{100 * first:.0f} / {100 * first:.0f} / {100 * (first + lean):.0f}", f"{100 * s5:.0f}", f"{ours:.2f}"],
            "authors' code": ["25 / 25 / 50", "25", f"{authors:.2f}"],
            "equal stages": ["33 / 33 / 33", "33", f"{equal:.2f}"],
            "printed": ["", "", f"{printed_hours('s2'):.2f}"],
        },
        index=["s2 against s3: stages (% of epochs)", "s5: its 192-pixel stage (% of epochs)", "s2 in hours by those stages"],
    )


def printed_hours(scheme: str) -> float:
    """Table 11's run time of a scheme ("224" ... "s6")."""
    return float(published.one({"paper": PAPER, "table": "table_11", "column": "runtime_hours", "scheme": scheme})["value"])


def split_speedup(reader: Reader) -> pd.DataFrame:
    """The 5.8 times of the abstract, split: folder to records at a fixed size, then the palindrome; printed (two machines) and here (one)."""
    hours = {"folder, 224": "daily_folder_224", "records, 224": "daily_224", "records, s5": "daily_s5"}
    table = {"paper": PAPER, "table": "table_2", "column": "runtime_hours", "stage": "pretrain", "epochs": 800}
    printed = [float(published.one(table | key)["value"]) for key in ({"data": "IF"}, {"data": "500_95", "config": "fixed"}, {"config": "s5"})]
    pairs = {"loader": (0, 1), "schedule": (1, 2), "both": (0, 2)}
    names = list(hours.values())
    lines = {
        what: {
            "from": list(hours)[left],
            "to": list(hours)[right],
            "printed": f"{printed[left] / printed[right]:.2f}",
            "here": _measured(reader, {"over": [f"{names[left]}/train_hours", f"{names[right]}/train_hours"]}),
        }
        for what, (left, right) in pairs.items()
    }
    return pd.DataFrame.from_dict(lines, orient="index")


# ---- probes, loaders


def probes(reader: Reader) -> pd.DataFrame:
    """Tables 11 and 12: the online probe as printed, on our training batches (the authors' way), and on validation images.

    A scheme's second line is the same scheme with equal stages, of which the paper prints nothing.
    """
    lines = {}
    for scheme in ("224", *SCHEMES):
        where = {"paper": PAPER, "table": "table_11", "scheme": scheme}
        probe, tuned = (published.one(where | {"column": column})["printed"] for column in ("online_probe_top1", "ft_top1"))
        lines[scheme] = {"probe, printed": probe} | _accuracies(reader, f"daily_{scheme}", tuned)
        if scheme in SCHEMES:
            lines[f"{scheme}, equal stages"] = {"probe, printed": ""} | _accuracies(reader, f"daily_{scheme}_thirds", "")
    return pd.DataFrame.from_dict(lines, orient="index")


def _accuracies(reader: Reader, run: str, tuned: str) -> dict[str, str]:
    return {
        "training batches": _measured(reader, f"{run}/probe_train_top1"),
        "validation images": _measured(reader, f"{run}/probe_top1"),
        "fine-tuned, printed": tuned,
        "fine-tuned": _measured(reader, f"{run}_ft"),
    }


def stage_contrasts() -> dict[str, tuple[str, str]]:
    """Each scheme fine-tuned after the authors' stage ends and after equal stages, for `Book.contrasts`."""
    return {f"{scheme}: the authors' stage ends over equal stages": (f"daily_{scheme}_ft", f"daily_{scheme}_thirds_ft") for scheme in SCHEMES}


def codec_contrasts() -> dict[str, tuple[str, str]]:
    """What could make FFCV's images score lower, each alone, for `Book.contrasts`: its decoder's DCT, and all of its way but the resize."""
    found = {}
    for stored in ("256_90", "256_95", "500_90", "500_95"):
        found[f"turbo, fast DCT over accurate, {stored}"] = (f"daily_val_{stored}", f"daily_val_{stored}_accurate")
    for quality in (100, 95, 90):
        found[f"turbo over pillow, no resize, quality {quality}"] = (f"daily_val_none_{quality}", f"daily_val_pil_none_{quality}")
    return found


def compression(reader: Reader) -> pd.DataFrame:
    """Table 4 and what lies beyond it: file size and speed of every compression that was measured, relative to 500_95, printed and ours."""
    from replicate.cost.loader_cases import COMPRESSIONS, MORE

    lines = {}
    for name in ("folder", *COMPRESSIONS, *MORE):
        run, base = f"loader_{name}", "loader_500_95"
        lines["image folder" if name == "folder" else name] = {
            "size, printed": _printed_ratio(name, "file_size_gb"),
            "size": _measured(reader, {"over": [f"{run}/file_bytes", f"{base}/file_bytes"]}),
            "speed, printed": _printed_ratio(name, "throughput_img_s"),
            "speed": _measured(reader, {"over": [f"{run}/images_per_second", f"{base}/images_per_second"]}),
            "images/s": _measured(reader, f"{run}/images_per_second", digits=0),
        }
    return pd.DataFrame.from_dict(lines, orient="index")


def _printed_ratio(name: str, column: str) -> str:
    where = {"paper": PAPER, "table": "table_4", "column": column}
    resolution, _, quality = name.partition("_")
    found = published.select(where | ({"res": "IF"} if name == "folder" else {"res": resolution, "quality": quality}))
    base = published.one(where | {"res": "500", "quality": "95"})["value"]
    return f"{found.iloc[0]['value'] / base:.2f}" if len(found) == 1 else ""


def decomposition(reader: Reader) -> pd.DataFrame:
    """Table 13: images per second after each step, and what crop decode brings there, printed and ours."""
    steps = {"decode": "decode", "resize": "decode+crop_resize", "simple": "decode+crop_resize+simple"}
    cropped = {"decode": "crop_decode", "resize": "crop_decode+resize", "simple": "crop_decode+resize+simple"}
    lines = {"read only": {"full": _measured(reader, "loader_step_read/images_per_second", digits=0)}}
    for name, step in steps.items():
        full, crop = (_printed_speed(text) for text in (step, cropped[name]))
        sides = [f"loader_step_{side}_{name}/images_per_second" for side in ("crop", "full")]
        lines[f"+ {name}"] = {
            "full": _measured(reader, sides[1], digits=0),
            "crop": _measured(reader, sides[0], digits=0),
            "gain": _measured(reader, {"over": sides}),
            "gain, printed": f"{crop / full:.2f}",
        }
    return pd.DataFrame.from_dict(lines, orient="index").fillna("")


def _printed_speed(step: str) -> float:
    return float(published.one({"paper": PAPER, "table": "table_13", "step": step})["value"])


def epoch_minutes(reader: Reader, labels: Mapping[str, str]) -> pd.DataFrame:
    """Figure 1: minutes that one epoch of ImageNet-1k takes through each loader of `labels` (legend -> run), on this machine's threads, and
    on the authors' by the rate that Table 4 prints for it; NaN where there is none.
    """
    images = published.one({"paper": PAPER, "table": "figure_1", "column": "images"})["value"]
    lines = {}
    for label, run in labels.items():
        measured = reader.estimate(f"{run}/images_per_second").value if run in reader.results else math.nan
        printed = _printed_rate(run)
        if not math.isnan(measured) or not math.isnan(printed):
            minutes = {"minutes": images / measured / 60, "minutes, printed": images / printed / 60}
            lines[label] = {"images/s": measured, "images/s, printed": printed, **minutes}
    return pd.DataFrame.from_dict(lines, orient="index", columns=["images/s", "images/s, printed", "minutes", "minutes, printed"])


def _printed_rate(run: str) -> float:
    """Table 4's images per second of a compression, `loader_500_95`, or of the image folder; NaN for a loader that it does not have."""
    for _, cell in published.select({"paper": PAPER, "table": "table_4", "column": "throughput_img_s"}).iterrows():
        setting = published.setting(cell["row"])
        if run == ("loader_folder" if setting["res"] == "IF" else f"loader_{setting['res']}_{setting['quality']}"):
            return float(cell["value"])
    return math.nan


PROBES = {"training batches, as the paper": "probe_train_top1", "validation images": "probe_top1"}


def probe_curves(book: Book, runs: Mapping[str, str]) -> dict[str, dict[str, pd.DataFrame]]:
    """Figure 2, for each of the two probes: its accuracy against training time, one curve a run: mean over seeds, indexed by minutes.

    By epochs where a run's times were not kept, since two axes would not compare.
    """
    histories = {label: book.results.history(run) for label, run in runs.items() if run in book.results}
    timed = all("seconds" in history for history in histories.values() if not history.empty)
    return {probe: _probe_curves(histories, metric, timed) for probe, metric in PROBES.items()}


def _probe_curves(histories: Mapping[str, pd.DataFrame], metric: str, timed: bool) -> dict[str, pd.DataFrame]:
    found = {}
    for label, history in histories.items():
        if metric not in history:
            continue
        place = history.groupby("seed")["seconds"].cumsum() / 60 if timed else history["epoch"] + 1
        curve = history.assign(place=place).dropna(subset=[metric]).groupby("epoch")[["place", metric]].mean()
        found[label] = curve.set_index("place").rename_axis("minutes of training" if timed else "epochs")
    return found


ALL_STEPS = "all three"


def codec_differences(images: Sequence[np.ndarray], size: int = 224) -> pd.DataFrame:
    """Figure 6: what an image folder's way and FFCV's way make of the same photographs: mean absolute difference, values in 0..1."""
    found = sample_differences(images, size)
    return pd.DataFrame({"mean difference": {way: f"{np.mean(values):.4f}" for way, values in found.items()}})


def sample_differences(images: Sequence[np.ndarray], size: int = 224) -> dict[str, list[float]]:
    """Of each photograph, what each step alone changes, then all: the DCT method of the decoder, the resize filter, compression to 500
    pixels at quality 95.
    """
    from replicate.loaders.crop_decode import Decoding, decode_crop_resize
    from replicate.loaders.crops import center_boxes
    from replicate.loaders.writer import encode_jpeg, shrink

    ways = {
        "decoder's fast DCT": (None, 95, Decoding(dct="fast", interpolation="bicubic")),
        "area for bicubic": (None, 95, Decoding(interpolation="area")),
        "compressed to 500_95": (500, 95, Decoding(interpolation="bicubic")),
        ALL_STEPS: (500, 95, Decoding(dct="fast")),
    }
    found: dict[str, list[float]] = {way: [] for way in ways}
    for image in images:
        original = encode_jpeg(image, 95)
        plain = _view(original, image.shape, size, Decoding(interpolation="bicubic"), center_boxes, decode_crop_resize)
        for way, (cap, quality, decoding) in ways.items():
            small = image if cap is None else shrink(_decoded(original), cap)
            stored = original if cap is None else encode_jpeg(small, quality)
            other = _view(stored, small.shape, size, decoding, center_boxes, decode_crop_resize)
            found[way].append(float(np.abs(plain.astype(np.float32) - other).mean() / 255))
    return found


def _view(jpeg: bytes, shape: tuple[int, ...], size: int, decoding: Any, boxes: Any, decode: Any) -> np.ndarray:
    return decode(jpeg, boxes(np.array([shape[:2]]))[0], False, size, decoding)


def _decoded(jpeg: bytes) -> np.ndarray:
    from replicate.loaders.decode import decode_image

    return decode_image(jpeg, "photograph")


def photographs() -> list[np.ndarray]:
    """The large photographs that scikit-image carries, enlarged by nothing: at least 400 pixels a side."""
    from skimage import data

    return [np.ascontiguousarray(image) for image in (data.astronaut(), data.coffee(), data.rocket(), data.immunohistochemistry())]


def _measured(reader: Reader, quantity: Any, factor: float = 1.0, digits: int | None = None) -> str:
    try:
        found = reader.estimate(quantity)
    except NotRun:
        return ""
    decimals = digits if digits is not None else 1 if factor * abs(found.value) >= 10 else 2
    text = f"{factor * found.value:.{decimals}f}"
    return f"{text} [{factor * found.low:.{decimals}f}, {factor * found.high:.{decimals}f}]" if found.has_interval else text


def _step_share(step: Mapping[str, Any] | None) -> str:
    """A scheme's time by a benchmark's line, whose ratio is the fixed run's time over the scheme's."""
    if step is None:
        return ""
    middle, *quartiles = (100 / value for value in (step["ratio"], *reversed(step["spread"])))
    return f"{middle:.0f} % ({' to '.join(f'{value:.0f}' for value in quartiles)})"


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.0f} %"


def _text(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, int | float) else str(value)
