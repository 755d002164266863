"""`switch-tf tpu ...`: flags and handlers. What a command needs is imported when it runs."""

import argparse
import os
import sys
import time
from collections.abc import Callable

from switch_tf.cli import flags
from switch_tf.errors import SettingError
from tpu.precompile.command import add_parser as add_precompile
from tpu.precompile.command import precompile

_SUBMIT_EXAMPLES = """\
examples:
  switch-tf tpu submit --job=job.yaml --dry_run
  switch-tf tpu submit --job=job.yaml --provisioning=spot --gin.TRAIN_STEPS=10000
  switch-tf tpu submit --name=base --project=my-project --zone=europe-west4-a --accelerator_type=v3-32 \\
      --model_dir=gs://my-bucket/base --gin_file=gin/models/switch_base_128.gin --gin_file=gin/runs/pretrain_c4.gin \\
      --gin_file=gin/layouts/v3_32.gin

A command that was cut off goes on where it stood when it is given again. docs/tpu.md lists the settings.
"""
_FLAGS = {
    "name": "the job's: small letters, digits and -",
    "accelerator_type": "which slice: v3-32, v4-128, v5litepod-32, v5p-128, v6e-256, ...",
    "runtime_version": "the machines' image (default: the generation's own)",
    "provisioning": "on-demand, spot or reserved (default: on-demand)",
    "reservation": "which reservation",
    "network": "of the machines",
    "subnetwork": "of the machines",
    "service_account": "whose rights the machines have",
    "code": "a checkout of switch_tf or a wheel (default: the code that runs here)",
}


def add_parsers(commands) -> None:
    """Adds the commands under `switch-tf tpu`.

    Args:
      commands: what `add_subparsers` returned.
    """
    add_precompile(commands)
    submit = flags.add_with_examples(commands, "submit", "queue a training job", _SUBMIT_EXAMPLES)
    submit.add_argument("--job", metavar="FILE", help="a YAML file of settings; flags override it")
    for name, text in _FLAGS.items():
        submit.add_argument(f"--{name}", help=text)
    submit.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="for bills and searches")
    submit.add_argument(
        "--module", action="append", dest="modules", metavar="FILE", help="Python that gin files import"
    )
    submit.add_argument("--max_restarts", type=int, metavar="N", help="how often to queue it again (default: 10)")
    submit.add_argument(
        "--keep", action="store_true", default=None, help="leave the machines, and their cost, when the job has ended"
    )
    submit.add_argument(
        "--internal_ips", action="store_true", help="no addresses on the internet; the network needs Cloud NAT"
    )
    submit.add_argument("--dry_run", action="store_true", help="print the request and the script, and send nothing")
    flags.add_gin(submit)
    _connection(submit)

    listing = commands.add_parser("list", help="list the jobs that have a TPU or wait for one")
    _connection(listing, with_model_dir=False)

    status = _of_a_job(commands, "status", "say how a job does: its TPU, its attempts, its last checkpoint and metrics")
    _connection(status)

    watch = _of_a_job(commands, "watch", "follow a job until it ends, and queue it again when its TPU was taken away")
    watch.add_argument(
        "--every", type=float, default=60, metavar="SECONDS", help="look so often (default: %(default)s)"
    )
    watch.add_argument("--once", action="store_true", help="look once, do what is to be done, and end: for cron")
    _connection(watch, with_json=False)

    logs = _of_a_job(commands, "logs", "print what training wrote")
    logs.add_argument("--worker", type=int, default=0, metavar="N", help="of which machine (default: %(default)s)")
    logs.add_argument("--attempt", type=int, metavar="N", help="of which attempt (default: the newest)")
    logs.add_argument("--lines", type=int, default=50, metavar="N", help="the last ones (default: %(default)s)")
    logs.add_argument("--follow", action="store_true", help="go on until the job ends")
    logs.add_argument("--every", type=float, default=15, metavar="SECONDS", help="look so often (default: %(default)s)")
    _connection(logs, with_json=False)

    cancel = _of_a_job(commands, "cancel", "end a job and give its TPU back; its model directory stays")
    cancel.add_argument("--yes", action="store_true", help="do not ask")
    _connection(cancel, with_json=False)


def _of_a_job(commands, name: str, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text)
    parser.add_argument("name", metavar="NAME", help="the job's")
    return parser


def _connection(parser: argparse.ArgumentParser, with_model_dir: bool = True, with_json: bool = True) -> None:
    parser.add_argument("--project", help="of Google Cloud (default: GOOGLE_CLOUD_PROJECT)")
    parser.add_argument("--zone", help="of the TPU (default: CLOUDSDK_COMPUTE_ZONE)")
    if with_model_dir:
        parser.add_argument("--model_dir", metavar="gs://BUCKET/FOLDER", help="the model directory of the job")
    parser.add_argument(
        "--endpoint", metavar="HOST:PORT", help="a private endpoint of Cloud TPU, or http://HOST:PORT of an emulator"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=300,
        metavar="SECONDS",
        help="how long to try again where Cloud TPU does not answer (default: %(default)s)",
    )
    if with_json:
        flags.add_json(parser)


def _cloud(options: argparse.Namespace):
    from tpu.jobs.cloud_api import Cloud

    return Cloud(options.endpoint, options.timeout)


