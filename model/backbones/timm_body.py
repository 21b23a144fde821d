"""Any timm model that gives maps of strides 4, 8, 16 and 32, as a backbone's body: `timm:NAME` (features_only).

timm is optional (requirements/timm.txt). Its source and published weights have licences of their own.
"""

import importlib
import itertools
import re
from typing import Any

from torch import Tensor, nn

PREFIX = "timm:"
STRIDES = [4, 8, 16, 32]


class TimmBody(nn.Module):
    """C2 to C5 of the timm model `name`, in float [N, 3, H, W] normalised by `mean` and `std`, in pixel values.

    Args:
        name: as timm knows it.
        pretrained: with its published weights, by timm's own hub.

    Raises:
        ValueError: timm is not installed, does not know the model, or cannot reach the weights; or the model has no
            maps of `STRIDES`.
    """

    def __init__(self, name: str, *, pretrained: bool) -> None:
        super().__init__()
        timm = _timm(name)
        try:
            net = timm.create_model(name, pretrained=pretrained, features_only=True, scriptable=True)
        except (OSError, RuntimeError, AttributeError) as error:
            reason = str(error).strip().split("\n")[0]
            cure = "; bring a state dict here and pass its path as weights" if pretrained else ""
            raise ValueError(f"backbone {PREFIX}{name}: timm cannot make it ({reason}){cure}") from error
        info = net.feature_info
        if info.reduction()[-4:] != STRIDES:
            raise ValueError(
                f"backbone {PREFIX}{name} has maps of strides {info.reduction()}; the pyramid wants the last four to "
                f"be {STRIDES}"
            )
        settings = timm.get_pretrained_cfg(name)
        self.mean = tuple(255 * float(value) for value in settings.mean)
        self.std = tuple(255 * float(value) for value in settings.std)
        self.channels = tuple(info.channels()[-4:])
        self.first = len(info.reduction()) - 4
        self._ends = [module.replace(".", "_") for module in info.module_name()]
        self.net = net

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """C2 to C5 of an image [N, 3, H, W], as "0" to "3"; timm rounds their sides up or down."""
        features: list[Tensor] = self.net(x)
        k = self.first
        return {"0": features[k], "1": features[k + 1], "2": features[k + 2], "3": features[k + 3]}

    def stages(self) -> list[list[nn.Module]]:
        """Modules with parameters or statistics of the five stages: stem, C2, C3, C4, C5; in the order of their making.

        A stage ends with the module that timm names as the source of its map; the stem with the one before the
        stage of stride 4 where timm names none of stride 2.
        """
        named = [
            (name.replace(".", "_"), module)
            for name, module in self.net.named_modules()
            if any(True for _ in module.parameters(recurse=False))
            or any(True for _ in module.buffers(recurse=False))
        ]

        def within(end: str) -> list[int]:
            return [i for i, (name, _) in enumerate(named) if f"{name}_".startswith(f"{end}_")]

        last = [max(within(end), default=-1) for end in self._ends[-4:]]
        stem = max(within(self._ends[-5]), default=-1) if self.first else min(within(self._ends[-4])) - 1
        bounds = [0, stem + 1, *(i + 1 for i in last[:-1]), len(named)]
        return [[module for _, module in named[a:b]] for a, b in itertools.pairwise(bounds)]

    def own_names(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of `state` under this module's names: timm joins `stages.0` to `stages_0`. Others stay out."""
        found: dict[str, Tensor] = {}
        for key in self.net.state_dict():
            whole = re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", key)
            for theirs in (f"net.{key}", key, whole):
                if theirs in state:
                    found[f"net.{key}"] = state[theirs]
        return found

    def split_activations(self) -> None:
        """Take timm's batch normalisations with a built-in activation apart, so that others can stand in for them."""
        for parent in list(self.net.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.BatchNorm2d) and type(child) is not nn.BatchNorm2d:
                    assert isinstance(child.drop, nn.Module) and isinstance(child.act, nn.Module)
                    plain = nn.BatchNorm2d(child.num_features, eps=child.eps, momentum=child.momentum)
                    plain.load_state_dict(
                        {key: value for key, value in child.state_dict().items() if key in plain.state_dict()}
                    )
                    setattr(parent, name, nn.Sequential(plain, child.drop, child.act))


def _timm(name: str) -> Any:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"backbone {PREFIX}{name} needs the package timm, which is not installed: "
            "pip install -r requirements/timm.txt, or take another backbone"
        ) from error
