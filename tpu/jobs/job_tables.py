"""What the commands print of jobs: for people, or as JSON."""

import json
from collections.abc import Sequence

from tpu.jobs.cloud_api import Cloud, Resource
from tpu.jobs.job_progress import last_checkpoint, last_metrics, outcome_of
from tpu.jobs.object_store import Storage
from tpu.jobs.record import FAILED, FINISHED, RUNNING, Record


def to_json(values: object) -> str:
    """Writes values as JSON for scripts."""
    return json.dumps(values, indent=2)


def dry_run(request, script: str, as_json: bool) -> str:
    """Writes what `submit` would send.

    Args:
      request: a `tpu_v2.CreateQueuedResourceRequest`.
      script: what the machines run; it is in the request as well.
      as_json: one JSON object of both.

    Returns:
      Text.
    """
    values = json.loads(type(request).to_json(request, always_print_fields_with_no_presence=False))
    if as_json:
        return to_json({"request": values, "startup_script": script})
    return f"# CreateQueuedResource\n{to_json(values)}\n\n# its startup-script, for reading\n{script}"


def state_line(record: Record) -> str:
    """Says in one line how a job does."""
    job = record.job
    words = f"{record.state}: {record.reason}" if record.reason else record.state
    if record.state == RUNNING:
        seen = record.attempt["states"][-1]
        words = f"{seen['state']} ({seen['reason']})" if seen["reason"] else seen["state"]
    return f"job {job.name}, attempt {record.attempt['number']}: {words}; restarts {record.restarts}/{job.max_restarts}"


def submitted(record: Record) -> str:
    """Says what has been queued, and what to do next."""
    job = record.job
    return (
        f"{state_line(record)}\n"
        f"{slice_line(record)}; {job.provisioning}, in {job.zone} of {job.project}; {job.model_dir}\n"
        f"Follow it, and have it queued again when its TPU is taken away:\n"
        f"  switch-tf tpu watch {job.name} --project={job.project} --zone={job.zone}"
    )


def slice_line(record: Record) -> str:
    """Says what a job's slice has."""
    slice_ = record.job.slice
    return (
        f"{record.job.accelerator_type}: {slice_.num_chips} chips, {slice_.num_devices} devices, "
        f"{slice_.num_machines} machines"
    )


def record_values(record: Record) -> dict[str, object]:
    """A record for scripts."""
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


def resource_values(resource: Resource) -> dict[str, str]:
    """A queued resource for scripts."""
    return resource._asdict()


def table(resources: Sequence[Resource]) -> str:
    """Writes jobs as a table."""
    if not resources:
        return "No job has a TPU or waits for one."
    rows = [("job", "state", "accelerator", "provisioning", "queued resource", "created", "model directory")]
    for found in resources:
        rows.append(
            (found.job, found.state, found.accelerator_type, found.provisioning, found.id, found.create_time[:19])
            + (found.model_dir,)
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows)


def status_values(cloud: Cloud, storage: Storage, record: Record) -> dict[str, object]:
    """Gathers how a job does.

    Args:
      cloud: where it is queued.
      storage: its model directory.
      record: from there.

    Returns:
      What `record_values` gives, and `queued_resource`, `node`, `outcome` (of the newest attempt; None where there is
      none), `checkpoint_step` and `metrics`. `state` is how the attempt ended, where nobody has put it into the record
      yet.
    """
    values = record_values(record)
    resource = cloud.get(record.job.parent, record.attempt["queued_resource"])
    node = None if resource is None else cloud.node(record.job.parent, resource.id)
    outcome = outcome_of(storage, record.attempt["number"])
    if record.state == RUNNING and outcome is not None and outcome.is_final:
        values["state"] = FINISHED if outcome.exit_status == 0 else FAILED
    return values | {
        "slice": slice_line(record),
        "queued_resource": None if resource is None else resource_values(resource),
        "node": None if node is None else node._asdict(),
        "outcome": None if outcome is None else outcome._asdict(),
        "checkpoint_step": last_checkpoint(storage),
        "metrics": last_metrics(storage),
    }


def status(values: dict[str, object]) -> str:
    """Writes what `status_values` gathered."""
    reason = f" ({values['reason']})" if values["reason"] else ""
    rows = [
        ("job", f"{values['name']}: {values['state']}{reason}"),
        ("slice", f"{values['slice']}; {values['provisioning']}, in {values['zone']} of {values['project']}"),
        ("model directory", values["model_dir"]),
        ("TPU", _tpu(values)),
        ("restarts", f"{values['restarts']} of {values['max_restarts']}"),
    ]
    for attempt in values["attempts"]:
        for seen in attempt["states"]:
            words = f" ({seen['reason']})" if seen["reason"] else ""
            rows.append((f"attempt {attempt['number']}", f"{seen['time']}  {seen['state']}{words}"))
    step, outcome = values["checkpoint_step"], values["outcome"]
    if outcome is not None:
        rows.append(("ended", f"exit status {outcome['exit_status']} on {outcome['worker']}"))
    rows.append(("checkpoint", "none yet" if step is None else f"step {step}"))
    rows.append(("metrics", _metrics(values["metrics"])))
    return "\n".join(f"{label:<17}{text}" for label, text in rows)


def _tpu(values: dict[str, object]) -> str:
    resource, node = values["queued_resource"], values["node"]
    if resource is None:
        return "none"
    reason = f" ({resource['reason']})" if resource["reason"] else ""
    machines = f"; node {node['state']}, {node['health']}" if node is not None else ""
    return f"{resource['name'].rpartition('/')[2]}: {resource['state']}{reason}{machines}"


def _metrics(metrics: dict[str, float] | None) -> str:
    if metrics is None:
        return "none yet"
    # Those of the single layers have a / in their names.
    shown = [f"{name} {value:g}" for name, value in metrics.items() if "/" not in name and name != "step"]
    return f"step {metrics['step']:.0f}: {', '.join(shown)}"
