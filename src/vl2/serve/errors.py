"""Errors in OpenAI's shape: one line that names the value, the expectation and the remedy.

No address, no path and no message of a library stands in them.
"""

from __future__ import annotations

import math
import reprlib
from typing import Any

from starlette.responses import JSONResponse

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    500: "server_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""OpenAI's `type` of each status that is used."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 99
_SHORT.maxlist = _SHORT.maxdict = 20
"""Of a value of many megabytes no more is written than is shown."""
CLIENT_LEFT = 499
"""Status that nobody reads, for logs and metrics: nginx's number."""


class ApiError(Exception):
    """A refused or failed request.

    Attributes:
        status: HTTP status.
        code: a stable word that programs may test.
        message: one line for people.
        param: path of the field that is meant, such as "messages[0].content[1]".
        retry_after: seconds after which another try makes sense.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = " ".join(message.split())
        self.param = param
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {
            "error": {
                "message": self.message,
                "type": KINDS[self.status],
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def response(self) -> JSONResponse:
        """The whole answer."""
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


class ClientGone(Exception):
    """Nobody waits for the answer any longer."""


def refused(param: str | None, message: str, code: str = "invalid_request") -> ApiError:
    """A request that can never be answered as it is."""
    return ApiError(400, code, message, param=param)


def server_error() -> ApiError:
    """A mistake of ours, of which only the log tells more."""
    told = "the server failed at this request: report it by its x-request-id"
    return ApiError(500, "server_error", told)


def shutting_down() -> ApiError:
    """The server is being stopped."""
    return ApiError(
        503,
        "shutting_down",
        "the server is being stopped: send the request to another one, or later",
        retry_after=5,
    )


def shown(value: object) -> str:
    """A client's value as it may stand in a message: short, on one line."""
    text = " ".join(_SHORT.repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
