"""Cloud TPU's API: what the jobs need of it, tried again where that may help, and its refusals in one sentence."""

import concurrent.futures
import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from switch_tf.errors import SettingError
from tpu.jobs.cloud_extra import need_extra
from tpu.jobs.object_store import missing_credentials
from tpu.jobs.request import RECORD_KEY
from tpu.jobs.spec import JOB_LABEL


class Resource(NamedTuple):
    """A queued resource of a job.

    Attributes:
      name: "projects/.../locations/.../queuedResources/...".
      job: its job's name.
      model_dir: where that has its record.
      accelerator_type: of its node.
      provisioning: "on-demand", "spot" or "reserved".
      state: Cloud TPU's word: "WAITING_FOR_RESOURCES", "ACTIVE", "SUSPENDED", ...
      reason: what Cloud TPU says of a failure; empty where it does not.
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
        """The last part of the name."""
        return self.name.rpartition("/")[2]

    @property
    def parent(self) -> str:
        """Project and zone."""
        return self.name.rpartition("/queuedResources/")[0]


class NodeState(NamedTuple):
    """How a node does: Cloud TPU's words for its state ("READY", "PREEMPTED", ...) and its health ("HEALTHY", ...)."""

    state: str
    health: str
    description: str


class Refused(SettingError):
    """Cloud TPU has answered, and said no."""


class AlreadyThere(Exception):
    """There is a queued resource of that name."""


class Cloud:
    """A connection."""

    def __init__(self, endpoint: str | None = None, timeout: float = 300.0, first_pause: float = 1.0):
        """Connects.

        Args:
          endpoint: "host:port" of a private endpoint, or "http://host:port" of an emulator, without encryption and
            credentials; None for Google's own.
          timeout: seconds to try again in.
          first_pause: seconds before the first of these tries; pauses double.

        Raises:
          SettingError: without credentials or the [cloud] extra.
        """
        with need_extra():
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
                exceptions.ServiceUnavailable,
                exceptions.DeadlineExceeded,
                exceptions.Aborted,
                # No way to where access tokens are had.
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
    def _sentences(self, doing: str) -> Iterator[None]:
        exceptions, auth_exceptions = self._exceptions, self._auth_exceptions
        try:
            yield
        except exceptions.RetryError as error:
            raise self._sentence(doing, error.cause or error) from error
        except (exceptions.GoogleAPICallError, auth_exceptions.TransportError) as error:
            raise self._sentence(doing, error) from error
        except auth_exceptions.GoogleAuthError as error:
            raise missing_credentials() from error

    def _sentence(self, doing: str, error: Exception) -> SettingError:
        said = explain(getattr(error, "message", "") or str(error))
        unanswered = (
            self._exceptions.ServiceUnavailable,
            self._exceptions.DeadlineExceeded,
            self._auth_exceptions.TransportError,
        )
        if isinstance(error, unanswered):
            return SettingError(
                f"{doing}: Cloud TPU does not answer ({said}), and did not for {self._timeout:.0f} seconds: give the "
                "same command again, nothing is done twice."
            )
        if isinstance(error, self._exceptions.Unauthenticated):
            return missing_credentials()
        if isinstance(error, self._exceptions.PermissionDenied):
            return Refused(f"{doing}: {said}: give the account TPU Admin, and enable tpu.googleapis.com.")
        return Refused(f"{doing}: {said}.")

    def create(self, request) -> None:
        """Asks for a queued resource, and waits until Cloud TPU has taken it into its queue.

        Args:
          request: what `create_request` made.

        Raises:
          AlreadyThere: if there is one of that name, perhaps by a request whose answer was lost.
          SettingError: if it is refused.
        """
        with self._sentences(f"{request.queued_resource_id} was not queued"):
            try:
                self._done(self._client.create_queued_resource(request, retry=self._retry))
            except self._exceptions.AlreadyExists as error:
                raise AlreadyThere(request.queued_resource_id) from error

    def get(self, parent: str, resource_id: str) -> Resource | None:
        """Finds a queued resource by its name, whoever made it; None where there is none."""
        with self._sentences(f"The state of {resource_id} cannot be had"):
            try:
                name = f"{parent}/queuedResources/{resource_id}"
                return self._resource(self._client.get_queued_resource(name=name, retry=self._retry))
            except self._exceptions.NotFound:
                return None

    def jobs(self, parent: str) -> list[Resource]:
        """Lists the queued resources that jobs of this tool have, oldest first.

        Args:
          parent: "projects/P/locations/Z".
        """
        with self._sentences("Jobs cannot be listed"):
            found = map(self._resource, self._client.list_queued_resources(parent=parent, retry=self._retry))
            return sorted((resource for resource in found if resource.job), key=lambda resource: resource.create_time)

    def node(self, parent: str, node_id: str) -> NodeState | None:
        """Looks at a node; None where there is none (yet, or any more)."""
        with self._sentences(f"The state of {node_id} cannot be had"):
            try:
                node = self._client.get_node(name=f"{parent}/nodes/{node_id}", retry=self._retry)
            except self._exceptions.NotFound:
                return None
        return NodeState(node.state.name, node.health.name, node.health_description)

    def delete(self, parent: str, resource_id: str) -> None:
        """Deletes a queued resource with its node, and waits until it has gone; one that is not there is no error."""
        with self._sentences(f"{resource_id} was not deleted"), contextlib.suppress(self._exceptions.NotFound):
            request = self._tpu.DeleteQueuedResourceRequest(name=f"{parent}/queuedResources/{resource_id}", force=True)
            self._done(self._client.delete_queued_resource(request, retry=self._retry))

    def _done(self, operation) -> None:
        # One that takes longer goes on without us, and the resource's state tells of it.
        with contextlib.suppress(concurrent.futures.TimeoutError):
            operation.result(timeout=self._timeout)

    def _resource(self, found) -> Resource:
        nodes = found.tpu.node_spec
        node = nodes[0].node if nodes else self._tpu.Node()
        return Resource(
            found.name,
            node.labels.get(JOB_LABEL, ""),
            node.metadata.get(RECORD_KEY, ""),
            node.accelerator_type,
            "spot" if "spot" in found else "reserved" if "guaranteed" in found else "on-demand",
            found.state.state.name,
            explain(found.state.failed_data.error.message),
            found.create_time.isoformat() if found.create_time else "",
        )


def explain(message: str) -> str:
    """Adds the mend to what Cloud TPU says of a refusal; returns it as one phrase without a full stop."""
    said = " ".join(message.split()).rstrip(".")
    lower = said.lower()
    if "capacity" in lower or "stockout" in lower:
        return f"{said}: try another zone, provisioning, or a smaller slice; or wait"
    if "quota" in lower:
        return f"{said}: ask for quota of this TPU type in this zone (spot has its own), or take a smaller slice"
    return said
