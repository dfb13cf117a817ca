"""Gradients that lie in parts on many ranks: clipping, and what needs whole matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate

from vl2.parallel.mesh import Ranks


def mesh_of(tensor: Tensor) -> DeviceMesh | None:
    """The mesh that a tensor is spread over; None for an ordinary one.

    Operations on lists of tensors want one mesh each: routed experts have another than the rest.
    """
    return tensor.device_mesh if isinstance(tensor, DTensor) else None


def clip_gradients(parameters: Iterable[Tensor], limit: float, ranks: Ranks) -> Tensor:
    """Scale all gradients together down to a norm of `limit`; returns the norm before.

    The norm is over all ranks, and the same on each of them.
    """
    by_mesh: dict[DeviceMesh | None, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_mesh.setdefault(mesh_of(parameter), []).append(parameter)
    norms = [_norm([p.grad for p in group if p.grad is not None]) for group in by_mesh.values()]
    norm = norms[0] if len(norms) == 1 else _together(norms)
    if ranks.meshes is not None and ranks.layout.pipeline > 1:
        square = norm.square().cpu()
        dist.all_reduce(square, group=ranks.meshes.dense["pipeline"].get_group())
        norm = square.sqrt().to(norm.device)
    for group in by_mesh.values():
        nn.utils.clip_grads_with_norm_(group, limit, norm)
    return norm


def on_whole(function: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """`function` of a tensor that needs all of it, such as an orthogonalisation; same shape out."""
    if not isinstance(tensor, DTensor):
        return function(tensor)
    mesh, everywhere = tensor.device_mesh, [Replicate()] * tensor.device_mesh.ndim
    out = DTensor.from_local(function(tensor.full_tensor()), mesh, everywhere, run_check=False)
    return out.redistribute(placements=tensor.placements)


def _together(norms: list[Tensor]) -> Tensor:
    """The norm of all; a stage of a pipeline may have none."""
    return torch.stack(norms).norm() if norms else torch.zeros(())


def _norm(gradients: list[Tensor]) -> Tensor:
    norm = nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
