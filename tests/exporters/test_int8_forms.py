from __future__ import annotations

from dfs_deploy.calibration import calibrate
from dfs_deploy.exporters.int8 import Grid
from dfs_deploy.exporters.int8_forms import Int8Forms
from dfs_deploy.exporters.reference import Reference
from dfs_deploy.exporters.split import split_block
from dfs_deploy.models.graph import OUTPUT
from dfs_deploy.options import FULL_BITS, Option
from tests.settled import normal_images, settled_network


def test_what_was_chosen_is_kept_for_every_form() -> None:
    network, images = settled_network("skip,8,full", blocks=2, widths=(4, 8, 16)), normal_images(8)
    ranges = calibrate(network, [1], lambda: iter([images]), "minmax")
    forms = Int8Forms(ranges, reference=Reference.of(network, images))
    gives = Grid.uint8(forms.ranges_of(1, 1)[OUTPUT])
    parts = [split_block(network, 1, Option(bits)) for bits in (8, FULL_BITS)]
    made = [forms.of("onnxruntime", part, 1, 1, takes, gives) for part in parts for takes in (None, gives)]
    assert [key.bits for key in forms.chosen] == [8, 8, FULL_BITS, FULL_BITS]
    assert [key.takes for key in forms.chosen] == [None, gives] * 2
    assert [form.takes for form in made] == [None, gives] * 2
    again = [forms.of("onnxruntime", part, 1, 1, takes, gives) for part in parts for takes in (None, gives)]
    assert all(one is other for one, other in zip(made, again, strict=True))
