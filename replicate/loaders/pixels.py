"""From 8-bit pixels to the network's input and back: ImageNet's mean and deviation, as in all papers."""

import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _per_channel(values: tuple[float, float, float], like: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device).mul_(scale).view(1, 3, 1, 1)


def normalise(raw: torch.Tensor) -> torch.Tensor:
    """uint8 (N, 3, H, W) in 0..255 -> float32 (N, 3, H, W), zero mean and unit deviation on ImageNet."""
    mean, std = _per_channel(IMAGENET_MEAN, raw, 255.0), _per_channel(IMAGENET_STD, raw, 255.0)
    return raw.to(torch.float32).sub_(mean).div_(std)


def as_normalised(images: torch.Tensor) -> torch.Tensor:
    """uint8 images (N, 3, H, W) normalised; float images are normalised already and stay as they are."""
    return images if images.is_floating_point() else normalise(images)


def denormalise(images: torch.Tensor) -> torch.Tensor:
    """Inverse of `normalise`: float (N, 3, H, W) -> uint8 (N, 3, H, W), rounded and clipped to 0..255."""
    mean, std = _per_channel(IMAGENET_MEAN, images, 255.0), _per_channel(IMAGENET_STD, images, 255.0)
    return (images.to(torch.float32) * std + mean).round_().clamp_(0, 255).to(torch.uint8)