def _job(options: argparse.Namespace):
    from tpu.jobs.spec import make_job, read_job_file

    flags = {name: getattr(options, name) for name in (*_FLAGS, "modules", "max_restarts", "keep", "model_dir")}
    flags |= {"project": options.project, "zone": options.zone, "external_ips": False if options.internal_ips else None}
    flags |= {"gin_files": options.gin_file or None, "gin_search_path": options.gin_search_path or None}
    for label in options.label:
        if "=" not in label:
            raise SettingError(f"--label={label} is not of the form KEY=VALUE.")
    flags["labels"] = dict(label.split("=", 1) for label in options.label)
    return make_job(read_job_file(options.job) if options.job else {}, flags)


def _submit(options: argparse.Namespace, bindings: list[str]) -> None:
    from tpu.jobs import job_tables, preflight
    from tpu.jobs.bundle import Files
    from tpu.jobs.lifecycle import submit
    from tpu.jobs.object_store import open_storage
    from tpu.jobs.request import create_request, startup_script

    job, configured = preflight.checked(_job(options), bindings)
    files = Files(configured, job.code, job.modules)
    if options.dry_run:
        script = startup_script(job, files.folder, attempt=1)
        print(job_tables.dry_run(create_request(job, script, attempt=1), script, options.json))
        return
    record = submit(_cloud(options), open_storage(job.model_dir), job, files)
    print(job_tables.to_json(job_tables.record_values(record)) if options.json else job_tables.submitted(record))


def _list(options: argparse.Namespace, bindings: list[str]) -> None:
    del bindings
    from tpu.jobs import job_tables

    found = _cloud(options).jobs(_parent(options))
    print(
        job_tables.to_json({"jobs": list(map(job_tables.resource_values, found))})
        if options.json
        else job_tables.table(found)
    )


def _parent(options: argparse.Namespace) -> str:
    project = options.project or os.environ.get("GOOGLE_CLOUD_PROJECT")
    if not project:
        raise SettingError("No project: give --project=... or set GOOGLE_CLOUD_PROJECT.")
    # Cloud APIs take "-" for all locations.
    return f"projects/{project}/locations/{options.zone or os.environ.get('CLOUDSDK_COMPUTE_ZONE') or '-'}"


def _open(options: argparse.Namespace):
    """Returns the cloud, the model directory and the record of the job that a command names."""
    from tpu.jobs.lifecycle import find, record_of
    from tpu.jobs.object_store import open_storage

    cloud = _cloud(options)
    model_dir = options.model_dir or find(cloud, options.name, _parent(options)).model_dir
    storage = open_storage(model_dir.rstrip("/"))
    return cloud, storage, record_of(storage, options.name)


def _status(options: argparse.Namespace, bindings: list[str]) -> None:
    del bindings
    from tpu.jobs import job_tables

    cloud, storage, record = _open(options)
    values = job_tables.status_values(cloud, storage, record)
    print(job_tables.to_json(values) if options.json else job_tables.status(values))


def _watch(options: argparse.Namespace, bindings: list[str]) -> None:
    del bindings
    from tpu.jobs import job_tables
    from tpu.jobs import record as records
    from tpu.jobs.lifecycle import advance

    cloud, storage, _ = _open(options)
    seen = None
    while True:
        try:
            record = advance(cloud, storage)
        except SettingError as error:
            if options.once:
                raise
            # Another time: nobody may be there to start this again.
            print(f"{records.now()} {error}", file=sys.stderr, flush=True)
        else:
            line = job_tables.state_line(record)
            if line != seen:
                print(f"{records.now()} {line}", flush=True)
            seen = line
            if record.state == records.FAILED:
                raise SettingError(f"Job {record.job.name} failed: {record.reason}.")
            if record.state != records.RUNNING:
                return
        if options.once:
            return
        time.sleep(options.every)


def _logs(options: argparse.Namespace, bindings: list[str]) -> None:
    del bindings
    from tpu.jobs import record as records
    from tpu.jobs.job_progress import log_name, log_tail, outcome_of
    from tpu.jobs.lifecycle import record_of

    _, storage, record = _open(options)
    attempt = options.attempt or record.attempt["number"]
    text, place = log_tail(storage, log_name(attempt, options.worker), options.lines)
    if not text and not options.follow:
        raise SettingError(
            f"{log_name(attempt, options.worker)} is not there (yet): attempt {attempt} is {record.attempt_state}; it "
            "comes when the machines have started."
        )
    print(text, end="", flush=True)
    while options.follow:
        record = record_of(storage, options.name)
        is_over = record.state != records.RUNNING or outcome_of(storage, record.attempt["number"]) is not None
        newest = options.attempt or record.attempt["number"]
        if newest != attempt:
            attempt, place = newest, 0
        more = storage.read_part(log_name(attempt, options.worker), place)
        place += len(more)
        print(more.decode(errors="replace"), end="", flush=True)
        if is_over:
            return
        time.sleep(options.every)


def _cancel(options: argparse.Namespace, bindings: list[str]) -> None:
    del bindings
    from tpu.jobs import job_tables
    from tpu.jobs.lifecycle import cancel

    cloud, storage, record = _open(options)
    if not options.yes:
        print(
            f"{job_tables.state_line(record)}; {record.job.accelerator_type} in {record.job.zone}; {storage.url} stays."
        )
        try:
            answer = input(f"Cancel job {options.name}? [y/N] ")
        except EOFError:
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            raise SettingError(f"Job {options.name} was not cancelled: answer y, or give --yes.")
    print(job_tables.state_line(cancel(cloud, storage)))


# A handler takes the options and the bindings (`NAME = value`) of --gin.NAME=value, and raises SettingError.
COMMANDS: dict[str, Callable[[argparse.Namespace, list[str]], None]] = {
    "precompile": precompile,
    "submit": _submit,
    "list": _list,
    "status": _status,
    "watch": _watch,
    "logs": _logs,
    "cancel": _cancel,
}
