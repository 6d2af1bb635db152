"""The small server behind the page (extra ``[label]``)."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
)
from starlette.routing import Route

from sb3_pmpo.feedback.answers import AnswerLog
from sb3_pmpo.feedback.clips import ClipSet

COOKIE = "sb3_pmpo_token_{port}"  # a browser has one jar for all ports of a host
#: Nothing is loaded from elsewhere, and no other page may frame this one.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'unsafe-inline' 'self'; "
    "script-src 'unsafe-inline' 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Page:
    """What the routes answer.

    :param clips: what is shown.
    :param answers: where answers go.
    :param command: what learns from the answers, shown at the end.
    :param finish: called when the person says that they are done.
    """

    def __init__(
        self, clips: ClipSet, answers: AnswerLog, command: str, finish: Callable[[], None]
    ) -> None:
        self.clips, self.answers, self.command, self.finish = clips, answers, command, finish

    def state(self) -> dict[str, Any]:
        """Describe what the page shows."""
        current, counts = self.answers.current, self.answers.counts()
        return {
            "total": len(self.clips.names),
            "done": len(self.answers.answers),
            "counts": counts,
            "current": current,
            "following": self._following(current),
            "about": self.clips.about,
            "command": self.command,
        }

    def _following(self, current: str | None) -> str | None:
        """Name the clip after this one, which the page fetches meanwhile."""
        answers = self.answers.answers
        left = [name for name in self.clips.names if name not in answers and name != current]
        return left[0] if left else None

    async def index(self, request: Request) -> Response:
        """Send the page."""
        text = files("sb3_pmpo.feedback").joinpath("page.html").read_text(encoding="utf-8")
        return HTMLResponse(text)

    async def get_state(self, request: Request) -> Response:
        """Send the state."""
        return JSONResponse(self.state())

    async def post_answer(self, request: Request) -> Response:
        """Take an answer; it is on the disk when the response goes out."""
        given = await _json(request)
        clip, answer = given.get("clip"), given.get("answer")
        if not isinstance(clip, str) or not isinstance(answer, str):
            return JSONResponse({"error": "clip and answer must be text"}, 400)
        try:
            self.answers.answer(clip, answer)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse(self.state())

    async def post_undo(self, request: Request) -> Response:
        """Take the last answer back."""
        await _json(request)
        self.answers.undo()
        return JSONResponse(self.state())

    async def post_finish(self, request: Request) -> Response:
        """End the program."""
        await _json(request)
        self.finish()
        return JSONResponse(self.state())

    async def video(self, request: Request) -> Response:
        """Send a clip that is in the set; any other path is refused."""
        try:
            path = self.clips.video(request.path_params["name"].removesuffix(".mp4"))
        except KeyError:
            return PlainTextResponse("there is no such clip", 404)
        if not path.is_file():
            return PlainTextResponse(f"{path.name} is gone from {path.parent}: record anew", 404)
        # Long enough for the page to find again what it fetched in advance.
        return FileResponse(
            path, media_type="video/mp4", headers={"Cache-Control": "private, max-age=60"}
        )


async def _json(request: Request) -> dict[str, Any]:
    """Read an object. Another site's page cannot send this type without being asked first."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/json":
        raise _RefusedError("send application/json", 415)
    try:
        given = await request.json()
    except ValueError as error:
        raise _RefusedError("this is not JSON", 400) from error
    if not isinstance(given, dict):
        raise _RefusedError("send an object", 400)
    return given


class _RefusedError(Exception):
    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.text, self.status = text, status


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, _RefusedError)  # it is registered for this class
    return JSONResponse({"error": error.text}, error.status)


def _routes(page: Page) -> list[Route]:
    return [
        Route("/", page.index),
        Route("/api/state", page.get_state),
        Route("/api/answer", page.post_answer, methods=["POST"]),
        Route("/api/undo", page.post_undo, methods=["POST"]),
        Route("/api/finish", page.post_finish, methods=["POST"]),
        Route("/clips/{name}", page.video),
    ]


def make_app(
    clips: ClipSet,
    answers: AnswerLog,
    *,
    command: str,
    finish: Callable[[], None],
    token: str | None = None,
) -> Starlette:
    """Make the server's application.

    :param clips: what is shown.
    :param answers: where answers go.
    :param command: what learns from them.
    :param finish: ends the program.
    :param token: what every request has to bring, in the address or as the cookie that the first
        one gets; None on the loopback, where the address's name is checked instead.
    """

    async def guard(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        refused = _refused_host(request) if token is None else _refused_token(request, token)
        response = refused or await call_next(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if refused is None and token is not None:
            response.set_cookie(_cookie(request), token, httponly=True, samesite="strict")
        return response

    return Starlette(
        routes=_routes(Page(clips, answers, command, finish)),
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=guard)],
        exception_handlers={_RefusedError: _refuse},
    )


def _refused_host(request: Request) -> Response | None:
    """Refuse names that another site made point here, which browsers would let read the page."""
    host = request.headers.get("host", "")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if is_loopback(name.strip("[]")):
        return None
    return PlainTextResponse(f"{host!r} is no name of this machine's loopback", 403)


def _cookie(request: Request) -> str:
    return COOKIE.format(port=request.url.port or 80)


def _refused_token(request: Request, token: str) -> Response | None:
    given = request.query_params.get("token") or request.cookies.get(_cookie(request)) or ""
    if hmac.compare_digest(given.encode(), token.encode()):
        return None
    return PlainTextResponse("open the address that sb3-pmpo label printed, with its token", 403)
