"""FastMIM's step against the frameworks of the paper's Figure 2 and Table 3, at equal batch: time and memory.

Run: python benchmarks/fastmim_step.py [--batch 16] [--rounds 3] [--precision bfloat16|float32]

One step is target, forward and backward, without the optimiser, whose cost a batch of 2048 images makes small. FastMIM runs at 128
pixels; MAE, SimMIM and MaskFeat at 224, Swin-B's SimMIM also at the 192 of its paper. Memory is what autograd keeps for the backward
pass, the same number on every machine; on a GPU also the allocator's peak. ratio = theirs / FastMIM's; `published` is the ratio of
Table 3's GPU hours per epoch, and for memory the range that section 5.1 states.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from replicate import targets
from replicate.cost.bench import Timing, compare, interleave, write_results
from replicate.cost.memory import activation_bytes, cuda_peak_bytes
from replicate.loaders.pixels import normalise
from replicate.losses.reconstruction import reconstruction_loss
from replicate.models.backbones import build_encoder
from replicate.models.mae import MAE
from replicate.models.mim import BASELINES, MIM
from replicate.models.vit import VIT_SIZES

MEMORY_SAVING = [2.0, 3.33]
"""50 to 70 % less, sec 5.1."""


def mim(backbone: str, size: int, target: str, baseline: str | None = None, **options: Any) -> tuple[nn.Module, nn.Module]:
    encoder = build_encoder(backbone, size)
    what = targets.build(target, min(encoder.stride, 32), **({"norm_pix": False} if target == "pixel" else {}))
    return MIM(encoder, what.dim, **(BASELINES[baseline] if baseline else {}), **options), what


def mae(decoder_depth: int) -> tuple[nn.Module, nn.Module]:
    return MAE(**VIT_SIZES["base"], decoder_depth=decoder_depth), targets.build("pixel", 16)


# name -> (pixels, builder, published hours per epoch over FastMIM's)
FRAMEWORKS: dict[str, dict[str, tuple[int, Callable[[], tuple[nn.Module, nn.Module]], float | None]]] = {
    "ViT-B": {
        "FastMIM": (128, partial(mim, "vit_base_patch16", 128, "hog", decoder_depth=1, decoder_width=256), 1.0),
        "MAE 8b512d": (224, partial(mae, 8), 1.3 / 0.8),
        "MAE 1b512d": (224, partial(mae, 1), None),
        "SimMIM": (224, partial(mim, "vit_base_patch16", 224, "pixel", "simmim"), 4.1 / 0.8),
        "MaskFeat": (224, partial(mim, "vit_base_patch16", 224, "hog", "maskfeat"), 1.6 / 0.8),
    },
    "Swin-B": {
        "FastMIM": (128, partial(mim, "swin_base", 128, "hog", decoder_depth=4, decoder_width=256), 1.0),
        "SimMIM": (224, partial(mim, "swin_base", 224, "pixel", "simmim"), None),
        "SimMIM 192 px": (192, partial(mim, "swin_base", 192, "pixel", "simmim"), 2.0 / 0.8),
    },
}


def step(model: nn.Module, target: nn.Module, raw: Tensor, precision: torch.dtype) -> None:
    forward(model, target, raw, precision).backward()
    model.zero_grad(set_to_none=True)


def forward(model: nn.Module, target: nn.Module, raw: Tensor, precision: torch.dtype) -> Tensor:
    with torch.autocast(raw.device.type, precision, enabled=precision != torch.float32):
        prediction = model(normalise(raw))
    return reconstruction_loss(prediction.pred, target(raw), prediction.scored)


def bytes_per_image(model: nn.Module, target: nn.Module, raw: Tensor, precision: torch.dtype) -> float:
    """What one more image adds: autocast's copies of the weights are saved too, once, and would drown a small batch."""
    few, more = (activation_bytes(partial(forward, model, target, raw[:count], precision), model.parameters()) for count in (1, 3))
    return (more - few) / 2


def measure(backbone: str, batch: int, rounds: int, precision: torch.dtype, device: str) -> list[dict[str, Any]]:
    cases, kept, peaks = {}, {}, {}
    for name, (size, build, _) in FRAMEWORKS[backbone].items():
        torch.manual_seed(0)
        model, target = build()
        raw = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8).to(device)
        arguments = (model.to(device), target, raw, precision)
        cases[name] = partial(step, *arguments)
        kept[name] = bytes_per_image(*arguments)
        peaks[name] = cuda_peak_bytes(cases[name])
        gc.collect()
    times = interleave(cases, rounds)
    rows = []
    for name in list(cases)[1:]:
        size, _, hours = FRAMEWORKS[backbone][name]
        case = f"{backbone} at {size} px, batch {batch}, {str(precision).removeprefix('torch.')}, {device}"
        rows.append(compare(f"step: FastMIM vs {name}", case, times["FastMIM"], times[name], published=hours))
        memory = {"unit": "bytes/image", "published": MEMORY_SAVING if name != "MaskFeat" else None}
        rows.append(compare(f"activations: FastMIM vs {name}", case, Timing((kept["FastMIM"],)), Timing((kept[name],)), **memory))
        if peaks[name]:
            peak = [Timing((peaks[key],)) for key in ("FastMIM", name)]
            rows.append(compare(f"peak memory: FastMIM vs {name}", case, *peak, **memory | {"unit": "bytes"}))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for backbone in FRAMEWORKS:
        rows += measure(backbone, options.batch, options.rounds, getattr(torch, options.precision), device)
    write_results("fastmim_step", rows)


if __name__ == "__main__":
    main()
