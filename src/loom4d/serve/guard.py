"""What stands before every request: who may ask, from where, and what the answer lets a browser do."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import socket
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loom4d.serve.settings import Settings, is_loopback
from loom4d.serve.store import Store

COOKIE = "loom4d"
SESSIONS = 64  # browsers that stay logged in; the oldest is forgotten first
OPEN = ("/login", "/api/login", "/api/health", "/static/")  # without a token
UPLOAD = "/api/uploads"  # the one place that takes large bodies
BODY = 65_536  # bytes of any other
SAFE = ("GET", "HEAD")
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "media-src 'self'",
        "connect-src 'self'",
        "frame-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class Tokens:
    """Who may ask. Secrets are compared by their digests, in constant time; only digests are kept."""

    def __init__(self, store: Store, needed: bool):
        self.store, self.needed = store, needed
        self.known = store.secrets() if needed else {}

    def first(self, anew: bool) -> str | None:
        """A new token if there is none yet, or another is wished; else None: it was shown when it was made."""
        if not self.needed or ("token" in self.known and not anew):
            return None
        token = secrets.token_urlsafe(32)
        self.store.forget_secrets()  # the sessions of an old token end with it
        self._keep("token", token)
        return token

    def _keep(self, name: str, secret: str) -> None:
        self.store.keep_secret(name, digest(secret))
        self.known = {**self.known, name: digest(secret)}

    def is_token(self, given: str) -> bool:
        return hmac.compare_digest(digest(given), self.known.get("token", ""))

    def session(self) -> str:
        """A new secret for a browser's cookie."""
        secret = secrets.token_urlsafe(32)
        self._keep(f"session {digest(secret)[:16]}", secret)
        sessions = [name for name in self.known if name.startswith("session")]
        for name in sessions[:-SESSIONS]:
            self.store.forget_secret(name)
            self.known = {kept: one for kept, one in self.known.items() if kept != name}
        return secret

    def admits(self, headers: Headers) -> bool:
        """Whether a request carries the token, or the cookie of a session."""
        if not self.needed:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(given.strip()):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        given = digest(cookie.value) if cookie else ""
        # Every session is compared, so that the time tells nothing of which one is near.
        matches = [hmac.compare_digest(given, one) for name, one in self.known.items() if name.startswith("session")]
        return any(matches)


def host_names(settings: Settings) -> set[str]:
    """Names under which this server may be asked. An address needs no name: DNS cannot be turned against one."""
    own = (
        {"localhost"}
        if is_loopback(settings.host)
        else {"localhost", socket.gethostname().lower(), settings.host.lower()}
    )
    return own | {name.lower() for name in settings.allowed_hosts}


class Guard:
    """An ASGI layer: host, origin and token are checked, and every answer carries the headers."""

    def __init__(self, app: ASGIApp, settings: Settings, tokens: Tokens):
        self.app, self.tokens = app, tokens
        self.names, self.loopback = host_names(settings), is_loopback(settings.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("content-security-policy", POLICY)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refusal = self.refusal(scope)
        await (refusal or self.app)(scope, receive, guarded)

    def refusal(self, scope: Scope) -> Response | None:
        """Why a request is not answered, or None."""
        headers, path = Headers(scope=scope), scope["path"]
        host = headers.get("host", "")
        if not self.is_ours(host):
            return refused(421, f"this server is not called {host[:80]!r}; start it with --allowed-hosts to let it be")
        if scope["method"] not in SAFE and not same_origin(headers, scope["scheme"], host):
            return refused(403, "a page of another site may not do this")
        if path != UPLOAD and (reason := unbounded(headers)):
            return refused(413, reason)
        if path in OPEN or path.startswith(OPEN[-1]) or self.tokens.admits(headers):
            return None
        if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            return RedirectResponse("/login", 303)
        return refused(401, "log in with the link that the server printed when it first started")

    def is_ours(self, host: str) -> bool:
        name = (urlsplit(f"//{host}").hostname or "") if valid_host(host) else ""
        if name in self.names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback if self.loopback else True


def unbounded(headers: Headers) -> str:
    """Why a request's body may not be read whole, or an empty string: an upload alone is read in pieces."""
    if "transfer-encoding" in headers:
        return "say the length of what you send"
    length = headers.get("content-length", "0")
    return "" if length.isdecimal() and int(length) <= BODY else f"at most {BODY} bytes are taken here"


def valid_host(host: str) -> bool:
    try:
        urlsplit(f"//{host}").port  # noqa: B018 (raises on what is no port)
    except ValueError:
        return False
    return bool(host) and not set(host) & set("/?#@\\ ")


def same_origin(headers: Headers, scheme: str, host: str) -> bool:
    """Whether a browser says that the request comes from this very site; what is no browser says nothing."""
    origin = headers.get("origin")
    if origin is not None:
        return origin.lower() == f"{scheme}://{host}".lower()
    return headers.get("sec-fetch-site", "none") in ("same-origin", "none")


def refused(status: int, reason: str, **more: Any) -> JSONResponse:
    return JSONResponse({"error": reason, **more}, status)


def viewer_policy(policies: Iterable[str]) -> str:
    """The viewer page's own policy, and a sandbox without this site's origin: it can neither ask nor read anything."""
    return "; ".join(["sandbox allow-scripts allow-downloads", *policies, "frame-ancestors 'self'"])
