"""What a page under test did besides what it showed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from playwright.sync_api import ConsoleMessage, Page, Route


@dataclass
class Watch:
    """Requests to other origins, which are refused; errors; dialogs."""

    foreign: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, page: Page, origin: str) -> Watch:
        """Watch a page that is about to be opened."""
        watch = cls()

        def refuse(route: Route) -> None:
            watch.foreign.append(route.request.url)
            route.abort()

        # By a pattern: the page's own requests need not pass through this process.
        page.context.route(re.compile(f"^(?!{re.escape(origin)}/|data:|blob:)"), refuse)
        page.on("console", lambda m: watch._take(m))
        page.on("pageerror", lambda error: watch.errors.append(str(error)))

        def dismiss(dialog: object) -> None:
            watch.dialogs.append(dialog.message)  # type: ignore[attr-defined]
            dialog.dismiss()  # type: ignore[attr-defined]

        page.on("dialog", dismiss)
        page.context.on("page", lambda other: other is page or watch.foreign.append(other.url))
        return watch

    def _take(self, message: ConsoleMessage) -> None:
        """Errors, without the browser's own line about a request that the server refused."""
        refused = message.text.startswith("Failed to load resource: the server responded")
        if message.type == "error" and not (refused and "/v1/" in message.location["url"]):
            self.errors.append(message.text)
