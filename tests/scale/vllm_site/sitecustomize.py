"""Lets torchvision load beside PyTorch for CPUs; on PYTHONPATH, for vLLM and its processes.

torchvision's C part is built for CUDA and does not load there. Nothing here calls it, but it must
be declared before torchvision is imported.
"""

import importlib.abc
import sys
from typing import Any


class DeclareOperators(importlib.abc.MetaPathFinder):
    """Declares torchvision's operators when it is first looked for."""

    library: Any = None

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        """Find nothing."""
        if name == "torchvision" and self.library is None:
            import torch

            if torch.version.cuda is not None:
                return
            self.library = torch.library.Library("torchvision", "DEF")
            arguments = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            for operator in ("nms", "qnms"):
                self.library.define(operator + arguments)


sys.meta_path.insert(0, DeclareOperators())
