"""Consistency of a manifest: contradictions between its parts, which the schema cannot express."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from dfs_deploy.bundle.engines import walk
from dfs_deploy.bundle.manifest import MAX_BUNDLE, MAX_FILE, Manifest, RuntimeEngines, RuntimeName
from dfs_deploy.options import Option, Options


def contradictions(manifest: Manifest, options: Options) -> Iterator[str]:
    """Yields one line per part of a manifest that does not agree with another."""
    architecture = manifest.architecture
    if [(o.name, o.cost) for o in manifest.options] != [(o.name, o.cost) for o in options]:
        yield "names or costs of options do not go with their bits"
    if manifest.input.shape != architecture.image_shape:
        yield "input shape and architecture disagree"
    if manifest.input.class_names and len(manifest.input.class_names) != architecture.classes:
        yield f"{len(manifest.input.class_names)} class names for {architecture.classes} classes"
    size = sum(record.size for record in manifest.files.values())
    if size > MAX_BUNDLE:
        yield f"files of {size:,} bytes together, at most {MAX_BUNDLE:,} are read"
    for name, record in manifest.files.items():
        if record.size > MAX_FILE and name != manifest.weights:
            yield f"{name} has {record.size:,} bytes, at most {MAX_FILE:,} are read"
    for named in (manifest.samples, manifest.weights):
        if named is not None and named not in manifest.files:
            yield f"{named} is not among its files"
    if manifest.accuracy is not None:
        shares = manifest.accuracy.option_share
        if len(shares) != architecture.gated_blocks or any(len(row) != len(options) for row in shares):
            yield "shares of options were measured for other blocks or options"
    points = manifest.budgets
    if any(low.budget >= high.budget or low.bias < high.bias for low, high in itertools.pairwise(points)):
        yield "budgets do not rise, or their biases do not fall"
    yield from _accuracy_budget_problems(manifest, options)
    if not manifest.runtimes:
        yield "it has engines for no runtime"
    wrong_choices = list(_choice_problems(manifest, options))
    yield from wrong_choices
    if wrong_choices:
        return  # what follows asks about the options of every block
    for name, engines in manifest.runtimes.items():
        for problem in _engine_problems(name, engines, manifest, options):
            yield f"the {name} engines {problem}"


def _accuracy_budget_problems(manifest: Manifest, options: Options) -> Iterator[str]:
    """Contradictions between the accuracy budget and the rest."""
    point = manifest.accuracy_budget
    if point is None:
        return
    if manifest.policy is not None:
        yield "an accuracy budget for a network whose policy is static"
    rows = point.prices
    blocks = manifest.architecture.gated_blocks
    if rows is not None and (len(rows) != blocks or any(len(row) != len(options) for row in rows)):
        yield "prices of its accuracy budget are for other blocks or options"
    for half in (point.chosen, point.checked):
        if not half.top1_change_low <= half.top1_change <= half.top1_change_high:
            yield "an interval of its accuracy budget does not hold its estimate"


def _choice_problems(manifest: Manifest, options: Options) -> Iterator[str]:
    """Contradictions between options, policy and blocks."""
    gated, policy = manifest.architecture.blocks[1:], manifest.policy
    for block in gated:
        for name in sorted(set(block.options or ()) - set(options.names)):
            yield f"block {block.index} names option {name!r}, which is not among {options}"
        if not block.choices(options):
            yield f"block {block.index} may run none of the options {options}"
    if policy is None:
        return
    if len(policy) != len(gated):
        yield f"a policy for {len(policy)} blocks after the first, the architecture has {len(gated)}"
    for name in sorted(set(policy) - set(options.names)):
        yield f"the policy names option {name!r}, which is not among {options}"
    for name, block in zip(policy, gated, strict=False):
        if name in options.names and name not in [option.name for option in block.choices(options)]:
            yield f"the policy has option {name!r} at block {block.index}, which may not run it"
    if manifest.budgets:
        yield "budgets for a network whose policy is static"


def _choices(manifest: Manifest, options: Options) -> list[Sequence[Option]]:
    """The options that each block after the first may run; under a policy only the policy's."""
    if manifest.policy is None:
        return [block.choices(options) for block in manifest.architecture.blocks[1:]]
    return [[option for option in options if option.name == name] for name in manifest.policy]


def _engine_problems(name: RuntimeName, engines: RuntimeEngines, manifest: Manifest, options: Options) -> Iterator[str]:
    """Contradictions in the engines of one runtime, each as the end of a sentence about them."""
    shapes = manifest.architecture.blocks
    if len(engines.blocks) != len(shapes) - 1:
        yield f"are for {len(engines.blocks)} blocks after the first, the architecture has {len(shapes) - 1}"
        return
    if [block.index for block in engines.blocks] != [shape.index for shape in shapes[1:]]:
        yield "do not cover every block after the first"
        return
    if (engines.gate is None) != (manifest.policy is not None):
        yield "have both a gate and a static policy, or neither"
    if len(engines.feature_scales) != len(shapes) or min(engines.feature_scales) <= 0.0:
        yield "have no positive feature scale for every block"
    if len(engines.feature_zero_points) != len(shapes):
        yield "have no feature zero point for every block"
    for block, shape, choice in zip(engines.blocks, shapes[1:], _choices(manifest, options), strict=True):
        names = {option.name for option in choice if not option.skips}
        if set(block.options) != names or not all(block.options.values()):
            yield f"do not cover every option of block {block.index}"
        if any(option.skips for option in choice):
            if (block.skip is not None) != shape.projects:
                yield f"have a projection too many or too few at block {block.index}"
        elif block.skip is not None and (manifest.policy is None or not any(option.skips for option in options)):
            yield f"have a projection at block {block.index}, which is never skipped"
    placed = list(walk(engines, manifest.architecture, options))
    for each in placed:
        if not each.engine.files:
            yield f"have no file for {each.label}"
        elif (name == "tensorrt" or each.part == "stem") and "float32" not in each.engine.files:
            yield f"have no variant of {each.label} for float32, which is all that reaches it"
        if each.engine.output != "float32" and (name == "tensorrt" or each.part == "head"):
            yield f"leave {each.engine.output} at {each.label}, expected float32"
    files = {*engines.static.values(), *([] if engines.gate is None else [engines.gate])}
    files |= {file for each in placed for file in each.engine.files.values()}
    for file in sorted(files - set(manifest.files)):
        yield f"name {file}, which is not among the bundle's files"
