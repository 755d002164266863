"""What the commands print about jobs: text, or values for JSON."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from tpu.jobs.cloud_api import Cloud, Resource
from tpu.jobs.job_progress import last_checkpoint, last_metrics, outcome_of
from tpu.jobs.object_store import Storage
from tpu.jobs.record import FAILED, FINISHED, RUNNING, Record

if TYPE_CHECKING:
    from google.cloud import tpu_v2


def dry_run_values(request: "tpu_v2.CreateQueuedResourceRequest", script: str) -> dict[str, Any]:
    """What `submit` would send, for JSON: the request, and the startup script, which the request contains too."""
    content = json.loads(type(request).to_json(request, always_print_fields_with_no_presence=False))
    return {"request": content, "startup_script": script}


def dry_run_text(values: dict[str, Any]) -> str:
    """Renders `dry_run_values`."""
    request = json.dumps(values["request"], indent=2)
    return f"# CreateQueuedResource\n{request}\n\n# its startup-script, for reading\n{values['startup_script']}"


def state_line(record: Record) -> str:
    """Summarizes the state of a job in one line."""
    job = record.job
    state = f"{record.state}: {record.reason}" if record.reason else record.state
    if record.state == RUNNING:
        state = _with_reason(record.attempt["states"][-1])
    return f"job {job.name}, attempt {record.attempt['number']}: {state}; restarts {record.restarts}/{job.max_restarts}"


def submitted_text(record: Record) -> str:
    """Says what has been queued, and how to follow it."""
    job = record.job
    return (
        f"{state_line(record)}\n"
        f"{slice_line(record)}; {job.provisioning}, in {job.zone} of {job.project}; {job.model_dir}\n"
        f"Follow it, and have it requeued after a preemption:\n"
        f"  switch-tf tpu watch {job.name} --project={job.project} --zone={job.zone}"
    )


def slice_line(record: Record) -> str:
    """Describes a job's slice in one line."""
    slice_ = record.job.slice
    return (
        f"{record.job.accelerator_type}: {slice_.num_chips} chips, {slice_.num_devices} devices, "
        f"{slice_.num_hosts} hosts"
    )


def record_values(record: Record) -> dict[str, Any]:
    """A record, for JSON."""
    job = record.job
    return {
        "name": job.name,
        "state": record.state,
        "reason": record.reason,
        "project": job.project,
        "zone": job.zone,
        "accelerator_type": job.accelerator_type,
        "provisioning": job.provisioning,
        "model_dir": job.model_dir,
        "restarts": record.restarts,
        "max_restarts": job.max_restarts,
        "attempts": record.attempts,
    }


def jobs_table(resources: Sequence[Resource]) -> str:
    """Renders the queued resources of jobs."""
    if not resources:
        return "No job has a TPU or waits for one."
    headers = ["job", "state", "accelerator", "provisioning", "queued resource", "created", "model directory"]
    rows = [
        (found.job, found.state, found.accelerator_type, found.provisioning, found.id, found.create_time[:19])
        + (found.model_dir,)
        for found in resources
    ]
    return tabulate(rows, headers, tablefmt="plain", disable_numparse=True)


def status_values(cloud: Cloud, storage: Storage, record: Record) -> dict[str, Any]:
    """Collects the status of a job, for JSON.

    Args:
      cloud: where it is queued.
      storage: its model directory.
      record: from there.

    Returns:
      `record_values`, and `slice`, `queued_resource`, `node`, `outcome` (of the newest attempt; None if there is none),
      `checkpoint_step` and `metrics`. `state` is that of the outcome if no watcher has recorded it yet.
    """
    values = record_values(record)
    resource = cloud.get(record.job.parent, record.attempt["queued_resource"])
    node = None if resource is None else cloud.node(record.job.parent, resource.id)
    outcome = outcome_of(storage, record.attempt["number"])
    if record.state == RUNNING and outcome is not None and outcome.is_final:
        values["state"] = FINISHED if outcome.exit_status == 0 else FAILED
    return values | {
        "slice": slice_line(record),
        "queued_resource": None if resource is None else resource._asdict(),
        "node": None if node is None else node._asdict(),
        "outcome": None if outcome is None else outcome._asdict(),
        "checkpoint_step": last_checkpoint(storage),
        "metrics": last_metrics(storage),
    }


def status_text(values: dict[str, Any]) -> str:
    """Renders `status_values`."""
    step, outcome = values["checkpoint_step"], values["outcome"]
    rows = [
        ("job", f"{values['name']}: {_with_reason(values)}"),
        ("slice", f"{values['slice']}; {values['provisioning']}, in {values['zone']} of {values['project']}"),
        ("model directory", values["model_dir"]),
        ("TPU", _tpu(values)),
        ("restarts", f"{values['restarts']} of {values['max_restarts']}"),
    ]
    for attempt in values["attempts"]:
        for seen in attempt["states"]:
            rows.append((f"attempt {attempt['number']}", f"{seen['time']}  {_with_reason(seen)}"))
    if outcome is not None:
        rows.append(("outcome", f"exit status {outcome['exit_status']} on {outcome['worker']}"))
    rows.append(("checkpoint", "none yet" if step is None else f"step {step}"))
    rows.append(("metrics", _metrics(values["metrics"])))
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def _with_reason(values: dict[str, Any]) -> str:
    return f"{values['state']} ({values['reason']})" if values["reason"] else str(values["state"])


def _tpu(values: dict[str, Any]) -> str:
    resource, node = values["queued_resource"], values["node"]
    if resource is None:
        return "none"
    health = f"; node {node['state']}, {node['health']}" if node is not None else ""
    return f"{resource['name'].rpartition('/')[2]}: {_with_reason(resource)}{health}"


def _metrics(metrics: dict[str, float] | None) -> str:
    if metrics is None:
        return "none yet"
    # Metrics of single layers have a / in their names.
    shown = [f"{name} {value:g}" for name, value in metrics.items() if "/" not in name and name != "step"]
    return f"step {metrics['step']:.0f}: {', '.join(shown)}"
