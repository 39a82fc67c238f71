"""What can go wrong between a client and a model server, as exceptions whose message is one line."""


class ServingError(Exception):
    """Base of all of them: which server, model and signature, what went wrong, what to do."""


class ModelNotFound(ServingError):
    """The server has no such model, version or label."""


class ServerNotReady(ServingError):
    """Nobody answers there, or the model is still being loaded. The only error after which a client tries again."""


class BadRequest(ServingError):
    """The inputs don't fit the signature, or the model refuses their values."""


class TooLarge(ServingError):
    """A message over the limit of the server or of the client."""


class DeadlineExceeded(ServingError):
    """The answer did not come in time."""


class NotSupported(ServingError):
    """The server does not offer the call."""


class Cancelled(ServingError):
    """The caller gave the request up."""


class ServerFailed(ServingError):
    """Everything else: an error inside the server, a broken connection, an answer that is none."""


def in_one_line(text: str, longest: int = 400) -> str:
    """The first line of what a server or a library says, cut where it gets long."""
    first = (text.strip().splitlines() or ["no reason given"])[0].strip()
    return first if len(first) <= longest else first[:longest] + " ..."
