"""A client for the part of Cloud TPU's API that jobs need: it retries, and turns errors into one sentence."""

import concurrent.futures
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from switch_tf.errors import SettingError
from tpu.jobs.cloud_extra import require_cloud_extra
from tpu.jobs.object_store import missing_credentials
from tpu.jobs.request import MODEL_DIR_KEY
from tpu.jobs.spec import JOB_LABEL

if TYPE_CHECKING:
    from google.api_core.operation import Operation
    from google.cloud import tpu_v2


class Resource(NamedTuple):
    """A queued resource of a job.

    Attributes:
      name: "projects/.../locations/.../queuedResources/...".
      job: the name of its job; empty if it is not ours.
      model_dir: of the job.
      accelerator_type: of its node.
      provisioning: "on-demand", "spot" or "reserved".
      state: as Cloud TPU names it: "WAITING_FOR_RESOURCES", "ACTIVE", "SUSPENDED", ...
      reason: Cloud TPU's message about a failure; may be empty.
      create_time: RFC 3339.
    """

    name: str
    job: str
    model_dir: str
    accelerator_type: str
    provisioning: str
    state: str
    reason: str
    create_time: str

    @property
    def id(self) -> str:
        """The last component of the name."""
        return self.name.rpartition("/")[2]

    @property
    def parent(self) -> str:
        """Project and zone: "projects/.../locations/..."."""
        return self.name.rpartition("/queuedResources/")[0]


class NodeState(NamedTuple):
    """A node's state ("READY", "PREEMPTED", ...) and health ("HEALTHY", ...), as Cloud TPU names them."""

    state: str
    health: str
    description: str


class Refused(SettingError):
    """Cloud TPU has rejected a request."""


class AlreadyExists(Exception):
    """A queued resource of that name exists."""


