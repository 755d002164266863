"""The request for the queued resource of one attempt, and the startup script of its hosts."""

import pathlib
import shlex
import uuid
from typing import TYPE_CHECKING

from tpu.jobs.cloud_extra import require_cloud_extra
from tpu.jobs.record import FOLDER
from tpu.jobs.spec import ATTEMPT_LABEL, JOB_LABEL, Job

if TYPE_CHECKING:
    from google.cloud import tpu_v2

# Metadata key for the job's model directory; a label may not contain a URL.
MODEL_DIR_KEY = "switch-tf-model-dir"
# The last TensorFlow with a wheel for TPUs, and the only libtpu with which it was found to start.
PACKAGES = "tensorflow-tpu==2.20.0 libtpu==0.0.14"
NIGHTLIES = "tfds-nightly seqio-nightly"
RELEASES = "tensorflow-datasets==4.9.10 seqio==0.0.20"


def startup_script(job: Job, files: str, attempt: int) -> str:
    """Generates the startup script.

    Args:
      job: with its model directory.
      files: the folder of the job's bundle, relative to the model directory.
      attempt: 1, 2, ...

    Returns:
      A bash script.
    """
    values = {
        "JOB": job.name,
        "ATTEMPT": str(attempt),
        "PROJECT": job.project,
        "ZONE": job.zone,
        "QUEUED_RESOURCE": job.queued_resource_id(attempt),
        "STORE": f"{job.model_dir}/{attempt_folder(attempt)}",
        "FILES": f"{job.model_dir}/{files}",
        "PACKAGES": PACKAGES,
        "NIGHTLIES": NIGHTLIES,
        "RELEASES": RELEASES,
        "COMPILER_OPTIONS": job.slice.generation.compiler_options,
        "KEEP": str(int(job.keep)),
    }
    lines = "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
    return f"#!/bin/bash\n{lines}{(pathlib.Path(__file__).parent / 'startup.sh').read_text()}"


def attempt_folder(attempt: int) -> str:
    """The folder of an attempt's `logs/` and `outcomes/`, relative to the model directory."""
    return f"{FOLDER}/attempt-{attempt}"


def create_request(job: Job, script: str, attempt: int) -> "tpu_v2.CreateQueuedResourceRequest":
    """Makes the request for a queued resource.

    Args:
      job: with its model directory.
      script: the startup script of the hosts.
      attempt: 1, 2, ...

    Returns:
      The request. Equal arguments give an equal request id, so that Cloud TPU serves a repeated request once.
    """
    with require_cloud_extra():
        from google.cloud import tpu_v2

    name = job.queued_resource_id(attempt)
    node = tpu_v2.Node(
        accelerator_type=job.accelerator_type,
        runtime_version=job.runtime_version or job.slice.generation.runtime,
        description=f"switch_tf: job {job.name}, attempt {attempt}",
        network_config=tpu_v2.NetworkConfig(
            network=job.network, subnetwork=job.subnetwork, enable_external_ips=job.external_ips
        ),
        labels={**job.labels, JOB_LABEL: job.name, ATTEMPT_LABEL: str(attempt)},
        metadata={"startup-script": script, MODEL_DIR_KEY: job.model_dir},
    )
    if job.service_account is not None:
        node.service_account = tpu_v2.ServiceAccount(email=job.service_account)
    resource = tpu_v2.QueuedResource()
    if job.provisioning == "spot":
        resource.spot = tpu_v2.QueuedResource.Spot()
    elif job.provisioning == "reserved":
        resource.guaranteed = tpu_v2.QueuedResource.Guaranteed()
        node.scheduling_config = tpu_v2.SchedulingConfig(reserved=True)
        if job.reservation is not None:
            resource.reservation_name = f"{job.parent}/reservations/{job.reservation}"
    resource.tpu = tpu_v2.QueuedResource.Tpu(
        node_spec=[tpu_v2.QueuedResource.Tpu.NodeSpec(parent=job.parent, node_id=name, node=node)]
    )
    request = tpu_v2.CreateQueuedResourceRequest(parent=job.parent, queued_resource_id=name, queued_resource=resource)
    content = tpu_v2.CreateQueuedResourceRequest.to_json(request, sort_keys=True)
    request.request_id = str(uuid.uuid5(uuid.NAMESPACE_URL, content))
    return request
