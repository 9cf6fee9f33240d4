"""Everything that can go wrong on purpose, as one tree.

    ServiceError
    ├── RequestMalformed      the body or the query cannot be parsed
    ├── InputInvalid          parsed, but a field has the wrong shape, type or range
    ├── BodyTooLarge          more bytes than the service accepts
    ├── MediaTypeUnsupported  the body's format is none that this call reads
    ├── NotAcceptable         the answer has none of the formats that were asked for
    ├── NotFound              no such address
    │   └── ModelNotFound     no such model or version
    ├── MethodNotAllowed      the address exists, the method does not
    ├── CapabilityMissing     the model exists and cannot do this
    ├── NotReady              models are still being loaded
    ├── QueueFull             so much waits that this would end too late
    ├── Draining              the service is shutting down
    ├── DeadlineExceeded      no answer within the time that the caller gave it
    ├── EngineFailed          the graph ran and failed
    │   └── NotANumber        it ran, and an answer is NaN
    ├── BundleInvalid         a bundle breaks the contract
    └── DeviceUnavailable     the device that was asked for cannot run the graphs

A code is stable and for programs; the detail is for people: what was expected, what came,
what to do. Which HTTP status a class has is known to `service.api.problems` alone.
"""

from typing import ClassVar


class ServiceError(Exception):
    """An error with a stable code, a sentence, and the field it is about.

    Args:
        detail: What was expected, what came, what to do.
        field: Name of the request field or manifest entry at fault, if there is one.
    """

    code: ClassVar[str]

    def __init__(self, detail: str, *, field: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field


class RequestMalformed(ServiceError):
    """The body or the query cannot be parsed."""

    code = "malformed"


class InputInvalid(ServiceError):
    """A field was read and has the wrong name, shape, type or range."""

    code = "input_invalid"


class BodyTooLarge(ServiceError):
    """The request carries more bytes than the service accepts."""

    code = "body_too_large"


class MediaTypeUnsupported(ServiceError):
    """The body's format is none that this call reads."""

    code = "media_type_unsupported"


class NotAcceptable(ServiceError):
    """The answer has none of the formats that were asked for."""

    code = "not_acceptable"


class NotFound(ServiceError):
    """There is nothing at this address."""

    code = "not_found"


class ModelNotFound(NotFound):
    """No model has this name, or it has no such version."""

    code = "model_not_found"


class MethodNotAllowed(ServiceError):
    """The address exists, but not for this HTTP method."""

    code = "method_not_allowed"


class CapabilityMissing(ServiceError):
    """The model exists and cannot do what was asked, whatever the input."""

    code = "capability_missing"


class NotReady(ServiceError):
    """The models are not loaded yet."""

    code = "not_ready"


class QueueFull(ServiceError):
    """So much work waits that this would end too late. It was not begun; ask again later.

    Args:
        detail: As of every error.
        retry_after_s: When the queue is expected to have room.
    """

    code = "queue_full"

    def __init__(self, detail: str, *, retry_after_s: int) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Draining(ServiceError):
    """The service is shutting down and takes nothing new."""

    code = "draining"


class DeadlineExceeded(ServiceError):
    """No answer within the time that the caller, or the operator, allowed for it."""

    code = "deadline_exceeded"


class EngineFailed(ServiceError):
    """A graph failed at run time: a bug, or a broken device."""

    code = "engine_failed"


class NotANumber(EngineFailed):
    """A graph answered NaN. Whose fault that is depends on who chose the row.

    Args:
        detail: As of every error.
        output: Which output.
        row: The first row in which it stands.
    """

    def __init__(self, detail: str, *, output: str, row: int) -> None:
        super().__init__(detail)
        self.output = output
        self.row = row


class BundleInvalid(ServiceError):
    """A bundle breaks the contract of docs/bundle.md."""

    code = "bundle_invalid"


class DeviceUnavailable(ServiceError):
    """The device that was asked for cannot be proved to run the graphs."""

    code = "device_unavailable"
