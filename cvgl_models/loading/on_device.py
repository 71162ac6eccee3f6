"""JPEGs decoded by the accelerator: only encoded bytes cross to it.

The accelerator decodes whole images; its scaling is not the decoder's own, so views differ by a level or two from those
of the CPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg  # type: ignore[import-untyped]

from cvgl_models.loading.decoding import Encoded, decode, is_jpeg, middle, scaled_view, top_view
from cvgl_models.loading.views import UndecodableError, Views


class DeviceDecoder:
    """Decodes views of one side on a device.

    Args:
        views: What to decode.
        device: Where; a CPU will do, for tests.
    """

    def __init__(self, views: Views, device: torch.device) -> None:
        self.views, self.device = views, device

    def load(self, indices: Sequence[int]) -> list[Tensor | UndecodableError]:
        """Return the views of some rows, each uint8 (3, H, W) on the device, or what is wrong with them."""
        encoded = [self._encoded(index) for index in indices]
        images = self._decoded([image for image in encoded if not isinstance(image, UndecodableError)])
        decoded = iter(images)
        return [
            image if isinstance(image, UndecodableError) else self._view(index, next(decoded))
            for index, image in zip(indices, encoded, strict=True)
        ]

    def _encoded(self, index: int) -> Encoded | UndecodableError:
        try:
            return self.views.encoded(index)
        except UndecodableError as error:
            return error

    def _decoded(self, images: Sequence[Encoded]) -> list[Tensor | ValueError]:
        """Return each image as uint8 (3, h, w): all JPEGs at once, one by one if one of them is broken."""
        jpegs = [number for number, image in enumerate(images) if is_jpeg(image)]
        found: list[Tensor | ValueError | None] = [None] * len(images)
        try:
            tensors = [torch.from_numpy(np.frombuffer(images[number], np.uint8).copy()) for number in jpegs]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # its successor is one more package
                planes = decode_jpeg(tensors, mode=ImageReadMode.RGB, device=self.device) if jpegs else []
            for number, image in zip(jpegs, planes, strict=True):
                found[number] = image
        except RuntimeError:
            pass  # the CPU decoder tells which, and why
        return [self._by_cpu(image) if done is None else done for image, done in zip(images, found, strict=True)]

    def _by_cpu(self, image: Encoded) -> Tensor | ValueError:
        try:
            return torch.from_numpy(np.array(decode(image))).permute(2, 0, 1).to(self.device)
        except ValueError as error:
            return error

    def _view(self, index: int, image: Tensor | ValueError) -> Tensor | UndecodableError:
        if isinstance(image, ValueError):
            return self.views.undecodable(index, image)
        _, height, width = self.views.shape
        recipe, heading_deg = self.views.recipe, self.views.heading(index)
        try:
            if self.views.is_top_view:
                return top_view(image[None].float(), height, recipe, heading_deg, self.views.zenith(index))
            if self.views.side == "reference" and recipe.reference_crop < 1:
                image = middle(image, recipe.reference_crop, 1)
            return scaled_view(image, (height, width), heading_deg)
        except ValueError as error:
            return self.views.undecodable(index, error)
