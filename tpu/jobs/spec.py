"""What a job is: its description, from a YAML file, flags, or both."""

import dataclasses
import os
import re
from collections.abc import Mapping

from switch_tf.errors import SettingError, nearest
from tpu.topologies import Slice, find_accelerator

PROVISIONING = ("on-demand", "spot", "reserved")
# Labels that say which resources are this tool's.
JOB_LABEL, ATTEMPT_LABEL = "switch-tf-job", "switch-tf-attempt"

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_PROJECT = re.compile(r"[a-z0-9.:-]*[a-z][a-z0-9.:-]*[a-z0-9]")
_ZONE = re.compile(r"[a-z]+-[a-z]+[0-9]+-[a-z]")
_LABEL_KEY, _LABEL_VALUE = re.compile(r"[a-z][a-z0-9_-]{0,62}"), re.compile(r"[a-z0-9_-]{0,63}")


@dataclasses.dataclass(frozen=True)
class Job:
    """A training job on a TPU slice.

    Attributes:
      name: 40 small letters, digits and - at most.
      project: of Google Cloud.
      zone: "us-central2-b".
      accelerator_type: "v4-128", "v5litepod-32", ...
      model_dir: "gs://bucket/folder"; None where MODEL_DIR says it.
      runtime_version: the machines' image; None for the generation's own.
      provisioning: "on-demand", "spot" (cheaper, may be preempted) or "reserved".
      reservation: which reservation; None for any.
      network: of the machines; None for the project's default.
      subnetwork: of the machines; None for the network's in this region.
      external_ips: whether machines have addresses on the internet; without, the network needs Cloud NAT.
      service_account: whose rights the machines have; None for the project's default.
      labels: for bills and searches.
      gin_files: the experiment, as `switch-tf train` takes it.
      gin: macros and parameters by name; a string that begins with @ or % is a reference.
      gin_search_path: folders to look for gin files in.
      code: a checkout, or an archive that pip can install; None for the code that runs here.
      modules: Python files and folders that the gin files import.
      max_restarts: how often a job is queued again.
      keep: whether the machines stay, and cost, when the job has ended.
    """

    name: str
    project: str
    zone: str
    accelerator_type: str
    model_dir: str | None = None
    runtime_version: str | None = None
    provisioning: str = "on-demand"
    reservation: str | None = None
    network: str | None = None
    subnetwork: str | None = None
    external_ips: bool = True
    service_account: str | None = None
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    gin_files: tuple[str, ...] = ()
    gin: Mapping[str, object] = dataclasses.field(default_factory=dict)
    gin_search_path: tuple[str, ...] = ()
    code: str | None = None
    modules: tuple[str, ...] = ()
    max_restarts: int = 10
    keep: bool = False

    def __post_init__(self):
        _check_pattern("name", self.name, _NAME, "small letters, digits and -, 40 at most, a letter first")
        _check_pattern("project", self.project, _PROJECT, "the id of a Google Cloud project")
        _check_pattern("zone", self.zone, _ZONE, "a zone such as 'us-central2-b'")
        find_accelerator(self.accelerator_type)
        if self.provisioning not in PROVISIONING:
            known = ", ".join(PROVISIONING)
            raise SettingError(f"provisioning = '{self.provisioning}' is none of {known}.")
        if self.reservation is not None and self.provisioning != "reserved":
            raise SettingError(f"reservation = '{self.reservation}' needs provisioning = 'reserved'.")
        if self.max_restarts < 0:
            raise SettingError(f"max_restarts = {self.max_restarts} must be 0 or more.")
        if self.model_dir is not None:
            check_bucket("model_dir", self.model_dir)
        for key, value in self.labels.items():
            _check_pattern("labels: key", key, _LABEL_KEY, "small letters, digits, _ and -, a letter first")
            _check_pattern(f"labels: {key}", value, _LABEL_VALUE, "small letters, digits, _ and -, 63 at most")
            if key in (JOB_LABEL, ATTEMPT_LABEL):
                raise SettingError(f"labels: '{key}' is what marks this tool's own resources: choose another.")

    @property
    def slice(self) -> Slice:
        """The chips."""
        return find_accelerator(self.accelerator_type)

    @property
    def parent(self) -> str:
        """Where Cloud TPU keeps the job's resources."""
        return f"projects/{self.project}/locations/{self.zone}"

    @property
    def bindings(self) -> list[str]:
        """`gin` as gin's own lines."""
        return [f"{name} = {_gin_value(value)}" for name, value in self.gin.items()]

    def queued_resource_id(self, attempt: int) -> str:
        """The name of an attempt's queued resource and of its node."""
        return f"{self.name}-{attempt}"

    def to_dict(self) -> dict[str, object]:
        """The description as JSON has it."""
        return dataclasses.asdict(self) | {"gin": dict(self.gin), "labels": dict(self.labels)}


