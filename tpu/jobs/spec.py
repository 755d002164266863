"""The description of a job: from a YAML file, flags, or both."""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any, TypeGuard

from switch_tf.errors import SettingError, nearest, shown
from tpu.jobs.cloud_extra import require_cloud_extra
from tpu.topologies import Slice, find_accelerator

PROVISIONING = ("on-demand", "spot", "reserved")
# Labels that mark the resources of our jobs.
JOB_LABEL, ATTEMPT_LABEL = "switch-tf-job", "switch-tf-attempt"

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_PROJECT = re.compile(r"[a-z0-9.:-]*[a-z][a-z0-9.:-]*[a-z0-9]")
_ZONE = re.compile(r"[a-z]+-[a-z]+[0-9]+-[a-z]")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
# Parts of addresses in Cloud TPU's API.
_ACCOUNT = re.compile(r"[a-zA-Z0-9._+-]+@[a-zA-Z0-9.-]+")
_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]*")
_NETWORK = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._:-]*(/[a-zA-Z0-9][a-zA-Z0-9._:-]*)*")
_GIN_NAME, _REFERENCE = re.compile(r"[A-Za-z_][\w./]*"), re.compile(r"[@%][A-Za-z_][\w./]*(\(\))?")
_LABEL_KEY, _LABEL_VALUE = re.compile(r"[a-z][a-z0-9_-]{0,62}"), re.compile(r"[a-z0-9_-]{0,63}")


@dataclasses.dataclass(frozen=True)
class Job:
    """A training job on a TPU slice.

    Attributes:
      name: at most 40 lower-case letters, digits and hyphens.
      project: the Google Cloud project.
      zone: "us-central2-b".
      accelerator_type: "v4-128", "v5litepod-32", ...
      model_dir: "gs://bucket/folder"; None if gin sets it.
      runtime_version: the image of the hosts; None for the default of the TPU generation.
      provisioning: "on-demand", "spot" (cheaper, may be preempted) or "reserved".
      reservation: its name; None for any reservation of the project.
      network: of the hosts; None for the project's default.
      subnetwork: of the hosts; None for the network's subnetwork in the region.
      external_ips: whether hosts have external IP addresses; without them, the network needs Cloud NAT.
      service_account: its e-mail address; None for the project's default.
      labels: of the node, for billing reports and filters.
      gin_files: the experiment, as `switch-tf train` takes it.
      gin: macros and parameters by name; a string that starts with @ or % is a reference.
      gin_search_path: folders to look for gin files in.
      code: a checkout, or an archive that pip can install; None for the code of this process.
      modules: Python files and folders that the gin files import.
      max_restarts: how often the job is requeued at most.
      keep: whether to keep the TPU, and pay for it, when the job has ended.
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

    def __post_init__(self) -> None:
        _check_pattern("name", self.name, _NAME, "at most 40 lower-case letters, digits and hyphens, a letter first")
        _check_pattern("project", self.project, _PROJECT, "the id of a Google Cloud project")
        _check_pattern("zone", self.zone, _ZONE, "a zone such as 'us-central2-b'")
        find_accelerator(self.accelerator_type)
        if self.provisioning not in PROVISIONING:
            known = ", ".join(PROVISIONING)
            raise SettingError(f"provisioning = {shown(self.provisioning)} is not one of {known}.")
        if self.reservation is not None and self.provisioning != "reserved":
            raise SettingError(f"reservation = '{self.reservation}' needs provisioning = 'reserved'.")
        for setting, pattern, words in (
            ("runtime_version", _ID, "letters, digits, '.', '_' and '-', such as 'tpu-ubuntu2204-base'"),
            ("reservation", _ID, "letters, digits, '.', '_' and '-'"),
            ("network", _NETWORK, "the name of a network, or projects/P/global/networks/N"),
            ("subnetwork", _NETWORK, "the name of a subnetwork, or projects/P/regions/R/subnetworks/N"),
            ("service_account", _ACCOUNT, "an e-mail address"),
        ):
            value = getattr(self, setting)
            if value is not None:
                _check_pattern(setting, value, pattern, words)
        for name, value in self.gin.items():
            _check_pattern("gin: name", name, _GIN_NAME, "a macro or a parameter, such as TRAIN_STEPS")
            if _is_reference(value):
                _check_pattern(f"gin: {name}", value, _REFERENCE, "one reference, @Name() or %MACRO, or other text")
        if self.max_restarts < 0:
            raise SettingError(f"max_restarts = {self.max_restarts} must be at least 0.")
        if self.model_dir is not None:
            check_bucket("model_dir", self.model_dir)
        for key, value in self.labels.items():
            _check_pattern("labels: key", key, _LABEL_KEY, "lower-case letters, digits, _ and -, a letter first")
            _check_pattern(f"labels: {key}", value, _LABEL_VALUE, "at most 63 lower-case letters, digits, _ and -")
            if key in (JOB_LABEL, ATTEMPT_LABEL):
                raise SettingError(f"labels: '{key}' is reserved for switch-tf: choose another key.")

    @property
    def slice(self) -> Slice:
        """The TPU slice."""
        return find_accelerator(self.accelerator_type)

    @property
    def parent(self) -> str:
        """The parent of the job's resources in Cloud TPU's API."""
        return f"projects/{self.project}/locations/{self.zone}"

    @property
    def bindings(self) -> list[str]:
        """`gin` as lines of a gin file."""
        return [f"{name} = {_gin_value(value)}" for name, value in self.gin.items()]

    def queued_resource_id(self, attempt: int) -> str:
        """The id of an attempt's queued resource, and of its node."""
        return f"{self.name}-{attempt}"

    def to_dict(self) -> dict[str, Any]:
        """The description as an object for JSON."""
        return dataclasses.asdict(self) | {"gin": dict(self.gin), "labels": dict(self.labels)}