class Cloud:
    """A connection to Cloud TPU."""

    def __init__(self, endpoint: str | None = None, timeout: float = 300.0, first_pause: float = 1.0):
        """Connects.

        Args:
          endpoint: "host:port" of a private endpoint, or "http://host:port" of an emulator, which is called without
            encryption and credentials; None for Google's public endpoint.
          timeout: seconds after which retries end.
          first_pause: seconds before the first retry; each pause is twice as long as the one before.

        Raises:
          SettingError: without credentials or the [cloud] extra.
        """
        with require_cloud_extra():
            import grpc
            from google.api_core import exceptions, retry
            from google.auth import exceptions as auth_exceptions
            from google.cloud import tpu_v2
            from google.cloud.tpu_v2.services.tpu.transports import TpuGrpcTransport
        self._exceptions, self._auth_exceptions, self._tpu = exceptions, auth_exceptions, tpu_v2
        self._timeout = timeout
        self._retry = retry.Retry(
            # A connection that was cut off is a ServiceUnavailable, too.
            predicate=retry.if_exception_type(
                exceptions.ServiceUnavailable,  # Lost connections too.
                exceptions.DeadlineExceeded,
                exceptions.Aborted,
                # The server of access tokens cannot be reached.
                auth_exceptions.TransportError,
            ),
            initial=first_pause,
            maximum=30.0,
            timeout=timeout,
        )
        try:
            if endpoint is not None and endpoint.startswith("http://"):
                channel = grpc.insecure_channel(endpoint.removeprefix("http://"))
                self._client = tpu_v2.TpuClient(transport=TpuGrpcTransport(channel=channel))
            else:
                options = {"api_endpoint": endpoint} if endpoint is not None else None
                self._client = tpu_v2.TpuClient(client_options=options)
        except auth_exceptions.DefaultCredentialsError as error:
            raise missing_credentials() from error

    @contextlib.contextmanager
    def _translate_errors(self, failure: str) -> Iterator[None]:
        """Turns the client's errors into a SettingError that starts with `failure`."""
        exceptions, auth_exceptions = self._exceptions, self._auth_exceptions
        try:
            yield
        except exceptions.RetryError as error:
            raise self._translated(failure, error.cause or error) from error
        except (exceptions.GoogleAPICallError, auth_exceptions.TransportError) as error:
            raise self._translated(failure, error) from error
        except auth_exceptions.GoogleAuthError as error:
            raise missing_credentials() from error

    def _translated(self, failure: str, error: Exception) -> SettingError:
        message = explain(getattr(error, "message", "") or str(error))
        no_response = (
            self._exceptions.ServiceUnavailable,
            self._exceptions.DeadlineExceeded,
            self._auth_exceptions.TransportError,
        )
        if isinstance(error, no_response):
            return SettingError(
                f"{failure}: Cloud TPU did not respond for {self._timeout:.0f} seconds ({message}): run the same "
                "command again; it is safe to repeat."
            )
        if isinstance(error, self._exceptions.Unauthenticated):
            return missing_credentials()
        if isinstance(error, self._exceptions.PermissionDenied):
            return Refused(
                f"{failure}: {message}: grant the account the role TPU Admin, and enable tpu.googleapis.com."
            )
        return Refused(f"{failure}: {message}.")

    def create(self, request: "tpu_v2.CreateQueuedResourceRequest") -> None:
        """Requests a queued resource, and waits until Cloud TPU has accepted it.

        Args:
          request: from `create_request`.

        Raises:
          AlreadyExists: if one of that name exists, perhaps from a request whose response was lost.
          SettingError: if it is rejected.
        """
        with self._translate_errors(f"{request.queued_resource_id} was not queued"):
            try:
                self._wait(self._client.create_queued_resource(request, retry=self._retry))
            except self._exceptions.AlreadyExists as error:
                raise AlreadyExists(request.queued_resource_id) from error

    def get(self, parent: str, resource_id: str) -> Resource | None:
        """Gets a queued resource, ours or not, by its id; None if there is none."""
        with self._translate_errors(f"The state of {resource_id} could not be read"):
            try:
                name = f"{parent}/queuedResources/{resource_id}"
                return self._resource(self._client.get_queued_resource(name=name, retry=self._retry))
            except self._exceptions.NotFound:
                return None

    def jobs(self, parent: str) -> list[Resource]:
        """Lists the queued resources of our jobs, oldest first.

        Args:
          parent: "projects/P/locations/Z"; Z may be "-" for all zones.
        """
        with self._translate_errors("Jobs could not be listed"):
            found = map(self._resource, self._client.list_queued_resources(parent=parent, retry=self._retry))
            return sorted((resource for resource in found if resource.job), key=lambda resource: resource.create_time)

    def node(self, parent: str, node_id: str) -> NodeState | None:
        """Gets the state of a node; None if it does not exist (yet, or any more)."""
        with self._translate_errors(f"The state of {node_id} could not be read"):
            try:
                node = self._client.get_node(name=f"{parent}/nodes/{node_id}", retry=self._retry)
            except self._exceptions.NotFound:
                return None
        return NodeState(node.state.name, node.health.name, node.health_description)

    def delete(self, parent: str, resource_id: str) -> None:
        """Deletes a queued resource with its node, if it exists, and waits for it."""
        with self._translate_errors(f"{resource_id} was not deleted"), contextlib.suppress(self._exceptions.NotFound):
            request = self._tpu.DeleteQueuedResourceRequest(name=f"{parent}/queuedResources/{resource_id}", force=True)
            self._wait(self._client.delete_queued_resource(request, retry=self._retry))

    def _wait(self, operation: "Operation") -> None:
        # A slower operation continues without us; the state of the resource will show its result.
        with contextlib.suppress(concurrent.futures.TimeoutError):
            operation.result(timeout=self._timeout)

    def _resource(self, found: "tpu_v2.QueuedResource") -> Resource:
        nodes = found.tpu.node_spec
        node = nodes[0].node if nodes else self._tpu.Node()
        return Resource(
            found.name,
            node.labels.get(JOB_LABEL, ""),
            node.metadata.get(MODEL_DIR_KEY, ""),
            node.accelerator_type,
            "spot" if "spot" in found else "reserved" if "guaranteed" in found else "on-demand",
            found.state.state.name,
            explain(found.state.failed_data.error.message),
            found.create_time.isoformat() if found.create_time else "",
        )


def explain(message: str) -> str:
    """Adds a remedy to an error message of Cloud TPU; returns one clause without a full stop."""
    text = " ".join(message.split()).rstrip(".")
    lower = text.lower()
    if "capacity" in lower or "stockout" in lower:
        return f"{text}: try another zone, other provisioning or a smaller slice, or wait"
    if "quota" in lower:
        return f"{text}: request quota for this TPU type in this zone (spot has its own), or use a smaller slice"
    return text
