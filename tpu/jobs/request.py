"""What is asked of Cloud TPU for one attempt: a queued resource, and the script that its machines run at boot."""

import pathlib
import shlex
import uuid

from tpu.jobs.cloud_extra import need_extra
from tpu.jobs.record import FOLDER
from tpu.jobs.spec import ATTEMPT_LABEL, JOB_LABEL, Job

# Where a node's metadata say which model directory has the job's record; a label could not hold it.
RECORD_KEY = "switch-tf-model-dir"
# The last TensorFlow with a wheel for TPUs, and the only libtpu that it was found to start with.
_PACKAGES = "tensorflow-tpu==2.20.0 libtpu==0.0.14"
_NIGHTLIES = "tfds-nightly seqio-nightly"
_RELEASES = "tensorflow-datasets==4.9.10 seqio==0.0.20"


def startup_script(job: Job, files: str, attempt: int) -> str:
    """Writes the script.

    Args:
      job: with its model directory.
      files: the folder, in the model directory, that code and gin file are in.
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
        "PACKAGES": _PACKAGES,
        "NIGHTLIES": _NIGHTLIES,
        "RELEASES": _RELEASES,
        "KEEP": str(int(job.keep)),
    }
    lines = "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
    return f"#!/bin/bash\n{lines}{(pathlib.Path(__file__).parent / 'startup.sh').read_text()}"


def attempt_folder(attempt: int) -> str:
    """Where, in the model directory, the machines of an attempt leave `logs/` and `outcomes/`."""
    return f"{FOLDER}/attempt-{attempt}"


def create_request(job: Job, script: str, attempt: int):
    """Makes the request.

    Args:
      job: with its model directory.
      script: what the machines run when they boot.
      attempt: 1, 2, ...

    Returns:
      A `tpu_v2.CreateQueuedResourceRequest`. Made again of the same job it is equal, its id included, so that Cloud TPU
      answers it once.
    """
    with need_extra():
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
        metadata={"startup-script": script, RECORD_KEY: job.model_dir},
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
