"""Networks by name: from torchvision, from timm, CIFAR ResNets, and functions of the user's own modules.

Nothing is downloaded: a network has random weights until ``dfs_deploy.checkpoints.build_network`` reads some.
"""

from __future__ import annotations

import difflib
import importlib
import math
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from dfs_deploy.errors import DependencyError, UsageError
from dfs_deploy.geometry import Interpolation
from dfs_deploy.io.text import first_line, one_line
from dfs_deploy.models.cifar import CifarResNet
from dfs_deploy.models.option_a import OptionAResNet
from dfs_deploy.models.running import as_before, user_code
from dfs_deploy.network import MAX_BLOCKS, cifar_resnet
from dfs_deploy.preprocessing import IMAGENET_INPUT, InputContract

_FORMS = "torchvision:NAME, timm:NAME, cifar-resnet:N, or package.module:function"
_CIFAR_CLASSES = 10
_OPTION_A_MARKER = "layer1.0.conv1.weight"
_EXAMPLE_SEED = 0


@dataclass(frozen=True, eq=False)
class NamedNetwork:
    """A network and the images that it takes.

    Attributes:
        name: the name that was given.
        net: the network, in evaluation mode.
        contract: how images become its input.
        example: (1, C, H, W) float32, random values of the input's shape.
        assumed: of what network that contract is, as in ``as for ImageNet``; ``None`` if it is its own.
        changes: what was changed, one line each.
        new_head: whether its final layer is an untrained one, before weights of other classes.
    """

    name: str
    net: nn.Module
    contract: InputContract
    example: Tensor
    assumed: str | None = None
    changes: tuple[str, ...] = ()
    new_head: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed or changed, one line each."""
        said = (f"{_describe(self.contract)}, {self.assumed}",) if self.assumed else ()
        return (*said, *self.changes)

    @property
    def classes(self) -> int:
        """Number of logits; see ``logits``."""
        return self.logits().shape[1]

    def logits(self) -> Tensor:
        """What the network gives for its example, (1, classes).

        Raises:
            UsageError: the network fails on its example, or gives something else.
        """
        failure = f"{self.name} fails on an image of shape {self.contract.shape}"
        remedy = "; give the size that it takes: --image-size, or --size of train"
        with torch.no_grad(), as_before(self.net), user_code(UsageError, failure, remedy):
            logits = self.net(self.example)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UsageError(f"{self.name} gives {shape}, expected logits (N, classes); give a classifier")
        return logits


def named_network(
    name: str,
    image_size: tuple[int, int] | None = None,
    keys: Collection[str] = (),
    file: str = "",
) -> NamedNetwork:
    """Makes a network with random weights.

    Args:
        name: ``torchvision:NAME``, ``timm:NAME``, ``cifar-resnet:N`` for the ResNet-N of the ResNet paper's CIFAR
            section, or ``package.module:function``: a function without arguments, or a class, that gives a network; or
            a network. The last imports the module, from the current directory too, and so runs its code.
        image_size: height and width of images; ``None`` for what the network was made for.
        keys: names of the tensors that are going to be loaded: they decide between the two forms of CIFAR ResNets.
        file: name of the file that they come from: torchvision's names say which preprocessing belongs to them.

    Raises:
        UsageError: a name of another form, a network that does not exist, or code of the user's that fails.
        DependencyError: torchvision or timm is not installed, or cannot be imported.
    """
    origin, colon, rest = name.partition(":")
    if not colon or not origin or not rest:
        raise UsageError(f"network {one_line(name, 80)!r}, expected {_FORMS}")
    net, contract, like = _ORIGINS.get(origin, _from_module)(name, rest, keys, file)
    if image_size is not None:
        contract = contract.of_size(image_size)
    return NamedNetwork(name, net.eval(), contract, _example(contract), like)


_Made = tuple[nn.Module, InputContract, str | None]
"""A network, its input contract, and of what network that is; ``None`` if it is its own."""


def _example(contract: InputContract) -> Tensor:
    return torch.randn((1, *contract.shape), generator=torch.Generator().manual_seed(_EXAMPLE_SEED))


def _package(name: str, package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        seen = "is not installed" if isinstance(error, ModuleNotFoundError) and error.name == package else None
        raise DependencyError(
            f"{name} needs {package}, which {seen or f'cannot be imported ({first_line(error)})'}; install it with: pip"
            f" install {package}",
            module=package,
        ) from error
    except RuntimeError as error:  # torchvision for another PyTorch
        raise DependencyError(
            f"{name} needs {package}, which cannot be imported ({first_line(error)}); install the one that belongs to"
            f" PyTorch {torch.__version__}",
            module=package,
        ) from error


def _unknown(name: str, wanted: str, known: Collection[str]) -> UsageError:
    near = difflib.get_close_matches(wanted, list(known), 3, 0.4)
    hint = f"the nearest are {', '.join(near)}" if near else f"expected one of its {len(known)} networks"
    return UsageError(f"{name}: there is no network of that name; {hint}")


def _from_torchvision(name: str, wanted: str, keys: Collection[str], file: str) -> _Made:
    _package(name, "torchvision")
    from torchvision import models  # type: ignore[import-not-found, unused-ignore]

    known = models.list_models(module=models)
    if wanted not in known:
        raise _unknown(name, wanted, known)
    net = models.get_model(wanted, weights=None)
    entries = list(models.get_model_weights(wanted))
    named = [entry for entry in entries if file and str(entry.url).endswith(f"/{file}")]
    entry = named[0] if named else models.get_model_weights(wanted).DEFAULT
    preset = entry.transforms()
    size = int(preset.crop_size[0])
    contract = InputContract(
        (3, size, size),
        tuple(preset.mean),
        tuple(preset.std),
        tuple(entry.meta["categories"]) if named else (),
        max(size, int(preset.resize_size[0])),
        _interpolation(preset.interpolation.value),
    )
    alike = named or len({str(each.transforms()) for each in entries}) == 1
    return net, contract, None if alike else f"as for torchvision's {entry.name}"


def _from_timm(name: str, wanted: str, keys: Collection[str], file: str) -> _Made:
    timm = _package(name, "timm")
    known = timm.list_models()
    if not timm.is_model(wanted):
        raise _unknown(name, wanted, known)
    net = timm.create_model(wanted, pretrained=False)
    config = timm.data.resolve_data_config({}, model=net)
    channels, height, width = config["input_size"]
    contract = InputContract(
        (channels, height, width),
        tuple(config["mean"]),
        tuple(config["std"]),
        (),
        max(height, width, math.floor(min(height, width) / config["crop_pct"])),
        _interpolation(config["interpolation"]),
    )
    return net, contract, None


def _interpolation(name: str) -> Interpolation:
    return next((known for known in get_args(Interpolation) if known == name), "bilinear")


def _describe(contract: InputContract) -> str:
    _, height, width = contract.shape
    cut = f" cut out of {contract.resize}" if contract.resize else ""
    numbers = f"mean {contract.mean}, std {contract.std}"
    return f"images are {height}x{width} pixels{cut}, {contract.interpolation}, {numbers}"


def _cifar_resnet(name: str, wanted: str, keys: Collection[str], file: str) -> _Made:
    """A CIFAR ResNet: with option A's shortcuts if the weights have their names, else with projections."""
    depth = int(wanted) if wanted.isascii() and wanted.isdigit() and len(wanted) < 6 else 0
    blocks, left = divmod(depth - 2, 6)
    if left or not 1 <= blocks <= MAX_BLOCKS // 3:
        raise UsageError(f"{name}: expected N of the form 6n + 2, as in cifar-resnet:20, 32, 38, 56 or 110")
    if any(f".{key}".endswith(f".{_OPTION_A_MARKER}") for key in keys):
        contract = InputContract(mean=IMAGENET_INPUT.mean, std=IMAGENET_INPUT.std)
        return OptionAResNet(blocks), contract, "as for the published weights with option A's shortcuts"
    return CifarResNet(cifar_resnet((blocks,) * 3, classes=_CIFAR_CLASSES)), InputContract(), None


