"""A fake of Cloud TPU on localhost, over gRPC: queued resources and nodes, with faults on demand."""

import collections
import concurrent.futures
import contextlib
import datetime
import threading
from collections.abc import Callable, Iterator

import grpc
from google.cloud import tpu_v2
from google.longrunning import operations_pb2
from google.protobuf import any_pb2, empty_pb2
from google.rpc import status_pb2

# An error message of Cloud TPU.
QUOTA = "Quota limit 'TPUV3CoresPerProjectPerZone' has been exceeded. Limit: 8"
State = tpu_v2.QueuedResourceState.State
NodeState = tpu_v2.Node.State


class FakeCloud:
    """A zone that accepts every request, unless told otherwise.

    Attributes:
      resources: queued resources by name.
      nodes: nodes by name.
      calls: names of the methods that were called, failed calls included.
      faults: functions of the gRPC context by (method, "before" or "after"): each is called once, before the method is
        served, or after it and instead of the response.
      refusal: (code, message) with which the creation of queued resources fails; None if it succeeds.
    """

    def __init__(self):
        self.resources: dict[str, tpu_v2.QueuedResource] = {}
        self.nodes: dict[str, tpu_v2.Node] = {}
        self.calls: list[str] = []
        self.faults: dict[tuple[str, str], collections.deque[Callable]] = collections.defaultdict(collections.deque)
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        self._requests: dict[str, operations_pb2.Operation] = {}
        self._operations: dict[str, operations_pb2.Operation] = {}
        self._lock = threading.RLock()

    # For tests.

    def fail(self, method: str, code: grpc.StatusCode, message: str, times: int = 1, when: str = "before") -> None:
        """Makes the next calls of a method fail; with `when="after"` they are served, and the response is lost."""
        self.faults[method, when].extend([lambda context: context.abort(code, message)] * times)

    def id_states(self) -> dict[str, str]:
        """State of each queued resource, by its id."""
        with self._lock:
            return {name.rpartition("/")[2]: found.state.state.name for name, found in self.resources.items()}

    def set_state(self, resource_id: str, state: State, error: str = "") -> None:
        """Changes a queued resource's state; ACTIVE creates its node, SUSPENDED deletes it."""
        with self._lock:
            name = next(name for name in self.resources if name.endswith("/" + resource_id))
            resource = self.resources[name]
            resource.state = tpu_v2.QueuedResourceState(state=state)
            if error:
                resource.state.failed_data = tpu_v2.QueuedResourceState.FailedData(
                    error=status_pb2.Status(code=8, message=error)
                )
            for spec in resource.tpu.node_spec:
                node_name = f"{spec.parent}/nodes/{spec.node_id}"
                if state == State.ACTIVE:
                    node = tpu_v2.Node(spec.node)
                    node.name, node.state, node.health = node_name, NodeState.READY, tpu_v2.Node.Health.HEALTHY
                    self.nodes[node_name] = node
                elif state == State.SUSPENDED:
                    self.nodes.pop(node_name, None)

    def script_of(self, resource_id: str) -> str:
        """The startup script of a queued resource's hosts."""
        with self._lock:
            name = next(name for name in self.resources if name.endswith("/" + resource_id))
            return self.resources[name].tpu.node_spec[0].node.metadata["startup-script"]

    # The services, by the names of their methods.

    def CreateQueuedResource(self, request, context):
        request = tpu_v2.CreateQueuedResourceRequest.wrap(request)
        if request.request_id in self._requests:
            return self._requests[request.request_id]
        name = f"{request.parent}/queuedResources/{request.queued_resource_id}"
        if name in self.resources:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, f"Resource '{name}' already exists")
        if self.refusal is not None:
            code, message = self.refusal
            return self._operation(error=status_pb2.Status(code=code.value[0], message=message))
        resource = tpu_v2.QueuedResource(request.queued_resource)
        resource.name = name
        resource.create_time = datetime.datetime.now(datetime.UTC)
        self.resources[name] = resource
        self.set_state(request.queued_resource_id, State.WAITING_FOR_RESOURCES)
        operation = self._operation(response=tpu_v2.QueuedResource.pb(resource))
        self._requests[request.request_id] = operation
        return operation

    def GetQueuedResource(self, request, context):
        return tpu_v2.QueuedResource.pb(self._found(self.resources, request.name, context))

    def ListQueuedResources(self, request, context):
        del context
        parent = request.parent.removesuffix("-")
        found = [tpu_v2.QueuedResource.pb(each) for name, each in self.resources.items() if name.startswith(parent)]
        # Two per page.
        start = int(request.page_token or 0)
        answer = tpu_v2.ListQueuedResourcesResponse.pb()()
        answer.queued_resources.extend(found[start : start + 2])
        answer.next_page_token = str(start + 2) if start + 2 < len(found) else ""
        return answer

    def DeleteQueuedResource(self, request, context):
        resource = self._found(self.resources, request.name, context)
        specs = resource.tpu.node_spec
        has_nodes = any(f"{spec.parent}/nodes/{spec.node_id}" in self.nodes for spec in specs)
        if has_nodes and not request.force:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "The queued resource has nodes; use force.")
        for spec in specs:
            self.nodes.pop(f"{spec.parent}/nodes/{spec.node_id}", None)
        del self.resources[request.name]
        return self._operation(response=empty_pb2.Empty())

    def GetNode(self, request, context):
        return tpu_v2.Node.pb(self._found(self.nodes, request.name, context))

    def GetOperation(self, request, context):
        operation = self._found(self._operations, request.name, context)
        operation.done = True
        return operation

    @staticmethod
    def _found(there: dict, name: str, context):
        if name not in there:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Resource '{name}' was not found")
        return there[name]

    def _operation(self, response=None, error=None) -> operations_pb2.Operation:
        """Makes an operation that is pending when it is returned, and done when it is polled."""
        name = f"projects/p/locations/z/operations/{len(self._operations)}"
        finished = operations_pb2.Operation(name=name, error=error)
        if response is not None:
            packed = any_pb2.Any()
            packed.Pack(response)
            finished = operations_pb2.Operation(name=name, response=packed)
        self._operations[name] = finished
        return operations_pb2.Operation(name=name)

    def _handler(self, method: str, request_type, response_type) -> grpc.RpcMethodHandler:
        def serve(request, context):
            with self._lock:
                self.calls.append(method)
                if self.faults[method, "before"]:
                    self.faults[method, "before"].popleft()(context)
                answer = getattr(self, method)(request, context)
                if self.faults[method, "after"]:
                    self.faults[method, "after"].popleft()(context)
                return answer

        return grpc.unary_unary_rpc_method_handler(serve, request_type.FromString, response_type.SerializeToString)

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        """Serves on a free port; yields the endpoint."""
        operation = operations_pb2.Operation
        methods = {
            "CreateQueuedResource": (tpu_v2.CreateQueuedResourceRequest.pb(), operation),
            "GetQueuedResource": (tpu_v2.GetQueuedResourceRequest.pb(), tpu_v2.QueuedResource.pb()),
            "ListQueuedResources": (tpu_v2.ListQueuedResourcesRequest.pb(), tpu_v2.ListQueuedResourcesResponse.pb()),
            "DeleteQueuedResource": (tpu_v2.DeleteQueuedResourceRequest.pb(), operation),
            "GetNode": (tpu_v2.GetNodeRequest.pb(), tpu_v2.Node.pb()),
        }
        tpu = {name: self._handler(name, *types) for name, types in methods.items()}
        operations = {"GetOperation": self._handler("GetOperation", operations_pb2.GetOperationRequest, operation)}
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler("google.cloud.tpu.v2.Tpu", tpu),
                grpc.method_handlers_generic_handler("google.longrunning.Operations", operations),
            )
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.stop(None).wait()
