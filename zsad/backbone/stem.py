"""A convolutional patch embedding for small towers: what a patch is, learned from few images.

A ViT cuts an image into patches and sees each through one matrix, so what it knows about fine structure (a scratch two
pixels wide) must be learned anew for every place within a patch. Four steps of 3 x 3 convolutions with stride 2 give
the same grid of tokens and need not learn that. docs/nano.md has what it gave.

Half of the channels are normalised by the image's own mean and spread, so they say how a place differs from the rest of
its image and not how the material looks; the others by those of the training images, so that faint stays faint.

Legend: B images, C channels, W tower width.
Cost: 0.5 GMAC an image of 224 px.
Source: convolutional stems for ViTs (arXiv 2106.14881); instance and batch normalisation mixed (arXiv 1807.09441).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-5
_MOMENTUM = 0.1


class MixedNorm(nn.Module):
    """Normalises the first `num_instance` of C channels by each image alone, the others by the training images."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, num_instance: int) -> None:
        super().__init__()
        self.num_instance = num_instance
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels - num_instance))
        self.register_buffer("running_var", torch.ones(channels - num_instance))

    def forward(self, x_BChw: Tensor) -> Tensor:
        """Same shape; statistics in fp32."""
        shared = self._shared_statistics(x_BChw[:, self.num_instance :])
        var_BC, mean_BC = (statistic.float().expand(len(x_BChw), -1) for statistic in shared)
        if self.num_instance:
            own = x_BChw[:, : self.num_instance].float()
            own_mean = own.mean(dim=(2, 3))  # torch.var_mean takes 10 times as long on CPUs, in this memory format
            own_var = (own - own_mean[..., None, None]).square().mean(dim=(2, 3))
            var_BC, mean_BC = torch.cat([own_var, var_BC], dim=1), torch.cat([own_mean, mean_BC], dim=1)
        scale_BC = (var_BC + _EPS).rsqrt() * self.weight.float()
        shift_BC = self.bias.float() - mean_BC * scale_BC
        return x_BChw * scale_BC[..., None, None].to(x_BChw.dtype) + shift_BC[..., None, None].to(x_BChw.dtype)

    def _shared_statistics(self, x_BChw: Tensor) -> tuple[Tensor, Tensor]:
        """Variances and means of the batch in training, which are averaged for later; those averages otherwise."""
        if not self.training:
            return self.running_var, self.running_mean
        var, mean = torch.var_mean(x_BChw.float(), dim=(0, 2, 3), correction=0)
        with torch.no_grad():
            self.running_mean.lerp_(mean, _MOMENTUM)
            self.running_var.lerp_(var, _MOMENTUM)
        return var, mean


class Down(nn.Module):
    """3 x 3 convolution of stride 2, normalised."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False)
        self.norm = MixedNorm(channels_out, channels_out // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, channels_out, h / 2, w / 2)."""
        return F.relu(self.norm(self.conv(x)))


class Residual(nn.Module):
    """Two 3 x 3 convolutions whose result is added to their input; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = MixedNorm(channels, channels // 2)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = MixedNorm(channels, 0)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class ConvStem(nn.Module):
    """Stands in for a vision transformer's `conv1`: an image to a grid of tokens, 2 ** len(channels) px apart.

    Args:
        channels: after each halving of the resolution; the last is the tower's width W.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.out_channels = channels[-1]
        steps: list[nn.Module] = [Down(3, channels[0])]
        for before, after in pairwise(channels):
            steps += [Down(before, after), Residual(after)]
        self.steps = nn.Sequential(*steps)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Normalised pixels (B, 3, H, W) -> (B, W, H / stride, W / stride)."""
        tokens: Tensor = self.steps(pixels_BCHW.contiguous(memory_format=torch.channels_last))
        return tokens
