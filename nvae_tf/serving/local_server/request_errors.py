"""Why a request is refused, in the words that both protocols share: gRPC's codes."""

import grpc

# Longer ones would not fit into the headers of an answer.
LONGEST_MESSAGE = 1000

_CODES_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


class RequestError(Exception):
    """A request that is answered with an error.

    Args:
      code: what kind of error.
      message: for the client's user.
    """

    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(message[:LONGEST_MESSAGE])
        self.code = code


def invalid(message: str) -> RequestError:
    """An error of the inputs."""
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, message)


def request_error(error: Exception) -> RequestError:
    """The answer to an error of any kind; TensorFlow's have the same codes as gRPC."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, MemoryError):
        return RequestError(grpc.StatusCode.RESOURCE_EXHAUSTED, "out of memory")
    code = _CODES_BY_NUMBER.get(getattr(error, "error_code", None), grpc.StatusCode.INTERNAL)
    message = getattr(error, "message", None)
    return RequestError(code, _reason(message) if message else f"{type(error).__name__}: {error}")


def _reason(message: str) -> str:
    """TensorFlow's reason, without the heading and the lines of Python that a session's error begins with."""
    lines = [line for line in message.splitlines() if line.strip()]
    first = 1 if lines[0].startswith("Graph execution error") else 0
    nodes = [number for number, line in enumerate(lines) if line.startswith("Node: ")]
    return "\n".join(lines[max([first, *(number + 1 for number in nodes)]) :] or lines)
