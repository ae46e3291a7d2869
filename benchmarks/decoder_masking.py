"""What a ragged decoder batch costs under decoder masking (Efficient MAE, section 4.2), by batching method.

It times a training step (forward and backward) of MAE at ratio .85 with beta 26, of plain MAE at .75 and at
.85, and of these batching methods, all in turn:

packed, loop       the tokens of all images end to end, attention image by image (the model's way on a CPU)
packed, jagged     the same with one variable-length attention kernel (the model's way on a GPU)
packed, padded     the same with attention on a padded batch and a key mask
padded             every image padded to the longest of the batch in every layer, with a key mask

Run: python benchmarks/decoder_masking.py [--model base|large] [--batch 32] [--rounds 5] [--bf16] [--cpu-time]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from replicate.config.backbones import VIT_SIZES
from replicate.cost.bench import compare, interleave, write_results
from replicate.losses.reconstruction import reconstruction_loss
from replicate.models import ragged
from replicate.models.mae import MAE
from replicate.patches import patchify

BETA = 26.0


class PaddedMAE(MAE):
    """The simple alternative: pad every image to the longest of the batch, and mask keys."""

    def _forward_packed_decoder(self, latent: Tensor, ids_restore: Tensor, kept: Tensor) -> Tensor:
        packing = ragged.pack(torch.nn.functional.pad(kept, (1, 0), value=True))
        tokens = self._packed_tokens(self.decoder_embed(latent), ids_restore, packing)
        lengths = packing.offsets.diff()
        longest = max(packing.lengths)
        real = torch.arange(longest, device=kept.device) < lengths[:, None]
        place = real.flatten().nonzero().squeeze(1)
        padded = (
            tokens.new_zeros(len(kept) * longest, tokens.shape[-1])
            .index_copy(0, place, tokens)
            .unflatten(0, (len(kept), longest))
        )
        for block in self.decoder_blocks:
            padded = block(padded, attn_mask=real[:, None, None, :])
        pred = self.decoder_pred(self.decoder_norm(padded)).flatten(0, 1).index_select(0, place)
        dense = pred.new_zeros(kept.shape[0] * (1 + self.num_patches), self.target_dim)
        return dense.index_copy(0, packing.dense_index, pred).unflatten(0, (len(kept), -1))[:, 1:]


def step(model: MAE, images: Tensor, kernel: str, bf16: bool) -> Callable[[], None]:
    target = patchify(images, 16)

    def run() -> None:
        model.ragged_kernel = kernel
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            prediction = model(images)
        reconstruction_loss(prediction.pred, target, prediction.scored).backward()
        model.zero_grad(set_to_none=True)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="base", choices=("base", "large"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument(
        "--cpu-time", action="store_true", help="one thread's CPU seconds, for a shared machine"
    )
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    if options.cpu_time:
        torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.randn(options.batch, 3, 224, 224, device=device)

    def build(kind: type[MAE], **arguments) -> MAE:
        torch.manual_seed(0)
        return kind(**VIT_SIZES[options.model], **arguments).to(device)

    masked = build(MAE, mask_ratio=0.85, decoder_beta=BETA)
    cases = {
        "plain .75": step(build(MAE, mask_ratio=0.75), images, "auto", options.bf16),
        "plain .85": step(build(MAE, mask_ratio=0.85), images, "auto", options.bf16),
        "packed, loop": step(masked, images, "loop", options.bf16),
        "packed, padded": step(masked, images, "padded", options.bf16),
        "padded": step(build(PaddedMAE, mask_ratio=0.85, decoder_beta=BETA), images, "auto", options.bf16),
    }
    # On a CPU the jagged kernel is unfused, and its time means nothing.
    if device == "cuda":
        cases["packed, jagged"] = step(masked, images, "jagged", options.bf16)
    timings = interleave(cases, options.rounds, clock=clock)
    best = "packed, jagged" if device == "cuda" else "packed, loop"
    dtype = "bf16" if options.bf16 else "float32"
    seconds = ", CPU time" if options.cpu_time else ""
    case = f"ViT-{options.model} {dtype} batch {options.batch} {device}{seconds}: .85 + beta 26 {best}"
    rows = [
        compare("decoder_masking", f"{case} against {name}", timings[best], other)
        for name, other in timings.items()
        if name != best
    ]
    write_results(f"decoder_masking_{options.model}_{dtype}_{device}_batch_{options.batch}", rows)


if __name__ == "__main__":
    main()
