"""Batch norm over the patches of all ranks, so that the number of workers changes the time of a run, not its result.

torch's own synchronised batch norm (``nn.SyncBatchNorm``) needs a GPU; this one takes gloo and NCCL alike.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Mean(torch.autograd.Function):
    """Mean over ranks: every rank gets the same bits."""

    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:
        whole = share.contiguous().clone()
        dist.all_reduce(whole)
        return whole / dist.get_world_size()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # The losses of all ranks depend on this rank's share, each by 1 / world.  This way a penalty of gradients may
        # be differentiated again.
        return mean_over_ranks(gradient)


def mean_over_ranks(share: Tensor) -> Tensor:
    """Mean of every rank's tensor (collective), through which gradients flow to all ranks."""
    mean: Tensor = _Mean.apply(share)  # type: ignore[no-untyped-call]
    return mean


class _OverRanks(nn.Module):
    """The forward pass of a batch norm whose statistics in training are those of all ranks' patches.

    Every rank must hold as many values, and run as many forward and backward passes in the same order.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (b, c, ...); by the running statistics in evaluation, where ranks do not meet."""
        norm: Any = self
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            plain: Tensor = super().forward(x)
            return plain
        axes, shape = [0, *range(2, x.ndim)], (1, -1, *(1,) * (x.ndim - 2))
        values = x.to(torch.promote_types(x.dtype, torch.float32))  # as torch does under autocast
        mean = mean_over_ranks(values.mean(axes))
        centred = values - mean.view(shape)
        variance = mean_over_ranks(centred.square().mean(axes))
        if norm.track_running_stats:
            count = dist.get_world_size() * x.numel() / x.shape[1]
            norm.num_batches_tracked.add_(1)
            # As torch: a moving average, or with no momentum the mean of all batches.
            weight = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.detach(), weight)
            norm.running_var.lerp_(variance.detach() * (count / (count - 1)), weight)
        normed = centred * (variance + norm.eps).rsqrt().view(shape)
        if norm.affine:
            normed = normed * norm.weight.view(shape) + norm.bias.view(shape)
        output: Tensor = normed.to(x.dtype)
        return output


class _BatchNorm2d(_OverRanks, nn.BatchNorm2d):
    pass


class _BatchNorm3d(_OverRanks, nn.BatchNorm3d):
    pass


def over_ranks(network: nn.Module) -> nn.Module:
    """Let every batch norm of ``network`` take its statistics over all ranks; weights and names stay.

    On one rank, in evaluation and before a process group is made, nothing changes, bit for bit.
    """
    kinds: dict[type[nn.Module], type[nn.Module]] = {nn.BatchNorm2d: _BatchNorm2d, nn.BatchNorm3d: _BatchNorm3d}
    for module in network.modules():
        if type(module) in kinds:
            module.__class__ = kinds[type(module)]
    return network