def _is_reference(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and value[:1] in ("@", "%")


def _gin_value(value: object) -> str:
    return value if _is_reference(value) else repr(value)


def _check_pattern(setting: str, value: str, pattern: re.Pattern, words: str) -> None:
    if not pattern.fullmatch(value):
        raise SettingError(f"{setting} = {shown(value)} must be {words}.")


def check_bucket(setting: str, url: str) -> None:
    """Checks that a folder is in a bucket, which all hosts and the next attempt can reach.

    Args:
      setting: its name, for the error.
      url: the folder.

    Raises:
      SettingError: if it is not `gs://BUCKET/FOLDER`.
    """
    if not re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]+/[^?#*\s][^?#*\n]*", url):
        raise SettingError(
            f"{setting} = {shown(url)} is not in a bucket, which all hosts must reach: make it gs://BUCKET/FOLDER."
        )
    if not url.isprintable() or any(character in url for character in "[]\\"):
        raise SettingError(
            f"{setting} = {shown(url)} has characters that are patterns in a bucket, or that cannot be printed: "
            "choose another name."
        )


_FIELDS = {field.name: field for field in dataclasses.fields(Job)}
_REQUIRED = ("name", "project", "zone", "accelerator_type")
_LISTS = ("gin_files", "gin_search_path", "modules")
_MAPPINGS = ("gin", "labels")
_FROM_ENVIRONMENT = {"project": "GOOGLE_CLOUD_PROJECT", "zone": "CLOUDSDK_COMPUTE_ZONE"}


def make_job(*sources: Mapping[str, Any]) -> Job:
    """Makes a job from several sources: later ones override earlier ones; `labels` and `gin` are merged.

    Args:
      sources: settings by name; None for one that a source does not set.

    Returns:
      The job.

    Raises:
      SettingError: if a setting is unknown, missing, of the wrong type or invalid.
    """
    settings: dict[str, Any] = {
        name: os.environ[variable] for name, variable in _FROM_ENVIRONMENT.items() if os.environ.get(variable)
    }
    for source in sources:
        for name, value in source.items():
            if name not in _FIELDS:
                raise SettingError(f"'{name}' is not a setting of a job{_nearest_settings(name)}.")
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
    return nearest(name, _FIELDS) or f" (available: {', '.join(_FIELDS)})"


def _typed(name: str, value: Any) -> Any:
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


def _safe_loader() -> type:
    """Returns the loader of `yaml.safe_load`, but for `1e-3`: a number in YAML 1.2 and in gin, text in YAML 1.1."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))
    return Loader


def read_job_file(path: str) -> dict[str, Any]:
    """Reads a job's YAML file.

    Args:
      path: of the file.

    Returns:
      Settings by name.

    Raises:
      SettingError: if it cannot be read, or is not a mapping.
    """
    with require_cloud_extra():
        import yaml

    try:
        with open(path, encoding="utf-8") as file:
            settings = yaml.load(file, _safe_loader())
    except OSError as error:
        raise SettingError(f"--job={path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise SettingError(f"--job={path} is no UTF-8 text (byte {error.start}): save it as UTF-8.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise SettingError(
            f"--job={path} is not valid YAML{where}: {getattr(error, 'problem', 'unreadable')}."
        ) from error
    if not isinstance(settings, dict):
        raise SettingError(f"--job={path} is not of the form NAME: value, one setting on each line.")
    return {str(name): value for name, value in settings.items()}
