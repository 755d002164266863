"""The request for a queued resource."""

import dataclasses
import pathlib

import pytest
from google.cloud import tpu_v2

from switch_tf import installation
from tpu.jobs.request import NIGHTLIES, PACKAGES, RELEASES, create_request

SETUP = (pathlib.Path(__file__).parents[3] / "setup.py").read_text()


def values(job, attempt: int = 1) -> dict:
    return tpu_v2.CreateQueuedResourceRequest.to_dict(
        create_request(job, "the script", attempt), always_print_fields_with_no_presence=False
    )


def test_a_request_has_all_settings_of_the_job(job):
    job = dataclasses.replace(
        job,
        network="the-network",
        subnetwork="the-subnetwork",
        external_ips=False,
        service_account="robot@the-project.iam.gserviceaccount.com",
        labels={"team": "research"},
    )
    request = values(job, attempt=2)
    assert (request["parent"], request["queued_resource_id"]) == (job.parent, "mine-2")
    (spec,) = request["queued_resource"]["tpu"]["node_spec"]
    assert (spec["parent"], spec["node_id"]) == (job.parent, "mine-2")
    node = spec["node"]
    assert (node["accelerator_type"], node["runtime_version"]) == ("v3-32", "tpu-ubuntu2204-base")
    assert node["network_config"] == {"network": "the-network", "subnetwork": "the-subnetwork"}
    assert node["service_account"] == {"email": "robot@the-project.iam.gserviceaccount.com"}
    assert node["labels"] == {"team": "research", "switch-tf-job": "mine", "switch-tf-attempt": "2"}
    assert node["metadata"] == {"startup-script": "the script", "switch-tf-model-dir": job.model_dir}
    assert not {"spot", "guaranteed", "reservation_name"} & request["queued_resource"].keys()


@pytest.mark.parametrize(
    ("settings", "resource", "scheduling"),
    [
        ({"provisioning": "spot"}, {"spot": {}}, None),
        ({"provisioning": "reserved"}, {"guaranteed": {}}, {"reserved": True}),
        (
            {"provisioning": "reserved", "reservation": "ours"},
            {
                "guaranteed": {},
                "reservation_name": "projects/the-project/locations/europe-west4-a/reservations/ours",
            },
            {"reserved": True},
        ),
    ],
)
def test_provisioning(job, settings, resource, scheduling):
    asked = values(dataclasses.replace(job, **settings))["queued_resource"]
    assert asked["tpu"]["node_spec"][0]["node"].get("scheduling_config") == scheduling
    assert {name: value for name, value in asked.items() if name != "tpu"} == resource


@pytest.mark.parametrize(
    ("accelerator_type", "runtime"),
    [("v4-8", "tpu-ubuntu2204-base"), ("v5litepod-8", "v2-alpha-tpuv5-lite"), ("v5p-8", "v2-alpha-tpuv5")]
    + [("v6e-8", "v2-alpha-tpuv6e")],
)
def test_each_generation_has_a_default_image(job, accelerator_type, runtime):
    node = create_request(dataclasses.replace(job, accelerator_type=accelerator_type), "", 1)
    assert node.queued_resource.tpu.node_spec[0].node.runtime_version == runtime
    other = create_request(dataclasses.replace(job, runtime_version="other"), "", 1)
    assert other.queued_resource.tpu.node_spec[0].node.runtime_version == "other"


def test_the_same_request_has_the_same_id(job):
    assert create_request(job, "a", 1) == create_request(job, "a", 1)
    ids = {create_request(job, script, attempt).request_id for script, attempt in (("a", 1), ("b", 1), ("a", 2))}
    assert len(ids) == 3


def test_versions_are_those_of_setup_and_installation():
    for package in PACKAGES.split():
        assert f'"{package}"' in SETUP
    assert (
        f"pip uninstall -y {NIGHTLIES} && pip install --force-reinstall --no-deps {RELEASES}"
    ) == installation.REPAIR
