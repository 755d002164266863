"""The table of slices against numbers of Cloud TPU's documentation."""

import pytest

from switch_tf.errors import SettingError
from tpu.topologies import SLICES, find_accelerator, find_topology


@pytest.mark.parametrize(
    ("accelerator_type", "topology", "cores", "chips", "devices", "hosts"),
    [
        ("v2-8", "v2:2x2", 8, 4, 8, 1),
        ("v3-8", "v3:2x2", 8, 4, 8, 1),
        ("v3-32", "v3:4x4", 32, 16, 32, 4),
        ("v3-2048", "v3:32x32", 2048, 1024, 2048, 256),
        ("v4-8", "v4:2x2x1", 8, 4, 4, 1),
        ("v4-128", "v4:4x4x4", 128, 64, 64, 16),
        ("v4-2048", "v4:8x8x16", 2048, 1024, 1024, 256),
        ("v5litepod-1", "v5e:1x1", 1, 1, 1, 1),
        ("v5litepod-8", "v5e:2x4", 8, 8, 8, 1),
        ("v5litepod-32", "v5e:4x8", 32, 32, 32, 8),
        ("v5p-128", "v5p:4x4x4", 128, 64, 64, 16),
        ("v5p-12288", "v5p:16x16x24", 12288, 6144, 6144, 1536),
        ("v6e-16", "v6e:4x4", 16, 16, 16, 4),
        ("v6e-256", "v6e:16x16", 256, 256, 256, 64),
    ],
)
def test_slices(accelerator_type, topology, cores, chips, devices, hosts):
    found = find_accelerator(accelerator_type)
    assert found == find_topology(topology)
    assert (found.num_cores, found.num_chips, found.num_devices, found.num_hosts) == (*(cores, chips, devices, hosts),)
    assert (found.accelerator_type, found.topology_name) == (accelerator_type, topology)


def test_slice_names_are_unique():
    assert len({slice_.topology_name for slice_ in SLICES.values()}) == len(SLICES) == 51


def test_unusual_shapes_are_allowed():
    assert find_topology("v4:4x4x12").accelerator_type == "v4-384"


@pytest.mark.parametrize(
    ("find", "name", "message"),
    [
        (find_accelerator, "v3-33", "'v3-33' is not a TPU slice (available: v3-8, v3-32, v3-64,"),
        (find_accelerator, "v5lite-32", "did you mean 'v5litepod-32'?"),
        (find_topology, "v9:2x2", "there is no TPU generation 'v9'"),
        (find_topology, "v4:4x4", "is not of the form v4:AxBxC (available: v4:2x2x1,"),
        (find_topology, "v3:4xfour", "is not of the form v3:AxB"),
    ],
)
def test_unknown_names_are_errors_with_suggestions(find, name, message):
    with pytest.raises(SettingError) as caught:
        find(name)
    assert message in str(caught.value)