def _gin_value(value: object) -> str:
    return value if isinstance(value, str) and value[:1] in ("@", "%") else repr(value)


def _check_pattern(setting: str, value: str, pattern: re.Pattern, words: str) -> None:
    if not pattern.fullmatch(value):
        raise SettingError(f"{setting} = '{value}' must be {words}.")


def check_bucket(setting: str, url: str) -> None:
    """Checks that a folder is in a bucket, where all machines of a pod and the next attempt find it.

    Raises:
      SettingError: if it is not.
    """
    if not re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]+/[^?#*\s][^?#*\n]*", url):
        raise SettingError(
            f"{setting} = '{url}' is not in a bucket, where all machines find it: make it gs://BUCKET/FOLDER."
        )


_FIELDS = {field.name: field for field in dataclasses.fields(Job)}
_REQUIRED = ("name", "project", "zone", "accelerator_type")
_LISTS = ("gin_files", "gin_search_path", "modules")
_MAPPINGS = ("gin", "labels")
_FROM_ENVIRONMENT = {"project": "GOOGLE_CLOUD_PROJECT", "zone": "CLOUDSDK_COMPUTE_ZONE"}


def make_job(*sources: Mapping[str, object]) -> Job:
    """Makes a job of descriptions, of which later ones override earlier ones; `labels` and `gin` are merged.

    Args:
      sources: settings by name; None where a source does not have one.

    Returns:
      The job.

    Raises:
      SettingError: if a setting is unknown, absent, of another type or wrong.
    """
    settings: dict[str, object] = {
        name: os.environ[variable] for name, variable in _FROM_ENVIRONMENT.items() if os.environ.get(variable)
    }
    for source in sources:
        for name, value in source.items():
            if name not in _FIELDS:
                raise SettingError(f"'{name}' is no setting of a job{_nearest_settings(name)}.")
            if value is None:
                continue
            value = _typed(name, value)
            settings[name] = {**settings.get(name, {}), **value} if isinstance(value, dict) else value
    for name in _REQUIRED:
        if name not in settings:
            variable = f" or {_FROM_ENVIRONMENT[name]}" if name in _FROM_ENVIRONMENT else ""
            raise SettingError(f"The job has no {name}: set it in --job=FILE or with --{name}=...{variable}.")
    return Job(**settings)


def _nearest_settings(name: str) -> str:
    return nearest(name, _FIELDS) or f" (there is: {', '.join(_FIELDS)})"


def _typed(name: str, value: object) -> object:
    """Checks a value's type against the field's; lists become tuples."""
    if name in _LISTS:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list | tuple) or not all(isinstance(item, str) for item in values):
            raise SettingError(f"{name} = {value!r} must be a list of names.")
        return tuple(values)
    if name in _MAPPINGS:
        if not isinstance(value, Mapping):
            raise SettingError(f"{name} = {value!r} must be of the form NAME: value.")
        return {str(key): str(item) if name == "labels" else item for key, item in value.items()}
    default = _FIELDS[name].default
    kind, words = {bool: (bool, "true or false"), int: (int, "a number")}.get(type(default), (str, "text"))
    if type(value) is not kind:
        raise SettingError(f"{name} = {value!r} must be {words}.")
    return value


def read_job_file(path: str) -> dict[str, object]:
    """Reads a YAML file.

    Args:
      path: of the file.

    Returns:
      Settings by name.

    Raises:
      SettingError: if it cannot be read, or is no mapping.
    """
    from tpu.jobs.cloud_extra import need_extra

    with need_extra():
        import yaml

    try:
        with open(path, encoding="utf-8") as file:
            settings = yaml.safe_load(file)
    except OSError as error:
        raise SettingError(f"--job={path} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise SettingError(f"--job={path} is no YAML{where}: {getattr(error, 'problem', 'unreadable')}.") from error
    if not isinstance(settings, dict):
        raise SettingError(f"--job={path} is not of the form NAME: value, one setting on each line.")
    return {str(name): value for name, value in settings.items()}