def _from_module(name: str, path: str, keys: Collection[str], file: str) -> _Made:
    """A network that code of the user's makes."""
    module = name.partition(":")[0]
    if module.endswith(".py") or "/" in module:
        stem = Path(module).stem
        raise UsageError(f"network {name!r} begins with a file, expected a module, as in {stem}:{path}")
    with _current_directory():
        found = _attribute(name, _imported(name, module), path)
        net = found if isinstance(found, nn.Module) else _called(name, found)
    if not isinstance(net, nn.Module):
        raise UsageError(f"{name} gives a {type(net).__name__}, expected a torch.nn.Module; return the network")
    channels = next((layer.in_channels for layer in net.modules() if isinstance(layer, nn.Conv2d)), 3)
    if channels == len(IMAGENET_INPUT.mean):
        return net, IMAGENET_INPUT, "as for ImageNet"
    shape = (channels, *IMAGENET_INPUT.shape[1:])
    contract = replace(IMAGENET_INPUT, shape=shape, mean=(0.5,) * channels, std=(0.5,) * channels)
    return net, contract, "with values from -1 to 1"


def _imported(name: str, module: str) -> Any:
    with user_code(UsageError, f"{name} cannot be imported", "; correct the module"):
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{module}.".startswith(f"{error.name}."):
                raise UsageError(
                    f"{name} cannot be imported: there is no module {error.name}; expected {_FORMS}, and a module is"
                    " looked for in the current directory too"
                ) from error
            raise UsageError(f"{name} cannot be imported: {first_line(error)}; install what it needs") from error


def _attribute(name: str, module: Any, path: str) -> Any:
    found = module
    with user_code(UsageError, f"{name} cannot be read", "; correct the module"):
        for part in path.split("."):
            if not hasattr(found, part):
                near = difflib.get_close_matches(part, dir(found), 1)
                hint = f"; did you mean {near[0]}?" if near else "; name a function that gives the network"
                raise UsageError(f"{name} cannot be imported: {getattr(found, '__name__', path)} has no {part}{hint}")
            found = getattr(found, part)
    return found


def _called(name: str, make: Any) -> Any:
    if not callable(make):
        raise UsageError(f"{name} is a {type(make).__name__}, expected a function that gives the network")
    with user_code(UsageError, f"{name} failed", " when it was called without arguments; correct it"):
        return make()


@contextmanager
def _current_directory() -> Iterator[None]:
    """Lets modules of the current directory be imported."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


_ORIGINS: dict[str, Callable[[str, str, Collection[str], str], _Made]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
    "cifar-resnet": _cifar_resnet,
}
"""How a network is made, by the first part of its name; any other first part is a module."""


def chosen_modules(net: nn.Module, text: str) -> str | list[type[nn.Module] | str]:
    """Modules that a text names, in the form that ``find_blocks`` takes.

    Args:
        net: the network.
        text: names of classes or qualified names, separated by commas; or else a regular expression of qualified names.
    """
    words = [word.strip() for word in text.split(",")]
    classes = {type(module).__name__: type(module) for module in net.modules()}
    names = dict(net.named_modules())
    if all(word in classes or word in names for word in words) or (len(words) > 1 and all(map(_is_plain, words))):
        return [word if word in names else classes.get(word, word) for word in words]
    return text


def _is_plain(word: str) -> bool:
    return all(part.isidentifier() or part.isdecimal() for part in word.split("."))
