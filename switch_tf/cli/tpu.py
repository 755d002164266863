"""`switch-tf tpu ...`: flags and handlers. A handler imports what it needs, and TensorFlow only where it must."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from switch_tf.cli import flags, tpu_precompile
from switch_tf.errors import SettingError

if TYPE_CHECKING:
    from tpu.jobs.cloud_api import Cloud
    from tpu.jobs.object_store import Storage
    from tpu.jobs.record import Record
    from tpu.jobs.spec import Job

_SUBMIT_EXAMPLES = """\
examples:
  switch-tf tpu submit --job=job.yaml --dry_run
  switch-tf tpu submit --job=job.yaml --provisioning=spot --gin.TRAIN_STEPS=10000
  switch-tf tpu submit --name=base --project=my-project --zone=europe-west4-a --accelerator_type=v3-32 \\
      --model_dir=gs://my-bucket/base --gin_file=gin/models/switch_base_128.gin --gin_file=gin/runs/pretrain_c4.gin \\
      --gin_file=gin/layouts/v3_32.gin

After an interruption, run the same command again: it continues. docs/tpu.md lists the settings.
"""
_SETTINGS = {
    "name": "the job's name: lower-case letters, digits and hyphens",
    "accelerator_type": "the slice: v3-32, v4-128, v5litepod-32, v5p-128, v6e-256, ...",
    "runtime_version": "image of the hosts (default: depends on the TPU generation)",
    "provisioning": "on-demand, spot or reserved (default: on-demand)",
    "reservation": "name of the reservation",
    "network": "network of the hosts",
    "subnetwork": "subnetwork of the hosts",
    "service_account": "service account of the hosts",
    "code": "a checkout of switch_tf or a wheel (default: the code of this command)",
}


def add_parsers(commands: flags.Commands) -> None:
    """Adds the commands under `switch-tf tpu`.

    Args:
      commands: what `add_subparsers` returned.
    """
    tpu_precompile.add_parser(commands)
    submit = flags.add_with_examples(commands, "submit", "queue a training job", _SUBMIT_EXAMPLES)
    submit.add_argument("--job", type=flags.path, metavar="FILE", help="a YAML file of settings; flags override it")
    for name, text in _SETTINGS.items():
        submit.add_argument(f"--{name}", help=text)
    submit.add_argument(
        "--label", action="append", default=[], metavar="KEY=VALUE", help="a label of the node; repeatable"
    )
    submit.add_argument(
        "--module",
        action="append",
        dest="modules",
        type=flags.path,
        metavar="FILE",
        help="Python that gin files import; repeatable",
    )
    submit.add_argument("--max_restarts", type=int, metavar="N", help="requeue at most N times (default: 10)")
    submit.add_argument(
        "--keep", action="store_true", default=None, help="keep the TPU, and pay for it, when the job has ended"
    )
    submit.add_argument("--internal_ips", action="store_true", help="no external IP addresses; needs Cloud NAT")
    submit.add_argument("--dry_run", action="store_true", help="print the request and the startup script, send nothing")
    flags.add_gin(submit)
    _add_connection(submit)

    listing = commands.add_parser("list", help="list the jobs that have a TPU or wait for one")
    _add_connection(listing, with_model_dir=False)

    status = _add_job_command(commands, "status", "show a job's TPU, attempts, last checkpoint and last metrics")
    _add_connection(status)

    watch = _add_job_command(commands, "watch", "follow a job until it ends, and requeue it after a preemption")
    _add_polling(watch, seconds=60)
    watch.add_argument("--once", action="store_true", help="check and act once, then exit: for cron")
    _add_connection(watch, with_json=False)

    logs = _add_job_command(commands, "logs", "print the log of training")
    logs.add_argument("--worker", type=int, default=0, metavar="N", help="of host N (default: %(default)s)")
    logs.add_argument("--attempt", type=int, metavar="N", help="of attempt N (default: the newest)")
    logs.add_argument("--lines", type=int, default=50, metavar="N", help="the last N lines (default: %(default)s)")
    logs.add_argument("--follow", action="store_true", help="continue until the job ends")
    _add_polling(logs, seconds=15)
    _add_connection(logs, with_json=False)

    cancel = _add_job_command(commands, "cancel", "end a job and delete its TPU; its model directory stays")
    cancel.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    _add_connection(cancel, with_json=False)


def _add_job_command(commands: flags.Commands, name: str, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text)
    parser.add_argument("name", metavar="NAME", help="the job's name")
    return parser


def _add_polling(parser: argparse.ArgumentParser, seconds: float) -> None:
    parser.add_argument(
        "--every", type=float, default=seconds, metavar="SECONDS", help="polling interval (default: %(default)s)"
    )


def _add_connection(parser: argparse.ArgumentParser, with_model_dir: bool = True, with_json: bool = True) -> None:
    parser.add_argument("--project", help="Google Cloud project (default: GOOGLE_CLOUD_PROJECT)")
    parser.add_argument("--zone", help="zone of the TPU (default: CLOUDSDK_COMPUTE_ZONE)")
    if with_model_dir:
        parser.add_argument("--model_dir", metavar="gs://BUCKET/FOLDER", help="the job's model directory")
    parser.add_argument(
        "--endpoint", metavar="HOST:PORT", help="a private endpoint of Cloud TPU, or http://HOST:PORT of an emulator"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=300,
        metavar="SECONDS",
        help="how long to retry when Cloud TPU does not respond (default: %(default)s)",
    )
    if with_json:
        flags.add_json(parser)


def _connect(options: argparse.Namespace) -> "Cloud":
    from tpu.jobs.cloud_api import Cloud

    return Cloud(options.endpoint, options.timeout)


def _job(options: argparse.Namespace) -> "Job":
    from tpu.jobs.spec import make_job, read_job_file

    settings = {name: getattr(options, name) for name in (*_SETTINGS, "modules", "max_restarts", "keep", "model_dir")}
    settings |= {"project": options.project, "zone": options.zone}
    settings |= {"external_ips": False if options.internal_ips else None}
    settings |= {"gin_files": options.gin_file or None, "gin_search_path": options.gin_search_path or None}
    for label in options.label:
        if "=" not in label:
            raise SettingError(f"--label={label} is not of the form KEY=VALUE.")
    settings["labels"] = dict(label.split("=", 1) for label in options.label)
    return make_job(read_job_file(options.job) if options.job else {}, settings)


def _submit(options: argparse.Namespace, bindings: list[str]) -> None:
    from tpu.jobs import formatting
    from tpu.jobs.bundle import Bundle
    from tpu.jobs.lifecycle import submit
    from tpu.jobs.object_store import open_storage
    from tpu.jobs.preflight import check_job
    from tpu.jobs.request import create_request, startup_script

    job, configuration = check_job(_job(options), bindings)
    assert job.model_dir is not None  # check_job has set it.
    bundle = Bundle(configuration, job.code, job.modules)
    if options.dry_run:
        script = startup_script(job, bundle.folder, attempt=1)
        values = formatting.dry_run_values(create_request(job, script, attempt=1), script)
        print(json.dumps(values, indent=2) if options.json else formatting.dry_run_text(values))
        return
    record = submit(_connect(options), open_storage(job.model_dir), job, bundle)
    if options.json:
        print(json.dumps(formatting.record_values(record), indent=2))
    else:
        print(formatting.submitted_text(record))


def _list(options: argparse.Namespace, bindings: list[str]) -> None:
    del bindings
    from tpu.jobs.formatting import jobs_table

    found = _connect(options).jobs(_parent(options))
    if options.json:
        print(json.dumps({"jobs": [resource._asdict() for resource in found]}, indent=2))
    else:
        print(jobs_table(found))


def _parent(options: argparse.Namespace) -> str:
    project = options.project or os.environ.get("GOOGLE_CLOUD_PROJECT")
    if not project:
        raise SettingError("No project: give --project=... or set GOOGLE_CLOUD_PROJECT.")
    # Cloud APIs take "-" for all locations.
    return f"projects/{project}/locations/{options.zone or os.environ.get('CLOUDSDK_COMPUTE_ZONE') or '-'}"


def _open(options: argparse.Namespace) -> "tuple[Cloud, Storage, Record]":
    """Opens the connection, the model directory and the record of the job that a command names."""
    from tpu.jobs.lifecycle import find, record_of
    from tpu.jobs.object_store import open_storage

    cloud = _connect(options)
    model_dir = options.model_dir or find(cloud, options.name, _parent(options)).model_dir
    storage = open_storage(model_dir.rstrip("/"))
    return cloud, storage, record_of(storage, options.name)


def _status(options: argparse.Namespace, bindings: list[str]) -> None:
    del bindings
    from tpu.jobs import formatting

    values = formatting.status_values(*_open(options))
    print(json.dumps(values, indent=2) if options.json else formatting.status_text(values))


def _watch(options: argparse.Namespace, bindings: list[str]) -> None:
    del bindings
    from tpu.jobs.formatting import state_line
    from tpu.jobs.lifecycle import advance
    from tpu.jobs.record import FAILED, RUNNING, now

    cloud, storage, _ = _open(options)
    printed = None
    while True:
        try:
            record = advance(cloud, storage)
        except SettingError as error:
            if options.once:
                raise
            # A watcher runs unattended: it tries again at the next poll.
            print(f"{now()} {error}", file=sys.stderr, flush=True)
        else:
            line = state_line(record)
            if line != printed:
                print(f"{now()} {line}", flush=True)
            printed = line
            if record.state == FAILED:
                raise SettingError(f"Job {record.job.name} failed: {record.reason}.")
            if record.state != RUNNING:
                return
        if options.once:
            return
        time.sleep(options.every)


def _logs(options: argparse.Namespace, bindings: list[str]) -> None:
    del bindings
    from tpu.jobs.job_progress import log_name, log_tail, outcome_of
    from tpu.jobs.lifecycle import record_of
    from tpu.jobs.record import RUNNING

    _, storage, record = _open(options)
    attempt = options.attempt or record.attempt["number"]
    text, offset = log_tail(storage, log_name(attempt, options.worker), options.lines)
    if not text and not options.follow:
        raise SettingError(
            f"{log_name(attempt, options.worker)} does not exist (yet): attempt {attempt} is {record.attempt_state}; "
            "the log appears when the hosts have started."
        )
    print(text, end="", flush=True)
    while options.follow:
        record = record_of(storage, options.name)
        has_ended = record.state != RUNNING or outcome_of(storage, record.attempt["number"]) is not None
        newest = options.attempt or record.attempt["number"]
        if newest != attempt:
            attempt, offset = newest, 0
        more = storage.read_part(log_name(attempt, options.worker), offset)
        offset += len(more)
        print(more.decode(errors="replace"), end="", flush=True)
        if has_ended:
            return
        time.sleep(options.every)


def _cancel(options: argparse.Namespace, bindings: list[str]) -> None:
    del bindings
    from tpu.jobs.formatting import state_line
    from tpu.jobs.lifecycle import cancel

    cloud, storage, record = _open(options)
    if not options.yes:
        print(f"{state_line(record)}; {record.job.accelerator_type} in {record.job.zone}; {storage.url} stays.")
        try:
            answer = input(f"Cancel job {options.name}? [y/N] ")
        except EOFError:
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            raise SettingError(f"Job {options.name} was not cancelled: answer y, or give --yes.")
    print(state_line(cancel(cloud, storage)))


# Each takes the options and the bindings (`NAME = value`) of --gin.NAME=value, and raises SettingError.
COMMANDS: dict[str, Callable[[argparse.Namespace, list[str]], None]] = {
    "precompile": tpu_precompile.run,
    "submit": _submit,
    "list": _list,
    "status": _status,
    "watch": _watch,
    "logs": _logs,
    "cancel": _cancel,
}
